"""Compaction: what lives stays readable, at every moment and after every crash."""

import errno
import os
import random
import shutil
import threading
from pathlib import Path

import pytest

from mountfs.chunks import rewrite
from mountfs.chunks.disk import DiskStore
from mountfs.chunks.file import VolumeFile
from mountfs.errors import Fault, FsError
from mountfs.kv.memory import MemoryStore
from mountfs.types import SliceId, VolumeId

ONE = VolumeId(1)
SLICES = range(1, 31)
DEAD = [SliceId(one) for one in SLICES if one % 3]
LIVING = [SliceId(one) for one in SLICES if not one % 3]


def payload(slice_id: int) -> bytes:
    source = random.Random(slice_id)
    return source.randbytes(source.randrange(1, 3000) if slice_id % 10 else 100_000)


def read(store: DiskStore, slice_id: int) -> bytes:
    return bytes(store.read(ONE, SliceId(slice_id), 0, len(payload(slice_id))))


@pytest.fixture
def store(store: DiskStore) -> DiskStore:
    """With a volume of which two thirds are garbage."""
    for one in SLICES:
        store.append(SliceId(one), [payload(one)])
    store.delete({ONE: DEAD})
    store.sync()
    return store


def check(store: DiskStore) -> None:
    for one in LIVING:
        assert read(store, one) == payload(one)
    for one in DEAD:
        assert not store.has(ONE, one)
    assert list(store.verify()) == []


def copied(tmp_path: Path, index: MemoryStore) -> DiskStore:
    """What opening finds, were the machine to stop now."""
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(tmp_path / "volumes", copy / "volumes")
    table = MemoryStore()
    table.write(dict(index.scan(b"", b"\xff")), sync=True)
    return DiskStore(copy, table)


def test_it_gives_back_the_garbage(store, reopen, tmp_path):
    before = store.volumes()[0]
    store.compact(ONE)
    after = store.volumes()[0]
    assert (after.generation, after.garbage_bytes) == (before.generation + 1, 0)
    assert (after.living_bytes, after.needles) == (before.living_bytes, before.needles)
    assert after.digest == before.digest
    assert after.total_bytes == before.total_bytes - before.garbage_bytes
    assert (tmp_path / "volumes" / "00000001.vol").stat().st_size == after.total_bytes
    for again in (store, reopen(), reopen(index=MemoryStore())):
        check(again)
        assert again.volumes()[0].needles == after.needles
        assert again.volumes()[0].digest == after.digest
    assert os.listdir(tmp_path / "volumes") == ["00000001.vol"]


def test_a_compacted_volume_takes_needles_again(store, reopen):
    store.compact(ONE)
    assert store.append(SliceId(99), [b"new"]) == ONE
    store.delete({ONE: [LIVING[0]]})
    store.sync()
    for again in (store, reopen(), reopen(index=MemoryStore())):
        assert bytes(again.read(ONE, SliceId(99), 0, 3)) == b"new"
        assert not again.has(ONE, LIVING[0])
        assert read(again, LIVING[1]) == payload(LIVING[1])


def test_a_volume_in_which_nothing_lives_is_removed(store, tmp_path):
    store.delete({ONE: LIVING})
    store.compact(ONE)
    assert os.listdir(tmp_path / "volumes") == []
    assert store.volumes() == []
    store.compact(ONE)
    assert store.append(SliceId(99), [b"new"]) == 2


def test_the_debt_is_paid(store):
    store._seal(store._active)
    assert store.debt().volumes == (ONE,)
    assert store.debt().garbage_bytes == store.volumes()[0].garbage_bytes
    store.compact(ONE)
    assert store.debt().volumes == ()


STEPS = [
    (VolumeFile, "create"),
    (rewrite, "copy_living"),
    (VolumeFile, "finish"),
    (VolumeFile, "publish"),
]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("owner", "step"), STEPS, ids=lambda value: str(value))
def test_a_crash_at_any_step_loses_nothing(store, tmp_path, index, monkeypatch, owner, step, when):
    real = getattr(owner, step)
    found = []

    def stopped(*args, **kwargs):
        if when == "before":
            found.append(copied(tmp_path, index))
        result = real(*args, **kwargs)
        if when == "after":
            found.append(copied(tmp_path, index))
        return result

    monkeypatch.setattr(owner, step, stopped)
    store.compact(ONE)
    monkeypatch.undo()
    assert len(found) == 1
    check(found[0])
    check(copied(tmp_path, index))


@pytest.mark.parametrize("step", ["fdatasync", "rename", "pwritev"])
def test_an_error_at_any_step_loses_nothing(store, tmp_path, monkeypatch, step, reopen):
    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(FsError) as caught:
            store.compact(ONE)
    assert caught.value.fault is Fault.NO_SPACE
    assert os.listdir(tmp_path / "volumes") == ["00000001.vol"]
    check(store)
    store.append(SliceId(99), [b"new"])
    store.compact(ONE)
    check(store)
    check(reopen())


def test_an_index_that_cannot_be_written_loses_nothing(store, index, tmp_path):
    store._write_table()
    index.fail_next(Fault.NO_SPACE)
    store.compact(ONE)
    assert store.volumes()[0].generation == 2
    check(store)
    check(copied(tmp_path, index))
    store._write_table()
    check(copied(tmp_path, index))


def test_what_is_deleted_meanwhile_stays_deleted(store, monkeypatch, reopen):
    real = rewrite.copy_living
    gone = LIVING[2:5]

    def copy(*args):
        result = real(*args)
        store.delete({ONE: gone})
        return result

    monkeypatch.setattr(rewrite, "copy_living", copy)
    store.compact(ONE)
    for again in (store, reopen(), reopen(index=MemoryStore())):
        assert not any(again.has(ONE, one) for one in gone)
        assert again.volumes()[0].needles == len(LIVING) - 3
        for one in set(LIVING) - set(gone):
            assert read(again, one) == payload(one)


def test_a_volume_that_dies_meanwhile_stays_dead(store, monkeypatch, reopen, tmp_path):
    real = rewrite.copy_living

    def copy(*args):
        result = real(*args)
        store.delete({ONE: LIVING})
        return result

    monkeypatch.setattr(rewrite, "copy_living", copy)
    store.compact(ONE)
    assert os.listdir(tmp_path / "volumes") == []
    assert reopen().volumes() == []


def test_a_failed_deletion_meanwhile_does_no_harm(store, monkeypatch, writes, reopen):
    """The range of its tombstone is one of the old file, and must not be marked in the new one."""
    real = rewrite.copy_living

    def copy(*args):
        result = real(*args)
        with monkeypatch.context() as patch:
            patch.setattr(VolumeFile, "cut", fail)
            writes.error = errno.EIO
            with pytest.raises(FsError):
                store.delete({ONE: [LIVING[0]]})
            writes.error = None
        return result

    def fail(*args: object) -> None:
        raise OSError(errno.EIO, "gone")

    monkeypatch.setattr(rewrite, "copy_living", copy)
    store.compact(ONE)
    store.append(SliceId(99), [b"new"])
    store.sync()
    check(store)
    assert store.volumes()[0].generation == 2
    check(reopen(index=MemoryStore()))


def test_a_compacted_file_was_on_disk_as_a_whole(store, reopen, tmp_path):
    store.compact(ONE)
    path = tmp_path / "volumes" / "00000001.vol"
    last = LIVING[-1]
    at = path.read_bytes().find(payload(last)[:1000]) - 20
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(b"\0\0\0\0")
    size = path.stat().st_size
    store = reopen(index=MemoryStore())
    assert path.stat().st_size == size, "damage is not a torn tail"
    assert len(list(store.verify())) == 1


def test_a_sync_of_the_old_file_says_nothing_about_the_new_one(store, monkeypatch):
    store.append(SliceId(99), [b"new"])
    real = os.fdatasync

    def compact_first(fd: int) -> None:
        monkeypatch.setattr(os, "fdatasync", real)
        store.compact(ONE)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", compact_first)
    store.sync()
    assert store.volumes()[0].generation == 2
    check(store)


def test_the_file_that_is_being_replaced_stays_open(store, monkeypatch):
    """Opened by its name just then, the new file would be read with the places of the old one."""
    others = {one: store.append(SliceId(one), [bytes(200_000)]) for one in range(100, 125)}
    assert len(set(others.values())) > store.config.open_files_max
    publish = VolumeFile.publish

    def read_all(file: VolumeFile) -> None:
        publish(file)
        for one, volume in others.items():
            assert store.has(volume, one)
        assert read(store, LIVING[0]) == payload(LIVING[0])

    monkeypatch.setattr(VolumeFile, "publish", read_all)
    store.compact(ONE)
    check(store)


def test_damage_is_not_compacted_away(store, tmp_path):
    path = tmp_path / "volumes" / "00000001.vol"
    at = path.read_bytes().find(payload(30)) + 70_000
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(b"\0\0")
    before = path.read_bytes()
    with pytest.raises(FsError) as caught:
        store.compact(ONE)
    assert caught.value.fault is Fault.CORRUPT
    assert "slice 0x1e" in caught.value.detail
    assert path.read_bytes()[: len(before)] == before
    assert store.debt().volumes == (), "once is enough"
    assert read(store, 3) == payload(3)
    store.delete({ONE: LIVING})
    assert not path.exists(), "a damaged volume goes with its last slice"


def test_readers_and_writers_go_on(store):
    stop = threading.Event()
    trouble: list[BaseException] = []

    def reader() -> None:
        source = random.Random(1)
        while not stop.is_set():
            one = source.choice(LIVING)
            data = store.read_now(ONE, one, 0, len(payload(one)))
            assert data is None or bytes(data) == payload(one)
            assert read(store, one) == payload(one)

    def writer() -> None:
        one = 1000
        while not stop.is_set():
            one += 1
            volume = store.append(SliceId(one), [payload(one)])
            if one % 2:
                store.delete({volume: [SliceId(one)]})
            store.sync()

    def guarded(work) -> None:
        try:
            work()
        except BaseException as error:
            trouble.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in (reader, reader, writer)]
    for thread in threads:
        thread.start()
    for _ in range(15):
        for stats in store.volumes():
            store.compact(stats.volume)
    stop.set()
    for thread in threads:
        thread.join()
    assert trouble == []
    check(store)
