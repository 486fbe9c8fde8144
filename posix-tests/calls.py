"""The system calls as the tests make them: what Python's `os` lacks, and short words for the rest.

Everything here goes straight to the kernel.  Failures are `OSError` with the errno of the call.
"""

import ctypes
import errno
import os
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_SYMLINK_FOLLOW: Final = 0x400
AT_EMPTY_PATH: Final = 0x1000

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

KEEP_SIZE: Final = 0x01
PUNCH_HOLE: Final = 0x02
COLLAPSE_RANGE: Final = 0x08
ZERO_RANGE: Final = 0x10
INSERT_RANGE: Final = 0x20

UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2

_SYS_GETDENTS64: Final = {"x86_64": 217, "aarch64": 61, "riscv64": 61}
_SYS_RENAMEAT2: Final = {"x86_64": 316, "aarch64": 276, "riscv64": 276}
_DIRENT: Final = struct.Struct("=QqHB")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Dirent(NamedTuple):
    """One record of getdents64(2).  `offset` is the position of the entry after this one."""

    ino: int
    offset: int
    type: int
    name: bytes


@contextmanager
def fails(*expected: int) -> Iterator[None]:
    """The block must raise `OSError` with one of `expected`: the standards may leave a choice."""
    due = " or ".join(errno.errorcode[number] for number in expected)
    try:
        yield
    except OSError as error:
        if error.errno not in expected:
            raise AssertionError(f"{due} was due, not {error}") from error
    else:
        raise AssertionError(f"succeeded, where {due} was due")


@contextmanager
def opened(path: Path | str | bytes, flags: int = os.O_RDONLY, mode: int = 0o644) -> Iterator[int]:
    """A file descriptor for the length of a block."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def make(path: Path, content: bytes = b"", mode: int = 0o644) -> Path:
    """Create or replace a regular file with exactly this content and mode."""
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
        write_all(fd, content)
        os.fchmod(fd, mode)
    return path


def make_directory(path: Path, mode: int = 0o755) -> Path:
    """Create a directory with exactly this mode."""
    path.mkdir()
    path.chmod(mode)
    return path


def write_all(fd: int, content: bytes, offset: int | None = None) -> None:
    """Write every byte, at the file's position or at `offset`."""
    rest = memoryview(content)
    while rest:
        done = os.write(fd, rest) if offset is None else os.pwrite(fd, rest, offset)
        rest = rest[done:]
        if offset is not None:
            offset += done


def mode_of(path: Path) -> int:
    """Permission bits of `path` itself, with setuid, setgid and sticky."""
    return stat.S_IMODE(path.lstat().st_mode)


def let_time_pass() -> None:
    """Wait until the clock that stamps files must have moved (a coarse one ticks every 10 ms)."""
    time.sleep(0.021)


def rename2(source: Path, target: Path, flags: int) -> None:
    """renameat2(2)."""
    _checked(
        _libc.syscall(
            ctypes.c_long(_SYS_RENAMEAT2[os.uname().machine]),
            ctypes.c_int(AT_FDCWD),
            os.fsencode(source),
            ctypes.c_int(AT_FDCWD),
            os.fsencode(target),
            ctypes.c_uint(flags),
        )
    )


def link_at(source: Path, target: Path, flags: int = 0) -> None:
    """linkat(2), which unlike `os.link` takes its flags to the kernel."""
    here = ctypes.c_int(AT_FDCWD)
    _checked(_libc.linkat(here, os.fsencode(source), here, os.fsencode(target), flags))


def link_fd(fd: int, target: Path) -> None:
    """linkat(2) with AT_EMPTY_PATH: give a name to what `fd` is open on."""
    _checked(_libc.linkat(fd, b"", AT_FDCWD, os.fsencode(target), AT_EMPTY_PATH))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    _checked(_libc.fallocate64(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def set_times(
    path: Path, atime: tuple[int, int], mtime: tuple[int, int], *, follow: bool = True
) -> None:
    """utimensat(2).  Times are (seconds, nanoseconds), or (any, UTIME_NOW or UTIME_OMIT)."""
    times = (ctypes.c_long * 4)(*atime, *mtime)
    flags = 0 if follow else AT_SYMLINK_NOFOLLOW
    _checked(_libc.utimensat(AT_FDCWD, os.fsencode(path), times, flags))


def getdents(fd: int, size_bytes: int = 32768) -> list[Dirent]:
    """One getdents64(2): the entries that fit in `size_bytes`, none at the end of the directory."""
    buffer = ctypes.create_string_buffer(size_bytes)
    number = ctypes.c_long(_SYS_GETDENTS64[os.uname().machine])
    filled = _checked(_libc.syscall(number, fd, buffer, ctypes.c_size_t(size_bytes)))
    records = buffer.raw[:filled]
    entries: list[Dirent] = []
    start = 0
    while start < filled:
        ino, offset, length, kind = _DIRENT.unpack_from(records, start)
        name = records[start + _DIRENT.size : start + length].split(b"\0", 1)[0]
        entries.append(Dirent(ino, offset, kind, name))
        start += length
    return entries


def all_dents(fd: int, size_bytes: int = 32768) -> list[Dirent]:
    """Everything from the directory's position to its end."""
    entries: list[Dirent] = []
    while batch := getdents(fd, size_bytes):
        entries += batch
    return entries


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
