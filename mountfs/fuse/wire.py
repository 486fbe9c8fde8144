"""The FUSE kernel protocol, ABI 7.33 to 7.45: bytes to records and back, no I/O.

A request is `IN_HEADER` and a body; `parse_*` takes the body.  An answer is the bytes of one write
to the device: `reply(unique, payload)` around what `*_out` made, or `reply_error`.  Everything is
little-endian, as every machine is on which mountfs runs.

Every request passes here, so the layouts are compiled once, and what does not change is packed
once: an inode's attributes travel as the 88 bytes of `struct fuse_attr` in which the metadata
keeps them, and how long the kernel may remember them as the bytes that `Timeouts` holds.

A body that is too short, or a name without its end, is `FsError(INVALID)`, always made by `_short`:
no `struct.error` leaves a `parse_*`.  What follows a complete request is ignored, since newer
kernels append.
"""

import enum
import struct
from collections.abc import Callable
from struct import Struct
from typing import Any, Final, NamedTuple, TypeVar

from mountfs.errors import Fault, FsError

R = TypeVar("R", bound=tuple[Any, ...])
Buffer = bytes | bytearray | memoryview

MAJOR: Final = 7
MINOR: Final = 45
"""What we speak: Linux 6.18."""
MINOR_MIN: Final = 33
"""What a kernel must speak at least (Linux 5.12): before it, SETXATTR had another shape."""

ROOT_NODE: Final = 1
READ_BUFFER_BYTES_MIN: Final = 8_192
"""The kernel refuses to read a request into less."""


class Opcode(enum.IntEnum):
    """What a request asks for."""

    LOOKUP = 1
    FORGET = 2  # no reply
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36  # no reply
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41  # no reply
    BATCH_FORGET = 42  # no reply
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class NotifyCode(enum.IntEnum):
    """What we tell the kernel unasked; stands where an answer has its error."""

    POLL = 1
    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    RETRIEVE = 5
    DELETE = 6
    RESEND = 7
    INC_EPOCH = 8
    PRUNE = 9


class InitFlag(enum.IntFlag):
    """What kernel and filesystem can do: the kernel offers in INIT, the answer accepts."""

    ASYNC_READ = 1 << 0  # several reads of one file at once
    POSIX_LOCKS = 1 << 1  # fcntl locks come to us; without it the kernel keeps them for itself
    FILE_OPS = 1 << 2  # GETATTR with a file handle
    ATOMIC_O_TRUNC = 1 << 3  # OPEN truncates, no SETATTR before it
    EXPORT_SUPPORT = 1 << 4  # LOOKUP of "." and "..", which NFS needs
    BIG_WRITES = 1 << 5  # WRITE of more than a page
    DONT_MASK = 1 << 6  # the umask is sent, not applied: default ACLs replace it
    SPLICE_WRITE = 1 << 7  # the device takes splice(2)
    SPLICE_MOVE = 1 << 8  # and moves pages
    SPLICE_READ = 1 << 9  # the device gives to splice(2)
    FLOCK_LOCKS = 1 << 10  # flock(2) comes to us
    HAS_IOCTL_DIR = 1 << 11  # ioctl(2) on directories
    AUTO_INVAL_DATA = 1 << 12  # cached pages go when size or mtime changed
    DO_READDIRPLUS = 1 << 13  # listing and attributes in one request
    READDIRPLUS_AUTO = 1 << 14  # only while somebody asks for the attributes
    ASYNC_DIO = 1 << 15  # direct I/O in several requests at once
    WRITEBACK_CACHE = 1 << 16  # the kernel collects writes, and owns size and mtime meanwhile
    NO_OPEN_SUPPORT = 1 << 17  # OPEN answered ENOSYS: no more OPEN
    PARALLEL_DIROPS = 1 << 18  # several lookups and listings of a directory at once
    HANDLE_KILLPRIV = 1 << 19  # we clear set-id bits and capabilities ourselves
    POSIX_ACL = 1 << 20  # the kernel checks ACLs; needs default_permissions
    ABORT_ERROR = 1 << 21  # the device says ECONNABORTED after an abort
    MAX_PAGES = 1 << 22  # the answer has max_pages
    CACHE_SYMLINKS = 1 << 23  # READLINK is asked once
    NO_OPENDIR_SUPPORT = 1 << 24  # OPENDIR answered ENOSYS: no more OPENDIR
    EXPLICIT_INVAL_DATA = 1 << 25  # cached pages go only when we say so
    MAP_ALIGNMENT = 1 << 26  # the answer has map_alignment (DAX)
    SUBMOUNTS = 1 << 27  # directories may be mounts of their own
    HANDLE_KILLPRIV_V2 = 1 << 28  # as HANDLE_KILLPRIV, but the kernel says when
    SETXATTR_EXT = 1 << 29  # SETXATTR has setxattr_flags
    INIT_EXT = 1 << 30  # INIT has flags2
    INIT_RESERVED = 1 << 31
    SECURITY_CTX = 1 << 32  # what is created comes with its security label
    HAS_INODE_DAX = 1 << 33  # DAX by file
    CREATE_SUPP_GROUP = 1 << 34  # what is created comes with the group that matches its directory
    HAS_EXPIRE_ONLY = 1 << 35  # INVAL_ENTRY can expire instead of forget
    DIRECT_IO_ALLOW_MMAP = 1 << 36  # FOPEN_DIRECT_IO and shared mmap
    PASSTHROUGH = 1 << 37  # files can be backed by a local one
    NO_EXPORT_SUPPORT = 1 << 38  # no file handles for NFS, however they could be made
    HAS_RESEND = 1 << 39  # lost requests can be asked for again
    ALLOW_IDMAP = 1 << 40  # mounts with mapped ids
    OVER_IO_URING = 1 << 41  # requests through io_uring
    REQUEST_TIMEOUT = 1 << 42  # the answer has request_timeout


# SETATTR, `valid`: which fields are meant.
FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_FH: Final = 1 << 6  # it came through an open file
FATTR_ATIME_NOW: Final = 1 << 7  # with FATTR_ATIME: our clock, not the field
FATTR_MTIME_NOW: Final = 1 << 8
FATTR_LOCKOWNER: Final = 1 << 9
FATTR_CTIME: Final = 1 << 10
FATTR_KILL_SUIDGID: Final = 1 << 11  # clear set-id bits: who truncates has no CAP_FSETID

# The answer to OPEN, OPENDIR and CREATE.
FOPEN_DIRECT_IO: Final = 1 << 0  # past the page cache
FOPEN_KEEP_CACHE: Final = 1 << 1  # what is cached of it is still right
FOPEN_NONSEEKABLE: Final = 1 << 2
FOPEN_CACHE_DIR: Final = 1 << 3  # listings may be cached
FOPEN_STREAM: Final = 1 << 4  # no position at all
FOPEN_NOFLUSH: Final = 1 << 5  # no FLUSH on close
FOPEN_PARALLEL_DIRECT_WRITES: Final = 1 << 6  # direct writes need not wait for each other
FOPEN_PASSTHROUGH: Final = 1 << 7  # the kernel reads and writes backing_id itself

GETATTR_FH: Final = 1 << 0  # the file handle is valid
OPEN_KILL_SUIDGID: Final = 1 << 0  # clear set-id bits: it is opened with O_TRUNC
WRITE_CACHE: Final = 1 << 0  # late, from the page cache; the handle is a guess
WRITE_LOCKOWNER: Final = 1 << 1  # lock_owner is valid
WRITE_KILL_SUIDGID: Final = 1 << 2  # clear set-id bits: who writes has no CAP_FSETID
READ_LOCKOWNER: Final = 1 << 1  # lock_owner is valid
RELEASE_FLUSH: Final = 1 << 0  # a FLUSH as well
RELEASE_FLOCK_UNLOCK: Final = 1 << 1  # the flock of lock_owner ends
FSYNC_FDATASYNC: Final = 1 << 0  # fdatasync(2)
SETXATTR_ACL_KILL_SGID: Final = 1 << 0  # clear the set-group-id bit with the ACL
LK_FLOCK: Final = 1 << 0  # flock(2), not fcntl(2)
POLL_SCHEDULE_NOTIFY: Final = 1 << 0  # notify once it is ready
ATTR_SUBMOUNT: Final = 1 << 0  # in the attributes' flags: the root of another mount
ATTR_DAX: Final = 1 << 1
EXPIRE_ONLY: Final = 1 << 0  # INVAL_ENTRY: ask again at the next use, do not forget
UNIQUE_RESEND: Final = 1 << 63  # in a request's `unique`: sent a second time
EXT_GROUPS: Final = 32  # type of an extension; those below are headers of security labels

# Locks, as <fcntl.h> has them.
F_RDLCK: Final = 0
F_WRLCK: Final = 1
F_UNLCK: Final = 2

# What a STATX answer holds.
STATX_BASIC_STATS: Final = 0x7FF
STATX_BTIME: Final = 0x800


# -- requests

IN_HEADER: Final = Struct("<IIQQIIIHH")
"""len, opcode, unique, nodeid, uid, gid, pid, total_extlen (in units of 8 bytes), padding."""


class InitIn(NamedTuple):
    major: int
    minor: int
    max_readahead: int
    flags: InitFlag
    """Both halves, `flags` and `flags2`."""


class GetattrIn(NamedTuple):
    getattr_flags: int
    fh: int


class StatxIn(NamedTuple):
    getattr_flags: int
    fh: int
    sx_flags: int
    sx_mask: int


class SetattrIn(NamedTuple):
    valid: int
    fh: int
    size: int
    lock_owner: int
    atime: int
    """Seconds since 1970, negative before; likewise mtime and ctime."""
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    uid: int
    gid: int


class MknodIn(NamedTuple):
    mode: int
    rdev: int
    umask: int


class MkdirIn(NamedTuple):
    mode: int
    umask: int


class OpenIn(NamedTuple):
    flags: int
    """As open(2)."""
    open_flags: int
    """OPEN_*."""


class CreateIn(NamedTuple):
    flags: int
    mode: int
    umask: int
    open_flags: int


class ReadIn(NamedTuple):
    """READ, READDIR and READDIRPLUS."""

    fh: int
    offset: int
    size: int
    read_flags: int
    lock_owner: int
    flags: int


class WriteIn(NamedTuple):
    fh: int
    offset: int
    size: int
    write_flags: int
    lock_owner: int
    flags: int


class FlushIn(NamedTuple):
    fh: int
    lock_owner: int


class ReleaseIn(NamedTuple):
    """RELEASE and RELEASEDIR."""

    fh: int
    flags: int
    release_flags: int
    lock_owner: int


class FsyncIn(NamedTuple):
    """FSYNC and FSYNCDIR."""

    fh: int
    fsync_flags: int


class SetxattrIn(NamedTuple):
    size: int
    flags: int
    """XATTR_CREATE, XATTR_REPLACE."""
    setxattr_flags: int


class LkIn(NamedTuple):
    """GETLK, SETLK and SETLKW.  The range is `start` to `end`, both inclusive."""

    fh: int
    owner: int
    start: int
    end: int
    type: int
    pid: int
    lk_flags: int


class FallocateIn(NamedTuple):
    fh: int
    offset: int
    length: int
    mode: int


class LseekIn(NamedTuple):
    fh: int
    offset: int
    whence: int


class IoctlIn(NamedTuple):
    fh: int
    flags: int
    cmd: int
    arg: int
    in_size: int
    out_size: int


class CopyFileRangeIn(NamedTuple):
    fh_in: int
    off_in: int
    nodeid_out: int
    fh_out: int
    off_out: int
    len: int
    flags: int


class PollIn(NamedTuple):
    fh: int
    kh: int
    flags: int
    events: int


class Extensions(NamedTuple):
    """What a kernel appends to a request that creates something."""

    groups: tuple[int, ...]
    """The caller's supplementary group, if it is the directory's."""
    security: tuple[bytes, bytes] | None
    """Name and value of the attribute with the security label."""


def _short(body: Buffer, due: int) -> FsError:
    detail = f"request from the kernel cut off: {len(body)} bytes of at least {due}"
    return FsError(Fault.INVALID, detail)


def _parser(layout: str, record: type[R]) -> Callable[[memoryview], R]:
    """The function that makes a `record` of the beginning of a body."""
    fields = Struct(layout)
    unpack, size = fields.unpack_from, fields.size
    assert len(unpack(bytes(size))) == len(record.__annotations__), record
    new: Callable[[type[R], tuple[Any, ...]], R] = (
        tuple.__new__
    )  # counts no fields: they are counted

    def parse(body: memoryview) -> R:
        try:
            return new(record, unpack(body))
        except struct.error:
            raise _short(body, size) from None

    return parse


def _named_parser(layout: str, record: type[R]) -> Callable[[memoryview], tuple[R, bytes]]:
    """The same for a record that a name follows."""
    parse_record, size = _parser(layout, record), Struct(layout).size

    def parse(body: memoryview) -> tuple[R, bytes]:
        return parse_record(body), parse_name(body, size)

    return parse


def parse_name(body: memoryview, offset: int = 0) -> bytes:
    """LOOKUP, UNLINK, RMDIR, REMOVEXATTR; and the name after `offset` bytes of another request."""
    name, end, _ = bytes(body[offset:]).partition(b"\0")
    if not end:
        raise _short(body, len(body) + 1)
    return name


def parse_two_names(body: memoryview, offset: int = 0) -> tuple[bytes, bytes]:
    """SYMLINK: name and target; and the names after `offset` bytes of another request."""
    first, _, rest = bytes(body[offset:]).partition(b"\0")
    second, end, _ = rest.partition(b"\0")
    if not end:
        raise _short(body, len(body) + 1)
    return first, second


_INIT_IN = Struct("<IIII")
_INIT_FLAGS2 = Struct("<16xI")


def parse_init(body: memoryview) -> InitIn:
    try:
        major, minor, max_readahead, flags = _INIT_IN.unpack_from(body)
        if flags & InitFlag.INIT_EXT:
            flags |= _INIT_FLAGS2.unpack_from(body)[0] << 32
    except struct.error:
        raise _short(body, _INIT_IN.size) from None
    return InitIn(major, minor, max_readahead, InitFlag(flags))


parse_getattr = _parser("<I4xQ", GetattrIn)
parse_statx = _parser("<I4xQII", StatxIn)
parse_setattr = _parser("<I4xQQQqqqIIII4xII4x", SetattrIn)
parse_mknod = _named_parser("<III4x", MknodIn)
parse_mkdir = _named_parser("<II", MkdirIn)
parse_open = _parser("<II", OpenIn)
parse_create = _named_parser("<IIII", CreateIn)
parse_read = _parser("<QQIIQI4x", ReadIn)
parse_flush = _parser("<Q8xQ", FlushIn)
parse_release = _parser("<QIIQ", ReleaseIn)
parse_fsync = _parser("<QI4x", FsyncIn)
parse_lk = _parser("<QQQQIII4x", LkIn)
parse_fallocate = _parser("<QQQI4x", FallocateIn)
parse_lseek = _parser("<QqI4x", LseekIn)
parse_copy_file_range = _parser("<QQQQQQQ", CopyFileRangeIn)
parse_poll = _parser("<QQII", PollIn)

_IOCTL_IN = "<QIIQII"
_IOCTL_BYTES = Struct(_IOCTL_IN).size
_parse_ioctl = _parser(_IOCTL_IN, IoctlIn)


def parse_ioctl(body: memoryview) -> tuple[IoctlIn, bytes]:
    """The request, and the bytes that come with it."""
    asked = _parse_ioctl(body)
    if len(body) < _IOCTL_BYTES + asked.in_size:
        raise _short(body, _IOCTL_BYTES + asked.in_size)
    return asked, bytes(body[_IOCTL_BYTES : _IOCTL_BYTES + asked.in_size])


_U64 = Struct("<Q")
_U32 = Struct("<I4x")
_WRITE_IN = "<QQIIQI4x"
_WRITE_BYTES = Struct(_WRITE_IN).size
_parse_write = _parser(_WRITE_IN, WriteIn)
_SETXATTR_IN = "<III4x"
_SETXATTR_BYTES = Struct(_SETXATTR_IN).size
_parse_setxattr = _parser(_SETXATTR_IN, SetxattrIn)


def parse_write(body: memoryview) -> tuple[WriteIn, memoryview]:
    """The request and its data, which is not copied."""
    asked = _parse_write(body)
    data = body[_WRITE_BYTES : _WRITE_BYTES + asked.size]
    if len(data) != asked.size:
        raise _short(body, _WRITE_BYTES + asked.size)
    return asked, data


def parse_setxattr(body: memoryview) -> tuple[SetxattrIn, bytes, bytes]:
    """The request, name and value.  `SETXATTR_EXT` must have been accepted."""
    asked = _parse_setxattr(body)
    name, _, rest = bytes(body[_SETXATTR_BYTES:]).partition(b"\0")
    if len(rest) < asked.size:
        raise _short(body, _SETXATTR_BYTES + len(name) + 1 + asked.size)
    return asked, name, rest[: asked.size]


def _number(layout: Struct, body: memoryview) -> int:
    try:
        return layout.unpack_from(body)[0]  # type: ignore[no-any-return]
    except struct.error:
        raise _short(body, layout.size) from None


def parse_getxattr(body: memoryview) -> tuple[int, bytes]:
    """Bytes that the caller has room for (0: only asks for the size), and the name."""
    return _number(_U32, body), parse_name(body, _U32.size)


def parse_listxattr(body: memoryview) -> int:
    """Bytes that the caller has room for (0: only asks for the size)."""
    return _number(_U32, body)


def parse_access(body: memoryview) -> int:
    """R_OK, W_OK and X_OK."""
    return _number(_U32, body)


def parse_link(body: memoryview) -> tuple[int, bytes]:
    """The inode, and its new name."""
    return _number(_U64, body), parse_name(body, _U64.size)


def parse_rename(body: memoryview) -> tuple[int, bytes, bytes]:
    """New parent, name, new name."""
    return _number(_U64, body), *parse_two_names(body, _U64.size)


_RENAME2_FLAGS = Struct("<8xI4x")


def parse_rename2(body: memoryview) -> tuple[int, int, bytes, bytes]:
    """New parent, flags as renameat2(2), name, new name."""
    flags = _number(_RENAME2_FLAGS, body)
    return _number(_U64, body), flags, *parse_two_names(body, _RENAME2_FLAGS.size)


def parse_interrupt(body: memoryview) -> int:
    """The request that need not be answered any more, by its `unique`."""
    return _number(_U64, body)


def parse_forget(body: memoryview) -> int:
    """How many lookups of the inode are forgotten."""
    return _number(_U64, body)


_FORGET_ONE = Struct("<QQ")


def parse_batch_forget(body: memoryview) -> list[tuple[int, int]]:
    """Inodes, and how many lookups of each are forgotten."""
    stop = _U32.size + _number(_U32, body) * _FORGET_ONE.size
    if len(body) < stop:
        raise _short(body, stop)
    return list(_FORGET_ONE.iter_unpack(body[_U32.size : stop]))


_EXTENSION = Struct("<II")


def parse_extensions(body: memoryview, total_extlen: int) -> Extensions:
    """What stands at the end of a body, as long as its header says; unknown kinds are skipped."""
    groups: tuple[int, ...] = ()
    security = None
    tail = body[len(body) - 8 * total_extlen :] if total_extlen else body[:0]
    while tail:
        try:
            size, kind = _EXTENSION.unpack_from(tail)
            if not _EXTENSION.size <= size <= len(tail):
                raise _short(tail, size)
            inside = tail[_EXTENSION.size : size]
            if kind == EXT_GROUPS:
                (count,) = struct.unpack_from("<I", inside)
                groups = struct.unpack_from(f"<{count}I", inside, 4)
            elif kind == 1:  # below 32, it says how many labels there are; kernels send one at most
                (value_bytes,) = struct.unpack_from("<I4x", inside)
                name, _, rest = bytes(inside[8:]).partition(b"\0")
                if len(rest) < value_bytes:
                    raise _short(tail, size + value_bytes - len(rest))
                security = name, rest[:value_bytes]
        except struct.error:
            raise _short(tail, _EXTENSION.size) from None
        tail = tail[-(-size // 8) * 8 :]
    return Extensions(groups, security)


# -- answers

ATTRIBUTES_BYTES: Final = 88
ENTRY_BYTES: Final = 128
OUT_HEADER: Final = Struct("<IiQ")
"""len, error (0 or a negative errno; of a notification its code), unique (of a notification 0)."""
_OUT_BYTES = OUT_HEADER.size
_pack_out = OUT_HEADER.pack


def reply(unique: int, payload: Buffer = b"") -> bytes:
    """The answer to request `unique` that carries `payload`."""
    return _pack_out(_OUT_BYTES + len(payload), 0, unique) + payload


def reply_parts(unique: int, data: Buffer) -> tuple[bytes, Buffer]:
    """The same for writev(2), so that many bytes need not be copied."""
    return _pack_out(_OUT_BYTES + len(data), 0, unique), data


def reply_error(unique: int, errno: int) -> bytes:
    """The answer that says what went wrong.  `errno` is positive, as in the module errno."""
    assert errno > 0, errno
    return _pack_out(_OUT_BYTES, -errno, unique)


_ATTRIBUTES = Struct("<QQQqqqIIIIIIIIII")
assert _ATTRIBUTES.size == ATTRIBUTES_BYTES
_VALID = Struct("<QQII")
_ATTR_VALID = Struct("<QI4x")
_NS = 1_000_000_000
_NO_INODE = bytes(16)


class Timeouts:
    """For how many seconds the kernel may remember names, attributes and absent names."""

    __slots__ = ("attr", "attr_s", "entry", "entry_s", "negative")

    entry_s: float
    attr_s: float

    attr: bytes
    """What stands before the attributes in the answer to GETATTR and SETATTR."""
    entry: bytes
    """What stands between inode and attributes in an entry."""
    negative: bytes
    """The whole entry of a name that is not there."""

    def __init__(self, entry_s: float, attr_s: float, negative_s: float = 0.0) -> None:
        self.entry_s, self.attr_s = entry_s, attr_s
        entry, entry_ns = _seconds(entry_s)
        attr, attr_ns = _seconds(attr_s)
        negative, negative_ns = _seconds(negative_s)
        self.attr = _ATTR_VALID.pack(attr, attr_ns)
        self.entry = _VALID.pack(entry, attr, entry_ns, attr_ns)
        self.negative = (
            _NO_INODE + _VALID.pack(negative, 0, negative_ns, 0) + bytes(ATTRIBUTES_BYTES)
        )


def _seconds(timeout_s: float) -> tuple[int, int]:
    return divmod(round(timeout_s * _NS), _NS)


_pack_entry = Struct("<QQ24s88s").pack


def entry_out(timeouts: Timeouts, attributes: bytes, nodeid: int, generation: int = 0) -> bytes:
    """LOOKUP, MKNOD, MKDIR, SYMLINK, LINK; before `open_out`, CREATE and TMPFILE."""
    return _pack_entry(nodeid, generation, timeouts.entry, attributes)


def attr_out(timeouts: Timeouts, attributes: bytes) -> bytes:
    """GETATTR, SETATTR."""
    return timeouts.attr + attributes


_STATX = Struct("<" + "QI4x16x" + "IIQIIIH2xQQQQ" + "qI4x" * 4 + "IIII" + "112x")


def statx_out(timeouts: Timeouts, attributes: bytes, birth: int) -> bytes:
    """STATX.  `birth` is nanoseconds since 1970."""
    (ino, size, blocks, a, m, c, a_ns, m_ns, c_ns, mode, nlink, uid, gid, rdev, blksize, _) = (
        _ATTRIBUTES.unpack(attributes)
    )
    valid, valid_ns = _ATTR_VALID.unpack(timeouts.attr)
    return _STATX.pack(
        *(valid, valid_ns),
        *(STATX_BASIC_STATS | STATX_BTIME, blksize, 0, nlink, uid, gid, mode),
        *(ino, size, blocks, 0),
        *(a, a_ns, *divmod(birth, _NS), c, c_ns, m, m_ns),
        *(rdev >> 8 & 0xFFF, rdev & 0xFF | rdev >> 12 & 0xFFF00, 0, 0),
    )


_pack_open = Struct("<QIi").pack


def open_out(fh: int, open_flags: int, backing_id: int = 0) -> bytes:
    """OPEN and OPENDIR.  `open_flags`: FOPEN_*."""
    return _pack_open(fh, open_flags, backing_id)


_pack_u32 = _U32.pack
_pack_u64 = _U64.pack


def write_out(size: int) -> bytes:
    """WRITE and COPY_FILE_RANGE: how many bytes."""
    return _pack_u32(size)


def copy_file_range_out(size: int) -> bytes:
    """COPY_FILE_RANGE_64: how many bytes."""
    return _pack_u64(size)


def getxattr_out(size: int) -> bytes:
    """GETXATTR and LISTXATTR that asked for the size only."""
    return _pack_u32(size)


def lseek_out(offset: int) -> bytes:
    return _pack_u64(offset)


_IOCTL_OUT = Struct("<iIII")


def ioctl_out(data: bytes) -> bytes:
    """ioctl(2) returns 0; `data` is no longer than was asked for."""
    return _IOCTL_OUT.pack(0, 0, 0, 0) + data


def poll_out(revents: int) -> bytes:
    return _pack_u32(revents)


_STATFS = Struct("<QQQQQIII28x")


def statfs_out(
    *,
    blocks: int,
    bfree: int,
    bavail: int,
    files: int,
    ffree: int,
    bsize: int,
    namelen: int,
    frsize: int,
) -> bytes:
    """As statvfs(3): blocks are of `frsize` bytes."""
    return _STATFS.pack(blocks, bfree, bavail, files, ffree, bsize, namelen, frsize)


_LK_OUT = Struct("<QQII")


def lk_out(start: int, end: int, type: int, pid: int) -> bytes:
    """GETLK: the lock that is in the way, `start` to `end` inclusive; F_UNLCK if there is none."""
    return _LK_OUT.pack(start, end, type, pid)


_INIT_OUT = Struct("<IIIIHHIIHHIIH22x")


def init_out(
    flags: InitFlag,
    *,
    minor: int = MINOR,
    max_readahead: int,
    max_background: int,
    congestion_threshold: int,
    max_write: int,
    max_pages: int,
    time_gran: int = 1,
    map_alignment: int = 0,
    max_stack_depth: int = 0,
    request_timeout: int = 0,
) -> bytes:
    """INIT: what we accept.  `max_readahead` and `max_write` are bytes, `time_gran` nanoseconds.

    `request_timeout`: seconds after which the kernel ends the connection; needs `REQUEST_TIMEOUT`.
    `max_stack_depth` counts for `PASSTHROUGH` only: how deep the backing files may be stacked.
    """
    if flags >> 32:
        flags |= InitFlag.INIT_EXT  # or the kernel does not look at flags2
    return _INIT_OUT.pack(
        *(MAJOR, minor, max_readahead, flags & 0xFFFF_FFFF),
        *(max_background, congestion_threshold, max_write, time_gran, max_pages, map_alignment),
        *(flags >> 32, max_stack_depth, request_timeout),
    )


def init_out_major_only() -> bytes:
    """INIT of a kernel with a larger major version: it will say INIT again, with ours."""
    return _INIT_OUT.pack(MAJOR, MINOR, *(0,) * 11)


_pack_dirent = Struct("<QQII").pack
_pack_direntplus = Struct("<QQ24s88sQQII").pack
_PADDING = tuple(bytes(-length % 8) for length in range(8))
"""What fills a name of that length, modulo 8, up to a multiple of 8."""


def dirent(ino: int, position: int, name: bytes, type: int) -> bytes:
    """An entry of READDIR.  `position`: where the listing goes on after it; `type`: DT_*."""
    length = len(name)
    return _pack_dirent(ino, position, length, type) + name + _PADDING[length & 7]


def direntplus(
    timeouts: Timeouts,
    attributes: bytes,
    ino: int,
    position: int,
    name: bytes,
    type: int,
    generation: int = 0,
) -> bytes:
    """An entry of READDIRPLUS.  Without attributes ("." and ".."), a name that is not looked up."""
    length = len(name)
    if attributes:
        known = _pack_direntplus(
            ino, generation, timeouts.entry, attributes, ino, position, length, type
        )
    else:
        known = _NO_ENTRY + _pack_dirent(ino, position, length, type)
    return known + name + _PADDING[length & 7]


_NO_ENTRY = bytes(ENTRY_BYTES)


# -- notifications


def notify(code: NotifyCode, payload: Buffer = b"") -> bytes:
    """What the kernel gets unasked."""
    return _pack_out(_OUT_BYTES + len(payload), code, 0) + payload


_INVAL_INODE = Struct("<Qqq")
_INVAL_ENTRY = Struct("<QII")
_DELETE = Struct("<QQI4x")
_STORE = Struct("<QQI4x")


def notify_inval_inode(ino: int, offset: int = 0, size: int = 0) -> bytes:
    """Forget the attributes, and `size` cached bytes (0: to the end; none if `offset` < 0)."""
    return notify(NotifyCode.INVAL_INODE, _INVAL_INODE.pack(ino, offset, size))


def notify_inval_entry(parent: int, name: bytes, flags: int = 0) -> bytes:
    """Forget a name.  `flags`: EXPIRE_ONLY."""
    packed = _INVAL_ENTRY.pack(parent, len(name), flags)
    return notify(NotifyCode.INVAL_ENTRY, packed + name + b"\0")


def notify_delete(parent: int, child: int, name: bytes) -> bytes:
    """Forget a name that was unlinked elsewhere, unless it is another inode's by now."""
    return notify(NotifyCode.DELETE, _DELETE.pack(parent, child, len(name)) + name + b"\0")


def notify_store(ino: int, offset: int, data: Buffer) -> bytes:
    """Put `data` into the page cache."""
    return notify(NotifyCode.STORE, _STORE.pack(ino, offset, len(data)) + data)


def notify_poll(kh: int) -> bytes:
    """What POLL with POLL_SCHEDULE_NOTIFY waited for has come."""
    return notify(NotifyCode.POLL, _pack_u64(kh))
