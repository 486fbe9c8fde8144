"""A volume's file, as the operating system sees it.  Everything here blocks, and raises OSError."""

import ctypes
import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from mountfs.chunks.needle import Buffer
from mountfs.chunks.volume import (
    SUPERBLOCK_BYTES,
    BadSuperblock,
    Superblock,
    decode_superblock,
)

_IOV_MAX: Final = 1_000
"""Buffers in one call; the kernel takes 1024."""
_KEEP_SIZE: Final = 1

_PUNCH_HOLE = 0x02
_BLOCK = 4096
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_START_WRITING = 0x02  # SYNC_FILE_RANGE_WRITE


class VolumeFile:
    """One generation of a volume, open.  Closed when nobody refers to it any more, so a reader may
    go on with a file that has been replaced meanwhile.
    """

    __slots__ = ("fd", "path", "superblock")

    def __init__(self, path: Path, fd: int, superblock: Superblock) -> None:
        self.path = path
        self.fd = fd
        self.superblock = superblock

    def __del__(self) -> None:
        os.close(self.fd)

    @classmethod
    def open(cls, path: Path) -> "VolumeFile":
        """Raises BadSuperblock, too."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            superblock = decode_superblock(os.pread(fd, SUPERBLOCK_BYTES, 0))
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd, superblock)

    @classmethod
    def borrowed(cls, path: Path, fd: int) -> "VolumeFile":
        """One that somebody else has opened, for reading only; `path` is for people.  Raises
        BadSuperblock, too; the descriptor is closed then.
        """
        try:
            superblock = decode_superblock(os.pread(fd, SUPERBLOCK_BYTES, 0))
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd, superblock)

    @classmethod
    def create(cls, path: Path, superblock: Superblock) -> "VolumeFile":
        """A new file, under a name of its own until `publish`."""
        new = _unpublished(path)
        fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        file = cls(path, fd, superblock)
        try:
            file.write([superblock.encode()], 0)
        except BaseException:
            new.unlink()
            raise
        return file

    def finish(self, durable: int) -> None:
        """Write down how much of the file there is, and bring all of it to the disk."""
        self.superblock = replace(self.superblock, durable=durable)
        self.write([self.superblock.encode()], 0)
        os.fdatasync(self.fd)

    def publish(self) -> None:
        """Give the file its name, in place of an earlier generation.  It must be on disk."""
        os.rename(_unpublished(self.path), self.path)

    def discard(self) -> None:
        """Remove a file that was not published."""
        _unpublished(self.path).unlink(missing_ok=True)

    @property
    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes, fewer only at the end of the file."""
        data = os.pread(self.fd, length, offset)
        while len(data) < length:
            more = os.pread(self.fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def fill(self, buffer: bytearray | memoryview, offset: int, flags: int) -> bool | None:
        """Fill all of `buffer`.  False: the file ends before.  None: it would block (only with
        RWF_NOWAIT in `flags`).
        """
        try:
            got = os.preadv(self.fd, [buffer], offset, flags)
        except BlockingIOError:
            return None
        except OSError as error:
            if flags and error.errno == errno.EOPNOTSUPP:
                return None
            raise
        if got == len(buffer):
            return True
        if flags:
            return None
        view = memoryview(buffer)
        while got < len(buffer):
            more = os.preadv(self.fd, [view[got:]], offset + got)
            if not more:
                return False
            got += more
        return True

    def will_need(self, start: int, stop: int) -> None:
        """Have the disk bring a range into the page cache."""
        os.posix_fadvise(self.fd, start, stop - start, os.POSIX_FADV_WILLNEED)

    def write(self, parts: Sequence[Buffer], offset: int) -> None:
        """Write all of the parts, one behind the other."""
        left = list(parts)
        while left:
            now = left[:_IOV_MAX]
            wanted = sum(map(len, now))
            written = os.pwritev(self.fd, now, offset)
            offset += written
            if written == wanted:
                del left[:_IOV_MAX]
                continue
            if written == 0:
                raise OSError(errno.EIO, "nothing was written")
            while written >= len(left[0]):
                written -= len(left.pop(0))
            left[0] = memoryview(left[0])[written:]

    def start_writing(self, start: int, stop: int) -> None:
        """Let the disk begin with a range, so that less is left for the next fdatasync.  It makes
        nothing durable, and may wait where the disk has a lot to do.
        """
        _libc.sync_file_range(self.fd, start, stop - start, _START_WRITING)

    def allocate(self, start: int, stop: int) -> bool:
        """Take disk space without a change of size.  False: this filesystem cannot."""
        while _libc.fallocate(self.fd, _KEEP_SIZE, start, stop - start):
            code = ctypes.get_errno()
            if code in (errno.EOPNOTSUPP, errno.ENOSYS):
                return False
            if code != errno.EINTR:
                raise OSError(code, os.strerror(code))
        return True

    def punch(self, start: int, stop: int) -> None:
        """Give the whole blocks of a range back to the disk; they read as zeros.  Where the file
        system cannot do that, nothing happens.
        """
        start, stop = -(-start // _BLOCK) * _BLOCK, stop // _BLOCK * _BLOCK
        while start < stop and _libc.fallocate(
            self.fd, _KEEP_SIZE | _PUNCH_HOLE, start, stop - start
        ):
            code = ctypes.get_errno()
            if code != errno.EINTR:
                return

    def cut(self, size: int) -> None:
        """End the file here, and give back the space behind."""
        os.ftruncate(self.fd, size)

    def settle(self) -> None:
        """Everything to the disk, and nothing in memory: what is read next is what is there."""
        os.fdatasync(self.fd)
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unpublished(path: Path) -> Path:
    return path.with_name(path.name + ".new")


__all__ = ["BadSuperblock", "VolumeFile", "sync_directory"]
