"""Every byte of a real LevelDB database is covered: whichever changes, its file is named."""

import random
import re
import shutil
from pathlib import Path

import plyvel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountfs.kv.tables import Damage, check_table, damage, live_tables, read_log

BATCHES = 40


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    """Tables with and without compressed blocks, a log of several blocks and a manifest."""
    directory = tmp_path_factory.mktemp("database")
    rng = random.Random(1)
    for part in range(3):
        with plyvel.DB(str(directory), create_if_missing=True, bloom_filter_bits=10) as db:
            for number in range(1500):
                value = rng.randbytes(50) if part == 0 else b"the same again " * 6
                db.put(b"a/rather/long/common/prefix/%d/%06d" % (part, number), value)
    with plyvel.DB(str(directory)) as db:
        for number in range(BATCHES):
            with db.write_batch() as batch:
                batch.put(b"z%06d" % number, rng.randbytes(3000))
    return directory


def files(directory: Path, *suffixes: str) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.suffix in suffixes)


def test_a_good_database_has_no_damage(database):
    assert len(files(database, ".ldb")) >= 3
    assert list(damage(database)) == []


def test_index_blocks_are_read_though_compressed(database):
    def is_compressed(path: Path) -> bool:
        data = path.read_bytes()
        return data[len(data) - 48 - 5] == 1  # the byte behind the last block, the index

    assert any(map(is_compressed, files(database, ".ldb")))


@pytest.mark.parametrize("kind", [".ldb", ".log", "MANIFEST", "CURRENT"])
def test_a_flipped_bit_is_found_and_its_file_named(database, kind):
    paths = [path for path in database.iterdir() if kind in path.name]
    assert paths
    for path in paths:
        good = path.read_bytes()
        step = max(1, len(good) // 40)
        try:
            for position in {*range(0, len(good), step), *range(max(0, len(good) - 60), len(good))}:
                path.write_bytes(flipped(good, position))
                found = list(damage(database))
                assert [each.path for each in found] == [path], position
                assert 0 <= found[0].offset <= position or kind == "CURRENT"
        finally:
            path.write_bytes(good)


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ (1 << position % 8)]) + data[position + 1 :]


def test_a_shortened_table_is_damaged(database, tmp_path):
    good = files(database, ".ldb")[0].read_bytes()
    path = tmp_path / "000001.ldb"
    for size in (0, 10, 48, 1000, len(good) - 1):
        path.write_bytes(good[:size])
        assert isinstance(check_table(path), Damage)
    path.write_bytes(good)
    assert check_table(path) is None


@given(data=st.binary(max_size=300))
def test_no_bytes_make_the_reader_stumble(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "000001.any"
    magic = 0xDB4775248B80FB57.to_bytes(8, "little")
    path.write_bytes(data + magic)
    assert isinstance(check_table(path), Damage)
    path.write_bytes(data)
    assert read_log(path).end <= len(data)


def test_a_missing_manifest_is_named(tmp_path):
    assert [found.path.name for found in damage(tmp_path)] == ["CURRENT"]
    (tmp_path / "CURRENT").write_bytes(b"MANIFEST-000007\n")
    assert "MANIFEST-000007, which is missing" in str(*damage(tmp_path))


def test_a_log_cut_anywhere_ends_behind_its_last_whole_batch(database, tmp_path):
    good = files(database, ".log")[-1].read_bytes()
    assert len(good) > 3 * 32768
    path = tmp_path / "000001.log"
    ends = set()
    for size in range(0, len(good), 331):
        path.write_bytes(good[:size])
        state = read_log(path)
        assert state.end <= size
        assert not state.resumes
        assert (state.damage is None) == (state.end == size)
        ends.add(state.end)
    assert len(ends) == BATCHES


def test_a_log_that_goes_on_behind_damage_is_told_from_one_that_is_torn(database, tmp_path):
    good = files(database, ".log")[-1].read_bytes()
    path = tmp_path / "000001.log"
    for position in range(100, len(good), 997):
        path.write_bytes(flipped(good, position))
        state = read_log(path)
        assert state.damage is not None
        assert state.end <= position
        if position < len(good) - 2 * 32768:
            assert state.resumes
        path.write_bytes(good[:position] + bytes(len(good) - position))
        state = read_log(path)
        assert (state.end <= position, state.resumes) == (True, False)


def test_a_table_that_the_manifest_does_not_have_is_no_damage(database, tmp_path):
    """It was being written when the machine stopped, or is just now."""
    copy = tmp_path / "copy"
    shutil.copytree(database, copy)
    whole = files(copy, ".ldb")[0]
    (copy / "999998.ldb").write_bytes(whole.read_bytes()[:-10])
    (copy / "999999.ldb").write_bytes(b"")
    assert list(damage(copy)) == []
    whole.write_bytes(flipped(whole.read_bytes(), 5))
    assert [found.path for found in damage(copy)] == [whole]


def test_the_manifest_names_the_tables_that_leveldb_uses(tmp_path):
    with plyvel.DB(str(tmp_path), create_if_missing=True, write_buffer_size=1 << 16) as db:
        for number in range(20_000):  # tables come and go
            db.put(b"%d" % number, random.Random(number).randbytes(100))
        db.compact_range()
        manifest = tmp_path / (tmp_path / "CURRENT").read_text().strip()
        used = live = None
        while used is None or used != _used(db):  # it may go on compacting by itself
            used, live = _used(db), live_tables(manifest)
        assert live == used
        assert len(used) > 2


def _used(db: plyvel.DB) -> set[int]:
    listed = db.get_property(b"leveldb.sstables")
    return {int(number) for number in re.findall(rb"^ (\d+):", listed, re.MULTILINE)}


def test_an_index_is_not_taken_for_damaged_while_it_is_compacted(tmp_path):
    """Opening a store with a log of some size makes LevelDB write tables behind our back."""
    for attempt in range(5):
        with plyvel.DB(str(tmp_path), create_if_missing=True, write_buffer_size=1 << 22) as db:
            for number in range(20_000):
                db.put(b"%d/%d" % (attempt, number), random.Random(number).randbytes(100))
        with plyvel.DB(str(tmp_path), write_buffer_size=1 << 16) as db:
            for number in range(2_000):
                db.put(b"%d" % number, b"x" * 100)
                if number % 100 == 0:
                    assert list(damage(tmp_path)) == []
