"""link(2) and linkat(2).

Sources: POSIX.1-2024 link(), Linux man page link(2).
"""

import os
from errno import EEXIST, ENOENT, ENOTDIR, EPERM, EXDEV
from pathlib import Path

import pytest
from calls import AT_SYMLINK_FOLLOW, fails, let_time_pass, link_at, link_fd, make, opened


def test_a_link_is_another_name_of_the_same_file(here: Path) -> None:
    make(here / "a", b"text")
    os.link(here / "a", here / "b")
    with opened(here / "b", os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b" more")
    assert (here / "a").read_bytes() == b"text more"
    assert os.path.samefile(here / "a", here / "b")
    assert (here / "a").stat().st_nlink == 2


def test_mode_and_owner_are_the_files_and_not_the_names(here: Path) -> None:
    make(here / "a")
    os.link(here / "a", here / "b")
    (here / "b").chmod(0o600)
    os.chown(here / "b", 5, 6)
    status = (here / "a").stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o600, 5, 6)


def test_linking_stamps_the_file_and_the_directory(here: Path) -> None:
    (here / "sub").mkdir()
    make(here / "a")
    file, directory = (here / "a").stat(), (here / "sub").stat()
    let_time_pass()
    os.link(here / "a", here / "sub" / "b")
    assert (here / "a").stat().st_ctime_ns > file.st_ctime_ns
    assert (here / "a").stat().st_mtime_ns == file.st_mtime_ns
    assert (here / "sub").stat().st_mtime_ns > directory.st_mtime_ns
    assert (here / "sub").stat().st_ctime_ns > directory.st_ctime_ns


@pytest.mark.parametrize(
    ("source", "target", "error"),
    [
        ("missing", "new", ENOENT),
        ("file", "missing/new", ENOENT),
        ("file/below", "new", ENOTDIR),
        ("file", "file/below", ENOTDIR),
        ("file", "file", EEXIST),
        ("file", "directory", EEXIST),
        ("file", "dangling", EEXIST),
        ("directory", "new", EPERM),
        ("", "new", ENOENT),
    ],
)
def test_a_refused_link_says_why(here: Path, source: str, target: str, error: int) -> None:
    make(here / "file")
    (here / "directory").mkdir()
    (here / "dangling").symlink_to("nowhere")
    os.chdir(here)
    with fails(error):
        os.link(source, target)
    assert set(os.listdir(here)) == {"file", "directory", "dangling"}
    assert (here / "file").stat().st_nlink == 1


def test_a_link_to_another_filesystem_is_refused(here: Path) -> None:
    elsewhere = Path("/dev/shm")
    if elsewhere.stat().st_dev == here.stat().st_dev:
        pytest.skip("/dev/shm is the filesystem under test")
    make(here / "file")
    with fails(EXDEV):
        os.link(here / "file", elsewhere / here.name)


def test_a_symlink_can_have_two_names(here: Path) -> None:
    (here / "a").symlink_to("nowhere")
    os.link(here / "a", here / "b", follow_symlinks=False)
    assert os.readlink(here / "b") == "nowhere"
    assert (here / "b").lstat().st_nlink == 2


def test_linkat_follows_a_symlink_when_asked(here: Path) -> None:
    make(here / "file", b"text")
    (here / "a").symlink_to("file")
    link_at(here / "a", here / "b", AT_SYMLINK_FOLLOW)
    assert not (here / "b").is_symlink()
    assert (here / "b").stat().st_nlink == 2


def test_a_special_file_can_have_two_names(here: Path) -> None:
    os.mkfifo(here / "a")
    os.link(here / "a", here / "b")
    assert (here / "b").is_fifo()
    assert (here / "a").stat().st_nlink == 2


def test_an_open_file_can_be_linked_by_its_descriptor(here: Path) -> None:
    with opened(make(here / "a", b"text")) as fd:
        link_fd(fd, here / "b")
    assert os.path.samefile(here / "a", here / "b")


def test_a_file_whose_last_name_is_gone_cannot_be_linked_again(here: Path) -> None:
    with opened(make(here / "a")) as fd:
        os.unlink(here / "a")
        with fails(ENOENT):
            link_fd(fd, here / "b")
    assert os.listdir(here) == []


def test_a_hundred_names_count_as_a_hundred_links(here: Path) -> None:
    make(here / "0", b"text")
    for number in range(1, 100):
        os.link(here / "0", here / str(number))
    assert (here / "50").stat().st_nlink == 100
    for number in range(99):
        os.unlink(here / str(number))
    assert (here / "99").stat().st_nlink == 1
    assert (here / "99").read_bytes() == b"text"
