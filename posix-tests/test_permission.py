"""Who may do what: the permission bits, for users, groups and supplementary groups.

Sources: POSIX.1-2024 XBD 4.7 File Access Permissions, access(), chmod(), chown(); Linux man pages
path_resolution(7), access(2), chmod(2), chown(2), credentials(7).
"""

import os
from collections.abc import Callable
from errno import EACCES, EPERM
from pathlib import Path

import pytest
from calls import fails, let_time_pass, make, make_directory, mode_of, opened
from people import ALICE, BOB, CAROL, as_user


def touch(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))


@pytest.mark.parametrize(
    ("who", "bits", "may"),
    [
        ((ALICE, CAROL), 0o400, "r"),
        ((ALICE, CAROL), 0o200, "w"),
        ((ALICE, CAROL), 0o100, "x"),
        ((ALICE, BOB), 0o077, ""),  # the owner's class is the only one that counts for the owner
        ((CAROL, BOB), 0o040, "r"),
        ((CAROL, BOB), 0o707, ""),
        ((CAROL, CAROL, BOB), 0o060, "rw"),
        ((CAROL, CAROL, 1, 2, 3, BOB), 0o010, "x"),
        ((CAROL, CAROL), 0o770, ""),
        ((CAROL, CAROL), 0o005, "rx"),
        ((0, 0), 0o000, "rw"),
        ((0, 0), 0o001, "rwx"),
    ],
)
def test_access_follows_the_first_class_that_matches(
    here: Path, who: tuple[int, ...], bits: int, may: str
) -> None:
    file = make(here / "file", mode=bits)
    os.chown(file, ALICE, BOB)
    wanted = {"r": os.R_OK, "w": os.W_OK, "x": os.X_OK}

    def allowed() -> str:
        return "".join(letter for letter, bit in wanted.items() if os.access(file, bit))

    assert as_user(allowed, *who) == may


@pytest.mark.parametrize(
    ("bits", "flags"),
    [
        (0o333, os.O_RDONLY),
        (0o555, os.O_WRONLY),
        (0o555, os.O_RDWR),
        (0o333, os.O_RDWR),
        (0o555, os.O_WRONLY | os.O_TRUNC),
    ],
)
def test_open_is_refused_without_the_bit_for_it(here: Path, bits: int, flags: int) -> None:
    file = make(here / "file", b"text", mode=bits)
    with fails(EACCES):
        as_user(lambda: os.open(file, flags), ALICE)
    assert file.read_bytes() == b"text"


@pytest.mark.parametrize(
    ("bits", "may"),
    [(0o700, ""), (0o701, "s"), (0o704, "l"), (0o705, "ls"), (0o703, "sc"), (0o707, "lsc")],
)
def test_a_directory_needs_search_to_pass_read_to_list_and_both_with_write_to_change(
    here: Path, bits: int, may: str
) -> None:
    directory = make_directory(here / "sub", bits)
    make(directory / "file")

    def tried() -> str:
        actions: dict[str, Callable[[], object]] = {
            "l": lambda: os.listdir(directory),
            "s": lambda: os.stat(directory / "file"),
            "c": lambda: touch(directory / "new"),
        }
        done = ""
        for letter, action in actions.items():
            try:
                action()
                done += letter
            except PermissionError:
                pass
        return done

    assert as_user(tried, ALICE) == may


def test_a_path_needs_search_permission_in_every_directory_of_it(here: Path) -> None:
    os.makedirs(here / "one" / "two")
    make(here / "one" / "two" / "file", b"text")
    (here / "one").chmod(0o600)
    with fails(EACCES):
        as_user(lambda: os.stat(here / "one" / "two" / "file"), ALICE)
    (here / "one").chmod(0o711)
    assert as_user(lambda: (here / "one" / "two" / "file").read_bytes(), ALICE) == b"text"


@pytest.mark.parametrize("act", [os.unlink, os.rmdir], ids=["unlink", "rmdir"])
def test_removal_needs_write_permission_in_the_directory_and_none_on_the_file(
    here: Path, act: Callable[[Path], None]
) -> None:
    name = here / "name"
    make_directory(name, 0) if act is os.rmdir else make(name, mode=0)
    with fails(EACCES):
        as_user(lambda: act(name), ALICE)
    here.chmod(0o777)
    as_user(lambda: act(name), ALICE)
    assert os.listdir(here) == []


def test_rename_needs_write_permission_in_both_directories(here: Path) -> None:
    open_one, closed = make_directory(here / "open", 0o777), make_directory(here / "closed")
    make(open_one / "a")
    make(closed / "b")
    with fails(EACCES):
        as_user(lambda: os.rename(open_one / "a", closed / "a"), ALICE)
    with fails(EACCES):
        as_user(lambda: os.rename(closed / "b", open_one / "b"), ALICE)
    assert (os.listdir(open_one), os.listdir(closed)) == (["a"], ["b"])


def test_a_directory_that_changes_its_parent_must_be_writable_itself(here: Path) -> None:
    for name in ("one", "two"):
        make_directory(here / name, 0o777)
    make_directory(here / "one" / "moved", 0o755)
    with fails(EACCES):
        as_user(lambda: os.rename(here / "one" / "moved", here / "two" / "moved"), ALICE)
    as_user(lambda: os.rename(here / "one" / "moved", here / "one" / "renamed"), ALICE)
    assert os.listdir(here / "one") == ["renamed"]


def test_chmod_is_for_the_owner_and_the_superuser(here: Path) -> None:
    file = make(here / "file", mode=0o666)
    os.chown(file, ALICE, ALICE)
    with fails(EPERM):
        as_user(lambda: file.chmod(0o777), BOB, ALICE)
    as_user(lambda: file.chmod(0o640), ALICE)
    assert mode_of(file) == 0o640


def test_the_owner_may_give_a_file_to_a_group_it_is_in_only(here: Path) -> None:
    file = make(here / "file")
    os.chown(file, ALICE, ALICE)
    as_user(lambda: os.chown(file, -1, BOB), ALICE, ALICE, BOB)
    assert file.stat().st_gid == BOB
    with fails(EPERM):
        as_user(lambda: os.chown(file, -1, CAROL), ALICE, ALICE, BOB)
    with fails(EPERM):
        as_user(lambda: os.chown(file, BOB, -1), ALICE, ALICE, BOB)
    assert (file.stat().st_uid, file.stat().st_gid) == (ALICE, BOB)


def test_a_group_member_who_is_not_the_owner_may_not_chown(here: Path) -> None:
    file = make(here / "file", mode=0o666)
    os.chown(file, ALICE, BOB)
    with fails(EPERM):
        as_user(lambda: os.chown(file, -1, CAROL), CAROL, CAROL, BOB)


def test_chown_of_nothing_by_the_owner_is_allowed(here: Path) -> None:
    file = make(here / "file")
    os.chown(file, ALICE, ALICE)
    as_user(lambda: os.chown(file, -1, -1), ALICE)
    assert (file.stat().st_uid, file.stat().st_gid) == (ALICE, ALICE)


def test_chmod_and_chown_stamp_the_change_and_not_the_content(here: Path) -> None:
    file = make(here / "file")
    changes: list[Callable[[], None]] = [lambda: file.chmod(0o600), lambda: os.chown(file, 3, 4)]
    for change in changes:
        before = file.stat()
        let_time_pass()
        change()
        assert file.stat().st_ctime_ns > before.st_ctime_ns
        assert file.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("uid", [0, 1, 65_534, 2**31, 2**32 - 2])
def test_ids_are_full_32_bit_numbers(here: Path, uid: int) -> None:
    file = make(here / "file")
    os.chown(file, uid, uid)
    assert (file.stat().st_uid, file.stat().st_gid) == (uid, uid)


def test_fchmod_and_fchown_work_on_a_file_without_a_name(here: Path) -> None:
    with opened(make(here / "file"), os.O_RDWR) as fd:
        os.unlink(here / "file")
        os.fchmod(fd, 0o604)
        os.fchown(fd, 9, 10)
        status = os.fstat(fd)
        assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o604, 9, 10)


def test_a_lost_permission_counts_from_the_next_open(here: Path) -> None:
    file = make(here / "file", b"text", mode=0o644)
    assert as_user(lambda: file.read_bytes(), ALICE) == b"text"
    file.chmod(0o600)
    with fails(EACCES):
        as_user(lambda: file.read_bytes(), ALICE)


def test_execution_needs_an_execute_bit_even_for_the_superuser(here: Path) -> None:
    script = make(here / "script", b"#!/bin/true\n", mode=0o666)
    with fails(EACCES):
        as_user(lambda: os.execv(script, [str(script)]), 0)
