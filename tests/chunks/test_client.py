"""The face of the store for tasks: at once when it can, in a thread when it must, syncs shared."""

import errno
import os
import threading

import pytest
import trio
import trio.testing
from crc32c import crc32c

from mountfs.chunks.base import ChunkStore
from mountfs.chunks.client import LocalChunks, Polls
from mountfs.chunks.disk import DiskStore
from mountfs.errors import Fault, FsError
from mountfs.inline import PAUSED, WAITING, attempt, finish
from mountfs.types import SliceId, VolumeId

ONE = VolumeId(1)


@pytest.fixture
def chunks(store: DiskStore) -> LocalChunks:
    return LocalChunks(store)


async def test_what_was_written_is_read(chunks):
    face: ChunkStore = chunks
    small, crc = await face.write(SliceId(1), [b"small ", memoryview(b"slice")])
    assert crc == crc32c(b"small slice")
    large, crc = await face.write(SliceId(2), [bytes(300_000)])
    assert crc == crc32c(bytes(300_000))
    assert await face.read(small, SliceId(1), 3, 9) == b"ll sli"
    assert await face.read(large, SliceId(2), 0, 300_000) == bytes(300_000)
    with pytest.raises(FsError) as caught:
        await face.read(ONE, SliceId(3), 0, 1)
    assert caught.value.fault is Fault.CORRUPT


async def test_what_is_in_memory_needs_no_task(chunks, monkeypatch):
    await chunks.write(SliceId(1), [b"first"])  # makes the volume, and that takes syncs
    assert attempt(chunks.write(SliceId(2), [b"second"])) == (ONE, crc32c(b"second"))
    there = store_answers(monkeypatch, memoryview(b"econd"))
    assert attempt(chunks.read(ONE, SliceId(2), 1, 6)) == there


def store_answers(monkeypatch, data):
    """The page cache of some filesystems cannot be asked without waiting; say what it says."""
    monkeypatch.setattr(DiskStore, "read_now", lambda *args: data)
    return data


async def test_what_may_wait_leaves_first(chunks, monkeypatch):
    for coroutine in (
        chunks.write(SliceId(1), [b"first"]),
        chunks.write(SliceId(2), [bytes(256 * 1024)]),
        chunks.sync(),
    ):
        assert attempt(coroutine) is WAITING
        await finish(coroutine)
    store_answers(monkeypatch, None)
    monkeypatch.setattr("mountfs.chunks.client.POLLED_BYTES", 0)
    coroutine = chunks.read(ONE, SliceId(1), 0, 5)
    assert attempt(coroutine) is WAITING
    assert await finish(coroutine) == b"first"


async def test_a_quick_disk_is_polled_between_requests(chunks, monkeypatch):
    await chunks.write(SliceId(1), [b"first"])
    monkeypatch.setattr(chunks, "_polls", Polls(enabled=True))
    store_answers(monkeypatch, None)
    coroutine = chunks.read(ONE, SliceId(1), 0, 5)
    assert attempt(coroutine) is PAUSED
    there = store_answers(monkeypatch, memoryview(b"first"))
    assert attempt(coroutine) is there


async def test_a_slow_disk_is_left_to_a_thread_and_polled_less(chunks, monkeypatch):
    await chunks.write(SliceId(1), [b"first"])
    monkeypatch.setattr(chunks, "_polls", Polls(enabled=True))
    monkeypatch.setattr("mountfs.chunks.client.POLL_S", 0.0)
    store_answers(monkeypatch, None)
    coroutine = chunks.read(ONE, SliceId(1), 0, 5)
    assert attempt(coroutine) is PAUSED
    assert attempt(coroutine) is WAITING
    assert await finish(coroutine) == b"first"
    next_one = chunks.read(ONE, SliceId(1), 0, 5)
    assert attempt(next_one) is WAITING
    assert await finish(next_one) == b"first"


async def test_a_task_does_not_poll(chunks, monkeypatch):
    await chunks.write(SliceId(1), [b"first"])
    monkeypatch.setattr(chunks, "_polls", Polls(enabled=True))
    store_answers(monkeypatch, None)
    assert await chunks.read(ONE, SliceId(1), 0, 5) == b"first"


def test_polls_that_fail_become_rare():
    polls = Polls(enabled=True)
    skipped = []
    for _ in range(10):
        count = 0
        while not polls.worth_it():
            count += 1
        skipped.append(count)
        polls.failed()
    assert skipped == [0, 1, 3, 7, 15, 31, 63, 127, 255, 255]
    while not polls.worth_it():
        pass
    polls.succeeded()
    assert polls.worth_it()
    assert not Polls(enabled=False).worth_it()


async def test_syncs_are_shared(chunks, monkeypatch):
    begun, go_on = threading.Semaphore(0), threading.Semaphore(0)
    rounds = []

    def sync(store):
        rounds.append(1)
        begun.release()
        assert go_on.acquire(timeout=10)

    monkeypatch.setattr(DiskStore, "sync", sync)
    done = []

    async def one(name):
        await chunks.sync()
        done.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, "first")
        await trio.to_thread.run_sync(begun.acquire)
        for number in range(10):
            nursery.start_soon(one, number)
        await trio.testing.wait_all_tasks_blocked()
        assert len(rounds) == 1
        go_on.release()
        await trio.to_thread.run_sync(begun.acquire)
        assert done == ["first"], "the round under way may have begun before the others wrote"
        go_on.release()
    assert len(rounds) == 2
    assert len(done) == 11


async def test_a_failed_sync_fails_for_all_who_shared_it(chunks, monkeypatch):
    await chunks.write(SliceId(1), [b"first"])
    faults = []

    def fail(fd):
        raise OSError(errno.EIO, "gone")

    async def one():
        with pytest.raises(FsError) as caught:
            await chunks.sync()
        faults.append(caught.value.fault)

    monkeypatch.setattr(os, "fdatasync", fail)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(one)
    assert faults == [Fault.DEVICE] * 5


async def test_who_began_a_sync_ends_it_for_the_others(chunks, monkeypatch):
    rounds = []
    monkeypatch.setattr(DiskStore, "sync", lambda store: rounds.append(1))
    async with trio.open_nursery() as nursery:
        cancelled = trio.CancelScope()

        async def impatient():
            with cancelled:
                await chunks.sync()

        nursery.start_soon(impatient)
        nursery.start_soon(chunks.sync)
        await trio.lowlevel.checkpoint()
        cancelled.cancel()
    assert rounds
    with trio.fail_after(5):
        await chunks.sync()


async def test_compaction_takes_one_volume_at_a_time(chunks, store):
    assert not await chunks.compact_one()
    for one in range(1, 31):
        await chunks.write(SliceId(one), [bytes(100_000)])
    for volume in (1, 2):
        first = volume * 10 - 9
        store.delete({VolumeId(volume): [SliceId(one) for one in range(first, first + 8)]})
    assert await chunks.compact_one()
    assert await chunks.compact_one()
    assert not await chunks.compact_one()
    assert [stats.generation for stats in store.volumes()] == [2, 2, 1]


def test_room_is_what_is_free(chunks, store):
    total, free = chunks.space()
    assert 0 < free <= total
    assert chunks.has_room(free // 2)
    assert not chunks.has_room(total)
