"""Extended attributes: getxattr(2), setxattr(2), listxattr(2), removexattr(2).

Sources: Linux man pages xattr(7), getxattr(2), setxattr(2), listxattr(2), removexattr(2).
"""

import ctypes
import os
import struct
from errno import (
    E2BIG,
    EACCES,
    EBADF,
    EEXIST,
    EINVAL,
    ENODATA,
    ENOENT,
    ENOSPC,
    EOPNOTSUPP,
    EPERM,
    ERANGE,
)
from pathlib import Path

import pytest
from calls import fails, let_time_pass, make, opened
from people import ALICE, BOB, as_user

_libc = ctypes.CDLL(None, use_errno=True)


def sized(call: str, path: Path, *name: bytes, size: int) -> int:
    """getxattr or listxattr with a buffer of `size` bytes.  Returns what the call returns."""
    buffer = ctypes.create_string_buffer(max(1, size))
    result: int = getattr(_libc, call)(os.fsencode(path), *name, buffer, ctypes.c_size_t(size))
    if result < 0:
        raise OSError(ctypes.get_errno(), call)
    return result


def names(path: Path) -> set[str]:
    """The attributes that this test made (a security module may add its own)."""
    return {name for name in os.listxattr(path) if not name.startswith("security.selinux")}


@pytest.mark.parametrize("namespace", ["user", "trusted", "security"])
@pytest.mark.parametrize("value", [b"", b"v", b"\0\xff binary \0", b"x" * 3000])
def test_a_value_is_read_as_it_was_set(here: Path, namespace: str, value: bytes) -> None:
    file = make(here / "file")
    os.setxattr(file, f"{namespace}.name", value)
    assert os.getxattr(file, f"{namespace}.name") == value
    assert names(file) == {f"{namespace}.name"}


def test_setting_again_replaces_the_value_by_one_of_any_length(here: Path) -> None:
    file = make(here / "file")
    for value in (b"medium", b"x" * 2000, b"", b"s"):
        os.setxattr(file, "user.name", value)
        assert os.getxattr(file, "user.name") == value
    assert names(file) == {"user.name"}


def test_create_and_replace_insist(here: Path) -> None:
    file = make(here / "file")
    with fails(ENODATA):
        os.setxattr(file, "user.name", b"1", os.XATTR_REPLACE)
    os.setxattr(file, "user.name", b"2", os.XATTR_CREATE)
    with fails(EEXIST):
        os.setxattr(file, "user.name", b"3", os.XATTR_CREATE)
    assert os.getxattr(file, "user.name") == b"2"
    os.setxattr(file, "user.name", b"4", os.XATTR_REPLACE)
    assert os.getxattr(file, "user.name") == b"4"


def test_a_missing_attribute_is_no_data_and_a_missing_file_no_entry(here: Path) -> None:
    file = make(here / "file")
    with fails(ENODATA):
        os.getxattr(file, "user.missing")
    with fails(ENODATA):
        os.removexattr(file, "user.missing")
    with fails(ENOENT):
        os.getxattr(here / "missing", "user.name")
    assert names(file) == set()


def test_a_removed_attribute_is_gone_and_the_others_stay(here: Path) -> None:
    file = make(here / "file")
    for name in "abc":
        os.setxattr(file, f"user.{name}", name.encode())
    os.removexattr(file, "user.b")
    assert names(file) == {"user.a", "user.c"}
    with fails(ENODATA):
        os.getxattr(file, "user.b")


@pytest.mark.parametrize("name", ["nonsense.name", "name", "usr.name"])
def test_an_unknown_namespace_is_not_supported(here: Path, name: str) -> None:
    file = make(here / "file")
    with fails(EOPNOTSUPP):
        os.setxattr(file, name, b"value")
    with fails(EOPNOTSUPP, ENODATA):
        os.getxattr(file, name)


def test_a_namespace_alone_is_no_name(here: Path) -> None:
    with fails(EINVAL):
        os.setxattr(make(here / "file"), "user.", b"value")


def test_a_name_may_have_255_bytes_and_no_more(here: Path) -> None:
    file = make(here / "file")
    longest = "user." + "n" * 250
    os.setxattr(file, longest, b"value")
    assert names(file) == {longest}
    with fails(ERANGE):
        os.setxattr(file, longest + "n", b"value")


def test_a_value_may_have_64_kib_if_there_is_room_and_no_more(here: Path) -> None:
    file = make(here / "file")
    value = bytes(range(256)) * 256
    try:
        os.setxattr(file, "user.name", value)
        assert os.getxattr(file, "user.name") == value
    except OSError as error:
        assert error.errno in (ENOSPC, E2BIG)  # a filesystem may have less room
    with fails(E2BIG):
        os.setxattr(file, "user.name", value + b"x")


def test_size_zero_asks_for_the_size(here: Path) -> None:
    file = make(here / "file")
    os.setxattr(file, "user.name", b"12345")
    assert sized("getxattr", file, b"user.name", size=0) == 5
    listed = sized("listxattr", file, size=0)
    assert listed == sum(len(name) + 1 for name in os.listxattr(file))


def test_a_buffer_too_small_is_a_range_error(here: Path) -> None:
    file = make(here / "file")
    os.setxattr(file, "user.name", b"12345")
    assert sized("getxattr", file, b"user.name", size=5) == 5
    with fails(ERANGE):
        sized("getxattr", file, b"user.name", size=4)
    with fails(ERANGE):
        sized("listxattr", file, size=9)


def test_many_attributes_are_all_listed(here: Path) -> None:
    file = make(here / "file")
    expected = {f"user.name-{number}": b"%d" % number for number in range(50)}
    for name, value in expected.items():
        os.setxattr(file, name, value)
    assert names(file) == expected.keys()
    assert {name: os.getxattr(file, name) for name in expected} == expected


def test_setting_and_removing_stamp_the_change_and_not_the_content(here: Path) -> None:
    file = make(here / "file")
    for _ in range(2):
        before = file.stat()
        let_time_pass()
        if names(file):
            os.removexattr(file, "user.name")
        else:
            os.setxattr(file, "user.name", b"value")
        assert file.stat().st_ctime_ns > before.st_ctime_ns
        assert file.stat().st_mtime_ns == before.st_mtime_ns


def test_attributes_belong_to_the_file_and_not_to_its_name(here: Path) -> None:
    file = make(here / "a")
    os.link(file, here / "b")
    os.setxattr(here / "b", "user.name", b"value")
    os.rename(here / "a", here / "c")
    assert os.getxattr(here / "c", "user.name") == b"value"
    os.unlink(here / "b")
    os.unlink(here / "c")
    assert names(make(here / "c")) == set()


def test_an_open_file_has_attributes_even_without_a_name(here: Path) -> None:
    with opened(make(here / "file"), os.O_RDWR) as fd:
        os.unlink(here / "file")
        os.setxattr(fd, "user.name", b"value")
        assert os.getxattr(fd, "user.name") == b"value"
        os.removexattr(fd, "user.name")
        with fails(ENODATA):
            os.getxattr(fd, "user.name")


def test_a_path_descriptor_gives_no_attributes(here: Path) -> None:
    with opened(make(here / "file"), os.O_PATH) as fd, fails(EBADF):
        os.getxattr(fd, "user.name")


def test_directories_have_user_attributes(here: Path) -> None:
    (here / "sub").mkdir()
    os.setxattr(here / "sub", "user.name", b"value")
    assert os.getxattr(here / "sub", "user.name") == b"value"
    (here / "sub" / "inner").mkdir()
    assert names(here / "sub" / "inner") == set()


@pytest.mark.parametrize("kind", ["symlink", "fifo", "device"])
def test_user_attributes_are_for_files_and_directories_only(here: Path, kind: str) -> None:
    name = here / kind
    if kind == "symlink":
        name.symlink_to("target")
    elif kind == "fifo":
        os.mkfifo(name)
    else:
        os.mknod(name, 0o020600, os.makedev(1, 3))
    with fails(EPERM):
        os.setxattr(name, "user.name", b"value", follow_symlinks=False)
    os.setxattr(name, "trusted.name", b"value", follow_symlinks=False)
    assert os.getxattr(name, "trusted.name", follow_symlinks=False) == b"value"


def test_a_symlinks_attributes_are_not_its_targets(here: Path) -> None:
    file = make(here / "file")
    (here / "link").symlink_to("file")
    os.setxattr(here / "link", "trusted.name", b"link", follow_symlinks=False)
    os.setxattr(here / "link", "trusted.name", b"file")
    assert os.getxattr(file, "trusted.name") == b"file"
    assert os.getxattr(here / "link", "trusted.name", follow_symlinks=False) == b"link"


def test_user_attributes_follow_the_files_permissions(here: Path) -> None:
    file = make(here / "file", mode=0o644)
    os.setxattr(file, "user.name", b"value")
    assert as_user(lambda: os.getxattr(file, "user.name"), ALICE) == b"value"
    with fails(EACCES):
        as_user(lambda: os.setxattr(file, "user.name", b"other"), ALICE)
    with fails(EACCES):
        as_user(lambda: os.removexattr(file, "user.name"), ALICE)
    file.chmod(0o600)
    with fails(EACCES):
        as_user(lambda: os.getxattr(file, "user.name"), ALICE)
    file.chmod(0o666)
    as_user(lambda: os.setxattr(file, "user.name", b"other"), ALICE)
    assert os.getxattr(file, "user.name") == b"other"


def test_user_attributes_of_a_sticky_directory_are_the_owners_to_change(here: Path) -> None:
    directory = here / "sticky"
    directory.mkdir()
    directory.chmod(0o1777)
    os.chown(directory, ALICE, ALICE)
    with fails(EPERM):
        as_user(lambda: os.setxattr(directory, "user.name", b"value"), BOB)
    as_user(lambda: os.setxattr(directory, "user.name", b"value"), ALICE)


def test_trusted_attributes_do_not_exist_for_ordinary_users(here: Path) -> None:
    file = make(here / "file")
    os.chown(file, ALICE, ALICE)
    os.setxattr(file, "trusted.name", b"value")
    os.setxattr(file, "user.name", b"value")
    with fails(ENODATA):
        as_user(lambda: os.getxattr(file, "trusted.name"), ALICE)
    with fails(EPERM):
        as_user(lambda: os.setxattr(file, "trusted.name", b"other"), ALICE)
    assert as_user(lambda: names(file), ALICE) == {"user.name"}
    assert os.getxattr(file, "trusted.name") == b"value"


def test_security_attributes_are_read_by_all_and_set_by_the_superuser(here: Path) -> None:
    file = make(here / "file")
    os.chown(file, ALICE, ALICE)
    os.setxattr(file, "security.name", b"value")
    assert as_user(lambda: os.getxattr(file, "security.name"), ALICE) == b"value"
    with fails(EPERM):
        as_user(lambda: os.setxattr(file, "security.name", b"other"), ALICE)


def test_file_capabilities_are_kept_and_lost_by_writing(here: Path) -> None:
    file = make(here / "file", b"text", mode=0o777)
    revision_2, net_raw = 0x02000000, 1 << 13
    os.setxattr(file, "security.capability", struct.pack("<5I", revision_2, net_raw, 0, 0, 0))
    assert struct.unpack("<5I", os.getxattr(file, "security.capability"))[1] == net_raw

    def write() -> None:
        with opened(file, os.O_WRONLY) as fd:
            os.write(fd, b"more")

    as_user(write, ALICE)
    with fails(ENODATA):
        os.getxattr(file, "security.capability")
