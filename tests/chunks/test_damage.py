"""Damage of the store: the rest goes on, it is said while it lasts, no wrong byte is read."""

import errno
import os
import random
import shutil
import struct
from pathlib import Path

import pytest
from crc32c import crc32c

from mountfs.chunks.disk import DiskStore
from mountfs.chunks.file import VolumeFile
from mountfs.errors import Fault, FsError
from mountfs.kv.memory import MemoryStore
from mountfs.types import KIB, SliceId, VolumeId

ONE, TWO = VolumeId(1), VolumeId(2)
SIZE = 100 * KIB
SLICES = [SliceId(one) for one in range(1, 15)]
"""Enough for two volumes."""


def payload(slice_id: int) -> bytes:
    return random.Random(slice_id).randbytes(SIZE)


def path_of(tmp_path: Path, number: int = 1) -> Path:
    return tmp_path / "volumes" / f"{number:08}.vol"


@pytest.fixture
def volumes(store: DiskStore) -> dict[SliceId, VolumeId]:
    """Slice -> its volume; the store is closed."""
    found = {one: store.append(one, [payload(one)]) for one in SLICES}
    assert set(found.values()) == {1, 2}
    store.sync()
    store.close()
    return found


def readable(store: DiskStore, volumes: dict[SliceId, VolumeId]) -> set[int]:
    """The slices that can be read; none has wrong bytes."""
    found = set()
    for one, volume in volumes.items():
        try:
            data = bytes(store.read(volume, one, 0, SIZE))
        except FsError as error:
            assert error.fault in (Fault.CORRUPT, Fault.DEVICE)
        else:
            assert data == payload(one)
            found.add(int(one))
    return found


def of(volumes: dict[SliceId, VolumeId], wanted: VolumeId) -> set[int]:
    return {int(one) for one, volume in volumes.items() if volume == wanted}


@pytest.mark.parametrize("how", ["missing", "noise", "empty", "directory", "swapped", "copied"])
def test_a_volume_that_cannot_be_opened_is_a_trouble(volumes, reopen, tmp_path, how):
    path = path_of(tmp_path)
    if how == "swapped":
        path.rename(tmp_path / "aside")
        path_of(tmp_path, 2).rename(path)
        (tmp_path / "aside").rename(path_of(tmp_path, 2))
    elif how == "copied":
        shutil.copy(path_of(tmp_path, 2), path)
    elif how == "noise":
        path.write_bytes(b"noise" * 2000)
    elif how == "empty":
        os.truncate(path, 0)
    else:
        path.unlink()
        if how == "directory":
            path.mkdir()
    store = reopen()
    bad = {path_of(tmp_path, 1), path_of(tmp_path, 2)} if how == "swapped" else {path}
    assert set(store.troubles()) == {str(one) for one in bad}
    assert readable(store, volumes) == (set() if how == "swapped" else of(volumes, TWO))


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
@pytest.mark.parametrize("step", ["open", "recover"])
def test_an_error_of_one_file_leaves_the_others(
    volumes, reopen, tmp_path, monkeypatch, number, step
):
    broken = path_of(tmp_path)
    real_open, real_read = VolumeFile.open.__func__, VolumeFile.read

    def opening(cls, path):
        if step == "open" and path == broken:
            raise OSError(number, os.strerror(number))
        return real_open(cls, path)

    def read(file, offset, length):
        if step == "recover" and file.path == broken:
            raise OSError(number, os.strerror(number))
        return real_read(file, offset, length)

    monkeypatch.setattr(VolumeFile, "open", classmethod(opening))
    monkeypatch.setattr(VolumeFile, "read", read)
    store = reopen(index=MemoryStore())  # without a checkpoint all of it is recovered
    assert list(store.troubles()) == [str(broken)]
    assert store.is_missing(ONE)
    assert os.strerror(number) in store.troubles()[str(broken)]
    assert readable(store, volumes) == of(volumes, TWO)
    fresh = store.append(SliceId(99), [b"new"])
    assert fresh != ONE
    store.close()
    monkeypatch.undo()
    again = reopen()
    assert again.troubles() == {}, "the disk is well again"
    assert readable(again, volumes) == {int(one) for one in SLICES}


def test_an_error_that_befalls_all_files_stops(volumes, reopen, monkeypatch):
    def opening(cls, path):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(VolumeFile, "open", classmethod(opening))
    with pytest.raises(FsError) as caught:
        reopen()
    assert caught.value.fault is Fault.DEVICE


@pytest.mark.parametrize("how", ["bytes", "disk"])
def test_a_volume_that_cannot_be_compacted_is_asked_once(
    volumes, reopen, tmp_path, monkeypatch, how
):
    store = reopen()
    hurt, *rest = sorted(of(volumes, ONE))
    gone = [SliceId(one) for one in rest[:-2]]
    place = store.place(ONE, SliceId(hurt))
    assert place is not None
    if how == "bytes":
        with open(path_of(tmp_path), "r+b") as file:
            file.seek(place[1].offset + 50_000)
            file.write(bytes(4096))
    else:
        real = VolumeFile.read

        def read(file, offset, length):
            if offset == place[1].offset:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(file, offset, length)

        monkeypatch.setattr(VolumeFile, "read", read)
    store.delete({ONE: gone})
    store.sync()
    assert ONE in store.debt().volumes
    with pytest.raises(FsError) as caught:
        store.compact(ONE)
    assert caught.value.fault is Fault.CORRUPT
    assert ONE not in store.debt().volumes
    said = store.troubles()[str(path_of(tmp_path))]
    assert f"slice {hurt:#x}" in said
    kept = {SliceId(one): ONE for one in rest[-2:]}
    assert readable(store, kept) == set(rest[-2:])


def test_a_slice_has_arrived_if_it_is_the_one_that_was_meant(volumes, reopen, tmp_path):
    store = reopen()
    one = SLICES[0]
    crc = crc32c(payload(one))
    assert store.arrived(ONE, one, SIZE, crc)
    assert not store.arrived(ONE, one, SIZE - 1, crc)
    assert not store.arrived(ONE, one, SIZE, crc ^ 1)
    assert not store.arrived(ONE, SliceId(999), SIZE, crc)
    assert store.arrived(VolumeId(9), one, SIZE, crc), "a missing volume is damage"
    found = store.place(ONE, one)
    assert found is not None
    store.close()
    with open(path_of(tmp_path), "r+b") as file:
        file.seek(found[1].offset)
        file.write(bytes(48))
    store = reopen()
    assert not store.has(ONE, one)
    assert store.arrived(ONE, one, SIZE, crc), "a header that was damaged since"


def test_a_volume_that_metadata_knows_and_nobody_else_is_a_trouble(volumes, reopen, tmp_path):
    store = reopen()
    assert not store.is_missing(ONE)
    assert store.is_missing(VolumeId(7))
    assert list(store.troubles()) == [str(path_of(tmp_path, 7))]
    numbers = {store.append(SliceId(one), [payload(one)]) for one in range(50, 90)}
    assert VolumeId(7) not in numbers, "the file may be put back"
    assert max(numbers) > 7


def test_the_place_of_a_slice_is_where_its_needle_begins(volumes, reopen, tmp_path):
    store = reopen()
    found = store.place(ONE, SLICES[1])
    assert found is not None
    path, place = found
    assert path == path_of(tmp_path)
    assert path.read_bytes()[place.offset :][:4] == b"ndl\n"
    assert place.length == SIZE
    assert store.place(ONE, SliceId(999)) is None
    assert store.place(VolumeId(9), SLICES[1]) is None


@pytest.mark.parametrize("offset", [0, 4096 + 8, 1 << 40, (1 << 64) - 8])
def test_an_index_row_that_points_elsewhere_is_an_error_and_no_bytes(
    volumes, reopen, index, offset
):
    key = struct.pack(">cIQ", b"n", 1, 2)
    assert index.get(key) is not None
    index.write({key: struct.pack("<QI", offset, SIZE)}, sync=True)
    store = reopen()
    assert readable(store, volumes) == {int(one) for one in SLICES} - {2}
    assert not store.has(ONE, SliceId(2))
    assert [damage.slice_id for damage in store.verify()] == [2]


def test_an_index_row_that_points_to_another_needle_is_an_error(volumes, reopen, index):
    two, three = (struct.pack(">cIQ", b"n", 1, one) for one in (2, 3))
    index.write({two: index.get(three)}, sync=True)
    store = reopen()
    assert readable(store, volumes) == {int(one) for one in SLICES} - {2}


@pytest.mark.parametrize("lost_index", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_zeroed_blocks_and_cut_files_serve_no_wrong_byte(
    volumes, reopen, tmp_path, index, seed, lost_index
):
    chance = random.Random(seed)
    path = path_of(tmp_path)
    size = path.stat().st_size
    if seed % 2:
        os.truncate(path, chance.randrange(4096, size))
    else:
        with open(path, "r+b") as file:
            file.seek(chance.randrange(1, size // 4096) * 4096)
            file.write(bytes(4096))
    store = reopen(index=MemoryStore() if lost_index else index)
    good = readable(store, volumes)
    assert good >= of(volumes, TWO)
    assert len(good) >= len(SLICES) - 2 or seed % 2
    assert len(good) < len(SLICES)
