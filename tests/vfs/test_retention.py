"""Retention as a door sees it: what is refused, when files are retained by themselves, and what
becomes of bytes that come too late.
"""

import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from mountfs.errors import Fault, FsError
from mountfs.meta.local import LocalMeta
from mountfs.meta.ops.default_retention import SetDefault
from mountfs.meta.ops.retention import Kept, SetRetention
from mountfs.meta.records import NS, ino_of
from mountfs.meta.retention import Default, Mode
from mountfs.types import ROOT, SUPERUSER, Cred, Ino
from mountfs.vfs import retention_words
from mountfs.vfs.filesystem import Filesystem
from mountfs.vfs.handles import Handle

RW = os.O_RDWR
DAY = 86_400 * NS
USER = Cred(5, 5, (), True)


@pytest.fixture
async def fs(meta: LocalMeta, chunks: Any) -> AsyncIterator[Filesystem]:
    async def durable() -> None:
        meta.sync_log()

    yield Filesystem(meta, chunks, durable=durable, retention=lambda: meta.retention)
    meta.close()


async def make(fs: Filesystem, name: bytes = b"file", data: bytes = b"") -> Handle:
    _, handle = await fs.create(ROOT, name, RW, 0o644, 0, USER)
    if data:
        await fs.write(handle, 0, memoryview(data))
    return handle


async def close(fs: Filesystem, handle: Handle) -> None:
    await fs.flush(handle, 0)
    await fs.release(handle)


async def keep(meta: LocalMeta, ino: Ino, mode: Mode = Mode.COMPLIANCE) -> None:
    await meta.propose(SetRetention(ino=ino, mode=mode, duration=DAY, cred=SUPERUSER))


async def mode_of(meta: LocalMeta, ino: Ino) -> Mode:
    return (await meta.read(Kept(ino)))[0].mode


async def refused(act: Any) -> None:
    with pytest.raises(FsError) as caught:
        await act
    assert caught.value.fault is Fault.NOT_PERMITTED


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_APPEND])
async def test_a_retained_file_is_opened_for_reading_only(
    fs: Filesystem, meta: LocalMeta, flags: int
) -> None:
    handle = await make(fs, data=b"hello")
    await close(fs, handle)
    ino = handle.file.ino
    await keep(meta, ino)
    if flags == os.O_APPEND:
        flags |= os.O_WRONLY
    await refused(fs.open(ino, flags))
    again = await fs.open(ino, os.O_RDONLY)
    assert bytes(await fs.read(again, 0, 100)) == b"hello"
    assert fs.writer.dirty_bytes == 0


async def test_who_has_it_open_is_told_that_its_bytes_came_too_late(
    fs: Filesystem, meta: LocalMeta
) -> None:
    handle = await make(fs, data=b"hello")
    await fs.flush(handle, 0)
    reader = await fs.open(handle.file.ino, os.O_RDONLY)
    await keep(meta, handle.file.ino)
    await fs.write(handle, 0, memoryview(b"J"))
    await refused(fs.flush_all())  # behind its back
    assert fs.writer.dirty_bytes == 0
    assert not fs.writer.unwritten
    await refused(fs.write(handle, 0, memoryview(b"J")))
    await refused(fs.fsync(handle))
    await refused(fs.flush(handle, 0))
    await fs.release(handle)
    await close(fs, reader)
    again = await fs.open(handle.file.ino, os.O_RDONLY)
    assert bytes(await fs.read(again, 0, 100)) == b"hello"
    assert not again.unchanged  # the kernel has the other bytes
    await close(fs, again)
    assert (await fs.open(handle.file.ino, os.O_RDONLY)).unchanged


async def test_in_a_tree_that_retains_a_file_is_retained_by_its_last_close(
    fs: Filesystem, meta: LocalMeta
) -> None:
    await meta.propose(SetDefault(ROOT, Default(Mode.COMPLIANCE, DAY), SUPERUSER))
    one = await make(fs)
    await close(fs, one)
    ino = one.file.ino
    assert await mode_of(meta, ino) == Mode.NONE  # nothing was written
    one, two = await fs.open(ino, RW), await fs.open(ino, RW)
    await fs.write(one, 0, memoryview(b"hello"))
    await close(fs, one)
    assert await mode_of(meta, ino) == Mode.NONE
    await fs.write(two, 5, memoryview(b" world"))
    await close(fs, two)
    assert await mode_of(meta, ino) == Mode.COMPLIANCE
    await refused(fs.open(ino, RW))
    await refused(fs.unlink(ROOT, b"file", USER))
    again = await fs.open(ino, os.O_RDONLY)
    assert bytes(await fs.read(again, 0, 100)) == b"hello world"


async def test_what_comes_after_a_close_waits_until_the_file_is_retained(
    fs: Filesystem, meta: LocalMeta, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    await meta.propose(SetDefault(ROOT, Default(Mode.COMPLIANCE, DAY), SUPERUSER))
    handle = await make(fs, data=b"hello")
    await fs.flush(handle, 0)
    go_on, read = trio.Event(), meta.read

    async def slow(query: Any) -> Any:
        if type(query).__name__ == "AtClose":
            await go_on.wait()
        return await read(query)

    monkeypatch.setattr(meta, "read", slow)
    nursery.start_soon(fs.release, handle)
    await trio.testing.wait_all_tasks_blocked()
    tried = 0

    async def try_it(act: Any) -> None:
        nonlocal tried
        await refused(act)
        tried += 1

    nursery.start_soon(try_it, fs.open(handle.file.ino, RW))
    nursery.start_soon(try_it, fs.unlink(ROOT, b"file", USER))
    nursery.start_soon(try_it, fs.rename(ROOT, b"file", ROOT, b"moved", 0, USER))
    await trio.testing.wait_all_tasks_blocked()
    assert tried == 0
    go_on.set()
    await trio.testing.wait_all_tasks_blocked()
    assert tried == 3


async def test_retention_is_read_and_set_as_attributes(fs: Filesystem, meta: LocalMeta) -> None:
    handle = await make(fs, data=b"hello")
    ino = handle.file.ino

    async def get(name: str) -> bytes | None:
        try:
            return await fs.getxattr(ino, b"mountfs.worm." + name.encode())
        except FsError as error:
            assert error.fault is Fault.NO_ATTRIBUTE, error
            return None

    async def set_(name: str, value: bytes, cred: Cred = USER) -> None:
        await fs.setxattr(ino, b"mountfs.worm." + name.encode(), value, 0, False, cred)

    assert [await get(name) for name in ("mode", "until", "hold")] == [None] * 3
    await set_("until", b"+1d")
    assert await get("mode") == b"governance"
    assert await get("hold") == b"off"
    assert not handle.file.unwritten  # what was written before is kept too
    await set_("until", b"2099-01-31")
    assert await get("until") == b"2099-01-31T00:00:00Z"
    await refused(set_("until", b"2098-01-31"))
    await set_("mode", b"compliance")
    await refused(set_("mode", b"governance"))
    await refused(set_("hold", b"on"))
    await set_("hold", b"on", SUPERUSER)
    assert await get("hold") == b"on"
    await refused(set_("until", b"2100-01-31", Cred(6, 6, (), True)))
    assert await fs.listxattr(ino) == ()
    for name, value in (("mode", b"none"), ("until", b"soon"), ("hold", b"1"), ("until", b"+1")):
        with pytest.raises(FsError) as caught:
            await set_(name, value)
        assert caught.value.fault is Fault.INVALID
    with pytest.raises(FsError) as caught:
        await set_("other", b"")
    assert caught.value.fault is Fault.UNSUPPORTED


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0s", 0), ("5min", 300), ("2h", 7200), ("1w", 604_800), ("10y", 3_650 * 86_400)],
)
def test_durations(text: str, seconds: int) -> None:
    assert retention_words.duration(text) == seconds * NS


@pytest.mark.parametrize("text", ["", "5", "d", "-5d", "5 d", "1.5h", "5m", "٣d", "9" * 13 + "y"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(FsError) as caught:
        retention_words.duration(text)
    assert caught.value.fault is Fault.INVALID


@pytest.mark.parametrize("text", ["", "tomorrow", "1960-01-01", "2500-01-01", "2027-13-01"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(FsError) as caught:
        retention_words.moment(text)
    assert caught.value.fault is Fault.INVALID


async def test_attributes_of_a_file_that_is_not_there(fs: Filesystem) -> None:
    with pytest.raises(FsError) as caught:
        await fs.getxattr(Ino(99), b"mountfs.worm.mode")
    assert caught.value.fault is Fault.STALE
    assert ino_of(await fs.getattr(ROOT)) == ROOT
