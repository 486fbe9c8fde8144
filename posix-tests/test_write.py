"""read(2), write(2), their vectored and positioned forms, and lseek(2).

Sources: POSIX.1-2024 read(), write(), lseek(); Linux man pages read(2), write(2), pread(2),
readv(2), lseek(2), open(2) (O_APPEND).
"""

import os
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from errno import EBADF, EINVAL, ENXIO, ESPIPE
from pathlib import Path

import pytest
from calls import fails, make, opened, write_all
from people import Link, Other

CREATE = os.O_RDWR | os.O_CREAT
EDGES = [1, 511, 4095, 4096, 4097, 65_535, 65_536, 65_537, 131_073, 1_048_577, 4_194_304, 4_194_305]
"""Sizes around what filesystems cut files into."""


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("size", [0, *EDGES])
def test_what_was_written_is_read(here: Path, size: int) -> None:
    content = noise(size)
    file = make(here / "file", content)
    assert file.stat().st_size == size
    assert file.read_bytes() == content


@pytest.mark.parametrize("step", [1, 7, 100, 4096, 5000])
def test_many_small_writes_are_one_content(here: Path, step: int) -> None:
    content = noise(step * 300)
    with opened(here / "file", CREATE) as fd:
        for start in range(0, len(content), step):
            assert os.write(fd, content[start : start + step]) == step
    assert (here / "file").read_bytes() == content


@pytest.mark.parametrize("seed", range(8))
def test_random_writes_truncations_and_reads_agree_with_a_model(here: Path, seed: int) -> None:
    chance = random.Random(seed)
    limit = [6000, 200_000, 9_000_000][seed % 3]
    model = bytearray()
    fd = os.open(here / "file", CREATE)
    for _ in range(150):
        start = min(limit - 1, int(chance.random() ** 3 * limit))
        match chance.randrange(10):
            case 0:
                size = chance.randrange(limit)
                os.ftruncate(fd, size)
                model = model[:size].ljust(size, b"\0")
            case 1:
                os.close(fd)
                fd = os.open(here / "file", CREATE)
            case 2:
                os.fsync(fd)
            case 3 | 4 | 5:
                length = chance.randrange(100_000)
                assert os.pread(fd, length, start) == bytes(model[start : start + length])
            case _:
                content = chance.randbytes(chance.choice([1, 100, 4096, 9000, 70_000]))
                write_all(fd, content, start)
                model = model.ljust(start, b"\0")
                model[start : start + len(content)] = content
        assert os.fstat(fd).st_size == len(model)
    os.close(fd)
    assert (here / "file").read_bytes() == bytes(model)


@pytest.mark.parametrize("hole", [1, 4096, 100_000, 70_000_000])
def test_a_write_past_the_end_leaves_zeros_between(here: Path, hole: int) -> None:
    with opened(here / "file", CREATE) as fd:
        write_all(fd, b"head")
        write_all(fd, b"tail", 4 + hole)
        assert os.fstat(fd).st_size == 8 + hole
        for start in range(4, 4 + hole, max(1, hole // 7)):
            length = min(4096, 4 + hole - start)
            assert os.pread(fd, length, start) == bytes(length)
    with opened(here / "file") as fd:
        assert os.pread(fd, 5, 0) == b"head\0"
        assert os.pread(fd, 10, 3 + hole) == b"\0tail"


def test_reading_at_and_past_the_end_returns_nothing(here: Path) -> None:
    with opened(make(here / "file", b"text")) as fd:
        assert os.pread(fd, 10, 2) == b"xt"
        assert os.pread(fd, 10, 4) == b""
        assert os.pread(fd, 10, 1 << 40) == b""


def test_a_reader_at_the_end_sees_what_is_appended(here: Path) -> None:
    file = make(here / "log", b"one\n")
    with opened(file) as reader, opened(file, os.O_WRONLY | os.O_APPEND) as writer:
        assert os.read(reader, 100) == b"one\n"
        assert os.read(reader, 100) == b""
        for number in range(20):
            line = b"line %d\n" % number
            os.write(writer, line)
            assert os.read(reader, 100) == line


def test_two_descriptors_see_each_others_writes_at_once(here: Path) -> None:
    file = make(here / "file", bytes(10_000))
    with opened(file, os.O_RDWR) as one, opened(file, os.O_RDWR) as two:
        for number in range(50):
            start = number * 199
            os.pwrite(one, b"%04d" % number, start)
            assert os.pread(two, 4, start) == b"%04d" % number
            os.pwrite(two, b"!", start)
            assert os.pread(one, 4, start) == b"!%03d" % number


def test_another_process_sees_a_write_at_once(here: Path) -> None:
    file = make(here / "file", b"old")
    with opened(file, os.O_RDWR) as fd:
        os.pwrite(fd, b"new", 0)
        with Other(lambda _: file.read_bytes()) as child:
            assert child.result() == b"new"


def test_append_writes_at_the_end_whatever_the_position(here: Path) -> None:
    with opened(make(here / "file", b"one"), os.O_RDWR | os.O_APPEND) as fd:
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"two")
        assert os.lseek(fd, 0, os.SEEK_CUR) == 6
        os.ftruncate(fd, 2)
        os.write(fd, b"three")
    assert (here / "file").read_bytes() == b"onthree"


def test_appending_processes_lose_and_tear_nothing(here: Path) -> None:
    log = make(here / "log")

    def append(letter: bytes, link: Link) -> None:
        link.hear()
        with opened(log, os.O_WRONLY | os.O_APPEND) as fd:
            for _ in range(200):
                os.write(fd, letter * 30 + b"\n")

    with Other(lambda link: append(b"a", link)) as a, Other(lambda link: append(b"b", link)) as b:
        a.say()
        b.say()
        a.result()
        b.result()
    lines = log.read_bytes().splitlines()
    assert sorted(lines) == [b"a" * 30] * 200 + [b"b" * 30] * 200


def test_vectored_writes_and_reads_go_in_order(here: Path) -> None:
    with opened(here / "file", CREATE) as fd:
        assert os.writev(fd, [b"one", b"", b"two", b"three"]) == 11
        assert os.pwritev(fd, [b"T", b"WO"], 3) == 3
        head, tail = bytearray(5), bytearray(20)
        assert os.preadv(fd, [head, tail], 0) == 11
        assert bytes(head) + bytes(tail[:6]) == b"oneTWOthree"


def test_positioned_calls_leave_the_position(here: Path) -> None:
    with opened(make(here / "file", b"0123456789"), os.O_RDWR) as fd:
        os.lseek(fd, 2, os.SEEK_SET)
        os.pwrite(fd, b"x", 8)
        os.pread(fd, 5, 0)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 2


def test_seeking_counts_from_start_position_and_end(here: Path) -> None:
    with opened(make(here / "file", b"0123456789")) as fd:
        assert os.lseek(fd, 4, os.SEEK_SET) == 4
        assert os.lseek(fd, 3, os.SEEK_CUR) == 7
        assert os.lseek(fd, -2, os.SEEK_END) == 8
        assert os.read(fd, 5) == b"89"
        assert os.lseek(fd, 100, os.SEEK_END) == 110
        assert os.fstat(fd).st_size == 10


def test_the_end_to_seek_from_is_the_present_one(here: Path) -> None:
    file = make(here / "file", b"0123456789")
    with opened(file) as fd:
        assert os.lseek(fd, 0, os.SEEK_END) == 10
        with opened(file, os.O_WRONLY | os.O_APPEND) as writer:
            os.write(writer, b"more")
        assert os.lseek(fd, 0, os.SEEK_END) == 14


def test_a_position_before_the_start_is_invalid(here: Path) -> None:
    with opened(make(here / "file", b"text"), os.O_RDWR) as fd:
        with fails(EINVAL):
            os.lseek(fd, -1, os.SEEK_SET)
        with fails(EINVAL):
            os.lseek(fd, -5, os.SEEK_END)
        with fails(EINVAL):
            os.pread(fd, 1, -1)
        with fails(EINVAL):
            os.pwrite(fd, b"x", -1)
        with fails(EINVAL, ENXIO):
            os.lseek(fd, 0, 99)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 0


def test_a_closed_descriptor_is_bad_and_a_pipe_cannot_seek(here: Path) -> None:
    fd = os.open(make(here / "file"), os.O_RDWR)
    os.close(fd)
    with fails(EBADF):
        os.write(fd, b"x")
    os.mkfifo(here / "fifo")
    with opened(here / "fifo", os.O_RDWR) as fifo, fails(ESPIPE):
        os.lseek(fifo, 0, os.SEEK_SET)


def test_writing_nothing_changes_nothing(here: Path) -> None:
    with opened(make(here / "file", b"text"), os.O_RDWR) as fd:
        assert os.write(fd, b"") == 0
        assert os.pwrite(fd, b"", 100) == 0
        assert os.fstat(fd).st_size == 4


def test_an_overwrite_keeps_what_is_around_it(here: Path) -> None:
    content = bytearray(noise(300_000))
    file = make(here / "file", bytes(content))
    with opened(file, os.O_WRONLY) as fd:
        for start in (0, 4090, 65_530, 131_072, 299_990):
            os.pwrite(fd, b"overwritten", start)
            content[start : start + 11] = b"overwritten"
    assert file.read_bytes() == bytes(content)


def test_a_hundred_files_open_at_once_do_not_mix(here: Path) -> None:
    fds = [os.open(here / str(number), CREATE) for number in range(100)]
    try:
        for _ in range(3):
            for number, fd in enumerate(fds):
                os.write(fd, b"%03d" % number * 100)
    finally:
        for fd in fds:
            os.close(fd)
    for number in range(100):
        assert (here / str(number)).read_bytes() == b"%03d" % number * 300


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC], ids=["O_SYNC", "O_DSYNC"])
def test_synchronous_writes_are_read_back(here: Path, flag: int) -> None:
    with opened(here / "file", CREATE | flag) as fd:
        for number in range(5):
            os.write(fd, b"%d" % number * 3000)
        assert os.pread(fd, 20_000, 0) == b"".join(b"%d" % number * 3000 for number in range(5))


def test_data_moves_by_sendfile_and_splice(here: Path) -> None:
    content = noise(200_000)
    file = make(here / "file", content)
    with opened(file) as source, opened(here / "copy", CREATE) as target:
        moved = 0
        while moved < len(content):
            moved += os.sendfile(target, source, None, len(content) - moved)
    assert (here / "copy").read_bytes() == content


RECORD = re.compile(rb"(<\d:\d{10}>)*")


def test_who_reads_while_others_append_sees_whole_records(here: Path) -> None:
    file = make(here / "log", b"")
    wrong: list[tuple[int, bytes]] = []
    stop = time.monotonic() + 1.5

    def append(number: int) -> None:
        fd = os.open(file, os.O_WRONLY | os.O_APPEND)
        try:
            count = 0
            while time.monotonic() < stop:
                count += 1
                write_all(fd, b"<%d:%010d>" % (number, count))
        finally:
            os.close(fd)

    def read() -> None:
        while time.monotonic() < stop:
            content = file.read_bytes()
            if RECORD.fullmatch(content) is None:
                wrong.append((len(content), content[-64:]))

    with ThreadPoolExecutor(4) as threads:
        for number in range(2):
            threads.submit(append, number)
            threads.submit(read)
    assert not wrong
    assert RECORD.fullmatch(file.read_bytes())
