"""O_TMPFILE: files that have no name until they are given one.

Sources: Linux man pages open(2) (O_TMPFILE), linkat(2).
"""

import os
import stat
from errno import EACCES, EEXIST, EINVAL, ENOENT, ENOTDIR
from pathlib import Path

import pytest
from calls import AT_SYMLINK_FOLLOW, fails, link_at, link_fd, make, opened, write_all
from people import ALICE, BOB, as_user

TMPFILE = os.O_TMPFILE | os.O_RDWR


def test_a_nameless_file_works_and_is_nowhere(here: Path) -> None:
    with opened(here, TMPFILE) as fd:
        write_all(fd, b"text" * 5000)
        assert os.pread(fd, 8, 4) == b"texttext"
        status = os.fstat(fd)
        assert (status.st_nlink, status.st_size) == (0, 20_000)
        assert stat.S_ISREG(status.st_mode)
        assert os.listdir(here) == []


def test_its_mode_and_owner_are_those_of_any_new_file(here: Path) -> None:
    here.chmod(0o777)

    def made() -> tuple[int, int, int]:
        os.umask(0o027)
        with opened(here, TMPFILE, 0o666) as fd:
            status = os.fstat(fd)
        return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid

    assert as_user(made, ALICE, BOB) == (0o640, ALICE, BOB)


@pytest.mark.parametrize("how", ["descriptor", "proc"])
def test_it_can_be_given_a_name(here: Path, how: str) -> None:
    with opened(here, TMPFILE, 0o600) as fd:
        write_all(fd, b"text")
        if how == "descriptor":
            link_fd(fd, here / "name")
        else:
            link_at(Path(f"/proc/self/fd/{fd}"), here / "name", AT_SYMLINK_FOLLOW)
        assert os.fstat(fd).st_nlink == 1
        write_all(fd, b" more")
    assert (here / "name").read_bytes() == b"text more"
    os.unlink(here / "name")


def test_it_can_be_given_a_name_in_another_directory_and_a_second_one(here: Path) -> None:
    (here / "sub").mkdir()
    with opened(here, TMPFILE) as fd:
        link_fd(fd, here / "sub" / "one")
        link_fd(fd, here / "two")
        assert os.fstat(fd).st_nlink == 2
    assert os.path.samefile(here / "sub" / "one", here / "two")


def test_it_cannot_take_a_name_that_is_in_use(here: Path) -> None:
    make(here / "name", b"old")
    with opened(here, TMPFILE) as fd, fails(EEXIST):
        link_fd(fd, here / "name")
    assert (here / "name").read_bytes() == b"old"


def test_with_excl_it_can_never_be_given_a_name(here: Path) -> None:
    with opened(here, TMPFILE | os.O_EXCL) as fd:
        write_all(fd, b"text")
        with fails(ENOENT):
            link_fd(fd, here / "name")
        with fails(ENOENT):
            link_at(Path(f"/proc/self/fd/{fd}"), here / "name", AT_SYMLINK_FOLLOW)
    assert os.listdir(here) == []


def test_it_must_be_writable(here: Path) -> None:
    with fails(EINVAL):
        os.open(here, os.O_TMPFILE | os.O_RDONLY)
    os.close(os.open(here, os.O_TMPFILE | os.O_WRONLY))


@pytest.mark.parametrize(("path", "error"), [("missing", ENOENT), ("file", ENOTDIR)])
def test_it_needs_a_directory(here: Path, path: str, error: int) -> None:
    make(here / "file")
    with fails(error):
        os.open(here / path, TMPFILE)


def test_it_needs_write_permission_in_the_directory(here: Path) -> None:
    with fails(EACCES):
        as_user(lambda: os.open(here, TMPFILE), ALICE)


def test_it_does_not_change_the_directorys_times(here: Path) -> None:
    before = here.stat().st_mtime_ns
    with opened(here, TMPFILE) as fd:
        write_all(fd, b"text")
    assert here.stat().st_mtime_ns == before
    assert os.listdir(here) == []
