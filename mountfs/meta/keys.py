"""The key space of the metadata, as one table.

Every key begins with the big-endian number of the inode it belongs to, then one byte of kind, then
the rest.  So all that belongs to a file is one range, a shard is a range, and a directory's names
are in byte order.  Inode 0 does not exist: under it are the records of the filesystem as a whole.
The values are in `records.py`, both formats in docs/formats.md.

| ino | kind | rest                               | value                                      |
|-----|------|------------------------------------|--------------------------------------------|
| i   | 0x10 |                                    | the inode                                  |
| i   | 0x11 |                                    | sums of a directory: what lies below it    |
| i   | 0x20 | name                               | dentry: ino, position, type                |
| i   | 0x21 | position u64                       | ino, type, name: newest first        |
| i   | 0x22 | directory u64                      | names there of a file that has several     |
| i   | 0x30 |                                    | the whole content of a small file          |
| i   | 0x31 | chunk u64                          | which blocks of the chunk have bytes       |
| i   | 0x32 | chunk u64, order u64, number u32   | a slice                                    |
| i   | 0x33 | piece u64                          | bytes of a small slice kept here           |
| i   | 0x34 |                                    | target of a symlink                        |
| i   | 0x40 | name                               | an extended attribute                      |
| i   | 0x50 |                                    | the locks held on the file                 |
| i   | 0x60 |                                    | retention of a file: mode, until, hold     |
| i   | 0x62 |                                    | retention that files of a tree get         |
| i   | 0x63 |                                    | what becomes of what is deleted in a tree  |
| i   | 0x64 |                                    | a directory's: holds below, latest until   |
| i   | 0x66 | name, NUL, ~order u64              | trash: what had this name in directory i   |
| 0   | 0x01 |                                    | counters                                   |
| 0   | 0x02 | session u64, ino u64               | an orphan: no name, still in use           |
| 0   | 0x03 | session u64                        | session: its last replies                  |
| 0   | 0x04 | slice u64                          | garbage: a slice nobody refers to          |
| 0   | 0x05 | slice u64                          | number of references, where more than one  |
| 0   | 0x06 | ino u64, chunk u64                 | tangled: this chunk has covered slices     |
| 0   | 0x07 | session u64, ino u64               | this session holds locks on this file      |
| 0   | 0x08 |                                    | head: where in the log this state stands   |
| 0   | 0x09 | node u64                           | a machine of the cluster                   |
| 0   | 0x0a | volume u64                         | a volume of the cluster: who has it        |
| 0   | 0x0b | volume u64, slice u64              | used: some file refers to this slice       |
| 0   | 0x0c | uid u64                            | use by a user                              |
| 0   | 0x0d | gid u64                            | use by a group                             |
| 0   | 0x0e | kind u64, number u64               | a quota                                    |
| 0   | 0x65 | ino u64                            | written, and to get a tree's retention     |
| 0   | 0x67 | until u64, order u64               | trash that is removed then: where it is    |
| 0   | 0x68 | uid u64                            | when a user has deleted last, and the run  |
"""

import struct

from mountfs.types import Ino, SliceId, VolumeId

_INO_KIND = struct.Struct(">QB")
_INO_KIND_64 = struct.Struct(">QBQ")
_INO_KIND_64_64 = struct.Struct(">QBQQ")
_SLICE = struct.Struct(">QBQQI")
_U64 = struct.Struct(">Q")
_U64_MAX = (1 << 64) - 1

INODE, SUMS = 0x10, 0x11
DENTRY, ENTRY, PLACE = 0x20, 0x21, 0x22
CONTENT, BLOCKS, SLICES, PIECE, TARGET = 0x30, 0x31, 0x32, 0x33, 0x34
XATTR, LOCKS = 0x40, 0x50
RETENTION, DEFAULT_RETENTION, RETAINED_BELOW, UNCOMMITTED = 0x60, 0x62, 0x64, 0x65
TRASH_SETTING, TRASH, TRASH_UNTIL, DELETION_RUN = 0x63, 0x66, 0x67, 0x68
ORPHAN, SESSION, GARBAGE, SHARED, TANGLED, LOCKED = range(2, 8)
NODE, VOLUME, USED = 9, 10, 11
USER_USE, GROUP_USE, QUOTA = 12, 13, 14

COUNTERS = _INO_KIND.pack(0, 1)
FIRST_INO = Ino(1)
HEAD = _INO_KIND.pack(0, 8)

Range = tuple[bytes, bytes]


def inode(ino: Ino) -> bytes:
    return _INO_KIND.pack(ino, INODE)


def sums(directory: Ino) -> bytes:
    return _INO_KIND.pack(directory, SUMS)


def dentry(parent: Ino, name: bytes) -> bytes:
    return _INO_KIND.pack(parent, DENTRY) + name


def dentries(parent: Ino, after: bytes = b"") -> Range:
    """Names greater than `after`, in byte order."""
    low = _INO_KIND.pack(parent, DENTRY)
    return (low + after + b"\0" if after else low), _INO_KIND.pack(parent, DENTRY + 1)


def entry(parent: Ino, position: int) -> bytes:
    return _INO_KIND_64.pack(parent, ENTRY, position)


def entries(parent: Ino, after: int) -> Range:
    """Entries at positions greater than `after`."""
    return _INO_KIND_64.pack(parent, ENTRY, after + 1), _INO_KIND.pack(parent, ENTRY + 1)


def place(ino: Ino, directory: Ino) -> bytes:
    return _INO_KIND_64.pack(ino, PLACE, directory)


def places(ino: Ino) -> Range:
    return _INO_KIND.pack(ino, PLACE), _INO_KIND.pack(ino, PLACE + 1)


def content(ino: Ino) -> bytes:
    return _INO_KIND.pack(ino, CONTENT)


def blocks(ino: Ino, chunk: int) -> bytes:
    return _INO_KIND_64.pack(ino, BLOCKS, chunk)


def blocks_from(ino: Ino, chunk: int) -> Range:
    return blocks(ino, chunk), _INO_KIND.pack(ino, BLOCKS + 1)


def slice_(ino: Ino, chunk: int, order: int, number: int) -> bytes:
    return _SLICE.pack(ino, SLICES, chunk, order, number)


def slice_place(key: bytes) -> tuple[int, int, int]:
    """(chunk, order, number) of a slice's key."""
    _, _, chunk, order, number = _SLICE.unpack(key)
    return chunk, order, number


def slices_of(ino: Ino, chunk: int) -> Range:
    """The slices of one chunk, oldest first."""
    return _INO_KIND_64.pack(ino, SLICES, chunk), _INO_KIND_64.pack(ino, SLICES, chunk + 1)


def slices_from(ino: Ino, chunk: int) -> Range:
    return _INO_KIND_64.pack(ino, SLICES, chunk), _INO_KIND.pack(ino, SLICES + 1)


def piece(ino: Ino, number: int) -> bytes:
    return _INO_KIND_64.pack(ino, PIECE, number)


def target(ino: Ino) -> bytes:
    return _INO_KIND.pack(ino, TARGET)


def xattr(ino: Ino, name: bytes) -> bytes:
    return _INO_KIND.pack(ino, XATTR) + name


def xattrs(ino: Ino) -> Range:
    return _INO_KIND.pack(ino, XATTR), _INO_KIND.pack(ino, XATTR + 1)


def locks(ino: Ino) -> bytes:
    return _INO_KIND.pack(ino, LOCKS)


def retention(ino: Ino) -> bytes:
    return _INO_KIND.pack(ino, RETENTION)


def default_retention(directory: Ino) -> bytes:
    return _INO_KIND.pack(directory, DEFAULT_RETENTION)


def retained_below(directory: Ino) -> bytes:
    return _INO_KIND.pack(directory, RETAINED_BELOW)


def uncommitted(ino: Ino) -> bytes:
    return _INO_KIND_64.pack(0, UNCOMMITTED, ino)


def uncommitteds(after: int = 0) -> Range:
    """Files behind that one."""
    return _INO_KIND_64.pack(0, UNCOMMITTED, after + 1), _INO_KIND.pack(0, UNCOMMITTED + 1)


def trash_setting(directory: Ino) -> bytes:
    return _INO_KIND.pack(directory, TRASH_SETTING)


def trash(directory: Ino, name: bytes, order: int) -> bytes:
    return _INO_KIND.pack(directory, TRASH) + name + b"\0" + _U64.pack(_U64_MAX - order)


def trash_of(directory: Ino, name: bytes) -> Range:
    """All that had one name, newest first."""
    head = _INO_KIND.pack(directory, TRASH) + name
    return head + b"\0", head + b"\1"


def trash_in(directory: Ino, after: bytes = b"") -> Range:
    """By name, of each the newest first; `after`: behind the one whose key ends so."""
    low = _INO_KIND.pack(directory, TRASH)
    return (low + after + b"\0" if after else low), _INO_KIND.pack(directory, TRASH + 1)


def trash_place(key: bytes) -> tuple[Ino, bytes, int]:
    """(directory, name, order)"""
    return ino_of(key), key[9:-9], _U64_MAX - last_64(key)


def trash_until(until: int, order: int) -> bytes:
    return _INO_KIND_64_64.pack(0, TRASH_UNTIL, until, order)


def trash_untils(after: tuple[int, int] = (0, 0)) -> Range:
    until, order = after
    return trash_until(until, order) + b"\0", _INO_KIND.pack(0, TRASH_UNTIL + 1)


def until_and_order(key: bytes) -> tuple[int, int]:
    _, _, until, order = _INO_KIND_64_64.unpack(key)
    return until, order


def deletion_run(uid: int) -> bytes:
    return _INO_KIND_64.pack(0, DELETION_RUN, uid)


def orphan(session: int, ino: Ino) -> bytes:
    return _INO_KIND_64_64.pack(0, ORPHAN, session, ino)


def orphans(session: int | None = None) -> Range:
    return _of_session(ORPHAN, session)


def session_ino(key: bytes) -> tuple[int, Ino]:
    """(session, ino) of an orphan's or a lock holder's key."""
    _, _, session, ino = _INO_KIND_64_64.unpack(key)
    return session, Ino(ino)


def session(number: int) -> bytes:
    return _INO_KIND_64.pack(0, SESSION, number)


def sessions() -> Range:
    return _of_session(SESSION, None)


def garbage(slice_id: SliceId) -> bytes:
    return _INO_KIND_64.pack(0, GARBAGE, slice_id)


def garbages(after: int = 0) -> Range:
    """Slices behind that one."""
    return garbage(SliceId(after + 1)), _of_session(GARBAGE, None)[1]


def shared(slice_id: SliceId) -> bytes:
    return _INO_KIND_64.pack(0, SHARED, slice_id)


def tangled(ino: Ino, chunk: int) -> bytes:
    return _INO_KIND_64_64.pack(0, TANGLED, ino, chunk)


def tangles(ino: Ino | None = None) -> Range:
    return _of_session(TANGLED, ino)


def tangle_place(key: bytes) -> tuple[Ino, int]:
    _, _, ino, chunk = _INO_KIND_64_64.unpack(key)
    return Ino(ino), chunk


def locked(session: int, ino: Ino) -> bytes:
    return _INO_KIND_64_64.pack(0, LOCKED, session, ino)


def lockeds(session: int | None = None) -> Range:
    return _of_session(LOCKED, session)


def node(number: int) -> bytes:
    return _INO_KIND_64.pack(0, NODE, number)


def nodes() -> Range:
    return _of_session(NODE, None)


def volume(number: VolumeId) -> bytes:
    return _INO_KIND_64.pack(0, VOLUME, number)


def volumes(after: int = 0) -> Range:
    """Volumes behind that one."""
    return _INO_KIND_64.pack(0, VOLUME, after + 1), _INO_KIND.pack(0, VOLUME + 1)


def used(number: VolumeId, slice_id: SliceId) -> bytes:
    return _INO_KIND_64_64.pack(0, USED, number, slice_id)


def useds(number: VolumeId, after: int = 0) -> Range:
    """The slices of a volume behind that one."""
    return _INO_KIND_64_64.pack(0, USED, number, after + 1), _INO_KIND_64.pack(0, USED, number + 1)


def ino_of(key: bytes) -> Ino:
    """The inode that a key belongs to; 0: none."""
    return Ino(int.from_bytes(key[:8], "big"))


def use_of_user(uid: int) -> bytes:
    return _INO_KIND_64.pack(0, USER_USE, uid)


def uses_of_users() -> Range:
    return _of_session(USER_USE, None)


def use_of_group(gid: int) -> bytes:
    return _INO_KIND_64.pack(0, GROUP_USE, gid)


def uses_of_groups() -> Range:
    return _of_session(GROUP_USE, None)


def quota(kind: int, number: int) -> bytes:
    return _INO_KIND_64_64.pack(0, QUOTA, kind, number)


def quotas() -> Range:
    return _of_session(QUOTA, None)


def quota_of(key: bytes) -> tuple[int, int]:
    """(kind, number) of a quota's key."""
    _, _, kind, number = _INO_KIND_64_64.unpack(key)
    return kind, number


def last_64(key: bytes) -> int:
    """The number that a key ends with."""
    return int.from_bytes(key[-8:], "big")


def everything_of(ino: Ino) -> Range:
    return ino.to_bytes(8, "big"), (ino + 1).to_bytes(8, "big")


def _of_session(kind: int, number: int | None) -> Range:
    if number is None:
        return _INO_KIND.pack(0, kind), _INO_KIND.pack(0, kind + 1)
    return _INO_KIND_64.pack(0, kind, number), _INO_KIND_64.pack(0, kind, number + 1)
