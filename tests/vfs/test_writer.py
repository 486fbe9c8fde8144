"""What is dirty leaves in parts: memory stays bounded, and a part that fails costs nothing else."""

import os
import random
from typing import Any
from unittest import mock

import pytest
import trio
import trio.testing

from mountfs.errors import Fault, FsError
from mountfs.inline import WAITING, attempt, finish
from mountfs.meta.ops.read import Opening
from mountfs.meta.ops.setattr import SetAttr
from mountfs.meta.ops.slices import Garbage
from mountfs.meta.ops.volumes import CloseSlices
from mountfs.meta.ops.write import Write
from mountfs.types import KIB, ROOT, SLICE_BYTES_MAX, SUPERUSER, SliceId
from mountfs.vfs import filesystem, writer
from mountfs.vfs.filesystem import Filesystem
from mountfs.vfs.handles import Handle

PART = 256 * KIB


async def opened(fs: Filesystem, name: bytes = b"file") -> Handle:
    _, handle = await fs.create(ROOT, name, os.O_RDWR, 0o644, 0, SUPERUSER)
    return handle


async def write(fs: Filesystem, handle: Handle, data: bytes, offset: int = 0) -> None:
    for at in range(0, len(data), PART):
        await fs.write(handle, offset + at, memoryview(data[at : at + PART]))


async def test_a_flush_that_fails_half_way_keeps_the_rest_dirty_and_readable(
    fs: Filesystem, chunks: Any
) -> None:
    handle = await opened(fs)
    data = os.urandom(3 * SLICE_BYTES_MAX)
    await write(fs, handle, data)
    chunks.slices_max = 2
    with mock.patch.object(writer, "LANDING_BYTES", SLICE_BYTES_MAX), pytest.raises(FsError):
        await fs.flush(handle, 0)
    assert fs.writer.dirty_bytes == handle.file.dirty.bytes == SLICE_BYTES_MAX
    assert bytes(await fs.read(handle, 0, len(data))) == data
    chunks.slices_max = 100
    await fs.flush(handle, 0)
    assert fs.writer.dirty_bytes == 0
    assert not fs.writer.unwritten
    assert len(chunks.slices) == 3
    assert bytes(await fs.read(handle, 0, len(data))) == data


async def test_who_waits_for_a_flush_that_ends_before_he_does_goes_on(fs: Filesystem) -> None:
    handle = await opened(fs)
    await write(fs, handle, b"data")
    handle.file.flushing = True
    waiting = fs.fsync(handle)
    assert attempt(waiting) is WAITING
    handle.file.flushing = False
    fs.writer._announce()
    with trio.fail_after(10):
        await finish(waiting)
    assert not handle.file.unwritten


async def test_an_answer_that_is_older_than_a_flush_does_not_say_how_long_the_file_is(
    fs: Filesystem,
) -> None:
    handle = await opened(fs)
    await write(fs, handle, b"one")
    await fs.fsync(handle)
    read = fs._meta.read

    async def overtaken(query: Any) -> Any:
        answer = await read(query)
        if isinstance(query, Opening):
            await write(fs, handle, b"two", 3)
            await fs.fsync(handle)
        return answer

    with mock.patch.object(fs._meta, "read", overtaken):
        await fs._look_again(handle.file)
    assert handle.file.size == 6
    assert handle.file.is_stale
    await fs._look_again(handle.file)
    assert handle.file.size == 6
    assert not handle.file.is_stale


async def test_what_is_read_is_not_older_than_a_write_that_was_answered_meanwhile(
    fs: Filesystem,
) -> None:
    handle = await opened(fs)
    await write(fs, handle, b"old" * 50_000)
    await fs.fsync(handle)
    read = fs.reader._chunks.read

    async def overtaken(*asked: Any) -> Any:
        fs.reader._chunks.read = read  # type: ignore[method-assign]
        data = bytes(await read(*asked))
        await write(fs, handle, b"new")
        return data

    fs.reader._chunks.read = overtaken  # type: ignore[method-assign]
    assert bytes(await fs.read(handle, 0, 6)) == b"newold"


async def test_memory_stays_bounded_and_who_waits_goes_on_with_the_first_that_has_landed(
    fs: Filesystem, chunks: Any
) -> None:
    fs.writer._dirty_bytes_max = 2 * SLICE_BYTES_MAX
    one, other = await opened(fs), await opened(fs, b"other")
    data = os.urandom(5 * SLICE_BYTES_MAX)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, fs.writer.dirty_bytes)
            await trio.lowlevel.checkpoint()

    with (
        trio.fail_after(10),
        mock.patch.object(writer, "LANDING_BYTES", SLICE_BYTES_MAX),
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            async with trio.open_nursery() as writers:
                writers.start_soon(write, fs, one, data)
                writers.start_soon(write, fs, other, data)
            nursery.cancel_scope.cancel()
    assert 0 < most <= 2 * SLICE_BYTES_MAX
    for handle in (one, other):
        await fs.flush(handle, 0)
        assert bytes(await fs.read(handle, 0, len(data))) == data


async def test_a_writer_without_room_gets_the_error_of_the_flush(
    fs: Filesystem, chunks: Any
) -> None:
    fs.writer._dirty_bytes_max = 2 * SLICE_BYTES_MAX
    handle = await opened(fs)
    await write(fs, handle, bytes(2 * SLICE_BYTES_MAX))
    chunks.slices_max = 0
    with trio.fail_after(10), pytest.raises(FsError) as caught:
        await write(fs, handle, b"more", 2 * SLICE_BYTES_MAX)
    assert caught.value.fault is Fault.NO_SPACE
    assert fs.writer.dirty_bytes == 2 * SLICE_BYTES_MAX


async def test_privileges_are_dropped_by_a_write_during_a_flush(
    fs: Filesystem, chunks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = await opened(fs)
    await write(fs, handle, bytes(SLICE_BYTES_MAX))
    store = chunks.write

    async def meanwhile(*asked: Any) -> Any:
        monkeypatch.setattr(chunks, "write", store)
        await fs.write(handle, 0, memoryview(b"x"), drop_privileges=True)
        return await store(*asked)

    monkeypatch.setattr(chunks, "write", meanwhile)
    await fs.flush(handle, 0)
    assert handle.file.drop_privileges, "the write that came meanwhile is not flushed yet"


@pytest.mark.parametrize("seed", range(8))
async def test_what_is_known_of_a_layout_is_what_the_metadata_says(
    fs: Filesystem, seed: int
) -> None:
    dice = random.Random(seed)
    handle = await opened(fs)
    file, model = handle.file, bytearray()
    for _ in range(60):
        offset, size = dice.randrange(400 * KIB), dice.choice([1, 100, 4 * KIB, 100 * KIB])
        data = dice.randbytes(size)
        model.extend(bytes(max(offset + size - len(model), 0)))
        model[offset : offset + size] = data
        await fs.write(handle, offset, memoryview(data))
        if dice.random() < 0.5:
            await fs.fsync(handle)
        elif dice.random() < 0.5:
            await fs.flush(handle, 0)
        if dice.random() < 0.1:
            del model[dice.randrange(len(model)) :]
            await fs.setattr(SetAttr(ino=file.ino, cred=SUPERUSER, size=len(model)))
        at = dice.randrange(400 * KIB)
        assert bytes(await fs.read(handle, at, 50 * KIB)) == model[at : at + 50 * KIB]
        if file.layouts:
            kept = dict(file.layouts)
            file.forget_layouts()
            assert kept == {chunk: await fs.reader.layout(file, chunk) for chunk in kept}
            file.layouts = kept


async def test_of_slices_that_wait_for_a_network_several_are_on_their_way(
    meta: Any, chunks: Any
) -> None:
    on_their_way = most = 0
    write_one = chunks.write

    async def write_slowly(*args: Any) -> Any:
        nonlocal on_their_way, most
        on_their_way += 1
        most = max(most, on_their_way)
        await trio.testing.wait_all_tasks_blocked()
        on_their_way -= 1
        return await write_one(*args)

    async def durable() -> None:
        meta.sync_log()

    fs = Filesystem(meta, chunks, durable=durable, shared=True)
    handle = await opened(fs)
    data = bytearray(64 * 3 * 4096)
    with mock.patch.object(chunks, "write", write_slowly):
        for at in range(64):  # with holes between them: so many slices
            page = os.urandom(4096)
            data[3 * at * 4096 : (3 * at + 1) * 4096] = page
            await fs.write(handle, 3 * at * 4096, memoryview(page))
        await fs.flush(handle, 0)
    assert most == filesystem.SLICES_AT_ONCE
    assert len(chunks.slices) == 64
    read = bytes(await fs.read(handle, 0, len(data)))
    assert read == data[: len(read)]


async def test_when_one_of_several_slices_fails_the_flush_does_and_all_stays_dirty(
    meta: Any, chunks: Any
) -> None:
    async def durable() -> None:
        meta.sync_log()

    fs = Filesystem(meta, chunks, durable=durable, shared=True)
    handle = await opened(fs)
    for at in range(64):
        await fs.write(handle, 3 * at * 4096, memoryview(bytes([at]) * 4096))
    chunks.slices_max = 40
    with pytest.raises(FsError):
        await fs.flush(handle, 0)
    assert fs.writer.dirty_bytes == handle.file.dirty.bytes == 64 * 4096
    chunks.slices_max = 1000
    await fs.flush(handle, 0)
    assert fs.writer.dirty_bytes == 0
    for at in range(64):
        assert bytes(await fs.read(handle, 3 * at * 4096, 4096)) == bytes([at]) * 4096


def closing(monkeypatch: pytest.MonkeyPatch, meta: Any, chunks: Any, times: int) -> list[int]:
    """So often, when a slice is written, all names that there are have just become too old.
    Returns the names that slices are written under.
    """
    store, names = chunks.write, []

    async def write(slice_id: SliceId, *how: Any) -> Any:
        names.append(slice_id)
        stored = await store(slice_id, *how)
        if len(names) <= times:
            await meta.propose(CloseSlices(SliceId(1 << 60)))
        return stored

    monkeypatch.setattr(chunks, "write", write)
    return names


async def test_slices_that_come_too_late_are_written_again_under_new_names(
    fs: Filesystem, meta: Any, chunks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = await opened(fs)
    data = os.urandom(200 * KIB)
    names = closing(monkeypatch, meta, chunks, 2)
    await write(fs, handle, data)
    await fs.flush(handle, 0)
    assert len(set(names)) == 3
    assert fs.writer.dirty_bytes == 0
    handle.file.forget_layouts()
    assert bytes(await fs.read(handle, 0, len(data))) == data
    garbage = [row[0] for row in await meta.read(Garbage(100))]
    assert garbage == names[:2], "they are of no use to anybody"
    (piece,) = await fs.reader.layout(handle.file, 0)
    assert piece.slice_id == names[2]


async def test_slices_that_always_come_too_late_stay_dirty_and_readable(
    fs: Filesystem, meta: Any, chunks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = await opened(fs)
    data = os.urandom(200 * KIB)
    with monkeypatch.context() as late:
        names = closing(late, meta, chunks, 1_000)
        await write(fs, handle, data)
        with pytest.raises(FsError) as caught:
            await fs.flush(handle, 0)
    assert caught.value.fault is Fault.SLICE_EXPIRED
    assert len(names) == writer.WRITES_MAX
    assert fs.writer.dirty_bytes == len(data)
    assert bytes(await fs.read(handle, 0, len(data))) == data
    await fs.flush(handle, 0)
    handle.file.forget_layouts()
    assert bytes(await fs.read(handle, 0, len(data))) == data


async def test_names_that_were_reserved_long_ago_are_not_used(
    fs: Filesystem, chunks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = await opened(fs)
    await write(fs, handle, bytes(100 * KIB))
    await fs.flush(handle, 0)
    monkeypatch.setattr(writer, "RESERVED_S", -1.0)
    await write(fs, handle, bytes(100 * KIB))
    await fs.flush(handle, 0)
    first, second = chunks.slices
    assert second - first >= writer.SLICES_RESERVED


@pytest.mark.parametrize("fault", [Fault.TIMED_OUT, Fault.NO_SPACE])
async def test_slices_are_only_given_back_when_it_is_known_that_no_file_has_them(
    fs: Filesystem, meta: Any, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    """A command that was not answered in time may still be carried out."""
    handle = await opened(fs)
    await write(fs, handle, bytes(100 * KIB))
    propose = meta.propose

    async def unanswered(command: Any) -> Any:
        if isinstance(command, Write):
            raise FsError(fault)
        return await propose(command)

    with monkeypatch.context() as silent:
        silent.setattr(meta, "propose", unanswered)
        with pytest.raises(FsError):
            await fs.flush(handle, 0)
    assert len(await meta.read(Garbage(100))) == (fault is not Fault.TIMED_OUT)
    await fs.flush(handle, 0)
