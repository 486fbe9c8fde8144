"""mmap(2) and msync(2).

Sources: POSIX.1-2024 mmap(), msync(); Linux man pages mmap(2), msync(2).
"""

import faulthandler
import mmap
import os
import random
import signal
from errno import EACCES
from pathlib import Path

import pytest
from calls import fails, let_time_pass, make, opened, write_all
from people import Link, Other

PAGE = mmap.PAGESIZE


def test_a_mapping_shows_the_file(here: Path) -> None:
    content = random.Random(0).randbytes(3_000_000)
    with (
        opened(make(here / "file", content)) as fd,
        mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as mapping,
    ):
        assert mapping[:] == content


def test_what_is_stored_in_a_shared_mapping_is_read_from_the_file(here: Path) -> None:
    file = make(here / "file", bytes(5 * PAGE))
    with opened(file, os.O_RDWR) as fd, mmap.mmap(fd, 5 * PAGE) as mapping:
        mapping[PAGE - 2 : PAGE + 2] = b"text"
        mapping.flush()
        assert os.pread(fd, 6, PAGE - 3) == b"\0text\0"
    assert file.read_bytes()[PAGE - 2 : PAGE + 2] == b"text"


def test_a_mapping_is_written_back_when_it_ends(here: Path) -> None:
    file = make(here / "file", bytes(100_000))
    with opened(file, os.O_RDWR) as fd, mmap.mmap(fd, 100_000) as mapping:
        mapping[50_000:50_004] = b"text"
    assert file.read_bytes() == bytes(50_000) + b"text" + bytes(49_996)


def test_a_shared_mapping_shows_what_is_written_to_the_file(here: Path) -> None:
    with (
        opened(make(here / "file", bytes(2 * PAGE)), os.O_RDWR) as fd,
        mmap.mmap(fd, 2 * PAGE) as mapping,
    ):
        assert mapping[PAGE] == 0
        write_all(fd, b"text", PAGE)
        assert mapping[PAGE : PAGE + 4] == b"text"


def test_two_processes_share_a_mapping(here: Path) -> None:
    file = make(here / "file", bytes(PAGE))

    def store(_: Link) -> None:
        with opened(file, os.O_RDWR) as fd, mmap.mmap(fd, PAGE) as mapping:
            mapping[0:4] = b"text"

    with opened(file, os.O_RDWR) as fd, mmap.mmap(fd, PAGE) as mapping:
        assert mapping[0:4] == bytes(4)
        with Other(store) as child:
            child.result()
        assert mapping[0:4] == b"text"


def test_a_private_mapping_does_not_change_the_file(here: Path) -> None:
    file = make(here / "file", b"text" * PAGE)
    with opened(file) as fd, mmap.mmap(fd, PAGE, access=mmap.ACCESS_COPY) as mapping:
        mapping[0:4] = b"else"
        assert mapping[0:8] == b"elsetext"
    assert file.read_bytes() == b"text" * PAGE


def test_a_writable_shared_mapping_needs_a_writable_descriptor(here: Path) -> None:
    file = make(here / "file", bytes(PAGE))
    with opened(file) as reader, fails(EACCES):
        mmap.mmap(reader, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    with opened(file, os.O_WRONLY) as writer, fails(EACCES):
        mmap.mmap(writer, PAGE, mmap.MAP_SHARED, mmap.PROT_READ)


def test_a_mapping_outlives_its_descriptor(here: Path) -> None:
    file = make(here / "file", bytes(PAGE))
    fd = os.open(file, os.O_RDWR)
    mapping = mmap.mmap(fd, PAGE)
    os.close(fd)
    mapping[0:4] = b"text"
    mapping.close()
    assert file.read_bytes()[:4] == b"text"


def test_the_rest_of_the_last_page_is_zero_and_never_part_of_the_file(here: Path) -> None:
    file = make(here / "file", b"x" * 100)
    with opened(file, os.O_RDWR) as fd:
        with mmap.mmap(fd, 100) as mapping:
            assert mapping[:] == b"x" * 100
            mapping[99] = ord("y")
        os.ftruncate(fd, PAGE)
        assert os.pread(fd, 2 * PAGE, 0) == b"x" * 99 + b"y" + bytes(PAGE - 100)


@pytest.mark.parametrize("cut", [0, PAGE])
def test_touching_a_page_behind_the_end_is_a_bus_error(here: Path, cut: int) -> None:
    file = make(here / "file", bytes(2 * PAGE))

    def touch(link: Link) -> None:
        with opened(file, os.O_RDWR) as fd, mmap.mmap(fd, 2 * PAGE) as mapping:
            os.ftruncate(fd, cut)
            link.say()
            faulthandler.disable()  # the death is meant
            mapping[PAGE]

    with Other(touch) as child:
        child.hear()
        _, status = os.waitpid(child.pid, 0)
        child.pid = 0
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGBUS


def test_a_mapping_shows_a_file_that_grew(here: Path) -> None:
    file = make(here / "file", bytes(2 * PAGE))
    with opened(file, os.O_RDWR) as fd, mmap.mmap(fd, 2 * PAGE) as mapping:
        os.ftruncate(fd, 10)
        os.ftruncate(fd, 2 * PAGE)
        write_all(fd, b"text", PAGE)
        assert mapping[PAGE : PAGE + 4] == b"text"


def test_storing_and_syncing_stamps_the_file(here: Path) -> None:
    with (
        opened(make(here / "file", bytes(PAGE)), os.O_RDWR) as fd,
        mmap.mmap(fd, PAGE) as mapping,
    ):
        before = os.fstat(fd)
        let_time_pass()
        mapping[0] = 1
        mapping.flush()
        assert os.fstat(fd).st_mtime_ns > before.st_mtime_ns
        assert os.fstat(fd).st_ctime_ns > before.st_ctime_ns


def test_a_hole_is_mapped_as_zeros_and_filled_by_storing(here: Path) -> None:
    with opened(here / "file", os.O_RDWR | os.O_CREAT) as fd:
        os.ftruncate(fd, 1 << 20)
        with mmap.mmap(fd, 1 << 20) as mapping:
            assert mapping[500_000:500_100] == bytes(100)
            mapping[500_000:500_004] = b"text"
        assert os.pread(fd, 1 << 21, 0) == bytes(500_000) + b"text" + bytes((1 << 20) - 500_004)


@pytest.mark.parametrize("seed", range(3))
def test_random_stores_writes_and_reads_agree_with_a_model(here: Path, seed: int) -> None:
    chance = random.Random(seed)
    size = 500_000
    model = bytearray(size)
    with opened(make(here / "file", bytes(size)), os.O_RDWR) as fd, mmap.mmap(fd, size) as mapping:
        for _ in range(200):
            start = chance.randrange(size)
            content = chance.randbytes(min(chance.randrange(1, 9000), size - start))
            stop = start + len(content)
            match chance.randrange(5):
                case 0:
                    write_all(fd, content, start)
                    model[start:stop] = content
                case 1 | 2:
                    mapping[start:stop] = content
                    model[start:stop] = content
                case 3:
                    assert os.pread(fd, len(content), start) == bytes(model[start:stop])
                case _:
                    assert mapping[start:stop] == bytes(model[start:stop])
    assert (here / "file").read_bytes() == bytes(model)
