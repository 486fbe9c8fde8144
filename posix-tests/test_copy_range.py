"""copy_file_range(2).

Source: Linux man page copy_file_range(2).
"""

import os
import random
from errno import EBADF, EINVAL, EISDIR
from pathlib import Path

import pytest
from calls import fails, let_time_pass, make, opened, write_all

CREATE = os.O_RDWR | os.O_CREAT
MIB = 1 << 20


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def copy(source: int, target: int, length: int, start: int, to: int) -> int:
    """Copy until done or at the end of the source.  Returns the number of bytes copied."""
    done = 0
    while done < length:
        moved = os.copy_file_range(source, target, length - done, start + done, to + done)
        if not moved:
            break
        done += moved
    return done


@pytest.mark.parametrize("size", [1, 100, 4096, 4097, 65_537, 5_000_000])
def test_a_whole_file_is_copied(here: Path, size: int) -> None:
    content = noise(size)
    with opened(make(here / "a", content)) as a, opened(here / "b", CREATE) as b:
        assert copy(a, b, size, 0, 0) == size
    assert (here / "b").read_bytes() == content
    assert (here / "a").read_bytes() == content


@pytest.mark.parametrize(
    ("start", "to", "length"),
    [
        (0, 0, 4096),
        (1, 0, 70_000),
        (0, 1, 70_000),
        (4095, 65_537, 9000),
        (100_000, 250_000, 99_999),
    ],
)
def test_a_piece_is_copied_to_its_place(here: Path, start: int, to: int, length: int) -> None:
    content, old = noise(300_000), noise(200_000, 1)
    with opened(make(here / "a", content)) as a, opened(make(here / "b", old), os.O_RDWR) as b:
        assert copy(a, b, length, start, to) == length
    expected = bytearray(old.ljust(to + length, b"\0"))
    expected[to : to + length] = content[start : start + length]
    assert (here / "b").read_bytes() == bytes(expected)


def test_a_copy_ends_at_the_end_of_the_source(here: Path) -> None:
    with opened(make(here / "a", b"0123456789")) as a, opened(here / "b", CREATE) as b:
        assert copy(a, b, 1000, 4, 0) == 6
        assert os.copy_file_range(a, b, 10, 10, 0) == 0
        assert os.copy_file_range(a, b, 10, 100, 0) == 0
    assert (here / "b").read_bytes() == b"456789"


def test_positions_are_used_and_moved_when_no_offset_is_given(here: Path) -> None:
    with opened(make(here / "a", b"0123456789")) as a, opened(here / "b", CREATE) as b:
        os.lseek(a, 3, os.SEEK_SET)
        os.write(b, b"head")
        assert os.copy_file_range(a, b, 4) == 4
        assert os.lseek(a, 0, os.SEEK_CUR) == 7
        assert os.lseek(b, 0, os.SEEK_CUR) == 8
    assert (here / "b").read_bytes() == b"head3456"


def test_given_offsets_leave_positions(here: Path) -> None:
    with opened(make(here / "a", b"0123456789")) as a, opened(here / "b", CREATE) as b:
        os.copy_file_range(a, b, 4, 2, 5)
        assert os.lseek(a, 0, os.SEEK_CUR) == 0
        assert os.lseek(b, 0, os.SEEK_CUR) == 0
    assert (here / "b").read_bytes() == b"\0\0\0\0\0" + b"2345"


def test_source_and_copy_are_independent_afterwards(here: Path) -> None:
    content = noise(2 * MIB)
    with (
        opened(make(here / "a", content), os.O_RDWR) as a,
        opened(here / "b", CREATE) as b,
    ):
        copy(a, b, 2 * MIB, 0, 0)
        write_all(a, b"changed", 1_000_000)
        write_all(b, b"otherwise", 1_500_000)
        os.ftruncate(a, MIB)
    expected = content[:1_500_000] + b"otherwise" + content[1_500_009:]
    assert (here / "b").read_bytes() == expected
    os.unlink(here / "a")
    assert (here / "b").read_bytes() == expected


def test_what_was_written_just_before_is_copied(here: Path) -> None:
    with opened(here / "a", CREATE) as a, opened(here / "b", CREATE) as b:
        for number in range(20):
            content = noise(10_000, number)
            write_all(a, content, number * 10_000)
            assert copy(a, b, 10_000, number * 10_000, number * 10_000) == 10_000
            assert os.pread(b, 10_000, number * 10_000) == content


def test_a_copy_replaces_what_was_written_to_the_target_just_before(here: Path) -> None:
    with opened(make(here / "a", b"A" * 100_000)) as a, opened(here / "b", CREATE) as b:
        write_all(b, b"B" * 200_000, 0)
        copy(a, b, 100_000, 0, 50_000)
        assert os.pread(b, 200_000, 0) == b"B" * 50_000 + b"A" * 100_000 + b"B" * 50_000


def test_a_hole_is_copied_as_zeros_over_old_bytes(here: Path) -> None:
    with opened(here / "a", CREATE) as a, opened(make(here / "b", b"x" * MIB), os.O_RDWR) as b:
        os.ftruncate(a, MIB)
        write_all(a, b"data", 500_000)
        assert copy(a, b, MIB, 0, 0) == MIB
    assert (here / "b").read_bytes() == b"data".rjust(500_004, b"\0").ljust(MIB, b"\0")


def test_pieces_of_one_file_that_do_not_overlap_are_copied(here: Path) -> None:
    content = noise(200_000)
    with opened(make(here / "a", content), os.O_RDWR) as fd:
        assert copy(fd, fd, 50_000, 0, 100_000) == 50_000
    assert (here / "a").read_bytes() == content[:100_000] + content[:50_000] + content[150_000:]


@pytest.mark.parametrize(("start", "to"), [(0, 0), (0, 1), (1, 0), (0, 9_999)])
def test_overlapping_pieces_of_one_file_are_refused(here: Path, start: int, to: int) -> None:
    content = noise(50_000)
    with opened(make(here / "a", content), os.O_RDWR) as fd, fails(EINVAL):
        os.copy_file_range(fd, fd, 10_000, start, to)
    assert (here / "a").read_bytes() == content


def test_a_copy_needs_the_right_kinds_of_descriptor(here: Path) -> None:
    make(here / "a", b"text")
    make(here / "b", b"old")
    with opened(here / "a") as reader, opened(here / "b", os.O_WRONLY) as writer:
        with fails(EBADF):
            os.copy_file_range(reader, reader, 4)
        with fails(EBADF):
            os.copy_file_range(writer, writer, 4)
        with opened(here / "b", os.O_WRONLY | os.O_APPEND) as appender, fails(EBADF):
            os.copy_file_range(reader, appender, 4)
        with opened(here) as directory, fails(EISDIR):
            os.copy_file_range(directory, writer, 4)
    os.mkfifo(here / "fifo")
    with (
        opened(here / "fifo", os.O_RDWR) as fifo,
        opened(here / "b", os.O_WRONLY) as writer,
        fails(EINVAL),
    ):
        os.copy_file_range(fifo, writer, 4)
    assert (here / "b").read_bytes() == b"old"


def test_a_copy_stamps_the_targets_modification(here: Path) -> None:
    with opened(make(here / "a", b"text")) as a, opened(make(here / "b"), os.O_RDWR) as b:
        before, source = os.fstat(b), os.fstat(a)
        let_time_pass()
        os.copy_file_range(a, b, 4, 0, 0)
        assert os.fstat(b).st_mtime_ns > before.st_mtime_ns
        assert os.fstat(b).st_ctime_ns > before.st_ctime_ns
        assert os.fstat(a).st_mtime_ns == source.st_mtime_ns


@pytest.mark.parametrize("seed", range(6))
def test_random_copies_and_writes_agree_with_a_model(here: Path, seed: int) -> None:
    chance = random.Random(seed)
    limit = [8000, 500_000][seed % 2]
    models = [bytearray(), bytearray()]
    fds = [os.open(here / name, CREATE) for name in "ab"]
    for _ in range(100):
        one, start, length = chance.randrange(2), chance.randrange(limit), chance.randrange(limit)
        match chance.randrange(5):
            case 0:
                os.ftruncate(fds[one], start)
                models[one] = models[one][:start].ljust(start, b"\0")
            case 1 | 2:
                content = chance.randbytes(length)
                write_all(fds[one], content, start)
                models[one] = models[one].ljust(start, b"\0")
                models[one][start : start + length] = content
            case _:
                to = chance.randrange(limit)
                done = copy(fds[one], fds[1 - one], length, start, to)
                content = bytes(models[one][start : start + length])
                assert done == len(content)
                if content:
                    models[1 - one] = models[1 - one].ljust(to, b"\0")
                    models[1 - one][to : to + done] = content
    for fd in fds:
        os.close(fd)
    assert (here / "a").read_bytes() == bytes(models[0])
    assert (here / "b").read_bytes() == bytes(models[1])
