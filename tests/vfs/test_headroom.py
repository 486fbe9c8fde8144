"""A writer hears of a quota at write(2), the last block can be used, and nothing stays dirty that
was refused.
"""

import os
from typing import Any
from unittest import mock

import pytest
import trio

from mountfs.errors import Fault, FsError
from mountfs.meta.ops.quota import Below, DeleteQuota, Room, SetQuota
from mountfs.meta.ops.setattr import SetAttr
from mountfs.meta.quota import Kind, Limits
from mountfs.meta.records import ino_of, size_of
from mountfs.types import BLOCK_BYTES, KIB, MIB, ROOT, SUPERUSER, Ino
from mountfs.vfs import headroom
from mountfs.vfs.filesystem import FREE_INODES, Filesystem
from mountfs.vfs.handles import Handle


async def tree(fs: Filesystem, meta: Any, **limits: int) -> Ino:
    ino = ino_of(await fs.mkdir(ROOT, b"d", 0o755, 0, SUPERUSER))
    await meta.propose(SetQuota(Kind.TREE, ino, Limits(**limits)))
    return ino


async def opened(fs: Filesystem, parent: Ino, name: bytes = b"file") -> Handle:
    _, handle = await fs.create(parent, name, os.O_RDWR, 0o644, 0, SUPERUSER)
    return handle


async def write(fs: Filesystem, handle: Handle, offset: int, data: bytes) -> None:
    await fs.write(handle, offset, memoryview(data))


async def refused(fs: Filesystem, handle: Handle, offset: int, data: bytes) -> None:
    with pytest.raises(FsError) as caught:
        await write(fs, handle, offset, data)
    assert caught.value.fault is Fault.OVER_QUOTA


@pytest.mark.parametrize("size", [1, BLOCK_BYTES, 32 * KIB])
async def test_write_uses_the_last_block_and_says_when_there_is_none(
    fs: Filesystem, meta: Any, size: int
) -> None:
    directory = await tree(fs, meta, hard_bytes=16 * BLOCK_BYTES)
    handle = await opened(fs, directory)
    step = max(size, BLOCK_BYTES)
    for at in range(0, 16 * BLOCK_BYTES, step):
        await write(fs, handle, at, b"x" * size)
    assert (await meta.read(Below(directory)))[0] == 16 * BLOCK_BYTES
    await refused(fs, handle, 16 * BLOCK_BYTES, b"x")
    assert fs.writer.dirty_bytes == 0
    assert not fs.writer.unwritten
    assert size_of(await fs.getattr(handle.file.ino)) == 16 * BLOCK_BYTES - step + size
    assert bytes(await fs.read(handle, 0, size)) == b"x" * size
    await fs.flush(handle, 0)
    await fs.fsync(handle)


async def test_far_from_the_limit_bytes_stay_in_memory(fs: Filesystem, meta: Any) -> None:
    directory = await tree(fs, meta, hard_bytes=1 << 40)
    handle = await opened(fs, directory)
    await write(fs, handle, 0, bytes(10_000))
    assert fs.writer.dirty_bytes == 10_000


async def test_who_comes_near_writes_through_what_was_kept_first(fs: Filesystem, meta: Any) -> None:
    directory = await tree(fs, meta, hard_bytes=MIB)
    with mock.patch.object(headroom, "FAR_BYTES", 512 * KIB):
        handle = await opened(fs, directory)
        await write(fs, handle, 0, bytes(128 * KIB))
        assert fs.writer.dirty_bytes == 128 * KIB
        await write(fs, handle, 128 * KIB, bytes(512 * KIB))
        assert fs.writer.dirty_bytes == 0
        await refused(fs, handle, 640 * KIB, bytes(512 * KIB))
        await write(fs, handle, 640 * KIB, bytes(384 * KIB))
    assert (await meta.read(Below(directory)))[0] == MIB


async def test_sparse_bytes_count_as_the_blocks_that_they_take(fs: Filesystem, meta: Any) -> None:
    directory = await tree(fs, meta, hard_bytes=MIB)
    with mock.patch.object(headroom, "FAR_BYTES", 0):
        handle = await opened(fs, directory)
        for number in range(MIB // BLOCK_BYTES):
            await write(fs, handle, number * 3 * BLOCK_BYTES, b"x")
        await refused(fs, handle, 1 << 30, b"x")
        await fs.flush(handle, 0)
    assert (await meta.read(Below(directory)))[0] == MIB


async def test_what_is_refused_when_it_is_flushed_is_told_and_is_lost_with_the_last_close(
    fs: Filesystem, meta: Any
) -> None:
    handle = await opened(fs, ROOT)
    await write(fs, handle, 0, bytes(100_000))
    await meta.propose(SetQuota(Kind.USER, 0, Limits(hard_bytes=BLOCK_BYTES)))
    for say in (fs.fsync(handle), fs.flush(handle, 0)):
        with pytest.raises(FsError) as caught:
            await say
        assert caught.value.fault is Fault.OVER_QUOTA
    assert fs.writer.dirty_bytes == 100_000
    await fs.release(handle)
    assert fs.writer.dirty_bytes == 0
    assert not fs.writer.unwritten
    assert size_of(await fs.getattr(handle.file.ino)) == 0


async def test_a_file_that_is_over_its_quota_can_be_cut(fs: Filesystem, meta: Any) -> None:
    handle = await opened(fs, ROOT)
    await write(fs, handle, 0, bytes(100_000))
    await meta.propose(SetQuota(Kind.USER, 0, Limits(hard_bytes=BLOCK_BYTES)))
    await fs.setattr(SetAttr(ino=handle.file.ino, cred=SUPERUSER, size=100))
    assert fs.writer.dirty_bytes == 0
    assert size_of(await fs.getattr(handle.file.ino)) == 100


async def test_full_memory_of_one_who_is_over_his_quota_is_no_matter_of_others(
    fs: Filesystem, meta: Any
) -> None:
    fs.writer._dirty_bytes_max = 200_000
    directory = ino_of(await fs.mkdir(ROOT, b"d", 0o755, 0, SUPERUSER))
    over, free, other = (
        await opened(fs, directory),
        await opened(fs, ROOT, b"free"),
        await opened(fs, ROOT, b"other"),
    )
    await write(fs, over, 0, bytes(100_000))
    await write(fs, free, 0, bytes(100_000))
    await meta.propose(SetQuota(Kind.TREE, directory, Limits(hard_bytes=BLOCK_BYTES)))
    await write(fs, other, 0, bytes(50_000))
    assert fs.writer.dirty_bytes == 150_000


async def test_the_answer_is_asked_for_once_in_a_while_where_it_takes_a_network(
    fs: Filesystem, meta: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    read = meta.read

    async def counted(query: Any) -> Any:
        nonlocal asked
        asked += isinstance(query, Room)
        return await read(query)

    monkeypatch.setattr(meta, "read", counted)
    fs.writer._headroom._keep_s = 1_000.0
    handles = [await opened(fs, ROOT, b"%d" % number) for number in range(10)]
    for handle in handles:
        await write(fs, handle, 0, bytes(10_000))
    assert asked == 1
    fs.writer._headroom._no_quotas_at = -1e9
    await meta.propose(SetQuota(Kind.USER, 0, Limits(hard_bytes=1 << 40)))
    for _ in range(20):
        await write(fs, handles[0], 0, bytes(10_000))
    new = await opened(fs, ROOT, b"new")
    await write(fs, new, 0, bytes(10_000))
    assert asked == 2, "files with the same home and owners share the answer"


async def test_who_was_far_from_limits_does_not_wait_for_a_cluster_without_a_leader(
    fs: Filesystem, meta: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = meta.read

    async def silent(query: Any) -> Any:
        if isinstance(query, Room):
            await trio.sleep_forever()
        return await read(query)

    fs.writer._headroom._keep_s = 1_000.0
    handle = await opened(fs, ROOT)
    monkeypatch.setattr(meta, "read", silent)
    with trio.fail_after(5):
        for _ in range(100):
            await write(fs, handle, 0, bytes(10_000))
    assert fs.writer.dirty_bytes == 10_000


async def test_statfs_shows_the_tree(fs: Filesystem, meta: Any) -> None:
    whole = await fs.statfs()
    assert whole[3] == FREE_INODES
    directory = await tree(fs, meta, hard_bytes=MIB, hard_inodes=10)
    handle = await opened(fs, directory)
    await write(fs, handle, 0, bytes(BLOCK_BYTES))
    for ino in (directory, handle.file.ino):
        assert await fs.statfs(ino) == (MIB, MIB - BLOCK_BYTES, 1, 9)
    assert (await fs.statfs())[0] == whole[0]
    assert (await fs.statfs(Ino(99)))[0] == whole[0]
    await meta.propose(SetQuota(Kind.TREE, directory, Limits(hard_bytes=1, hard_inodes=0)))
    assert await fs.statfs(directory) == (1, 0, 2 + 1, FREE_INODES)
    await meta.propose(DeleteQuota(Kind.TREE, directory))
    assert (await fs.statfs(directory))[0] == whole[0]


async def test_sums_are_told_as_attributes_that_are_not_listed(fs: Filesystem, meta: Any) -> None:
    directory = await tree(fs, meta, hard_bytes=MIB)
    await opened(fs, directory)
    assert await fs.getxattr(directory, b"mountfs.dir.rfiles") == b"1"
    assert await fs.getxattr(directory, b"mountfs.quota.hard_bytes") == b"%d" % MIB
    assert await fs.listxattr(directory) == ()
    with pytest.raises(FsError) as caught:
        await fs.getxattr(ROOT, b"mountfs.quota.hard_bytes")
    assert caught.value.fault is Fault.NO_ATTRIBUTE


async def test_what_was_deleted_just_now_makes_room(meta: Any, chunks: Any) -> None:
    async def durable() -> None:
        meta.sync_log()

    fs = Filesystem(meta, chunks, durable=durable, kernel=True)
    try:
        directory = await tree(fs, meta, hard_bytes=10 * BLOCK_BYTES, hard_inodes=2)
        for name in (b"one", b"two"):
            handle = await opened(fs, directory, name)
            await write(fs, handle, 0, bytes(5 * BLOCK_BYTES))
            await fs.release(handle)
        await refused_name(fs, directory)
        await fs.unlink(directory, b"one", SUPERUSER)
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(forget_soon, fs)
                handle = await opened(fs, directory, b"three")
        await fs.unlink(directory, b"two", SUPERUSER)
        await forget_soon(fs)
        await write(fs, handle, 0, bytes(10 * BLOCK_BYTES))
        await refused(fs, handle, 10 * BLOCK_BYTES, b"x")
        assert (await meta.read(Below(directory)))[:2] == (10 * BLOCK_BYTES, 1)
    finally:
        meta.close()


async def forget_soon(fs: Filesystem) -> None:
    """As the kernel does."""
    await trio.sleep(0.01)
    await fs.forget([ino for ino in fs._orphans if ino not in fs._files])


async def refused_name(fs: Filesystem, parent: Ino) -> None:
    with pytest.raises(FsError) as caught:
        await opened(fs, parent, b"more")
    assert caught.value.fault is Fault.OVER_QUOTA
