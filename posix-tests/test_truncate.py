"""truncate(2) and ftruncate(2).

Sources: POSIX.1-2024 truncate(), ftruncate(); Linux man page truncate(2).
"""

import os
from errno import EACCES, EBADF, EINVAL, EISDIR, ENOENT, ENOTDIR
from pathlib import Path

import pytest
from calls import fails, let_time_pass, make, opened, write_all
from people import ALICE, as_user

PATTERN = bytes(range(1, 252)) * 50_000  # no zero byte, and a period that is no power of two


@pytest.mark.parametrize("old", [0, 1, 4096, 4097, 70_000, 5_000_000])
@pytest.mark.parametrize("new", [0, 1, 4095, 4096, 4097, 65_536, 4_194_305, 6_000_000])
def test_the_file_keeps_its_head_and_grows_by_zeros(here: Path, old: int, new: int) -> None:
    file = make(here / "file", PATTERN[:old])
    os.truncate(file, new)
    assert file.stat().st_size == new
    assert file.read_bytes() == PATTERN[:old][:new].ljust(new, b"\0")


@pytest.mark.parametrize("cut", [1, 100, 4095, 4096, 5000, 65_537])
def test_what_was_cut_off_does_not_come_back(here: Path, cut: int) -> None:
    file = make(here / "file", PATTERN[:100_000])
    os.truncate(file, cut)
    os.truncate(file, 100_000)
    assert file.read_bytes() == PATTERN[:cut].ljust(100_000, b"\0")


def test_what_was_cut_off_does_not_come_back_by_writing_behind_it(here: Path) -> None:
    with opened(make(here / "file", PATTERN[:10_000]), os.O_RDWR) as fd:
        os.ftruncate(fd, 3000)
        os.pwrite(fd, b"end", 9000)
        assert os.pread(fd, 20_000, 0) == PATTERN[:3000].ljust(9000, b"\0") + b"end"


def test_unwritten_data_is_cut_too(here: Path) -> None:
    with opened(here / "file", os.O_RDWR | os.O_CREAT) as fd:
        write_all(fd, PATTERN[:300_000])
        os.ftruncate(fd, 1000)
        write_all(fd, b"x", 2000)
    assert (here / "file").read_bytes() == PATTERN[:1000].ljust(2000, b"\0") + b"x"


def test_truncation_does_not_move_positions(here: Path) -> None:
    with opened(make(here / "file", b"0123456789"), os.O_RDWR) as fd:
        os.lseek(fd, 8, os.SEEK_SET)
        os.ftruncate(fd, 4)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 8
        assert os.read(fd, 4) == b""
        write_all(fd, b"x")
    assert (here / "file").read_bytes() == b"0123\0\0\0\0x"


def test_truncation_is_seen_by_those_who_have_the_file_open(here: Path) -> None:
    file = make(here / "file", PATTERN[:50_000])
    with opened(file) as reader:
        assert os.pread(reader, 10, 40_000) == PATTERN[40_000:40_010]
        os.truncate(file, 30_000)
        assert os.pread(reader, 10, 40_000) == b""
        assert os.fstat(reader).st_size == 30_000


@pytest.mark.parametrize("size", [5, 20])
def test_a_change_of_size_stamps_modification_and_change(here: Path, size: int) -> None:
    file = make(here / "file", b"0123456789")
    before = file.stat()
    let_time_pass()
    os.truncate(file, size)
    assert file.stat().st_mtime_ns > before.st_mtime_ns
    assert file.stat().st_ctime_ns > before.st_ctime_ns


def test_truncate_follows_a_symlink(here: Path) -> None:
    make(here / "file", b"0123456789")
    (here / "link").symlink_to("file")
    os.truncate(here / "link", 3)
    assert (here / "file").read_bytes() == b"012"


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("missing", ENOENT),
        ("file/below", ENOTDIR),
        ("directory", EISDIR),
        ("fifo", EINVAL),
        ("dangling", ENOENT),
    ],
)
def test_a_refused_truncate_says_why(here: Path, path: str, error: int) -> None:
    make(here / "file", b"text")
    (here / "directory").mkdir()
    os.mkfifo(here / "fifo")
    (here / "dangling").symlink_to("nowhere")
    with fails(error):
        os.truncate(here / path, 0)
    assert (here / "file").read_bytes() == b"text"


def test_a_negative_length_is_invalid(here: Path) -> None:
    file = make(here / "file", b"text")
    with fails(EINVAL):
        os.truncate(file, -1)
    with opened(file, os.O_RDWR) as fd, fails(EINVAL):
        os.ftruncate(fd, -1)
    assert file.read_bytes() == b"text"


def test_truncation_needs_write_permission(here: Path) -> None:
    file = make(here / "file", b"text", mode=0o444)
    with fails(EACCES):
        as_user(lambda: os.truncate(file, 0), ALICE)
    with opened(file) as fd, fails(EINVAL, EBADF):
        os.ftruncate(fd, 0)
    assert file.read_bytes() == b"text"


def test_ftruncate_works_where_the_mode_no_longer_allows_it(here: Path) -> None:
    file = make(here / "file", b"text", mode=0o600)
    os.chown(file, ALICE, ALICE)

    def open_forbid_and_cut() -> None:
        with opened(file, os.O_RDWR) as fd:
            os.fchmod(fd, 0)
            os.ftruncate(fd, 2)

    as_user(open_forbid_and_cut, ALICE)
    assert file.read_bytes() == b"te"


def test_an_executable_can_be_cut_once_it_has_ended(here: Path) -> None:
    script = make(here / "script", b"#!/bin/true\n" + b"#" * 10_000, mode=0o755)
    assert os.spawnv(os.P_WAIT, script, [str(script)]) == 0
    os.truncate(script, 12)
    assert os.spawnv(os.P_WAIT, script, [str(script)]) == 0
