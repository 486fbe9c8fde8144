"""What a session takes with it when it ends: exactly those open files are told that have lost
something.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing

from mountfs.errors import Fault, FsError
from mountfs.meta.local import LocalMeta
from mountfs.meta.locks import EOF, FLOCK, POSIX, Lock
from mountfs.meta.ops.reap import Orphans, Reap
from mountfs.meta.ops.session import EndSession, OpenSession
from mountfs.types import KIB, MIB, ROOT, SUPERUSER
from mountfs.vfs.filesystem import Filesystem
from mountfs.vfs.handles import Handle

RW = os.O_RDWR


class Mount:
    """A filesystem, and the end of its session."""

    def __init__(self, fs: Filesystem, meta: LocalMeta) -> None:
        self.fs = fs
        self.meta = meta
        self.stale: set[int] = set()
        fs.on_lost = self.stale.update

    def evict(self) -> None:
        """As the client does it: another session, of which the filesystem is told."""
        before = self.meta.session
        self.meta.session = 0
        self.meta.propose_now(EndSession(before))
        self.meta.session = self.meta.propose_now(OpenSession())
        self.fs.session_lost(before)
        for session, ino in Orphans(before, 100).read(self.meta._machine.tree):
            self.meta.propose_now(Reap(session, (ino,)))

    async def make(self, name: str, data: bytes = b"", *, flushed: bool = True) -> Handle:
        _, handle = await self.fs.create(ROOT, name.encode(), RW, 0o644, 0, SUPERUSER)
        if data:
            await self.fs.write(handle, 0, memoryview(data))
        if flushed:
            await self.fs.fsync(handle)
        return handle

    async def open(self, handle: Handle, flags: int = RW) -> Handle:
        return await self.fs.open(handle.file.ino, flags)

    def lock(
        self, number: int = 1, *, flavor: int = POSIX, start: int = 0, stop: int = EOF
    ) -> Lock:
        return Lock(flavor, self.fs.owner(number), start, stop, True, 100 + number)

    async def refuses(self, handle: Handle, fault: Fault = Fault.LOST) -> bool:
        """Whether it refuses everything, with that fault, as long as it is open; True, or an
        assertion fails where it does some of it.
        """
        fs = self.fs
        calls = (
            lambda: fs.read(handle, 0, 1),
            lambda: fs.write(handle, 0, memoryview(b"x")),
            lambda: fs.fsync(handle),
            lambda: fs.flush(handle, 1),
            lambda: fs.take_lock(handle, self.lock(9), wait=False),
            lambda: fs.allocate(handle, 0, 0, 1),
            lambda: fs.seek(handle, 0, os.SEEK_DATA),
        )
        found = set()
        for call in (*calls, *calls):
            try:
                await call()
            except FsError as error:
                found.add(error.fault)
            else:
                found.add(None)
        assert found == {fault} or fault not in found, found
        return found == {fault}


@pytest.fixture
def mount(chunks: Any, meta: LocalMeta) -> Iterator[Mount]:
    async def durable() -> None:
        meta.sync_log()

    yield Mount(Filesystem(meta, chunks, durable=durable, shared=True), meta)
    meta.close()


async def content(fs: Filesystem, handle: Handle) -> bytes:
    return bytes(await fs.read(handle, 0, MIB))


async def test_who_has_lost_nothing_goes_on(mount: Mount) -> None:
    handle = await mount.make("a", b"text")
    mount.evict()
    assert await content(mount.fs, handle) == b"text"
    await mount.fs.write(handle, 4, memoryview(b" and more"))
    await mount.fs.fsync(handle)
    await mount.fs.release(handle)
    assert mount.fs.lost == 0
    assert mount.stale == set()


@pytest.mark.parametrize("size", [10, 300 * KIB])
async def test_bytes_that_were_not_written_are_lost_and_their_writer_is_told(
    mount: Mount, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    writer = await mount.make("a", b"old" * 100)
    reader = await mount.open(writer, os.O_RDONLY)
    silent = await mount.open(writer)
    await mount.fs.write(writer, 0, memoryview(b"x" * size))
    assert (await content(mount.fs, reader))[:1] == b"x"
    mount.evict()
    assert await mount.refuses(writer)
    assert f"{size:,} bytes that were written to inode {writer.file.ino}" in caplog.text
    assert mount.stale == {writer.file.ino}
    for other in (reader, silent):
        assert await content(mount.fs, other) == b"old" * 100
    await mount.fs.write(silent, 0, memoryview(b"new"))
    await mount.fs.fsync(silent)
    assert mount.fs.lost == 1
    await mount.fs.release(writer)
    assert mount.fs.lost == 0
    assert mount.fs.writer.dirty_bytes == 0
    again = await mount.open(reader)
    assert await content(mount.fs, again) == b"new" + b"old" * 99


async def test_who_wrote_and_had_it_written_is_told_nothing(mount: Mount) -> None:
    one = await mount.make("a", b"one")
    other = await mount.open(one)
    await mount.fs.write(one, 0, memoryview(b"x"))
    await mount.fs.fsync(one)
    await mount.fs.write(other, 1, memoryview(b"y"))
    mount.evict()
    assert await content(mount.fs, one) == b"xne"
    assert await mount.refuses(other)


async def test_what_is_on_its_way_does_not_land_after_the_end(
    mount: Mount, chunks: Any, nursery: trio.Nursery
) -> None:
    """It was begun in the old session; others may have written since."""
    handle = await mount.make("a", b"old")
    write, go_on = chunks.write, trio.Event()

    async def slow(*args: Any) -> Any:
        await go_on.wait()
        return await write(*args)

    chunks.write = slow
    await mount.fs.write(handle, 0, memoryview(b"x" * 300 * KIB))
    told: list[Fault] = []

    async def sync() -> None:
        try:
            await mount.fs.fsync(handle)
        except FsError as error:
            told.append(error.fault)

    nursery.start_soon(sync)
    await trio.testing.wait_all_tasks_blocked()
    mount.evict()
    fresh = await mount.open(handle)
    await mount.fs.write(fresh, 3, memoryview(b" and new"))
    go_on.set()
    await trio.testing.wait_all_tasks_blocked()
    assert told == [Fault.LOST]
    await mount.fs.fsync(fresh)
    assert await content(mount.fs, fresh) == b"old and new"
    assert mount.fs.writer.dirty_bytes == 0
    assert not mount.fs.writer.unwritten
    assert await mount.refuses(handle)


@pytest.mark.parametrize("flavor", [POSIX, FLOCK])
async def test_a_lock_is_lost_and_who_had_it_is_told(mount: Mount, flavor: int) -> None:
    holder = await mount.make("a", b"text")
    other = await mount.open(holder)
    await mount.fs.take_lock(holder, mount.lock(flavor=flavor), wait=False)
    mount.evict()
    assert await mount.refuses(holder)
    assert await content(mount.fs, other) == b"text"
    await mount.fs.take_lock(other, mount.lock(2, flavor=flavor), wait=False)
    await mount.fs.release(holder)
    assert await mount.fs.test_lock(other.file.ino, mount.lock(3, flavor=flavor)) is not None


async def test_who_waits_for_a_lock_waits_on_in_the_next_session(
    mount: Mount, meta: LocalMeta, nursery: trio.Nursery
) -> None:
    holder = await mount.make("a")
    waiter = await mount.open(holder)
    await mount.fs.take_lock(holder, mount.lock(1), wait=False)
    got: list[Lock] = []

    async def wait() -> None:
        await mount.fs.take_lock(waiter, mount.lock(2), wait=True)
        got.extend(waiter.held)

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    mount.evict()
    await trio.testing.wait_all_tasks_blocked()
    assert got == [mount.lock(2)]
    assert got[0].owner.session == meta.session
    assert await mount.refuses(holder)


async def test_who_has_lost_a_lock_does_not_wait_on_for_more(
    mount: Mount, nursery: trio.Nursery
) -> None:
    handle = await mount.make("a")
    other = await mount.open(handle)
    await mount.fs.take_lock(handle, mount.lock(1, stop=5), wait=False)
    await mount.fs.take_lock(other, mount.lock(2, start=5), wait=False)
    told: list[Fault] = []

    async def wait() -> None:
        try:
            await mount.fs.take_lock(handle, mount.lock(1), wait=True)
        except FsError as error:
            told.append(error.fault)

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    mount.evict()
    await trio.testing.wait_all_tasks_blocked()
    assert told == [Fault.LOST]


async def test_who_has_released_a_lock_has_lost_none(mount: Mount) -> None:
    handle = await mount.make("a", b"text")
    other = await mount.open(handle)
    await mount.fs.take_lock(handle, mount.lock(stop=10), wait=False)
    await mount.fs.take_lock(handle, mount.lock(start=20), wait=False)
    owner = mount.fs.owner(1)
    await mount.fs.release_lock(other, POSIX, owner, 0, 15)  # by another descriptor of the process
    await mount.fs.release_lock(handle, POSIX, owner, 15, EOF)
    mount.evict()
    assert await content(mount.fs, handle) == b"text"


async def test_who_has_released_a_part_has_lost_the_rest(mount: Mount) -> None:
    handle = await mount.make("a", b"text")
    await mount.fs.take_lock(handle, mount.lock(), wait=False)
    await mount.fs.release_lock(handle, POSIX, mount.fs.owner(1), 10, 20)
    mount.evict()
    assert await mount.refuses(handle)


async def test_locks_that_ended_with_another_close_are_not_lost(mount: Mount) -> None:
    handle = await mount.make("a", b"text")
    other = await mount.open(handle)
    await mount.fs.take_lock(handle, mount.lock(1), wait=False)
    await mount.fs.flush(other, 1)  # close(2) of any descriptor of the process
    mount.evict()
    assert await content(mount.fs, handle) == b"text"


async def test_a_file_without_a_name_is_gone(mount: Mount) -> None:
    handle = await mount.make("a", b"text")
    _, unnamed = await mount.fs.tmpfile(ROOT, RW, 0o600, 0, SUPERUSER)
    await mount.fs.unlink(ROOT, b"a", SUPERUSER)
    mount.evict()
    assert await mount.refuses(handle, Fault.STALE)
    assert await mount.refuses(unnamed, Fault.STALE)
    for one in (handle, unnamed):
        await mount.fs.release(one)
    await mount.fs.reap()


async def test_a_file_that_has_a_name_again_is_not(mount: Mount) -> None:
    _, handle = await mount.fs.tmpfile(ROOT, RW, 0o600, 0, SUPERUSER)
    await mount.fs.write(handle, 0, memoryview(b"text"))
    await mount.fs.fsync(handle)
    await mount.fs.link(handle.file.ino, ROOT, b"a", SUPERUSER)
    mount.evict()
    assert await content(mount.fs, handle) == b"text"


async def test_what_nobody_has_open_any_more_is_told_in_the_log(
    mount: Mount, chunks: Any, caplog: pytest.LogCaptureFixture
) -> None:
    handle = await mount.make("a", b"old")
    await mount.fs.write(handle, 0, memoryview(b"x" * 300 * KIB))
    chunks.full = True
    with pytest.raises(FsError):
        await mount.fs.release(handle)
    chunks.full = False
    mount.evict()
    assert "were lost with session" in caplog.text
    assert await content(mount.fs, await mount.open(handle)) == b"old"


async def test_another_end_takes_only_what_was_had_since(mount: Mount) -> None:
    first, second = await mount.make("a", b"text"), await mount.make("b", b"text")
    await mount.fs.take_lock(first, mount.lock(), wait=False)
    mount.evict()
    await mount.fs.take_lock(second, mount.lock(2), wait=False)
    mount.evict()
    assert mount.fs.lost == 2
    third = await mount.open(first)
    assert await content(mount.fs, third) == b"text"
