"""File handles: a file is found again by its handle, whatever its name is by then; NFS needs it.

Source: Linux man page open_by_handle_at(2).
"""

import ctypes
import errno
import os
from collections.abc import Callable
from errno import ESTALE
from pathlib import Path

import pytest
from calls import AT_FDCWD, fails, make

HANDLE_BYTES = 128

_libc = ctypes.CDLL(None, use_errno=True)


class _Handle(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint),
        ("type", ctypes.c_int),
        ("data", ctypes.c_ubyte * HANDLE_BYTES),
    )


def handle_of(path: Path) -> _Handle:
    handle, mount = _Handle(HANDLE_BYTES), ctypes.c_int()
    name = os.fsencode(path)
    if _libc.name_to_handle_at(AT_FDCWD, name, ctypes.byref(handle), ctypes.byref(mount), 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    return handle


def open_handle(at: Path, handle: _Handle, flags: int = os.O_RDONLY) -> int:
    mount = os.open(at, os.O_RDONLY)
    try:
        fd: int = _libc.open_by_handle_at(mount, ctypes.byref(handle), flags)
    finally:
        os.close(mount)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd


def forget_caches() -> None:
    """Have the kernel ask the filesystem again."""
    try:
        Path("/proc/sys/vm/drop_caches").write_text("2\n")
    except OSError as error:
        pytest.skip(f"caches cannot be dropped here: {error}")


@pytest.fixture(autouse=True)
def _may_open_handles(here: Path) -> None:
    try:
        os.close(open_handle(here, handle_of(here)))
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP):
            pytest.skip(f"no file handles here: {error}")
        raise


def found(here: Path, handle: _Handle) -> bytes:
    fd = open_handle(here, handle)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


@pytest.mark.parametrize("cached", [True, False])
def test_a_file_is_found_by_its_handle(here: Path, cached: bool) -> None:
    handle = handle_of(make(here / "file", b"found"))
    if not cached:
        forget_caches()
    assert found(here, handle) == b"found"


def test_a_file_that_was_renamed_is_found(here: Path) -> None:
    handle = handle_of(make(here / "file", b"renamed"))
    (here / "directory").mkdir()
    os.rename(here / "file", here / "directory" / "other")
    forget_caches()
    assert found(here, handle) == b"renamed"


def test_a_file_is_found_by_another_of_its_links(here: Path) -> None:
    handle = handle_of(make(here / "file", b"linked"))
    os.link(here / "file", here / "link")
    os.unlink(here / "file")
    forget_caches()
    assert found(here, handle) == b"linked"


@pytest.mark.parametrize("make_it", [Path.mkdir, Path.touch])
def test_what_was_removed_is_stale(here: Path, make_it: Callable[[Path], None]) -> None:
    path = here / "gone"
    make_it(path)
    handle = handle_of(path)
    path.rmdir() if path.is_dir() else path.unlink()
    forget_caches()
    with fails(ESTALE):
        open_handle(here, handle)


def test_a_directory_is_found_with_all_that_is_in_it(here: Path) -> None:
    (here / "one" / "two").mkdir(parents=True)
    make(here / "one" / "two" / "file")
    handle = handle_of(here / "one" / "two")
    forget_caches()
    fd = open_handle(here, handle, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert os.listdir(fd) == ["file"]
        assert os.readlink(f"/proc/self/fd/{fd}").endswith("/one/two")
    finally:
        os.close(fd)
