"""What two mounts of one filesystem see of each other where they lock, and where they open."""

import os
from typing import Any

import pytest
import trio

from mountfs.errors import Fault, FsError
from mountfs.meta.local import LocalMeta
from mountfs.meta.locks import EOF, POSIX, Lock
from mountfs.types import KIB, MIB, ROOT, SUPERUSER, Ino
from mountfs.vfs.filesystem import Filesystem
from mountfs.vfs.handles import Handle

RW = os.O_RDWR


class Mount:
    """A program on it is the owner `number`."""

    def __init__(self, meta: LocalMeta, chunks: Any, number: int) -> None:
        async def durable() -> None:
            meta.sync_log()

        async def drop_cached(ino: Ino) -> None:
            self.dropped += 1

        self.dropped = 0
        self.fs = Filesystem(meta, chunks, durable=durable, shared=True)
        self.fs.drop_cached = drop_cached
        self.lock = Lock(POSIX, self.fs.owner(number), 0, EOF, True, number)
        self.handle: Handle

    async def take(self) -> None:
        await self.fs.take_lock(self.handle, self.lock, wait=False)

    async def release(self) -> None:
        await self.fs.release_lock(self.handle, POSIX, self.lock.owner)

    async def write(self, data: bytes) -> None:
        await self.fs.write(self.handle, 0, memoryview(data))

    async def content(self) -> bytes:
        return bytes(await self.fs.read(self.handle, 0, MIB))


@pytest.fixture
async def two(meta: LocalMeta, chunks: Any) -> tuple[Mount, Mount]:
    """Both have the same file open, which is empty."""
    one, other = Mount(meta, chunks, 1), Mount(meta, chunks, 2)
    _, one.handle = await one.fs.create(ROOT, b"file", RW, 0o644, 0, SUPERUSER)
    other.handle = await other.fs.open(one.handle.file.ino, RW)
    return one, other


@pytest.mark.parametrize("size", [10, 300 * KIB])
@pytest.mark.parametrize("how", ["unlock", "close"])
async def test_what_was_written_under_a_lock_is_seen_under_the_next_one(
    two: tuple[Mount, Mount], how: str, size: int
) -> None:
    one, other = two
    assert await other.content() == b""
    await one.take()
    await one.write(b"x" * size)
    if how == "unlock":
        await one.release()
    else:
        await one.fs.flush(one.handle, 1)
    await other.take()
    assert await other.content() == b"x" * size
    assert other.dropped == 1


async def test_an_open_file_that_is_let_go_lets_others_see_first(two: tuple[Mount, Mount]) -> None:
    one, other = two
    await one.take()
    await one.write(b"text")
    await one.fs.release(one.handle)
    await other.take()
    assert await other.content() == b"text"


async def test_the_kernel_keeps_what_nobody_has_changed(two: tuple[Mount, Mount]) -> None:
    one, _ = two
    for _ in range(3):
        await one.take()
        await one.release()
    assert one.dropped <= 1


async def test_who_is_interrupted_when_he_has_a_lock_already_has_it(
    two: tuple[Mount, Mount],
) -> None:
    one, other = two
    with trio.CancelScope() as scope:
        scope.cancel()
        await one.take()
    assert not scope.cancelled_caught
    with pytest.raises(FsError):
        await other.take()


async def test_a_lock_is_not_kept_where_what_others_wrote_cannot_be_seen(
    two: tuple[Mount, Mount], meta: LocalMeta, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two

    async def silent(query: object) -> object:
        raise FsError(Fault.TIMED_OUT)

    monkeypatch.setattr(meta, "read", silent)
    with pytest.raises(FsError) as refused:
        await one.take()
    assert refused.value.fault is Fault.TIMED_OUT
    monkeypatch.undo()
    await other.take()


async def test_a_lock_is_released_although_nothing_can_be_written(
    two: tuple[Mount, Mount], chunks: Any
) -> None:
    one, other = two
    await one.take()
    await one.write(b"x" * 300 * KIB)
    chunks.full = True
    with pytest.raises(FsError) as refused:
        await one.fs.flush(one.handle, 1)
    assert refused.value.fault is Fault.NO_SPACE
    await other.take()


async def test_a_name_that_somebody_else_has_removed_is_looked_up_again(
    two: tuple[Mount, Mount],
) -> None:
    """The kernel believes in names for a while, and must not open what has none any more."""
    one, other = two
    ino = one.handle.file.ino
    await one.fs.unlink(ROOT, b"file", SUPERUSER)
    again = await other.fs.open(ino, RW)  # it has it open: /proc/self/fd leads there
    await other.fs.release(again)
    await other.fs.release(other.handle)
    with pytest.raises(FsError) as refused:
        await other.fs.open(ino, RW)
    assert refused.value.fault is Fault.STALE
    assert (await one.fs.open(ino, RW)).file is one.handle.file
