"""The set-user-ID and set-group-ID bits: who loses them when, and what such a directory gives.

Sources: POSIX.1-2024 chmod(), chown(), write(); Linux man pages chmod(2), chown(2), inode(7),
open(2), mkdir(2), capabilities(7) (CAP_FSETID), execve(2).
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from calls import AT_SYMLINK_FOLLOW, link_at, make, make_directory, mode_of, opened
from people import ALICE, BOB, CAROL, as_user

NOSUID = 2  # ST_NOSUID of statvfs(3)


def write(path: Path) -> None:
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"x")


def truncate_open(path: Path) -> None:
    with opened(path, os.O_WRONLY) as fd:
        os.ftruncate(fd, 1)


CHANGES: dict[str, Callable[[Path], object]] = {
    "write": write,
    "truncate": lambda path: os.truncate(path, 1),
    "ftruncate": truncate_open,
    "O_TRUNC": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
}


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("bits", [0o4777, 0o2777, 0o6777])
def test_a_user_who_changes_the_content_takes_the_bits_away(
    here: Path, how: str, bits: int
) -> None:
    file = make(here / "file", b"text", mode=bits)
    as_user(lambda: CHANGES[how](file), ALICE)
    assert mode_of(file) == 0o777


def test_the_owner_who_writes_takes_the_bits_away_too(here: Path) -> None:
    file = make(here / "file", b"text")
    os.chown(file, ALICE, ALICE)
    file.chmod(0o6755)
    as_user(lambda: write(file), ALICE)
    assert mode_of(file) == 0o755


def test_the_superuser_may_write_and_leave_the_bits(here: Path) -> None:
    file = make(here / "file", b"text", mode=0o6755)
    write(file)
    assert mode_of(file) == 0o6755


@pytest.mark.parametrize("how", CHANGES)
def test_without_group_execution_the_group_bit_is_no_privilege_and_stays(
    here: Path, how: str
) -> None:
    file = make(here / "file", b"text")
    os.chown(file, 0, ALICE)
    file.chmod(0o2666)
    as_user(lambda: CHANGES[how](file), ALICE)
    assert mode_of(file) == 0o2666


def test_reading_leaves_the_bits(here: Path) -> None:
    file = make(here / "file", b"text", mode=0o6777)
    as_user(lambda: file.read_bytes(), ALICE)
    assert mode_of(file) == 0o6777


def test_an_owner_who_gives_the_file_to_another_group_loses_the_bits(here: Path) -> None:
    file = make(here / "file")
    os.chown(file, ALICE, ALICE)
    file.chmod(0o6755)
    as_user(lambda: os.chown(file, -1, BOB), ALICE, ALICE, BOB)
    assert mode_of(file) == 0o755
    assert file.stat().st_gid == BOB


def test_the_superuser_who_changes_the_owner_takes_the_bits_away(here: Path) -> None:
    file = make(here / "file", mode=0o6755)
    os.chown(file, ALICE, BOB)
    assert mode_of(file) == 0o755


def test_a_directory_keeps_its_bits_when_its_owner_changes(here: Path) -> None:
    directory = make_directory(here / "sub", 0o2775)
    os.chown(directory, ALICE, BOB)
    assert mode_of(directory) == 0o2775


def test_chmod_by_an_owner_outside_the_group_sets_no_group_bit(here: Path) -> None:
    file = make(here / "file")
    os.chown(file, ALICE, BOB)
    as_user(lambda: file.chmod(0o6755), ALICE)
    assert mode_of(file) == 0o4755
    as_user(lambda: file.chmod(0o6755), ALICE, CAROL, BOB)
    assert mode_of(file) == 0o6755


@pytest.fixture
def shared(here: Path) -> Path:
    """A set-group-ID directory of BOB's group, open to all."""
    directory = make_directory(here / "shared")
    os.chown(directory, 0, BOB)
    directory.chmod(0o2777)
    return directory


@pytest.mark.parametrize("kind", ["file", "fifo", "symlink", "tmpfile"])
def test_what_is_made_in_it_has_the_directorys_group(shared: Path, kind: str) -> None:
    name = shared / "new"

    def create() -> None:
        if kind == "file":
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o664))
        elif kind == "fifo":
            os.mkfifo(name)
        elif kind == "symlink":
            os.symlink("target", name)
        else:
            with opened(shared, os.O_TMPFILE | os.O_WRONLY) as fd:
                link_at(Path(f"/proc/self/fd/{fd}"), name, AT_SYMLINK_FOLLOW)

    as_user(create, ALICE, CAROL)
    assert (name.lstat().st_uid, name.lstat().st_gid) == (ALICE, BOB)
    assert not mode_of(name) & 0o2000


def test_a_directory_made_in_it_has_the_group_and_the_bit(shared: Path) -> None:
    as_user(lambda: os.makedirs(shared / "one" / "two"), ALICE, CAROL)
    for directory in (shared / "one", shared / "one" / "two"):
        assert directory.stat().st_gid == BOB
        assert mode_of(directory) == 0o2755


def test_what_is_moved_into_it_keeps_its_group(shared: Path) -> None:
    file = make(shared.parent / "file")
    os.rename(file, shared / "file")
    assert (shared / "file").stat().st_gid == 0


def test_without_the_bit_the_group_is_the_makers(here: Path) -> None:
    directory = make_directory(here / "sub")
    os.chown(directory, 0, BOB)
    directory.chmod(0o777)
    as_user(lambda: os.mkdir(directory / "new"), ALICE, CAROL)
    assert (directory / "new").stat().st_gid == CAROL


@pytest.mark.parametrize(("bits", "ids"), [(0o4755, b"60002 60003"), (0o2755, b"60001 60002")])
def test_a_program_runs_with_the_ids_its_bits_say(here: Path, bits: int, ids: bytes) -> None:
    if os.statvfs(here).f_flag & NOSUID:
        pytest.skip("mounted with nosuid")
    program = here / "program"
    shutil.copyfile(shutil.which("id") or "/usr/bin/id", program)
    os.chown(program, BOB, BOB)
    program.chmod(bits)

    def told() -> bytes:
        user = subprocess.check_output([program, "-u"]).strip()
        return user + b" " + subprocess.check_output([program, "-g"]).strip()

    assert as_user(told, ALICE, CAROL) == ids
