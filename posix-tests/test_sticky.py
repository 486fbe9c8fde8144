"""The sticky bit on directories: only owners remove and rename.

Sources: POSIX.1-2024 unlink(), rename(), rmdir() (S_ISVTX); Linux man pages inode(7),
unlink(2), rename(2).
"""

import os
from collections.abc import Callable
from errno import EACCES, EPERM
from pathlib import Path

import pytest
from calls import RENAME_EXCHANGE, fails, make, make_directory, mode_of, rename2
from people import ALICE, BOB, CAROL, as_user


@pytest.fixture
def sticky(here: Path) -> Path:
    """ALICE's sticky directory, open to all, with BOB's `file` and `sub`."""
    directory = make_directory(here / "sticky")
    make(directory / "file", mode=0o666)
    make_directory(directory / "sub", 0o777)
    for path in (directory / "file", directory / "sub"):
        os.chown(path, BOB, BOB)
    os.chown(directory, ALICE, ALICE)
    directory.chmod(0o1777)
    return directory


ACTS: dict[str, Callable[[Path], object]] = {
    "unlink": lambda directory: os.unlink(directory / "file"),
    "rmdir": lambda directory: os.rmdir(directory / "sub"),
    "rename": lambda directory: os.rename(directory / "file", directory / "new"),
    "move out": lambda directory: os.rename(directory / "sub", directory.parent / "out" / "sub"),
}


@pytest.mark.parametrize("act", ACTS)
def test_a_stranger_may_not_take_a_name_away(sticky: Path, act: str) -> None:
    make_directory(sticky.parent / "out", 0o777)
    with fails(EPERM, EACCES):
        as_user(lambda: ACTS[act](sticky), CAROL)
    assert set(os.listdir(sticky)) == {"file", "sub"}


@pytest.mark.parametrize("who", [ALICE, BOB, 0], ids=["directory's owner", "owner", "superuser"])
@pytest.mark.parametrize("act", ACTS)
def test_owners_may(sticky: Path, act: str, who: int) -> None:
    make_directory(sticky.parent / "out", 0o777)
    as_user(lambda: ACTS[act](sticky), who)
    assert set(os.listdir(sticky)) != {"file", "sub"}


def test_the_group_of_the_directory_is_no_owner(sticky: Path) -> None:
    with fails(EPERM, EACCES):
        as_user(lambda: os.unlink(sticky / "file"), CAROL, ALICE, BOB)


def test_a_stranger_may_not_replace_anothers_file(sticky: Path) -> None:
    make(sticky / "own")
    os.chown(sticky / "own", CAROL, CAROL)
    with fails(EPERM, EACCES):
        as_user(lambda: os.rename(sticky / "own", sticky / "file"), CAROL)
    with fails(EPERM, EACCES):
        as_user(lambda: rename2(sticky / "own", sticky / "file", RENAME_EXCHANGE), CAROL)
    assert set(os.listdir(sticky)) == {"file", "sub", "own"}


def test_a_stranger_makes_and_removes_files_of_its_own(sticky: Path) -> None:
    def come_and_go() -> None:
        make(sticky / "own", b"text")
        os.rename(sticky / "own", sticky / "renamed")
        os.unlink(sticky / "renamed")

    as_user(come_and_go, CAROL)
    assert set(os.listdir(sticky)) == {"file", "sub"}


def test_a_stranger_still_writes_where_the_file_allows_it(sticky: Path) -> None:
    def write() -> None:
        fd = os.open(sticky / "file", os.O_WRONLY)
        os.write(fd, b"text")
        os.close(fd)

    as_user(write, CAROL)
    assert (sticky / "file").read_bytes() == b"text"


def test_the_bit_is_not_inherited(sticky: Path) -> None:
    os.mkdir(sticky / "inner", 0o777)
    assert mode_of(sticky / "inner") == 0o755
