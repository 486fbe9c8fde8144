"""Files as a door sees them, on metadata and slices that are fakes in memory."""

import os
import stat
from typing import Any

import pytest
import trio
import trio.testing

from mountfs.errors import Fault, FsError
from mountfs.meta.local import LocalMeta
from mountfs.meta.locks import EOF, POSIX, Lock
from mountfs.meta.ops.reap import Reap
from mountfs.meta.ops.setattr import SetAttr
from mountfs.meta.records import ino_of, mode_of, size_of, unpack_attributes
from mountfs.types import CHUNK_BYTES, KIB, MIB, ROOT, SUPERUSER, Ino
from mountfs.vfs.filesystem import Filesystem
from mountfs.vfs.handles import Handle

RW = os.O_RDWR


async def make(fs: Filesystem, name: bytes = b"file", data: bytes = b"") -> Handle:
    _, handle = await fs.create(ROOT, name, RW, 0o644, 0, SUPERUSER)
    if data:
        await fs.write(handle, 0, memoryview(data))
    return handle


async def content(fs: Filesystem, handle: Handle) -> bytes:
    return bytes(await fs.read(handle, 0, 100 * MIB))


async def size(fs: Filesystem, handle: Handle) -> int:
    return size_of(await fs.getattr(handle.file.ino))


@pytest.mark.parametrize("length", [1, 4 * KIB, 4 * KIB + 1, 300 * KIB, 5 * MIB + 3])
async def test_bytes_are_read_before_and_after_they_are_flushed(
    fs: Filesystem, length: int
) -> None:
    data = os.urandom(length)
    handle = await make(fs, data=data)
    assert await content(fs, handle) == data
    await fs.flush(handle, 0)
    assert not handle.file.unwritten
    assert await content(fs, handle) == data
    assert await size(fs, handle) == length


async def test_a_small_file_needs_no_volume(fs: Filesystem, chunks: Any) -> None:
    await fs.flush(await make(fs, data=b"x" * 4096), 0)
    assert chunks.slices == {}


async def test_stat_sees_what_is_not_flushed(fs: Filesystem) -> None:
    handle = await make(fs, data=b"x" * 100 * KIB)
    seen = unpack_attributes(await fs.getattr(handle.file.ino))
    assert seen.size == 100 * KIB
    assert seen.blocks == 200


async def test_a_write_over_a_chunk_border_is_read_back(fs: Filesystem) -> None:
    handle = await make(fs)
    data = os.urandom(200 * KIB)
    await fs.write(handle, CHUNK_BYTES - 100 * KIB, memoryview(data))
    await fs.flush(handle, 0)
    assert bytes(await fs.read(handle, CHUNK_BYTES - 100 * KIB, 200 * KIB)) == data
    assert bytes(await fs.read(handle, 0, 10)) == bytes(10)


async def test_what_was_cut_off_reads_as_zeros_when_the_file_grows_again(fs: Filesystem) -> None:
    handle = await make(fs, data=b"x" * 200 * KIB)
    ino = handle.file.ino
    await fs.setattr(SetAttr(ino=ino, cred=SUPERUSER, size=100))
    await fs.setattr(SetAttr(ino=ino, cred=SUPERUSER, size=1000))
    assert await content(fs, handle) == b"x" * 100 + bytes(900)


async def test_a_time_that_was_set_survives_the_flush_of_earlier_writes(fs: Filesystem) -> None:
    handle = await make(fs, data=b"x")
    await fs.setattr(SetAttr(ino=handle.file.ino, cred=SUPERUSER, mtime=5_000_000_007))
    await fs.release(handle)
    seen = unpack_attributes(await fs.lookup(ROOT, b"file", SUPERUSER))
    assert (seen.mtime_s, seen.mtime_ns) == (5, 7)


async def test_a_write_that_does_not_fit_says_so_at_once(fs: Filesystem, chunks: Any) -> None:
    handle = await make(fs)
    chunks.full = True
    with pytest.raises(FsError) as caught:
        await fs.write(handle, 0, memoryview(b"x"))
    assert caught.value.fault is Fault.NO_SPACE


async def test_what_could_not_be_flushed_stays_readable_and_is_tried_again(
    fs: Filesystem, chunks: Any
) -> None:
    data = os.urandom(100 * KIB)
    handle = await make(fs, data=data)
    chunks.full = True
    with pytest.raises(FsError):
        await fs.flush(handle, 0)
    assert await content(fs, handle) == data
    assert fs.writer.dirty_bytes == len(data)
    chunks.full = False
    await fs.flush(handle, 0)
    assert await content(fs, handle) == data
    assert fs.writer.dirty_bytes == 0


async def test_an_unlinked_file_lives_until_it_is_closed(fs: Filesystem) -> None:
    handle = await make(fs, data=b"still here")
    await fs.unlink(ROOT, b"file", SUPERUSER)
    assert await content(fs, handle) == b"still here"
    inodes = (await fs.statfs())[2]
    await fs.release(handle)
    assert (await fs.statfs())[2] == inodes - 1


async def test_a_rename_takes_the_bytes_along_before_the_name(fs: Filesystem) -> None:
    handle = await make(fs, b"new", b"version 2")
    await fs.rename(ROOT, b"new", ROOT, b"old", 0, SUPERUSER)
    assert not handle.file.unwritten  # a crash now finds the new name with its bytes


async def test_holes_are_found(fs: Filesystem) -> None:
    handle = await make(fs)
    await fs.write(handle, MIB, memoryview(b"x" * MIB))
    assert await fs.seek(handle, 0, os.SEEK_DATA) == MIB
    assert await fs.seek(handle, 0, os.SEEK_HOLE) == 0
    assert await fs.seek(handle, MIB, os.SEEK_HOLE) == 2 * MIB
    with pytest.raises(FsError) as caught:
        await fs.seek(handle, 2 * MIB, os.SEEK_DATA)
    assert caught.value.fault is Fault.PAST_END


async def test_copying_a_range_copies_no_bytes(fs: Filesystem, chunks: Any) -> None:
    data = os.urandom(MIB)
    source = await make(fs, b"source", data)
    target = await make(fs, b"target")
    assert await fs.copy_range(source, 1000, target, 5, MIB) == MIB - 1000
    assert await content(fs, target) == bytes(5) + data[1000:]
    assert len(chunks.slices) == 1


async def test_a_write_takes_set_user_id_away_at_once(fs: Filesystem) -> None:
    handle = await make(fs)
    ino = handle.file.ino
    await fs.setattr(SetAttr(ino=ino, cred=SUPERUSER, mode=0o6755))
    await fs.write(handle, 0, memoryview(b"x"), drop_privileges=True)
    assert stat.S_IMODE(mode_of(await fs.getattr(ino))) == 0o755


async def test_a_lock_in_the_way_is_refused_and_goes_with_its_handle(fs: Filesystem) -> None:
    one, other = await make(fs), await fs.open(Ino(2), RW)
    lock = Lock(POSIX, fs.owner(1), 0, EOF, True, 1)
    rival = Lock(POSIX, fs.owner(2), 5, 6, False, 2)
    await fs.take_lock(one, lock, wait=False)
    with pytest.raises(FsError) as caught:
        await fs.take_lock(other, rival, wait=False)
    assert caught.value.fault is Fault.WOULD_BLOCK
    await fs.release(one)
    await fs.take_lock(other, rival, wait=False)


async def test_a_circle_of_waiting_is_refused(fs: Filesystem, nursery: trio.Nursery) -> None:
    one, other = await make(fs, b"a"), await make(fs, b"b")
    mine = Lock(POSIX, fs.owner(1), 0, 1, True, 1)
    yours = Lock(POSIX, fs.owner(2), 0, 1, True, 2)
    await fs.take_lock(one, mine, wait=False)
    await fs.take_lock(other, yours, wait=False)

    async def wait_for_the_other() -> None:
        await fs.take_lock(other, mine, wait=True)

    nursery.start_soon(wait_for_the_other)
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(FsError) as caught:
        await fs.take_lock(one, yours, wait=True)
    assert caught.value.fault is Fault.DEADLOCK
    await fs.release_lock(other, POSIX, fs.owner(2))
    await trio.testing.wait_all_tasks_blocked()
    assert await fs.test_lock(other.file.ino, yours) is not None


async def test_a_listing_ends_although_names_come_meanwhile(fs: Filesystem) -> None:
    for number in range(5):
        await fs.make(ROOT, b"%d" % number, stat.S_IFREG | 0o644, 0, 0, SUPERUSER)
    seen, after = [], 0
    while listing := await fs.readdir(ROOT, after, 1, with_attributes=False):
        seen += [name for _, _, _, name, _ in listing if name not in (b".", b"..")]
        after = listing[-1][0]
        await fs.make(ROOT, b"new%d" % after, stat.S_IFREG | 0o644, 0, 0, SUPERUSER)
    assert sorted(seen)[:5] == [b"0", b"1", b"2", b"3", b"4"]
    assert len(seen) == 5


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC])
async def test_a_write_through_a_synchronous_descriptor_is_durable(
    fs: Filesystem, meta: LocalMeta, flag: int
) -> None:
    _, handle = await fs.create(ROOT, b"file", RW | flag, 0o644, 0, SUPERUSER)
    await fs.write(handle, 0, memoryview(b"x" * 100 * KIB))
    assert not handle.file.unwritten
    assert meta.synced == meta.applied


async def test_bytes_of_a_file_that_is_gone_are_given_up(fs: Filesystem, meta: LocalMeta) -> None:
    handle = await make(fs, data=b"x" * 100 * KIB)
    await fs.unlink(ROOT, b"file", SUPERUSER)
    await meta.propose(Reap(meta.session, (handle.file.ino,)))
    with pytest.raises(FsError) as caught:
        await fs.flush(handle, 0)
    assert caught.value.fault is Fault.STALE
    assert fs.writer.dirty_bytes == 0
    assert not fs.writer.unwritten


async def test_a_full_disk_takes_no_new_names_but_gives_up_old_ones(
    fs: Filesystem, chunks: Any
) -> None:
    await make(fs)
    chunks.full = True
    with pytest.raises(FsError) as caught:
        await fs.mkdir(ROOT, b"directory", 0o755, 0, SUPERUSER)
    assert caught.value.fault is Fault.NO_SPACE
    await fs.unlink(ROOT, b"file", SUPERUSER)


async def test_the_reply_of_create_is_what_stat_says(fs: Filesystem) -> None:
    attributes, _ = await fs.create(ROOT, b"file", RW, 0o640, 0o022, SUPERUSER)
    assert attributes == await fs.getattr(ino_of(attributes))


async def test_what_others_may_change_is_opened_and_read_with_one_question(
    meta: LocalMeta, chunks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def durable() -> None:
        meta.sync_log()

    fs = Filesystem(meta, chunks, durable=durable, shared=True)
    contents = {b"slice": os.urandom(9_000), b"small": b"content", b"empty": b""}
    inos = {}
    for name, data in contents.items():
        attributes, handle = await fs.create(ROOT, name, os.O_RDWR, 0o644, 0, SUPERUSER)
        inos[name] = ino_of(attributes)
        await fs.write(handle, 0, memoryview(data))
        await fs.flush(handle, 0)
        await fs.release(handle)
    asked = []
    read = meta.read

    async def count(query: Any) -> Any:
        asked.append(type(query).__name__)
        return await read(query)

    monkeypatch.setattr(meta, "read", count)
    for name, data in contents.items():
        asked.clear()
        handle = await fs.open(inos[name], os.O_RDONLY)
        assert bytes(await fs.read(handle, 0, 10_000)) == data
        assert asked[0] == "Opening"
        assert "GetLayout" not in asked
        await fs.release(handle)
