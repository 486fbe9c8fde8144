"""Every byte of a real LevelDB database is covered: whichever changes, its file is named."""

import random
from pathlib import Path

import plyvel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountfs.kv.tables import Damage, check_table, damage, read_log

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
