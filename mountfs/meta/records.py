"""The values of the metadata: fixed little-endian structs, cheap to make and to take apart.

An inode's record begins with its attributes in the order and width of the kernel's `struct
fuse_attr`.  So "the attributes" travel as those 88 bytes from the store to the kernel, and a
directory of a million files is listed without taking one of them apart.
"""

import stat
import struct
from typing import Any, NewType

import msgspec

from mountfs.types import BLOCK_BYTES, FIRST_REPLICATED, Ino, SliceId, VolumeId

Attributes = NewType("Attributes", bytes)
"""88 bytes: what stat(2) tells, as `struct fuse_attr` of <linux/fuse.h>."""

NS = 1_000_000_000
_TIME_MIN, _TIME_MAX = -(1 << 63), (1 << 63) - 1


def nearest_time(ns: int) -> int:
    """The time that is kept for one that a program asks for: from 1677-09-21 to 2262-04-11, as
    nanoseconds of 64 bits reach; beyond, the nearest of these (as Linux does for its filesystems).
    """
    return min(max(ns, _TIME_MIN), _TIME_MAX)


ATTRIBUTES_BYTES = 88
BLKSIZE = 4096

_RECORD = struct.Struct("<QQQqqqIIIIIIIIII" + "QQQQqI")
_ATTRIBUTES = struct.Struct("<QQQqqqIIIIIIIIII")
_SIZE = struct.Struct("<Q")
_MODE = struct.Struct("<I")
_OWNER = struct.Struct("<II")
assert _ATTRIBUTES.size == ATTRIBUTES_BYTES

MODE_AT, PARENT_AT, VERSION_AT, MARKS_AT = 60, 88, 112, 128
"""Where fields begin in an inode's record, for who looks at one of them only."""
assert _RECORD.size == MARKS_AT + 4

HAS_CONTENT = 1
"""The bytes of the file are in its content row; it has no slices."""
HAS_SLICES = 2
HAS_XATTRS = 4
HAS_ACL = 8
"""There is an access or a default ACL among the xattrs."""
HAS_LOCKS = 16
RETAINED = 1 << 12
"""Of a file: it has retention.  Of a directory: some file below it has, or had once."""
UNCOMMITTED = 1 << 13
"""It was written in a tree with a default retention, which it gets when it is closed."""
RETAINS = 1 << 14
"""Of a directory: files below it get retention by default."""
TRASHES = 1 << 15
"""Of a directory: it says what becomes of what is deleted below it."""
TRASHED = 1 << 16
"""It is in the trash."""
UNCOUNTED = 1 << 17
"""It is or was in the trash of a tree that does not count that: it is charged to nobody."""
COPIES_SHIFT = 8
COPIES_MARKS = 0xF << COPIES_SHIFT
"""How many copies the bytes are to have; 0: nobody has said."""


def copies_of(marks: int) -> int:
    return (marks & COPIES_MARKS) >> COPIES_SHIFT


class Inode:
    """A file, directory, symlink or special file.  Times are nanoseconds since 1970."""

    __slots__ = (
        "allocated",
        "atime",
        "btime",
        "ctime",
        "entries",
        "gid",
        "ino",
        "marks",
        "mode",
        "mtime",
        "next_position",
        "nlink",
        "packed",
        "parent",
        "rdev",
        "size",
        "uid",
        "version",
    )  # fmt: skip

    ino: Ino
    size: int
    allocated: int
    """Bytes of space in use, a multiple of BLOCK_BYTES (0 for contents kept in the metadata up to
    one block: then one block).
    """
    atime: int
    mtime: int
    ctime: int
    mode: int
    """Type and permission bits, as st_mode."""
    nlink: int
    """Names (and for a directory, "." and the ".." of its subdirectories).  0: an orphan."""
    uid: int
    gid: int
    rdev: int
    parent: Ino
    """The directory that holds its name; of several the first one (see `places`); without a name,
    the directory that held the last one.
    """
    next_position: int
    """Directories: the position that the next entry gets.  Only shrinks."""
    entries: int
    """Directories: number of names, without "." and ".."."""
    version: int
    """Changes whenever the bytes do."""
    btime: int
    marks: int
    """HAS_* bits, RETAINED, UNCOMMITTED, RETAINS, TRASHES, TRASHED, UNCOUNTED, and COPIES_MARKS."""
    packed: bytes | None
    """The record, as long as nothing has changed since it was made."""

    def __init__(self) -> None:
        self.packed = None

    def record(self) -> bytes:
        """As it is stored.  Who changes something must have forgotten `packed` before
        (`Tree.edit`).
        """
        packed = self.packed
        if packed is None:
            packed = self.packed = self.pack()
        return packed

    def pack(self) -> bytes:
        atime_s, atime_ns = divmod(self.atime, NS)
        mtime_s, mtime_ns = divmod(self.mtime, NS)
        ctime_s, ctime_ns = divmod(self.ctime, NS)
        return _RECORD.pack(
            self.ino, self.size, self.allocated >> 9, atime_s, mtime_s, ctime_s,
            atime_ns, mtime_ns, ctime_ns, self.mode, self.nlink, self.uid, self.gid, self.rdev,
            BLKSIZE, 0,
            self.parent, self.next_position, self.entries, self.version, self.btime, self.marks,
        )  # fmt: skip

    @property
    def is_directory(self) -> bool:
        return self.mode & 0o170000 == stat.S_IFDIR

    @property
    def is_regular(self) -> bool:
        return self.mode & 0o170000 == stat.S_IFREG

    def attributes(self) -> Attributes:
        return Attributes(self.record()[:ATTRIBUTES_BYTES])


def unpack_inode(record: bytes) -> Inode:
    inode = Inode()
    inode.packed = record
    (
        ino, inode.size, blocks, atime_s, mtime_s, ctime_s,
        atime_ns, mtime_ns, ctime_ns, inode.mode, inode.nlink, inode.uid, inode.gid, inode.rdev,
        _, _,
        parent, inode.next_position, inode.entries, inode.version, inode.btime, inode.marks,
    ) = _RECORD.unpack(record)  # fmt: skip
    inode.ino = Ino(ino)
    inode.parent = Ino(parent)
    inode.allocated = blocks << 9
    inode.atime = atime_s * NS + atime_ns
    inode.mtime = mtime_s * NS + mtime_ns
    inode.ctime = ctime_s * NS + ctime_ns
    return inode


class Stat(msgspec.Struct, frozen=True):
    """`Attributes` taken apart, for those who look at more than one field."""

    ino: int
    size: int
    blocks: int
    atime_s: int
    mtime_s: int
    ctime_s: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int


def unpack_attributes(attributes: Attributes) -> Stat:
    return Stat(*_ATTRIBUTES.unpack(attributes))


def ino_of(attributes: Attributes) -> Ino:
    return Ino(int(_SIZE.unpack_from(attributes)[0]))


def size_of(attributes: Attributes) -> int:
    return int(_SIZE.unpack_from(attributes, 8)[0])


def owner_of(attributes: Attributes) -> tuple[int, int]:
    """(uid, gid)"""
    return _OWNER.unpack_from(attributes, 68)


def mode_of(attributes: Attributes) -> int:
    return int(_MODE.unpack_from(attributes, 60)[0])


def nlink_of(attributes: Attributes) -> int:
    return int(_MODE.unpack_from(attributes, 64)[0])


_DENTRY = struct.Struct("<QQB")


def pack_dentry(ino: Ino, position: int, type: int) -> bytes:
    return _DENTRY.pack(ino, position, type)


def unpack_dentry(value: bytes) -> tuple[Ino, int, int]:
    """(ino, position, type)"""
    return _DENTRY.unpack(value)


_ENTRY = struct.Struct("<QB")


def pack_entry(ino: Ino, type: int, name: bytes) -> bytes:
    return _ENTRY.pack(ino, type) + name


def unpack_entry(value: bytes) -> tuple[Ino, int, bytes]:
    """(ino, type, name)"""
    ino, type = _ENTRY.unpack_from(value)
    return Ino(ino), type, value[_ENTRY.size :]


class Slice(msgspec.Struct, frozen=True, array_like=True):
    """Bytes `start:stop` of a chunk come from `skip` on in a slice (or piece, or are a hole)."""

    start: int
    stop: int
    slice_id: SliceId
    """Name of the slice; of the piece where `volume` is 0; 0 for a hole."""
    skip: int
    volume: VolumeId
    length: int
    """Of the whole slice, which `crc` covers."""
    crc: int

    @property
    def is_hole(self) -> bool:
        return self.slice_id == 0

    def cut(self, start: int, stop: int) -> "Slice":
        """The part of it that lies in `start:stop`."""
        assert self.start <= start < stop <= self.stop, (self, start, stop)
        if start == self.start and stop == self.stop:
            return self
        return Slice(
            start, stop, self.slice_id, self.skip + start - self.start, self.volume, self.length,
            self.crc
        )  # fmt: skip


_SLICE = struct.Struct("<IIQIIII")


def pack_slice(piece: Slice) -> bytes:
    return _SLICE.pack(
        piece.start, piece.stop, piece.slice_id, piece.skip, piece.volume, piece.length, piece.crc
    )


def unpack_slice(value: bytes) -> Slice:
    start, stop, slice_id, skip, volume, length, crc = _SLICE.unpack(value)
    return Slice(start, stop, SliceId(slice_id), skip, VolumeId(volume), length, crc)


_GARBAGE = struct.Struct("<II")


def pack_garbage(volume: VolumeId, length: int) -> bytes:
    return _GARBAGE.pack(volume, length)


def unpack_garbage(value: bytes) -> tuple[VolumeId, int]:
    return _GARBAGE.unpack(value)


_USED = struct.Struct("<II")


def pack_used(length: int, crc: int) -> bytes:
    return _USED.pack(length, crc)


def unpack_used(value: bytes) -> tuple[int, int]:
    """(bytes, crc32c)"""
    return _USED.unpack(value)


def pack_blocks(mask: int) -> bytes:
    """Which blocks of a chunk hold bytes.  A run from the start, the usual case, is kept as its
    length.
    """
    count = mask.bit_length()
    if mask == (1 << count) - 1:
        return count.to_bytes(4, "little")
    return b"\xff\xff\xff\xff" + mask.to_bytes((count + 7) // 8, "little")


def unpack_blocks(value: bytes) -> int:
    if value[:4] != b"\xff\xff\xff\xff":
        return (1 << int.from_bytes(value, "little")) - 1
    return int.from_bytes(value[4:], "little")


def blocks_mask(start: int, stop: int) -> int:
    """The blocks that bytes `start:stop` of a chunk touch."""
    first, last = start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)
    return ((1 << (last - first)) - 1) << first


class Replies(msgspec.Struct, array_like=True):
    """What is remembered of a session, so that each of its commands acts once."""

    answered: int = 1
    """The session has the replies to all sequences below.  Only grows."""
    kept: dict[int, Any] = {}
    """Replies by sequence.  Invariant: none below `answered`."""
    about: str = ""
    """Who it is: for people."""
    caches: bool = False
    """It may have leases."""


class Counters(msgspec.Struct):
    """Numbers of the filesystem as a whole."""

    format: int = 4
    """1: the log that belongs to this state may be one of format 1.  2: it has no rows of the kind
    USED.  3: it has no accounts.
    """
    next_ino: int = 2
    next_slice: int = 1
    next_session: int = 1
    inodes: int = 0
    allocated: int = 0
    """Sum of `Inode.allocated`."""
    applied: int = 0
    """Index of the last command that is in this state."""
    last_time: int = 0
    """Stamps never go back, whatever the clock does."""
    next_node: int = 2
    """Node 1 is the home that the cluster grew from."""
    next_volume: int = FIRST_REPLICATED
    closed_slices: int = 0
    """Slices with names below it that no file refers to are garbage, for ever."""
    own_copies: bool = False
    """Some directory has once been given a number of copies of its own."""
    counted: bool = False
    """The accounts are right.  Programs that do not know of them do not keep them, nor this."""
    retention: bool = False
    """Some file has once been given retention."""
    default_retention: bool = False
    """Some directory has once been given a default retention."""
    protected_time: int = 0
    """Nanoseconds since 1970 that have passed for certain (`meta.proven_time`); retention ends by
    this clock.  Never goes back.
    """
    trash: bool = False
    """Some tree has once been given a trash."""
