"""What every command has to get past before it has an effect: nothing that is retained changes.

It looks at what a command has changed, and at nothing else: not at which command it was.  So none
of them can go around it, nor can a door.
"""

import struct
from typing import TYPE_CHECKING, Final

from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.records import (
    HAS_LOCKS,
    MARKS_AT,
    MODE_AT,
    PARENT_AT,
    RETAINED,
    UNCOMMITTED,
    VERSION_AT,
    Inode,
    unpack_dentry,
)
from mountfs.meta.retention import (
    Below,
    Retention,
    default_for,
    default_of,
    unpack_below,
    unpack_retention,
)
from mountfs.types import Ino

if TYPE_CHECKING:
    from mountfs.meta.tree import Tree

_MARKS_BYTE: Final = MARKS_AT + 1
_RETAINED_BIT: Final = RETAINED >> 8
_TYPE_BYTE: Final = MODE_AT + 1
_NLINK_AT: Final = MODE_AT + 4
_U64: Final = struct.Struct("<Q")
_U32: Final = struct.Struct("<I")
_DIRECTORY: Final = 0x40
_FREE_MARKS: Final = HAS_LOCKS | RETAINED | UNCOMMITTED
_FREE: Final = frozenset({keys.LOCKS, keys.RETENTION})
"""Rows of a retained file that may change; the operations on retention have their own rules."""
_PLACES: Final = frozenset({keys.SLICES, keys.PIECE})
"""Where its bytes are: compaction may put them elsewhere."""
_OF_FILES: Final = frozenset(
    {keys.DENTRY, keys.CONTENT, keys.BLOCKS, keys.SLICES, keys.PIECE, keys.TARGET, keys.XATTR}
)


def enforce(tree: "Tree") -> None:
    """To be called when a command has done all that it wants.  Raises NOT_PERMITTED."""
    if tree.counters.retention:
        _refuse_changes(tree)
    if tree.counters.default_retention:
        _note_written(tree)


# -- what is retained


def _refuse_changes(tree: "Tree") -> None:
    before = tree._before
    suspects = [ino for ino, record in before.items() if record[_MARKS_BYTE] & _RETAINED_BIT]
    for key in tree._changes:
        if key[8] in _OF_FILES:
            ino = Ino(int.from_bytes(key[:8], "big"))
            if ino not in before and ino not in tree._touched and _is_retained(tree, ino):
                suspects.append(ino)
    if not suspects:
        return
    now = tree.counters.protected_time
    for ino in suspects:
        record = before.get(ino)
        if record is not None and record[_TYPE_BYTE] & 0xF0 == _DIRECTORY:
            continue  # only its name matters
        retention = _stored_retention(tree, ino)
        if retention.protects(now) and _has_changed(tree, ino, record):
            raise FsError(Fault.NOT_PERMITTED, retention.why(ino))
    _refuse_lost_names(tree, now)


def _refuse_lost_names(tree: "Tree", now: int) -> None:
    """A name that stands for something else, or for nothing, was that of something free."""
    for key, value in tree._changes.items():
        if key[8] != keys.DENTRY:
            continue
        old = tree._rows.get(key)
        if old is None or (value is not None and value[:8] == old[:8]):
            continue
        ino = unpack_dentry(old)[0]
        if _is_retained(tree, ino):
            _require_free(tree, ino, now)


def _require_free(tree: "Tree", ino: Ino, now: int) -> None:
    kept = _stored_retention(tree, ino), _stored_below(tree, ino)
    for one in kept:
        if one.protects(now):
            raise FsError(Fault.NOT_PERMITTED, one.why(ino))


def _is_retained(tree: "Tree", ino: Ino) -> bool:
    """Before the running command."""
    record = tree._before.get(ino) or tree._rows.get(keys.inode(ino))
    return record is not None and bool(record[_MARKS_BYTE] & _RETAINED_BIT)


def _stored_retention(tree: "Tree", ino: Ino) -> Retention:
    value = tree._rows.get(keys.retention(ino))
    return Retention() if value is None else unpack_retention(value)


def _stored_below(tree: "Tree", ino: Ino) -> Below:
    value = tree._rows.get(keys.retained_below(ino))
    return Below() if value is None else unpack_below(value)


def _has_changed(tree: "Tree", ino: Ino, record: bytes | None) -> bool:
    """Anything of a file but its access time, its locks and its retention."""
    moved = ino in tree._rearranged
    if record is not None:
        inode = tree._touched.get(ino)
        if inode is None or not _same(record, inode.record(), moved):
            return True
    head = ino.to_bytes(8, "big")
    for key, value in tree._changes.items():
        if key[:8] != head or key[8] in _FREE or (moved and key[8] in _PLACES):
            continue
        if tree._rows.get(key) != value:
            return True
    return False


def _same(old: bytes, new: bytes, moved: bool) -> bool:
    """Two records of an inode, but for the access time and what comes and goes with locks and
    retention; `moved`: and for the version.
    """
    if old == new:
        return True
    marks = _U32.unpack_from(old, MARKS_AT)[0] ^ _U32.unpack_from(new, MARKS_AT)[0]
    return (
        old[:24] == new[:24]
        and old[32:48] == new[32:48]
        and old[52:VERSION_AT] == new[52:VERSION_AT]
        and (moved or old[VERSION_AT : VERSION_AT + 8] == new[VERSION_AT : VERSION_AT + 8])
        and not marks & ~_FREE_MARKS
    )


# -- what is to be retained


def _note_written(tree: "Tree") -> None:
    """Files that were written in a tree with a default retention, or came into one, get it when
    they are closed, or later: they are in an index until then.
    """
    for ino, record in tree._before.items():
        inode = tree._touched.get(ino)
        if inode is None or not inode.is_regular or not inode.nlink or inode.marks & UNCOMMITTED:
            continue
        if ino in tree._rearranged or not _is_news(tree, record, inode):
            continue
        if default_for(tree, inode) is not None:
            inode.marks |= UNCOMMITTED
            inode.packed = None
            tree.put(keys.uncommitted(ino), b"")


def _is_news(tree: "Tree", record: bytes, inode: Inode) -> bool:
    """Whether its bytes have changed, or it has come from elsewhere, or got a name, with some."""
    if _U64.unpack_from(record, VERSION_AT)[0] != inode.version:
        return True
    if not inode.size:
        return False
    if inode.nlink > _U32.unpack_from(record, _NLINK_AT)[0]:
        return True
    parent = Ino(_U64.unpack_from(record, PARENT_AT)[0])
    return parent != inode.parent and default_of(tree, parent) != default_of(tree, inode.parent)
