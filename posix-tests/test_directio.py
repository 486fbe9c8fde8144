"""O_DIRECT: bytes that go past the cache are the same bytes.

Source: Linux man page open(2) (O_DIRECT).
"""

import fcntl
import mmap
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EINVAL, EISDIR
from pathlib import Path

import pytest
from calls import fails, make, opened, write_all

BLOCK = 4096
"""Aligned enough for every device."""


def aligned(content: bytes) -> mmap.mmap:
    """A buffer at a page boundary."""
    buffer = mmap.mmap(-1, max(BLOCK, len(content)))
    buffer[: len(content)] = content
    return buffer


@contextmanager
def direct(path: Path, flags: int) -> Iterator[int]:
    try:
        fd = os.open(path, flags | os.O_DIRECT, 0o644)
    except OSError as error:
        assert error.errno == EINVAL  # open(2): a filesystem may not have it
        pytest.skip("no O_DIRECT on this filesystem")
    try:
        yield fd
    finally:
        os.close(fd)


def read(fd: int, size: int, offset: int) -> bytes:
    with aligned(bytes(size)) as buffer:
        filled = os.preadv(fd, [buffer], offset)
        return buffer[:filled]


@pytest.mark.parametrize("blocks", [1, 2, 16, 300])
def test_what_is_written_direct_is_read_direct_and_through_the_cache(
    here: Path, blocks: int
) -> None:
    content = random.Random(blocks).randbytes(blocks * BLOCK)
    with direct(here / "file", os.O_RDWR | os.O_CREAT) as fd, aligned(content) as buffer:
        assert os.pwrite(fd, buffer, 0) == len(content)
        assert os.fstat(fd).st_size == len(content)
        assert read(fd, len(content), 0) == content
    assert (here / "file").read_bytes() == content


def test_direct_reading_sees_what_was_written_through_the_cache(here: Path) -> None:
    content = random.Random(1).randbytes(10 * BLOCK)
    with opened(here / "file", os.O_RDWR | os.O_CREAT) as fd:
        write_all(fd, content)
        with direct(here / "file", os.O_RDONLY) as straight:
            assert read(straight, 10 * BLOCK, 0) == content
            write_all(fd, b"changed", 5 * BLOCK)
            assert read(straight, BLOCK, 5 * BLOCK)[:7] == b"changed"


def test_reading_through_the_cache_sees_what_was_written_direct(here: Path) -> None:
    with opened(make(here / "file", b"x" * 4 * BLOCK), os.O_RDWR) as fd:
        assert os.pread(fd, 4 * BLOCK, 0) == b"x" * 4 * BLOCK
        with direct(here / "file", os.O_RDWR) as straight, aligned(b"y" * BLOCK) as buffer:
            os.pwrite(straight, buffer, BLOCK)
        assert os.pread(fd, 4 * BLOCK, 0) == b"x" * BLOCK + b"y" * BLOCK + b"x" * 2 * BLOCK


def test_a_direct_read_ends_at_the_end_of_the_file(here: Path) -> None:
    make(here / "file", b"x" * (BLOCK + 100))
    with direct(here / "file", os.O_RDONLY) as fd:
        assert read(fd, 4 * BLOCK, 0) == b"x" * (BLOCK + 100)
        assert read(fd, BLOCK, BLOCK) == b"x" * 100
        assert read(fd, BLOCK, 2 * BLOCK) == b""


def test_a_direct_write_past_the_end_leaves_zeros_between(here: Path) -> None:
    with (
        direct(here / "file", os.O_RDWR | os.O_CREAT) as fd,
        aligned(b"y" * BLOCK) as buffer,
    ):
        os.pwrite(fd, buffer, 100 * BLOCK)
        assert read(fd, BLOCK, 50 * BLOCK) == bytes(BLOCK)
        assert os.fstat(fd).st_size == 101 * BLOCK


def test_what_is_not_aligned_is_done_right_or_invalid(here: Path) -> None:
    make(here / "file", b"0123456789" * 1000)
    with direct(here / "file", os.O_RDWR) as fd, aligned(b"") as buffer:
        view = memoryview(buffer)
        try:
            filled = os.preadv(fd, [view[3:104]], 5)
            assert bytes(view[3 : 3 + filled]) == (b"0123456789" * 11)[5 : 5 + filled]
        except OSError as error:
            assert error.errno == EINVAL
        view.release()


def test_direct_access_can_be_switched_on_and_off(here: Path) -> None:
    make(here / "file", b"x" * BLOCK)
    with direct(here / "file", os.O_RDONLY) as fd:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        assert flags & os.O_DIRECT
        fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        assert os.pread(fd, 10, 3) == b"x" * 10


def test_a_directory_cannot_be_opened_for_direct_writing(here: Path) -> None:
    with fails(EISDIR, EINVAL):
        os.open(here, os.O_WRONLY | os.O_DIRECT)
