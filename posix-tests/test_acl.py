"""POSIX access control lists, as the raw attributes the kernel exchanges with user space.

Sources: Linux man pages acl(5), xattr(7); POSIX.1e draft 17, sections 23.1 and 23.2;
linux/posix_acl_xattr.h.
"""

import os
import struct
from errno import EACCES, EINVAL, ENODATA, EOPNOTSUPP, EPERM
from pathlib import Path
from typing import NamedTuple

import pytest
from calls import fails, let_time_pass, make, make_directory, mode_of, opened
from people import ALICE, BOB, CAROL, as_user

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NOBODY = 0xFFFF_FFFF
VERSION = 2


class Entry(NamedTuple):
    tag: int
    bits: int
    id: int = NOBODY


def packed(*entries: Entry, version: int = VERSION) -> bytes:
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def entries(path: Path, kind: str) -> list[Entry]:
    value = os.getxattr(path, kind)
    assert struct.unpack_from("<I", value) == (VERSION,)
    return [Entry(*fields) for fields in struct.iter_unpack("<HHI", value[4:])]


def acl(
    owner: int, group: int, other: int, *named: Entry, mask: int | None = None
) -> tuple[Entry, ...]:
    """A valid list, in the order the kernel wants."""
    users = sorted(entry for entry in named if entry.tag == USER)
    groups = sorted(entry for entry in named if entry.tag == GROUP)
    masks = [] if mask is None else [Entry(MASK, mask)]
    start, middle = Entry(USER_OBJ, owner), Entry(GROUP_OBJ, group)
    return (start, *users, middle, *groups, *masks, Entry(OTHER, other))


def give(path: Path, *list_: Entry, kind: str = ACCESS) -> None:
    os.setxattr(path, kind, packed(*list_))


def may(path: Path, *who: int) -> str:
    """Which of r, w and x the user has."""
    wanted = {"r": os.R_OK, "w": os.W_OK, "x": os.X_OK}
    return as_user(
        lambda: "".join(letter for letter, bit in wanted.items() if os.access(path, bit)), *who
    )


def test_a_list_is_read_as_it_was_set(here: Path) -> None:
    file = make(here / "file")
    list_ = acl(6, 4, 0, Entry(USER, 7, ALICE), Entry(GROUP, 5, BOB), mask=7)
    give(file, *list_)
    assert entries(file, ACCESS) == list(list_)
    assert ACCESS in os.listxattr(file)
    assert DEFAULT not in os.listxattr(file)


def test_the_mask_shows_as_the_groups_bits(here: Path) -> None:
    file = make(here / "file", mode=0o600)
    give(file, *acl(6, 0, 1, Entry(USER, 7, ALICE), mask=5))
    assert mode_of(file) == 0o651


def test_a_list_that_says_no_more_than_the_mode_is_the_mode(here: Path) -> None:
    file = make(here / "file", mode=0o600)
    give(file, *acl(7, 5, 4))
    assert mode_of(file) == 0o754
    with fails(ENODATA):
        os.getxattr(file, ACCESS)


def test_chmod_changes_the_mask_and_not_the_groups_entry(here: Path) -> None:
    file = make(here / "file")
    give(file, *acl(6, 4, 0, Entry(USER, 7, ALICE), mask=7))
    file.chmod(0o731)
    assert mode_of(file) == 0o731
    assert entries(file, ACCESS) == list(acl(7, 4, 1, Entry(USER, 7, ALICE), mask=3))


def test_fchmod_changes_the_mask_too(here: Path) -> None:
    file = make(here / "file")
    give(file, *acl(6, 4, 0, Entry(USER, 7, ALICE), mask=7))
    with opened(file) as fd:
        os.fchmod(fd, 0o640)
    assert entries(file, ACCESS) == list(acl(6, 4, 0, Entry(USER, 7, ALICE), mask=4))


@pytest.mark.parametrize(
    ("who", "allowed"),
    [
        ((ALICE, CAROL), "rwx"),
        ((BOB, CAROL), "r"),
        ((CAROL, ALICE), "rx"),
        ((CAROL, CAROL, 1, ALICE), "rx"),
        ((CAROL, BOB), "r"),
        ((CAROL, CAROL), "x"),
        ((5, 6), "w"),
    ],
    ids=["user", "user masked", "group", "supplementary", "no fall to other", "other", "owner"],
)
def test_access_follows_the_list(here: Path, who: tuple[int, ...], allowed: str) -> None:
    file = make(here / "file")
    os.chown(file, 5, 0)
    named = (
        Entry(USER, 7, ALICE),
        Entry(USER, 4, BOB),
        Entry(GROUP, 5, ALICE),
        Entry(GROUP, 4, BOB),
    )
    give(file, *acl(2, 0, 1, *named, mask=7))
    assert may(file, *who) == allowed


def test_the_mask_limits_all_but_owner_and_other(here: Path) -> None:
    file = make(here / "file")
    os.chown(file, 5, CAROL)
    give(file, *acl(7, 7, 7, Entry(USER, 7, ALICE), Entry(GROUP, 7, BOB), mask=4))
    assert [may(file, *who) for who in ((ALICE, 9), (8, BOB), (8, CAROL))] == ["r", "r", "r"]
    assert (may(file, 5, 9), may(file, 8, 9)) == ("rwx", "rwx")


def test_a_named_user_with_nothing_is_shut_out_whatever_its_groups(here: Path) -> None:
    file = make(here / "file", mode=0o777)
    give(file, *acl(7, 7, 7, Entry(USER, 0, ALICE), mask=7))
    assert may(file, ALICE, 0) == ""
    with fails(EACCES):
        as_user(lambda: os.open(file, os.O_RDONLY), ALICE, 0)


def test_one_group_entry_must_grant_all_that_is_asked(here: Path) -> None:
    file = make(here / "file")
    give(file, *acl(7, 0, 0, Entry(GROUP, 4, ALICE), Entry(GROUP, 2, BOB), mask=7))
    as_user(lambda: os.close(os.open(file, os.O_RDONLY)), CAROL, ALICE, BOB)
    as_user(lambda: os.close(os.open(file, os.O_WRONLY)), CAROL, ALICE, BOB)
    with fails(EACCES):
        as_user(lambda: os.open(file, os.O_RDWR), CAROL, ALICE, BOB)


def test_a_list_opens_a_directory_to_a_named_user(here: Path) -> None:
    directory = make_directory(here / "sub", 0o700)
    make(directory / "file", b"text")
    with fails(EACCES):
        as_user(lambda: os.listdir(directory), ALICE)
    give(directory, *acl(7, 0, 0, Entry(USER, 7, ALICE), mask=7))
    assert as_user(lambda: os.listdir(directory), ALICE) == ["file"]
    as_user(lambda: os.unlink(directory / "file"), ALICE)
    with fails(EACCES):
        as_user(lambda: os.listdir(directory), BOB)


def test_removing_the_list_leaves_the_mode(here: Path) -> None:
    file = make(here / "file")
    give(file, *acl(6, 4, 0, Entry(USER, 7, ALICE), mask=6))
    os.removexattr(file, ACCESS)
    assert mode_of(file) == 0o660
    assert may(file, ALICE, ALICE) == ""
    assert ACCESS not in os.listxattr(file)


def test_a_new_file_takes_the_default_list_limited_by_its_mode(here: Path) -> None:
    default = acl(7, 6, 5, Entry(USER, 7, ALICE), Entry(GROUP, 3, BOB), mask=7)
    give(here, *default, kind=DEFAULT)
    os.close(os.open(here / "new", os.O_WRONLY | os.O_CREAT, 0o640))
    expected = acl(6, 6, 0, Entry(USER, 7, ALICE), Entry(GROUP, 3, BOB), mask=4)
    assert entries(here / "new", ACCESS) == list(expected)
    assert mode_of(here / "new") == 0o640
    with fails(ENODATA, EOPNOTSUPP):
        os.getxattr(here / "new", DEFAULT)


def test_under_a_default_list_the_umask_does_not_count(here: Path) -> None:
    give(here, *acl(7, 7, 7, Entry(USER, 7, ALICE), mask=7), kind=DEFAULT)
    os.umask(0o077)
    os.close(os.open(here / "file", os.O_WRONLY | os.O_CREAT, 0o666))
    os.mkdir(here / "sub", 0o777)
    os.mkfifo(here / "fifo", 0o660)
    assert mode_of(here / "file") == 0o666
    assert mode_of(here / "sub") == 0o777
    assert mode_of(here / "fifo") == 0o660


def test_without_a_default_list_the_umask_counts_whatever_the_access_list(here: Path) -> None:
    give(here, *acl(7, 7, 7, Entry(USER, 7, ALICE), mask=7))
    os.umask(0o027)
    os.close(os.open(here / "file", os.O_WRONLY | os.O_CREAT, 0o666))
    assert mode_of(here / "file") == 0o640
    with fails(ENODATA):
        os.getxattr(here / "file", ACCESS)


def test_a_new_directory_takes_the_default_list_as_both(here: Path) -> None:
    default = acl(7, 5, 0, Entry(USER, 7, ALICE), mask=7)
    give(here, *default, kind=DEFAULT)
    os.makedirs(here / "one" / "two", 0o777)
    for directory in (here / "one", here / "one" / "two"):
        assert entries(directory, DEFAULT) == list(default)
        assert entries(directory, ACCESS) == list(default)
        assert mode_of(directory) == 0o770


def test_a_minimal_default_list_gives_new_files_a_mode_and_no_list(here: Path) -> None:
    give(here, *acl(7, 5, 1), kind=DEFAULT)
    os.umask(0o777)
    os.close(os.open(here / "file", os.O_WRONLY | os.O_CREAT, 0o666))
    os.mkdir(here / "sub", 0o777)
    assert mode_of(here / "file") == 0o640
    assert mode_of(here / "sub") == 0o751
    with fails(ENODATA):
        os.getxattr(here / "file", ACCESS)
    assert entries(here / "sub", DEFAULT) == list(acl(7, 5, 1))


def test_special_files_take_the_default_list_and_symlinks_do_not(here: Path) -> None:
    give(here, *acl(6, 6, 0, Entry(USER, 6, ALICE), mask=6), kind=DEFAULT)
    os.mknod(here / "device", 0o020666, os.makedev(1, 3))
    assert entries(here / "device", ACCESS) == list(acl(6, 6, 0, Entry(USER, 6, ALICE), mask=6))
    (here / "link").symlink_to("target")
    assert not [
        name for name in os.listxattr(here / "link", follow_symlinks=False) if "acl" in name
    ]


def test_the_default_list_does_not_grant_anything_itself(here: Path) -> None:
    directory = make_directory(here / "sub", 0o700)
    give(directory, *acl(7, 7, 7, Entry(USER, 7, ALICE), mask=7), kind=DEFAULT)
    with fails(EACCES):
        as_user(lambda: os.listdir(directory), ALICE)
    assert mode_of(directory) == 0o700


def test_a_removed_default_list_is_inherited_no_more(here: Path) -> None:
    give(here, *acl(7, 7, 7, Entry(USER, 7, ALICE), mask=7), kind=DEFAULT)
    os.removexattr(here, DEFAULT)
    make(here / "file", mode=0o600)
    with fails(ENODATA):
        os.getxattr(here / "file", ACCESS)


def test_a_default_list_is_for_directories_only(here: Path) -> None:
    with fails(EACCES):
        give(make(here / "file"), *acl(7, 7, 7), kind=DEFAULT)


def test_a_named_user_gets_what_it_inherited(here: Path) -> None:
    give(here, *acl(7, 0, 0, Entry(USER, 4, ALICE), mask=7), kind=DEFAULT)
    with opened(here / "file", os.O_WRONLY | os.O_CREAT, 0o666) as fd:
        os.write(fd, b"text")
    assert as_user(lambda: (here / "file").read_bytes(), ALICE) == b"text"
    with fails(EACCES):
        as_user(lambda: (here / "file").read_bytes(), BOB)


@pytest.mark.parametrize(
    "value",
    [
        packed(Entry(USER_OBJ, 7), Entry(OTHER, 7)),
        packed(Entry(USER_OBJ, 7), Entry(GROUP_OBJ, 7), Entry(OTHER, 7), Entry(OTHER, 7)),
        packed(*acl(7, 7, 7, Entry(USER, 7, ALICE))),
        packed(*acl(7, 7, 7, Entry(USER, 9, ALICE), mask=7)),
        packed(Entry(GROUP_OBJ, 7), Entry(USER_OBJ, 7), Entry(OTHER, 7)),
        packed(*acl(7, 7, 7))[:-3],
        b"\x02",
    ],
    ids=["no group", "two others", "no mask", "bad bits", "disorder", "torn", "stub"],
)
def test_a_senseless_list_is_invalid(here: Path, value: bytes) -> None:
    file = make(here / "file", mode=0o640)
    with fails(EINVAL):
        os.setxattr(file, ACCESS, value)
    assert mode_of(file) == 0o640


def test_a_list_of_another_version_is_not_supported(here: Path) -> None:
    with fails(EOPNOTSUPP, EINVAL):
        os.setxattr(make(here / "file"), ACCESS, packed(*acl(7, 7, 7), version=1))


def test_only_the_owner_may_set_a_list(here: Path) -> None:
    file = make(here / "file", mode=0o666)
    os.chown(file, ALICE, ALICE)
    list_ = acl(6, 6, 6, Entry(USER, 7, BOB), mask=7)
    with fails(EPERM):
        as_user(lambda: give(file, *list_), BOB)
    as_user(lambda: give(file, *list_), ALICE)
    assert entries(file, ACCESS) == list(list_)


def test_setting_a_list_stamps_the_change(here: Path) -> None:
    file = make(here / "file")
    before = file.stat().st_ctime_ns
    let_time_pass()
    give(file, *acl(6, 4, 0, Entry(USER, 7, ALICE), mask=7))
    assert file.stat().st_ctime_ns > before


def test_a_list_of_two_hundred_users_is_kept(here: Path) -> None:
    directory = make_directory(here / "sub")
    users = [Entry(USER, 4, 70_000 + number) for number in range(200)]
    list_ = acl(7, 5, 5, *users, mask=5)
    give(directory, *list_)
    assert entries(directory, ACCESS) == list(list_)
    assert may(directory, 70_199, 9) == "r"
