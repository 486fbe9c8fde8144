"""What a record of the journal says about groups.  No I/O.

A record is a row of items, each about one group.  One save of one server is one record, or, when it
is larger than a record may be, several: entries first, so that what comes later never speaks of
entries that are not there.  A later item counts more than an earlier one: entries take the place of
all that the group's log had from the index of the first on.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Final, NewType

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.raft.messages import (
    Entry,
    EntryKind,
    HardState,
    NodeId,
    SnapshotHead,
    Term,
    decode_membership,
    encode_membership,
)
from mountfs.types import LogIndex

GroupId = NewType("GroupId", int)
"""Number of a group: unsigned 32 bits, the same on all of its servers, never used twice."""

ENTRIES: Final = 1
HARD: Final = 2
BASE: Final = 3
"""The log begins behind an entry: what came before it is no longer needed."""
SNAPSHOT: Final = 4
"""As BASE, but a snapshot took the place of the whole log: nothing of it is left."""
GONE: Final = 5
"""The group is no longer here."""
CUT: Final = 6
"""The log ends with an entry: what came after it is dropped, and nothing takes its place."""

# all: kind, group
_ITEM = struct.Struct("<BI")
_ENTRIES = struct.Struct("<BIQQI")  # ..., term, index of the first, count
_ENTRY = struct.Struct("<BI")  # kind, length; then the data
_HARD = struct.Struct("<BIQQQ")  # ..., term, vote, committed
_CUT = struct.Struct("<BIQ")  # ..., index
_HEAD = struct.Struct("<BIQQI")  # ..., index, term, length; then the membership

_ONE_ENTRY = struct.Struct("<BIQQIBI")

ENTRIES_OVERHEAD_BYTES: Final = _ENTRIES.size
ENTRY_OVERHEAD_BYTES: Final = _ENTRY.size


class Entries(msgspec.Struct, frozen=True):
    group: GroupId
    entries: tuple[Entry, ...]


class Hard(msgspec.Struct, frozen=True):
    group: GroupId
    state: HardState


class Base(msgspec.Struct, frozen=True):
    group: GroupId
    head: SnapshotHead
    restored: bool
    """It is a snapshot's, and the log behind it is empty."""


class Gone(msgspec.Struct, frozen=True):
    group: GroupId


class Cut(msgspec.Struct, frozen=True):
    group: GroupId
    last: LogIndex


Item = Entries | Hard | Base | Gone | Cut


def one_command(group: GroupId, term: Term, index: LogIndex, data: bytes) -> bytes:
    """The record of a single command: what a group of one writes for nearly all it does."""
    head = _ONE_ENTRY.pack(ENTRIES, group, term, index, 1, EntryKind.COMMAND, len(data))
    return head + data


def encode_entries(group: GroupId, entries: Sequence[Entry]) -> bytes:
    parts: list[bytes] = []
    start = 0
    while start < len(entries):
        first = entries[start]
        stop = start + 1
        while stop < len(entries) and entries[stop].term == first.term:
            stop += 1
        parts.append(_ENTRIES.pack(ENTRIES, group, first.term, first.index, stop - start))
        for entry in entries[start:stop]:
            parts.append(_ENTRY.pack(entry.kind, len(entry.data)))
            parts.append(entry.data)
        start = stop
    return b"".join(parts)


def encode_hard(group: GroupId, hard: HardState) -> bytes:
    return _HARD.pack(HARD, group, hard.term, hard.vote, hard.committed)


def encode_base(group: GroupId, head: SnapshotHead, *, restored: bool) -> bytes:
    members = encode_membership(head.membership)
    kind = SNAPSHOT if restored else BASE
    return _HEAD.pack(kind, group, head.index, head.term, len(members)) + members


def encode_gone(group: GroupId) -> bytes:
    return _ITEM.pack(GONE, group)


def encode_cut(group: GroupId, last: LogIndex) -> bytes:
    return _CUT.pack(CUT, group, last)


def decode(record: bytes) -> Iterator[Item]:
    """The items of a record.  Raises CORRUPT for what is none: the journal has checked the bytes,
    so somebody else wrote them.
    """
    offset = 0
    try:
        while offset < len(record):
            item, offset = _ITEMS[record[offset]](record, offset)
            yield item
    except (struct.error, KeyError, ValueError, msgspec.MsgspecError) as error:
        raise FsError(
            Fault.CORRUPT, f"not a record of a group, at byte {offset}: {error!r}"
        ) from None
    if offset > len(record):
        raise FsError(Fault.CORRUPT, "a record of a group ends too early")


def _entries(record: bytes, offset: int) -> tuple[Item, int]:
    _, group, term, index, count = _ENTRIES.unpack_from(record, offset)
    offset += _ENTRIES.size
    found = []
    for number in range(index, index + count):
        kind, length = _ENTRY.unpack_from(record, offset)
        offset += _ENTRY.size
        data = record[offset : offset + length]
        found.append(Entry(LogIndex(number), Term(term), EntryKind(kind), data))
        offset += length
    return Entries(GroupId(group), tuple(found)), offset


def _hard(record: bytes, offset: int) -> tuple[Item, int]:
    _, group, term, vote, committed = _HARD.unpack_from(record, offset)
    state = HardState(Term(term), NodeId(vote), LogIndex(committed))
    return Hard(GroupId(group), state), offset + _HARD.size


def _head(record: bytes, offset: int) -> tuple[Item, int]:
    kind, group, index, term, length = _HEAD.unpack_from(record, offset)
    offset += _HEAD.size
    members = decode_membership(record[offset : offset + length])
    head = SnapshotHead(LogIndex(index), Term(term), members)
    return Base(GroupId(group), head, kind == SNAPSHOT), offset + length


def _gone(record: bytes, offset: int) -> tuple[Item, int]:
    _, group = _ITEM.unpack_from(record, offset)
    return Gone(GroupId(group)), offset + _ITEM.size


def _cut(record: bytes, offset: int) -> tuple[Item, int]:
    _, group, last = _CUT.unpack_from(record, offset)
    return Cut(GroupId(group), LogIndex(last)), offset + _CUT.size


_ITEMS: Final = {
    ENTRIES: _entries, HARD: _hard, BASE: _head, SNAPSHOT: _head, GONE: _gone, CUT: _cut,
}  # fmt: skip
