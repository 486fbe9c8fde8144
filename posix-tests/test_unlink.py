"""unlink(2), rmdir(2) and unlinkat(2).

Sources: POSIX.1-2024 unlink(), rmdir(); Linux man pages unlink(2), rmdir(2).
"""

import os
from errno import EBUSY, EEXIST, EINVAL, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, EPERM
from pathlib import Path

import pytest
from calls import fails, let_time_pass, make, opened


@pytest.mark.parametrize("kind", ["file", "symlink", "dangling", "fifo"])
def test_unlink_removes_the_name_of_what_is_not_a_directory(here: Path, kind: str) -> None:
    name = here / "name"
    target = make(here / "target", b"kept")
    if kind == "file":
        make(name)
    elif kind == "fifo":
        os.mkfifo(name)
    else:
        name.symlink_to("target" if kind == "symlink" else "nowhere")
    os.unlink(name)
    assert os.listdir(here) == ["target"]
    assert target.read_bytes() == b"kept"


@pytest.mark.parametrize(
    ("path", "errors"),
    [
        ("missing", (ENOENT,)),
        ("missing/file", (ENOENT,)),
        ("file/below", (ENOTDIR,)),
        ("file/", (ENOTDIR,)),
        ("directory", (EISDIR, EPERM)),
        ("directory/", (EISDIR, EPERM)),
        ("directory/.", (EISDIR, EPERM, EINVAL)),
        ("", (ENOENT,)),
    ],
)
def test_a_refused_unlink_says_why(here: Path, path: str, errors: tuple[int, ...]) -> None:
    make(here / "file")
    (here / "directory").mkdir()
    os.chdir(here)
    with fails(*errors):
        os.unlink(path)
    assert set(os.listdir(here)) == {"file", "directory"}


def test_unlink_of_one_link_leaves_the_others_and_stamps_the_file(here: Path) -> None:
    make(here / "a", b"text")
    os.link(here / "a", here / "b")
    before = (here / "b").stat()
    let_time_pass()
    os.unlink(here / "a")
    after = (here / "b").stat()
    assert after.st_nlink == 1
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_mtime_ns == before.st_mtime_ns


def test_unlink_stamps_the_directory(here: Path) -> None:
    make(here / "file")
    before = here.stat()
    let_time_pass()
    os.unlink(here / "file")
    assert here.stat().st_mtime_ns > before.st_mtime_ns
    assert here.stat().st_ctime_ns > before.st_ctime_ns


def test_a_name_can_be_used_again_at_once(here: Path) -> None:
    for content in (b"one", b"two", b"three"):
        make(here / "name", content)
        assert (here / "name").read_bytes() == content
        os.unlink(here / "name")
    (here / "name").mkdir()
    os.rmdir(here / "name")
    assert os.listdir(here) == []


def test_rmdir_removes_an_empty_directory_and_its_link_to_the_parent(here: Path) -> None:
    before = here.stat().st_nlink
    (here / "sub").mkdir()
    os.rmdir(here / "sub")
    assert here.stat().st_nlink == before
    assert os.listdir(here) == []


@pytest.mark.parametrize(
    ("path", "errors"),
    [
        ("missing", (ENOENT,)),
        ("file", (ENOTDIR,)),
        ("file/below", (ENOTDIR,)),
        ("link", (ENOTDIR,)),
        ("full", (ENOTEMPTY, EEXIST)),
        ("full/.", (EINVAL,)),
        ("full/sub/..", (ENOTEMPTY, EEXIST, EINVAL)),
        ("/", (EBUSY, ENOTEMPTY)),
    ],
)
def test_a_refused_rmdir_says_why(here: Path, path: str, errors: tuple[int, ...]) -> None:
    make(here / "file")
    (here / "full" / "sub").mkdir(parents=True)
    (here / "link").symlink_to("full/sub")
    os.chdir(here)
    with fails(*errors):
        os.rmdir(path)
    assert set(os.listdir(here)) == {"file", "full", "link"}
    assert os.listdir(here / "full") == ["sub"]


def test_rmdir_works_once_the_last_entry_has_gone(here: Path) -> None:
    (here / "sub").mkdir()
    make(here / "sub" / "file")
    with fails(ENOTEMPTY, EEXIST):
        os.rmdir(here / "sub")
    os.unlink(here / "sub" / "file")
    os.rmdir(here / "sub")
    assert not (here / "sub").exists()


def test_unlinkat_is_relative_to_its_directory(here: Path) -> None:
    (here / "sub").mkdir()
    make(here / "sub" / "file")
    make(here / "file")
    with opened(here / "sub", os.O_RDONLY | os.O_DIRECTORY) as directory:
        os.unlink("file", dir_fd=directory)
    assert (here / "file").exists()
    assert os.listdir(here / "sub") == []
