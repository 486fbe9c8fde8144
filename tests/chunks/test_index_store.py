"""A damaged index is put aside and made anew from the volumes, with what was deleted left out."""

import os
import random
from pathlib import Path

import pytest

from mountfs.chunks.disk import DiskStore
from mountfs.chunks.index_store import open_index
from mountfs.errors import Fault, FsError
from mountfs.kv.leveldb import LevelStore
from mountfs.types import SliceId, VolumeId
from tests.chunks.conftest import HOME, SMALL

LIVING = [SliceId(one) for one in range(1, 400)]
GONE = [one for one in LIVING if one % 3 == 0]
REWRITTEN = SliceId(5)


def payload(slice_id: int) -> bytes:
    return random.Random(slice_id).randbytes(slice_id * 37)


def open_store(directory: Path) -> tuple[DiskStore, LevelStore, str]:
    index, told = open_index(directory)
    return DiskStore(directory, index, home=HOME, config=SMALL), index, told


@pytest.fixture
def volumes(tmp_path: Path) -> dict[SliceId, VolumeId]:
    """Slice -> its volume; some are deleted, the store is closed, the index is in a table."""
    store, index, told = open_store(tmp_path)
    assert told == ""
    found = {one: store.append(one, [payload(one)]) for one in LIVING}
    for one in GONE:
        store.delete({found[one]: [one]})
    store.give_back()
    store.compact(found[LIVING[0]])
    store.delete({found[REWRITTEN]: [REWRITTEN]})
    store.sync()
    store.close()
    index.close()
    LevelStore(tmp_path / "index").close()  # it writes its log to a table
    assert list((tmp_path / "index").glob("*.ldb"))
    return found


def check(store: DiskStore, volumes: dict[SliceId, VolumeId]) -> None:
    for one, volume in volumes.items():
        if one in GONE or one == REWRITTEN:
            assert not store.has(volume, one)
            with pytest.raises(FsError):
                store.read(volume, one, 0, 1)
        else:
            assert bytes(store.read(volume, one, 0, len(payload(one)))) == payload(one)
    assert list(store.verify()) == []
    assert sum(stats.needles for stats in store.volumes()) == len(LIVING) - len(GONE) - 1


def reopen(tmp_path: Path, volumes: dict[SliceId, VolumeId], *, rebuilt: bool) -> None:
    store, index, told = open_store(tmp_path)
    try:
        assert bool(told) == rebuilt
        check(store, volumes)
    finally:
        store.close()
        index.close()


def flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << bit
    path.write_bytes(data)


def a_table(tmp_path: Path) -> Path:
    return max((tmp_path / "index").glob("*.ldb"))


@pytest.mark.parametrize("seed", range(12))
def test_a_flipped_bit_anywhere_costs_nothing(volumes, tmp_path, seed):
    chance = random.Random(seed)
    files = [*(tmp_path / "index").glob("*.ldb"), *(tmp_path / "index").glob("MANIFEST-*")]
    flip(chance.choice(sorted(files)), chance.randrange(1 << 20), chance.randrange(8))
    reopen(tmp_path, volumes, rebuilt=True)
    assert (tmp_path / "index.damaged").is_dir()
    reopen(tmp_path, volumes, rebuilt=False)


@pytest.mark.parametrize("how", ["cut", "gone", "no CURRENT", "noise in CURRENT", "no manifest"])
def test_files_that_are_cut_or_gone_cost_nothing(volumes, tmp_path, how):
    index = tmp_path / "index"
    if how == "cut":
        os.truncate(a_table(tmp_path), a_table(tmp_path).stat().st_size // 2)
    elif how == "gone":
        a_table(tmp_path).unlink()
    elif how == "no CURRENT":
        (index / "CURRENT").unlink()
    elif how == "noise in CURRENT":
        (index / "CURRENT").write_bytes(b"noise")
    else:
        next(index.glob("MANIFEST-*")).unlink()
    reopen(tmp_path, volumes, rebuilt=True)


def test_only_the_latest_damaged_index_is_kept(volumes, tmp_path):
    for _ in range(3):
        LevelStore(tmp_path / "index").close()
        flip(a_table(tmp_path), 10)
        reopen(tmp_path, volumes, rebuilt=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "index", "index.damaged", "volumes"
    ]  # fmt: skip


def test_a_rebuild_that_was_killed_before_it_began_is_told_of(volumes, tmp_path):
    (tmp_path / "index").rename(tmp_path / "index.damaged")
    reopen(tmp_path, volumes, rebuilt=True)


def test_a_rebuild_that_is_killed_is_gone_on_with(volumes, tmp_path, monkeypatch):
    flip(a_table(tmp_path), 10)

    class Killed(BaseException):
        pass

    for writes in range(1, 12, 3):
        left = [writes]
        real = LevelStore.write

        def write(store, changes, *, sync, left=left, real=real):
            left[0] -= 1
            if not left[0]:
                raise Killed
            real(store, changes, sync=sync)

        with monkeypatch.context() as patch:
            patch.setattr(LevelStore, "write", write)
            index, _ = open_index(tmp_path)
            try:
                with pytest.raises(Killed):
                    DiskStore(tmp_path, index, home=HOME, config=SMALL)
            finally:
                index.close()
    reopen(tmp_path, volumes, rebuilt=False)


def test_an_index_that_is_in_use_is_not_put_aside(volumes, tmp_path):
    index, _ = open_index(tmp_path)
    with pytest.raises(FsError) as caught:
        open_index(tmp_path)
    assert caught.value.fault is Fault.BAD_HOME
    index.close()
    assert not (tmp_path / "index.damaged").exists()
