"""symlink(2) and readlink(2).

Sources: POSIX.1-2024 symlink(), readlink(); Linux man pages symlink(2), readlink(2), symlink(7),
path_resolution(7).
"""

import os
import stat
from errno import EACCES, EEXIST, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR
from pathlib import Path

import pytest
from calls import fails, make, opened
from people import ALICE, as_user


@pytest.mark.parametrize(
    "target",
    [b"t", b"../a/./b//c", b"/absolute", b"with space\n", b"\xff\xfe", b"x" * 59, b"y" * 4095],
    ids=["short", "relative", "absolute", "blank", "not-utf8", "59 bytes", "4095 bytes"],
)
def test_a_symlink_says_what_it_was_given(here: Path, target: bytes) -> None:
    os.symlink(target, os.fsencode(here / "link"))
    assert os.readlink(os.fsencode(here / "link")) == target
    status = (here / "link").lstat()
    assert stat.S_ISLNK(status.st_mode)
    assert status.st_size == len(target)


def test_a_target_longer_than_path_max_is_refused(here: Path) -> None:
    with fails(ENAMETOOLONG):
        os.symlink("x" * 4096, here / "link")


def test_an_empty_target_is_refused(here: Path) -> None:
    with fails(ENOENT):
        os.symlink("", here / "link")


@pytest.mark.parametrize("kind", ["file", "directory", "dangling"])
def test_symlink_refuses_any_existing_name(here: Path, kind: str) -> None:
    make(here / "file")
    (here / "directory").mkdir()
    (here / "dangling").symlink_to("nowhere")
    with fails(EEXIST):
        os.symlink("target", here / kind)


@pytest.mark.parametrize(("path", "error"), [("missing/new", ENOENT), ("file/new", ENOTDIR)])
def test_a_refused_symlink_says_why(here: Path, path: str, error: int) -> None:
    make(here / "file")
    with fails(error):
        os.symlink("target", here / path)


def test_symlink_needs_write_permission_in_the_directory(here: Path) -> None:
    with fails(EACCES):
        as_user(lambda: os.symlink("target", here / "link"), ALICE)


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_readlink_of_what_is_no_symlink_is_invalid(here: Path, kind: str) -> None:
    make(here / "file")
    (here / "directory").mkdir()
    with fails(EINVAL):
        os.readlink(here / kind)


def test_the_permission_of_a_symlink_is_never_asked(here: Path) -> None:
    make(here / "file", b"text")
    os.symlink("file", here / "link")
    os.chown(here / "link", 1, 1, follow_symlinks=False)
    assert as_user(lambda: (here / "link").read_bytes(), ALICE) == b"text"


def test_stat_follows_and_lstat_does_not(here: Path) -> None:
    make(here / "file", b"text")
    os.symlink("file", here / "link")
    assert os.stat(here / "link").st_ino == (here / "file").stat().st_ino
    assert os.lstat(here / "link").st_ino != (here / "file").stat().st_ino


def test_chown_without_following_changes_the_link_only(here: Path) -> None:
    make(here / "file")
    os.symlink("file", here / "link")
    os.chown(here / "link", 7, 8, follow_symlinks=False)
    assert ((here / "link").lstat().st_uid, (here / "link").lstat().st_gid) == (7, 8)
    assert ((here / "file").stat().st_uid, (here / "file").stat().st_gid) == (0, 0)


def test_a_relative_target_starts_at_the_links_directory(here: Path) -> None:
    os.makedirs(here / "one" / "two")
    make(here / "one" / "file", b"text")
    os.symlink("../file", here / "one" / "two" / "link")
    os.symlink("one/two/link", here / "outer")
    assert (here / "outer").read_bytes() == b"text"


def test_forty_symlinks_in_a_row_are_followed_and_forty_one_are_not(here: Path) -> None:
    make(here / "0", b"text")
    for number in range(1, 42):
        os.symlink(str(number - 1), here / str(number))
    assert (here / "40").read_bytes() == b"text"
    with fails(ELOOP):
        os.stat(here / "41")


def test_a_symlink_can_be_replaced_by_another_of_other_length(here: Path) -> None:
    os.symlink("short", here / "link")
    os.symlink("l" * 500, here / "next")
    os.rename(here / "next", here / "link")
    assert os.readlink(here / "link") == "l" * 500


def test_readlinkat_works_below_an_open_directory(here: Path) -> None:
    os.symlink("target", here / "link")
    with opened(here, os.O_PATH | os.O_DIRECTORY) as directory:
        assert os.readlink("link", dir_fd=directory) == "target"
