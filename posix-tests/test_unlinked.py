"""Files and directories that are in use after their last name has gone.

Sources: POSIX.1-2024 unlink(), rename(), rmdir(), getcwd(); Linux man pages unlink(2),
open(2) (O_PATH), proc_pid_fd(5).
"""

import contextlib
import mmap
import os
from errno import ENOENT
from pathlib import Path

import pytest
from calls import fails, fallocate, let_time_pass, make, opened, write_all

CREATE = os.O_RDWR | os.O_CREAT


def test_an_unlinked_file_is_read_and_written_as_before(here: Path) -> None:
    with opened(make(here / "file", b"text" * 30_000), os.O_RDWR) as fd:
        os.unlink(here / "file")
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, 4, 100_000) == b"text"
        write_all(fd, b"more", 200_000)
        os.fsync(fd)
        assert os.fstat(fd).st_size == 200_004
        assert os.pread(fd, 10, 199_998) == bytes(2) + b"more"
        os.ftruncate(fd, 2)
        assert os.pread(fd, 10, 0) == b"te"


def test_a_file_unlinked_before_it_was_ever_written_takes_data(here: Path) -> None:
    with opened(here / "file", CREATE) as fd:
        os.unlink(here / "file")
        content = os.urandom(3_000_000)
        write_all(fd, content)
        assert os.pread(fd, 3_000_001, 0) == content


def test_an_unlinked_file_has_all_its_attributes(here: Path) -> None:
    with opened(make(here / "file", b"text"), os.O_RDWR) as fd:
        os.unlink(here / "file")
        os.fchmod(fd, 0o604)
        os.fchown(fd, 3, 4)
        os.utime(fd, ns=(5, 6))
        status = os.fstat(fd)
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o604, 3, 4)
    assert (status.st_atime_ns, status.st_mtime_ns) == (5, 6)


def test_unlinking_the_last_name_stamps_the_change(here: Path) -> None:
    with opened(make(here / "file", b"text")) as fd:
        before = os.fstat(fd).st_ctime_ns
        let_time_pass()
        os.unlink(here / "file")
        assert os.fstat(fd).st_ctime_ns > before


def test_every_descriptor_keeps_the_file_until_the_last_is_closed(here: Path) -> None:
    make(here / "file", b"text")
    one, two = os.open(here / "file", os.O_RDONLY), os.open(here / "file", os.O_RDWR)
    os.unlink(here / "file")
    os.close(one)
    write_all(two, b"more", 4)
    assert os.pread(two, 10, 0) == b"textmore"
    os.close(two)


def test_a_new_file_of_the_same_name_is_another_file(here: Path) -> None:
    with opened(make(here / "file", b"old")) as fd:
        os.unlink(here / "file")
        make(here / "file", b"new")
        assert os.read(fd, 10) == b"old"
        assert os.fstat(fd).st_ino != (here / "file").stat().st_ino


def test_an_unlinked_file_is_opened_again_through_proc(here: Path) -> None:
    with opened(make(here / "file", b"text"), os.O_RDWR) as fd:
        os.unlink(here / "file")
        with opened(f"/proc/self/fd/{fd}", os.O_RDWR) as again:
            assert os.read(again, 10) == b"text"
            write_all(again, b"T", 0)
        assert os.pread(fd, 10, 0) == b"Text"


def test_a_replaced_file_is_read_and_written_as_before(here: Path) -> None:
    make(here / "next", b"next")
    with opened(make(here / "file", b"text"), os.O_RDWR) as fd:
        os.rename(here / "next", here / "file")
        write_all(fd, b"more", 4)
        assert os.pread(fd, 10, 0) == b"textmore"
        assert os.fstat(fd).st_nlink == 0
    assert (here / "file").read_bytes() == b"next"


def test_a_path_descriptor_keeps_an_unlinked_file(here: Path) -> None:
    with opened(make(here / "file", b"text"), os.O_PATH) as fd:
        os.unlink(here / "file")
        assert (os.fstat(fd).st_nlink, os.fstat(fd).st_size) == (0, 4)
        with opened(f"/proc/self/fd/{fd}") as again:
            assert os.read(again, 10) == b"text"


def test_a_mapping_keeps_an_unlinked_file(here: Path) -> None:
    fd = os.open(make(here / "file", b"text" * 5000), os.O_RDWR)
    with mmap.mmap(fd, 20_000) as mapping:
        os.close(fd)
        os.unlink(here / "file")
        assert mapping[12_000:12_004] == b"text"
        mapping[12_000:12_004] = b"TEXT"
        mapping.flush()
        assert mapping[12_000:12_004] == b"TEXT"


def test_an_unlinked_file_may_be_allocated(here: Path) -> None:
    with opened(here / "file", CREATE) as fd:
        os.unlink(here / "file")
        os.ftruncate(fd, 5000)
        try:
            fallocate(fd, 0, 0, 10_000)
        except OSError:
            pytest.skip("no fallocate on this filesystem")
        assert os.fstat(fd).st_size == 10_000


def test_an_unlinked_open_symlink_still_says_where_it_led(here: Path) -> None:
    (here / "link").symlink_to("target")
    with opened(here / "link", os.O_PATH | os.O_NOFOLLOW) as fd:
        os.unlink(here / "link")
        assert os.readlink("", dir_fd=fd) == "target"


def test_a_removed_working_directory_has_no_name_and_takes_none(here: Path) -> None:
    (here / "sub").mkdir()
    os.chdir(here / "sub")
    os.rmdir(here / "sub")
    with fails(ENOENT):
        os.getcwd()
    with fails(ENOENT):
        os.open("file", os.O_CREAT | os.O_WRONLY)
    with fails(ENOENT):
        os.mkdir("sub")
    with fails(ENOENT):
        os.stat("file")
    assert os.stat(".").st_nlink == 0


def test_a_removed_open_directory_lists_nothing_and_still_has_its_attributes(here: Path) -> None:
    (here / "sub").mkdir()
    with opened(here / "sub") as fd:
        os.rmdir(here / "sub")
        assert os.fstat(fd).st_nlink == 0
        with contextlib.suppress(FileNotFoundError):  # getdents(2) may say so
            assert os.listdir(fd) == []
        os.fchmod(fd, 0o700)
        with fails(ENOENT):
            os.mkdir("new", dir_fd=fd)


def test_a_replaced_working_directory_is_the_removed_one(here: Path) -> None:
    (here / "old").mkdir()
    (here / "new").mkdir()
    os.chdir(here / "old")
    os.rename(here / "new", here / "old")
    assert os.stat(".").st_nlink == 0
    with fails(ENOENT):
        os.mkdir("sub")
    assert os.listdir(here / "old") == []


def test_a_hundred_unlinked_files_do_not_mix(here: Path) -> None:
    fds = []
    try:
        for number in range(100):
            fds.append(os.open(here / "file", CREATE))
            os.unlink(here / "file")
            write_all(fds[-1], b"%03d" % number * 2000)
        for number, fd in enumerate(fds):
            assert os.pread(fd, 9, 3000) == b"%03d" % number * 3
    finally:
        for fd in fds:
            os.close(fd)
    assert os.listdir(here) == []
