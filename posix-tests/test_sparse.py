"""Holes: st_blocks, SEEK_HOLE and SEEK_DATA, fallocate(2).

Sources: POSIX.1-2024 lseek(), posix_fallocate(); Linux man pages lseek(2), fallocate(2), inode(7).
"""

import os
import random
from errno import EBADF, EINVAL, EISDIR, ENODEV, ENXIO, EOPNOTSUPP, ESPIPE
from pathlib import Path

import pytest
from calls import (
    COLLAPSE_RANGE,
    INSERT_RANGE,
    KEEP_SIZE,
    PUNCH_HOLE,
    ZERO_RANGE,
    fails,
    fallocate,
    let_time_pass,
    make,
    opened,
    write_all,
)

KIB = 1 << 10
MIB = 1 << 20
SLACK_BYTES = 64 * KIB
"""What a filesystem may count beside the data: blocks rounded up, maps of blocks."""
CREATE = os.O_RDWR | os.O_CREAT


def allocated(fd: int) -> int:
    """Bytes the file occupies, once its data is on disk."""
    os.fsync(fd)
    return os.fstat(fd).st_blocks * 512


def runs_of_data(fd: int) -> list[tuple[int, int]]:
    """The (start, stop) that SEEK_DATA and SEEK_HOLE report."""
    runs, position, size = [], 0, os.fstat(fd).st_size
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            assert error.errno == ENXIO
            break
        position = os.lseek(fd, start, os.SEEK_HOLE)
        runs.append((start, position))
    return runs


def test_an_empty_file_occupies_nothing(here: Path) -> None:
    with opened(here / "file", CREATE) as fd:
        assert allocated(fd) == 0


@pytest.mark.parametrize("size", [1, 5000, 100_000, 3 * MIB])
def test_written_bytes_occupy_as_much(here: Path, size: int) -> None:
    with opened(here / "file", CREATE) as fd:
        write_all(fd, b"x" * size)
        assert size <= allocated(fd) + 4095  # small contents may lie in the inode
        assert allocated(fd) <= size + SLACK_BYTES


def test_a_file_grown_by_truncate_occupies_nothing(here: Path) -> None:
    with opened(here / "file", CREATE) as fd:
        os.ftruncate(fd, 1 << 40)
        assert os.fstat(fd).st_size == 1 << 40
        assert allocated(fd) <= SLACK_BYTES
        assert os.pread(fd, 10, (1 << 40) - 5) == bytes(5)


def test_a_hole_between_writes_occupies_nothing(here: Path) -> None:
    with opened(here / "file", CREATE) as fd:
        write_all(fd, b"x" * MIB)
        write_all(fd, b"y" * MIB, 100 * MIB)
        assert 2 * MIB <= allocated(fd) <= 2 * MIB + SLACK_BYTES


def test_overwriting_occupies_nothing_more(here: Path) -> None:
    with opened(here / "file", CREATE) as fd:
        for letter in b"abcd":
            write_all(fd, bytes([letter]) * MIB, 0)
            os.fsync(fd)
        assert MIB <= allocated(fd) <= MIB + SLACK_BYTES


def test_cutting_a_file_gives_its_blocks_back(here: Path) -> None:
    with opened(here / "file", CREATE) as fd:
        write_all(fd, b"x" * 2 * MIB)
        os.fsync(fd)
        os.ftruncate(fd, 64 * KIB)
        assert allocated(fd) <= 64 * KIB + SLACK_BYTES
        os.ftruncate(fd, 0)
        assert allocated(fd) == 0


def test_a_full_file_is_one_run_of_data_for_seek_data_and_seek_hole(here: Path) -> None:
    with opened(here / "file", CREATE) as fd:
        write_all(fd, b"x" * 300_000)
        assert runs_of_data(fd) == [(0, 300_000)]
        assert os.lseek(fd, 1234, os.SEEK_DATA) == 1234
        assert os.lseek(fd, 1234, os.SEEK_HOLE) == 300_000


def test_seek_hole_and_seek_data_find_the_runs(here: Path) -> None:
    with opened(here / "file", CREATE) as fd:
        os.ftruncate(fd, 8 * MIB)
        for start in (MIB, 4 * MIB):
            write_all(fd, b"x" * MIB, start)
        assert runs_of_data(fd) == [(MIB, 2 * MIB), (4 * MIB, 5 * MIB)]
        os.fsync(fd)
        assert runs_of_data(fd) == [(MIB, 2 * MIB), (4 * MIB, 5 * MIB)]
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
        assert os.lseek(fd, MIB + 1, os.SEEK_DATA) == MIB + 1
        with fails(ENXIO):
            os.lseek(fd, 6 * MIB, os.SEEK_DATA)
        assert os.lseek(fd, 6 * MIB, os.SEEK_HOLE) == 6 * MIB


@pytest.mark.parametrize("whence", [os.SEEK_DATA, os.SEEK_HOLE], ids=["data", "hole"])
def test_the_end_is_beyond_what_can_be_sought(here: Path, whence: int) -> None:
    with opened(make(here / "file", b"text")) as fd:
        for start in (4, 5, 1 << 40):
            with fails(ENXIO):
                os.lseek(fd, start, whence)
        with fails(ENXIO, EINVAL):
            os.lseek(fd, -1, whence)


def test_the_end_of_the_file_is_a_hole(here: Path) -> None:
    with opened(make(here / "file", b"text")) as fd:
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 4
        assert os.lseek(fd, 0, os.SEEK_CUR) == 4


def test_allocating_makes_the_file_longer_and_reads_as_zeros(here: Path) -> None:
    with opened(make(here / "file", b"text"), os.O_RDWR) as fd:
        fallocate(fd, 0, 0, MIB)
        assert os.fstat(fd).st_size == MIB
        assert os.pread(fd, MIB, 0) == b"text".ljust(MIB, b"\0")
        assert allocated(fd) >= MIB


def test_allocating_inside_a_file_changes_nothing_visible(here: Path) -> None:
    with opened(make(here / "file", b"text" * KIB), os.O_RDWR) as fd:
        fallocate(fd, 0, 100, 50)
        assert os.fstat(fd).st_size == 4 * KIB
        assert os.pread(fd, 8 * KIB, 0) == b"text" * KIB


def test_posix_fallocate_allocates(here: Path) -> None:
    with opened(here / "file", CREATE) as fd:
        os.posix_fallocate(fd, 1000, 9000)
        assert os.fstat(fd).st_size == 10_000
        assert os.pread(fd, 20_000, 0) == bytes(10_000)


def test_keep_size_allocates_behind_the_end_without_moving_it(here: Path) -> None:
    with opened(make(here / "file", b"text"), os.O_RDWR) as fd:
        fallocate(fd, KEEP_SIZE, 0, MIB)
        assert os.fstat(fd).st_size == 4
        assert allocated(fd) >= MIB
        assert os.pread(fd, 10, 0) == b"text"
        write_all(fd, b"more", 100)
        assert os.pread(fd, 200, 0) == b"text".ljust(100, b"\0") + b"more"


@pytest.mark.parametrize(
    ("start", "length"),
    [
        (0, MIB),
        (64 * KIB, 64 * KIB),
        (100, 50),
        (4000, 200),
        (1, 500_000),
        (MIB - 10, 10),
        (MIB - 10, MIB),
        (2 * MIB, MIB),
    ],
)
def test_punching_reads_as_zeros_and_keeps_the_rest(here: Path, start: int, length: int) -> None:
    content = random.Random(1).randbytes(MIB)
    with opened(make(here / "file", content), os.O_RDWR) as fd:
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, start, length)
        stop = max(start, min(MIB, start + length))
        expected = content[:start] + bytes(stop - min(start, MIB)) + content[stop:]
        assert os.fstat(fd).st_size == MIB
        assert os.pread(fd, 2 * MIB, 0) == expected[:MIB]
    assert (here / "file").read_bytes() == expected[:MIB]


def test_punching_gives_blocks_back_and_shows_as_a_hole(here: Path) -> None:
    with opened(make(here / "file", b"x" * 4 * MIB), os.O_RDWR) as fd:
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, MIB, 2 * MIB)
        assert 2 * MIB <= allocated(fd) <= 2 * MIB + SLACK_BYTES
        assert os.pread(fd, 10, 2 * MIB) == bytes(10)


def test_seek_hole_finds_a_punched_hole(here: Path) -> None:
    with opened(make(here / "file", b"x" * 4 * MIB), os.O_RDWR) as fd:
        os.fsync(fd)
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, MIB, 2 * MIB)
        assert runs_of_data(fd) == [(0, MIB), (3 * MIB, 4 * MIB)]


def test_punching_then_writing_again_reads_the_new_bytes(here: Path) -> None:
    with opened(make(here / "file", b"x" * 300_000), os.O_RDWR) as fd:
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 100_000, 100_000)
        write_all(fd, b"new", 150_000)
        expected = b"x" * 100_000 + bytes(50_000) + b"new" + bytes(49_997) + b"x" * 100_000
        assert os.pread(fd, 300_000, 0) == expected


def test_punching_without_keep_size_is_refused(here: Path) -> None:
    with opened(make(here / "file", b"text"), os.O_RDWR) as fd, fails(EOPNOTSUPP, EINVAL):
        fallocate(fd, PUNCH_HOLE, 0, 1)


@pytest.mark.parametrize("keep", [0, KEEP_SIZE], ids=["grow", "keep size"])
def test_zero_range_writes_zeros_and_may_make_the_file_longer(here: Path, keep: int) -> None:
    content = random.Random(2).randbytes(200_000)
    with opened(make(here / "file", content), os.O_RDWR) as fd:
        fallocate(fd, ZERO_RANGE | keep, 1000, 5000)
        assert os.pread(fd, 300_000, 0) == content[:1000] + bytes(5000) + content[6000:]
        fallocate(fd, ZERO_RANGE | keep, 150_000, 100_000)
        size = 200_000 if keep else 250_000
        assert os.fstat(fd).st_size == size
        assert os.pread(fd, 300_000, 100_000) == content[100_000:150_000] + bytes(size - 150_000)


@pytest.mark.parametrize("mode", [0, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE])
def test_every_way_to_fallocate_stamps_modification_and_change(here: Path, mode: int) -> None:
    with opened(make(here / "file", b"x" * 10_000), os.O_RDWR) as fd:
        before = os.fstat(fd)
        let_time_pass()
        fallocate(fd, mode, 4096, 20_000)
        assert os.fstat(fd).st_mtime_ns > before.st_mtime_ns
        assert os.fstat(fd).st_ctime_ns > before.st_ctime_ns


def test_collapse_range_removes_the_bytes_or_is_not_supported(here: Path) -> None:
    content = random.Random(3).randbytes(MIB)
    with opened(make(here / "file", content), os.O_RDWR) as fd:
        try:
            fallocate(fd, COLLAPSE_RANGE, 256 * KIB, 256 * KIB)
        except OSError as error:
            assert error.errno == EOPNOTSUPP
            assert os.pread(fd, 2 * MIB, 0) == content
        else:
            assert os.pread(fd, 2 * MIB, 0) == content[: 256 * KIB] + content[512 * KIB :]


def test_insert_range_shifts_the_bytes_or_is_not_supported(here: Path) -> None:
    content = random.Random(4).randbytes(MIB)
    with opened(make(here / "file", content), os.O_RDWR) as fd:
        try:
            fallocate(fd, INSERT_RANGE, 256 * KIB, 256 * KIB)
        except OSError as error:
            assert error.errno == EOPNOTSUPP
            assert os.pread(fd, 2 * MIB, 0) == content
        else:
            expected = content[: 256 * KIB] + bytes(256 * KIB) + content[256 * KIB :]
            assert os.pread(fd, 2 * MIB, 0) == expected


@pytest.mark.parametrize(("start", "length"), [(-1, 10), (0, 0), (0, -1)])
def test_a_senseless_range_to_fallocate_is_invalid(here: Path, start: int, length: int) -> None:
    with opened(make(here / "file"), os.O_RDWR) as fd, fails(EINVAL):
        fallocate(fd, 0, start, length)


@pytest.mark.parametrize(
    ("name", "flags", "errors"),
    [
        ("file", os.O_RDONLY, (EBADF,)),
        ("directory", os.O_RDONLY, (EBADF, EISDIR, ENODEV)),
        ("fifo", os.O_RDWR, (ESPIPE, ENODEV)),
    ],
)
def test_only_a_regular_file_open_for_writing_can_be_allocated(
    here: Path, name: str, flags: int, errors: tuple[int, ...]
) -> None:
    make(here / "file")
    (here / "directory").mkdir()
    os.mkfifo(here / "fifo")
    with opened(here / name, flags) as fd, fails(*errors):
        fallocate(fd, 0, 0, 10)


@pytest.mark.parametrize("seed", range(6))
def test_random_punch_zero_range_write_and_truncate_agree_with_a_model(
    here: Path, seed: int
) -> None:
    chance = random.Random(seed)
    limit = 600_000
    model = bytearray()
    fd = os.open(here / "file", CREATE)
    for _ in range(120):
        start, length = chance.randrange(limit), chance.randrange(1, 100_000)
        stop = start + length
        match chance.randrange(7):
            case 0:
                os.ftruncate(fd, start)
                model = model[:start].ljust(start, b"\0")
            case 1:
                fallocate(fd, PUNCH_HOLE | KEEP_SIZE, start, length)
                model[start:stop] = bytes(len(model[start:stop]))
            case 2:
                fallocate(fd, ZERO_RANGE, start, length)
                model = model.ljust(stop, b"\0")
                model[start:stop] = bytes(length)
            case 3:
                os.close(fd)
                fd = os.open(here / "file", CREATE)
            case 4:
                assert os.pread(fd, length, start) == bytes(model[start:stop])
            case _:
                content = chance.randbytes(length)
                write_all(fd, content, start)
                model = model.ljust(start, b"\0")
                model[start:stop] = content
        assert os.fstat(fd).st_size == len(model)
    os.close(fd)
    assert (here / "file").read_bytes() == bytes(model)
