"""Volumes that others name: made, opened, sealed and dropped by order, and filled by many."""

import errno
import os
import random
import threading
from functools import reduce
from pathlib import Path

import pytest

from mountfs.chunks import needle
from mountfs.chunks.config import ChunkConfig
from mountfs.chunks.disk import DiskStore
from mountfs.chunks.index_store import open_index
from mountfs.errors import Fault, FsError
from mountfs.kv.memory import MemoryStore
from mountfs.meta.reports import with_name
from mountfs.types import FIRST_REPLICATED, KIB, MIB, SliceId, VolumeId
from tests.chunks.conftest import HOME, SMALL

V = VolumeId(FIRST_REPLICATED + 5)
W = VolumeId(FIRST_REPLICATED + 9)
SEALED_S = 20.0


def payload(slice_id: int) -> bytes:
    return random.Random(slice_id).randbytes(100 + slice_id * 37 % 3000)


def add(store: DiskStore, *slices: int, volume: VolumeId = V, epoch: int = 0) -> None:
    for one in slices:
        store.append(SliceId(one), [payload(one)], None, volume, epoch)


def put(store: DiskStore, slice_id: int, data: bytes | None = None, volume: VolumeId = V) -> bool:
    parts = [payload(slice_id) if data is None else data]
    return store.put(volume, SliceId(slice_id), parts, needle.checksums(parts))


def read(store: DiskStore, slice_id: int, volume: VolumeId = V) -> bytes:
    return bytes(store.read(volume, SliceId(slice_id), 0, len(payload(slice_id))))


def names(store: DiskStore, volume: VolumeId = V, after: int = 0, limit: int = 1000) -> list[int]:
    return [one for one, _ in store.listing(volume, SliceId(after), limit)]


def flip(store: DiskStore, slice_id: int, into: int = 60, volume: VolumeId = V) -> None:
    found = store.place(volume, SliceId(slice_id))
    assert found is not None
    path, place = found
    data = bytearray(path.read_bytes())
    data[place.offset + into] ^= 4
    path.write_bytes(data)


@pytest.fixture
def fails():
    def check(fault: Fault, work, *what, match: str = ".") -> None:
        with pytest.raises(FsError, match=match) as caught:
            work(*what)
        assert caught.value.fault is fault, caught.value

    return check


def test_a_volume_takes_slices_only_while_it_is_open(store, fails):
    fails(Fault.VOLUME_CLOSED, add, store, 1, match="not open")
    store.open_volume(V, 1)
    store.open_volume(W, 1)
    add(store, 1, 2)
    add(store, 3, volume=W)
    assert store.seal(V).needles == 2
    fails(Fault.VOLUME_CLOSED, add, store, 4, match="sealed")
    add(store, 5, volume=W)
    assert read(store, 2) == payload(2)
    assert (names(store), names(store, W)) == ([1, 2], [3, 5])


def test_a_volume_is_open_in_one_epoch(store, fails):
    store.open_volume(V, 3)
    add(store, 1, epoch=3)

    def late() -> None:
        add(store, 2, epoch=2)

    fails(Fault.VOLUME_CLOSED, late, match="epoch 3, not in 2")
    store.open_volume(V, 3)  # who asks again is told the same
    fails(Fault.BUSY, store.open_volume, V, 2)
    store.open_volume(V, 4)
    fails(Fault.VOLUME_CLOSED, lambda: add(store, 2, epoch=3), match="epoch 4, not in 3")
    add(store, 2, epoch=4)
    assert store.stats(V).epoch == 4


@pytest.mark.parametrize("closed", [True, False])
def test_after_a_restart_no_volume_is_open_and_sealed_ones_stay_sealed(
    store, reopen, fails, closed
):
    store.open_volume(V, 2)
    store.open_volume(W, 2)
    add(store, 1)
    add(store, 1, volume=W)
    store.seal(W)
    store.sync()
    if closed:
        store.close()
    store = reopen()
    fails(Fault.VOLUME_CLOSED, add, store, 2)
    fails(Fault.BUSY, store.open_volume, V, 1, match="later than 1")
    fails(Fault.BUSY, store.open_volume, W, 9, match="sealed")
    store.open_volume(V, 3)
    add(store, 2, epoch=3)
    assert names(store) == [1, 2]


def test_without_its_index_every_volume_is_sealed(store, reopen, fails):
    store.open_volume(V, 1)
    add(store, 1)
    store.sync()
    store = reopen(index=MemoryStore())
    fails(Fault.BUSY, store.open_volume, V, 2, match="sealed")
    assert store.seal(V).needles == 1


def test_sealing_a_volume_that_is_not_there_keeps_it_from_being_opened(store, reopen, fails):
    assert store.seal(V).needles == 0
    for each in (store, reopen()):
        fails(Fault.BUSY, each.open_volume, V, 7)


def test_a_full_volume_is_closed(store, fails):
    store.open_volume(V, 1)
    store.open_volume(W, 1)
    for one in range(1, 4):
        store.append(SliceId(one), [bytes(300 * KIB)], None, V)
    fails(
        Fault.VOLUME_CLOSED,
        lambda: store.append(SliceId(9), [bytes(300 * KIB)], None, V),
        match="full",
    )
    store.append(SliceId(9), [bytes(300 * KIB)], None, W)
    add(store, 10)  # what is small still fits
    assert names(store) == [1, 2, 3, 10]


def test_a_slice_that_comes_again_is_there_once(store, reopen, fails):
    store.open_volume(V, 1)
    add(store, 1, 2)
    before = store.stats(V)
    add(store, 1)
    assert store.stats(V) == before
    for other in (b"x", bytes(len(payload(1)))):
        fails(
            Fault.CORRUPT,
            lambda other=other: store.append(SliceId(1), [other], None, V),
            match="other bytes",
        )
    assert store.stats(V) == before
    assert read(store, 1) == payload(1)
    store.delete({V: [SliceId(1)]})
    add(store, 1)
    store.sync()
    assert (reopen().stats(V).needles, read(reopen(), 1)) == (2, payload(1))


def test_a_slice_that_comes_twice_at_once_is_there_once(store, monkeypatch):
    store.open_volume(V, 1)
    inside, go = threading.Event(), threading.Event()
    real = os.pwritev

    def slow(fd: int, parts: list, offset: int) -> int:  # type: ignore[type-arg]
        inside.set()
        assert go.wait(SEALED_S)
        return real(fd, parts, offset)

    monkeypatch.setattr(os, "pwritev", slow)
    threads = [threading.Thread(target=add, args=(store, 1)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert inside.wait(SEALED_S)
    go.set()
    for thread in threads:
        thread.join(SEALED_S)
    stats = store.stats(V)
    assert (stats.needles, stats.garbage_bytes) == (1, 0)


def test_when_a_seal_has_answered_all_that_is_acknowledged_is_counted(store):
    """Many write while it is sealed: what each of them was told is what the answer says."""
    store.open_volume(V, 1)
    done: list[int] = []
    started = threading.Barrier(5)

    def write(first: int) -> None:
        started.wait(SEALED_S)
        for one in range(first, first + 1_000):
            try:
                add(store, one, epoch=1)
            except FsError as error:
                assert error.fault is Fault.VOLUME_CLOSED
                return
            store.sync()
            done.append(one)

    threads = [threading.Thread(target=write, args=(1 + n * 1_000,)) for n in range(4)]
    for thread in threads:
        thread.start()
    started.wait(SEALED_S)
    while len(done) < 20 and any(thread.is_alive() for thread in threads):
        threading.Event().wait(0.001)
    answer = store.seal(V)
    listed = names(store)
    for thread in threads:
        thread.join(SEALED_S)
    assert answer.needles == len(listed) == store.stats(V).needles
    assert set(done) <= set(listed)
    assert len(done) >= 20


def test_a_seal_waits_for_a_write_under_way(store, monkeypatch, fails):
    store.open_volume(V, 1)
    inside, go = threading.Event(), threading.Event()
    real = os.pwritev

    def slow(fd: int, parts: list, offset: int) -> int:  # type: ignore[type-arg]
        inside.set()
        assert go.wait(SEALED_S)
        return real(fd, parts, offset)

    monkeypatch.setattr(os, "pwritev", slow)
    answers: list[int] = []
    writer = threading.Thread(target=add, args=(store, 1))
    writer.start()
    assert inside.wait(SEALED_S)
    sealer = threading.Thread(target=lambda: answers.append(store.seal(V).needles))
    sealer.start()
    while store.stats(V).epoch:
        threading.Event().wait(0.001)
    fails(Fault.VOLUME_CLOSED, add, store, 2)
    assert not answers
    go.set()
    for thread in (writer, sealer):
        thread.join(SEALED_S)
    assert answers == [1]


def test_a_seal_does_not_wait_for_ever(tmp_path, index, monkeypatch, fails):
    config = ChunkConfig(volume_bytes=MIB, preallocate_bytes=0, reserve_bytes=0, wait_s=0.05)
    store = DiskStore(tmp_path, index, home=HOME, config=config)
    store.open_volume(V, 1)
    inside, go = threading.Event(), threading.Event()
    real = os.pwritev

    def slow(fd: int, parts: list, offset: int) -> int:  # type: ignore[type-arg]
        inside.set()
        assert go.wait(SEALED_S)
        return real(fd, parts, offset)

    monkeypatch.setattr(os, "pwritev", slow)
    writer = threading.Thread(target=add, args=(store, 1))
    writer.start()
    assert inside.wait(SEALED_S)
    for order in (store.seal, store.drop):
        fails(Fault.BUSY, order, V, match="under way")
    go.set()
    writer.join(SEALED_S)
    assert store.seal(V).needles == 1


@pytest.mark.parametrize("synced", [True, False])
def test_a_listing_is_in_the_order_of_names(store, reopen, synced):
    store.open_volume(V, 1)
    store.open_volume(W, 1)
    there = random.Random(7).sample(range(1, 500), 90)
    for one in there:
        add(store, one)
        add(store, one + 1, volume=W)
    store.delete({V: [SliceId(one) for one in there[::3]]})
    if synced:
        store.sync()
    left = sorted(set(there) - set(there[::3]))
    for each in (store, reopen(index=MemoryStore())):
        assert names(each) == left
        pages, after = [], 0
        while page := names(each, after=after, limit=7):
            pages += page
            after = page[-1]
        assert pages == left
        assert each.listing(V, SliceId(0), 3) == [(one, len(payload(one))) for one in left[:3]]
        assert names(each, after=(1 << 64) - 1) == []


def test_a_listing_in_a_real_table(tmp_path):
    index, _ = open_index(tmp_path)
    store = DiskStore(tmp_path, index, home=HOME, config=SMALL)
    try:
        store.open_volume(V, 1)
        add(store, *range(400, 0, -1))
        store.sync()
        add(store, 500, 401)
        store.delete({V: [SliceId(7)]})
        assert names(store, limit=5) == [1, 2, 3, 4, 5]
        assert names(store, after=398, limit=10) == [399, 400, 401, 500]
        assert names(store) == [*range(1, 7), *range(8, 402), 500]
    finally:
        store.close()
        index.close()


def test_what_is_not_there_has_no_listing(store, fails):
    fails(Fault.NOT_FOUND, store.listing, V, SliceId(0), 10)
    assert store.stats(V) is None


def test_a_dropped_volume_leaves_nothing(store, reopen, tmp_path, index):
    store.open_volume(V, 1)
    store.open_volume(W, 1)
    add(store, 1, 2, 3)
    add(store, 1, volume=W)
    store.sync()
    add(store, 4)
    store.drop(V)
    store.drop(V)
    store.sync()
    assert [path.name for path in (tmp_path / "volumes").iterdir()] == [f"{W}.vol"]
    for each in (store, reopen()):
        assert each.stats(V) is None
        assert each.troubles() == {}
        assert read(each, 1, W) == payload(1)
    assert not [key for key, _ in index.scan(b"", b"\xff") if key[1:5] == V.to_bytes(4, "big")]


def test_a_dropped_volume_may_come_again(store, reopen):
    """With other places for the same slices."""
    store.open_volume(V, 1)
    add(store, 1, 2, 3)
    assert read(store, 3) == payload(3)
    store.drop(V)
    store.seal(V)
    put(store, 3)
    put(store, 1)
    store.sync()
    for each in (store, reopen()):
        assert (read(each, 3), read(each, 1)) == (payload(3), payload(1))
        assert names(each) == [1, 3]


@pytest.mark.parametrize("at", ["index", "unlink", "directory"])
def test_a_crash_while_a_volume_is_dropped_leaves_it_whole_or_not_at_all(
    store, reopen, monkeypatch, at
):
    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    store.open_volume(V, 1)
    add(store, *range(1, 30))
    store.delete({V: [SliceId(5)]})
    store.sync()
    with monkeypatch.context() as patch:
        if at == "index":
            patch.setattr(MemoryStore, "write", killed)
        elif at == "unlink":
            patch.setattr(Path, "unlink", killed)
        else:
            patch.setattr("mountfs.chunks.disk.sync_directory", killed)
        with pytest.raises(Killed):
            store.drop(V)
    again = reopen()
    if at == "directory":
        assert again.stats(V) is None
    else:
        assert names(again) == [one for one in range(1, 30) if one != 5]
    assert again.troubles() == {}


def test_a_volume_that_cannot_be_opened_can_be_dropped_and_had_anew(store, reopen, tmp_path, fails):
    store.open_volume(V, 1)
    add(store, 1)
    store.sync()
    store.close()
    (tmp_path / "volumes" / f"{V}.vol").write_bytes(b"noise")
    store = reopen()
    assert store.troubles()
    fails(Fault.BUSY, store.open_volume, V, 2)
    fails(Fault.CORRUPT, store.seal, V)
    store.drop(V)
    assert store.troubles() == {}
    store.seal(V)
    put(store, 1)
    assert read(store, 1) == payload(1)


def test_named_volumes_are_left_alone_by_what_fills_our_own(store, reopen):
    store.open_volume(V, 1)
    foreign = VolumeId((7 << 20) + 1)
    add(store, 1)
    store.seal(V)
    store.seal(foreign)
    for each in (store, reopen(), reopen(index=MemoryStore())):
        assert each.append(SliceId(77), [b"own"]) == 1
        each.sync()


def test_a_named_volume_without_a_slice_stays(store, reopen):
    store.open_volume(V, 1)
    add(store, 1)
    store.seal(V)
    store.delete({V: [SliceId(1)]})
    assert store.debt().volumes == (V,)
    store.compact(V)
    assert (store.stats(V).needles, store.stats(V).garbage_bytes) == (0, 0)
    assert reopen().stats(V).needles == 0


def test_only_a_sealed_volume_is_compacted(store, reopen):
    store.open_volume(V, 1)
    for one in (1, 2, 3):
        store.append(SliceId(one), [bytes(280 * KIB)], None, V)
    store.delete({V: [SliceId(1), SliceId(2)]})
    store.sync()
    assert store.debt().volumes == ()
    store.compact(V)
    add(store, 9, epoch=1)
    assert reopen().debt().volumes == ()  # it may be opened again
    store.seal(V)
    assert store.debt().volumes == (V,)
    store.compact(V)
    assert names(store) == [3, 9]
    assert store.stats(V).garbage_bytes == 0
    for each in (store, reopen()):
        assert each.stats(V).digest == reduce(with_name, (SliceId(3), SliceId(9)), 0)


def test_a_copy_goes_into_a_sealed_volume_only(store, fails):
    fails(Fault.NOT_FOUND, put, store, 1)
    store.open_volume(V, 1)
    fails(Fault.BUSY, put, store, 1, match="not sealed")
    store.seal(V)
    assert put(store, 1) is True
    assert put(store, 1) is False
    fails(Fault.CORRUPT, put, store, 1, b"other", match="other bytes")
    store.trim(V)
    assert store.space()[1] > 0
    assert (names(store), read(store, 1)) == ([1], payload(1))


@pytest.mark.parametrize("into", [5, 49, 60])
def test_a_damaged_needle_is_replaced_by_a_good_one(store, reopen, fails, into):
    """Its header, its checksums, its payload."""
    store.open_volume(V, 1)
    add(store, 1, 2, 3)
    store.seal(V)
    flip(store, 2, into)
    store.note_bad(V, SliceId(2), "slice 0x2 is bad")
    store.note_bad(V, SliceId(99), "it is not there")
    assert store.stats(V).failed == "slice 0x2 is bad"
    assert list(store.troubles().values()) == ["slice 0x2 is bad"]
    assert put(store, 2) is True
    store.sync()
    stores = [store]
    if into != 5:  # a header that nothing explains is a damage of its own, until it is compacted
        stores += [reopen(), reopen(index=MemoryStore())]
    for each in stores:
        assert each.stats(V).failed == ""
        assert read(each, 2) == payload(2)
        assert each.stats(V).needles == 3
    store.delete({V: [SliceId(1)]})
    store.compact(V)
    assert names(store) == [2, 3]
    assert store.troubles() == {}


def test_what_compaction_finds_damaged_is_told_until_it_is_replaced(store, fails):
    store.open_volume(V, 1)
    add(store, 1, 2, 3, 4)
    store.seal(V)
    store.delete({V: [SliceId(1), SliceId(2)]})
    flip(store, 3)
    fails(Fault.CORRUPT, store.compact, V, match="slice 0x3 at offset")
    assert "slice 0x3" in store.stats(V).failed
    assert store.debt().volumes == ()
    put(store, 3)
    assert store.stats(V).failed == ""
    store.compact(V)
    assert (read(store, 3), read(store, 4)) == (payload(3), payload(4))


def test_a_damaged_needle_that_is_deleted_is_no_trouble(store):
    store.open_volume(V, 1)
    add(store, 1, 2)
    flip(store, 2)
    store.note_bad(V, SliceId(2), "bad")
    store.delete({V: [SliceId(2)]})
    assert store.stats(V).failed == ""


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS])
def test_a_disk_that_fails_takes_nothing_new_and_is_read(store, writes, fails, code):
    store.open_volume(V, 1)
    add(store, 1)
    writes.error = code
    fails(Fault.DEVICE if code == errno.EIO else Fault.READ_ONLY, add, store, 2)
    writes.error = None
    assert os.strerror(code) in store.failure
    fails(Fault.VOLUME_CLOSED, add, store, 3, match="takes nothing more")
    fails(Fault.DEVICE, store.open_volume, W, 1, match="takes nothing new")
    assert read(store, 1) == payload(1)
    assert store.seal(V).needles == 1


def test_a_full_disk_does_not_count_as_failed(store, writes, fails):
    store.open_volume(V, 1)
    writes.error = errno.ENOSPC
    fails(Fault.NO_SPACE, add, store, 1)
    writes.error = None
    assert store.failure == ""
    add(store, 1)
    assert names(store) == [1]


def test_after_fdatasync_failed_the_disk_takes_nothing_new(store, monkeypatch, fails):
    store.open_volume(V, 1)
    store.open_volume(W, 1)
    add(store, 1)
    with monkeypatch.context() as patch:

        def broken(fd: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        patch.setattr(os, "fdatasync", broken)
        fails(Fault.DEVICE, store.sync)
    for volume in (V, W):
        fails(Fault.VOLUME_CLOSED, lambda volume=volume: add(store, 2, volume=volume))
    assert "fdatasync" in store.seal(V).failed


def test_what_cannot_be_made_is_not_open(store, index, fails, monkeypatch):
    index.fail_next(Fault.NO_SPACE)
    fails(Fault.NO_SPACE, store.open_volume, V, 1)
    assert (store.stats(V), store.failure) == (None, "")
    with monkeypatch.context() as patch:

        def broken(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, "fdatasync", broken)
        fails(Fault.NO_SPACE, store.open_volume, V, 1)
    assert store.stats(V) is None
    store.open_volume(V, 1)
    add(store, 1, epoch=1)


def test_what_could_not_be_made_and_is_sealed_then_stays_sealed(store, reopen, fails, monkeypatch):
    with monkeypatch.context() as patch:

        def broken(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, "fdatasync", broken)
        fails(Fault.NO_SPACE, store.open_volume, V, 1)
    store.seal(V)
    for each in (store, reopen()):
        fails(Fault.BUSY, each.open_volume, V, 1, match="sealed")


def test_many_threads_fill_many_volumes(store, reopen):
    volumes = [VolumeId(FIRST_REPLICATED + one) for one in range(6)]
    for volume in volumes:
        store.open_volume(volume, 1)

    def fill(number: int) -> None:
        for one in range(number * 100, number * 100 + 40):
            add(store, one + 1, volume=volumes[one % 6])
            if one % 7 == 0:
                store.sync()

    threads = [threading.Thread(target=fill, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    store.sync()
    for each in (store, reopen()):
        assert sum(stats.needles for stats in each.volumes()) == 160
        assert list(each.verify()) == []
