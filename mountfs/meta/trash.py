"""The trash: what has lost its last name in a tree that keeps what is deleted, for some days.

It stays what it was, an inode with its bytes and attributes, without a name; a row in the directory
that it was deleted in says what it was called.  So nobody finds it by a name, a directory that is
deleted takes along what was deleted in it before, and both come back to where they were.

A *run* is what one user deletes without a pause: an `rm -rf` is one, and a directory comes back
with what was deleted in it by the same run.

How long it is kept is decided when it is deleted, and ends by the clock that retention ends by.
"""

import struct
from typing import TYPE_CHECKING, Final

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.records import NS, TRASHED, TRASHES, UNCOUNTED, Inode
from mountfs.types import ROOT, Cred, Ino

if TYPE_CHECKING:
    from mountfs.meta.tree import Tree

DAY_NS: Final = 86_400 * NS
DAYS_MAX: Final = 36_500
PAUSE_NS: Final = 60 * NS
"""A user who has deleted nothing for so long begins another run."""
NOTED_NS: Final = NS
"""When he has deleted last is noted no more often than that."""
_FOR_EVER: Final = (1 << 63) - 1


class Setting(msgspec.Struct, frozen=True, array_like=True):
    """What becomes of what is deleted below a directory."""

    days: int = 0
    """So long it is kept; 0: not at all."""
    counts: bool = True
    """What is in the trash counts for quotas, where it was deleted."""


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """Something in the trash."""

    directory: Ino
    """In which it had its last name."""
    name: bytes
    order: int
    """Index of the command that deleted it."""
    ino: Ino
    until: int
    """It is kept so long, in protected time: nanoseconds since 1970."""
    time: int
    """When it was deleted, by the clock of who led."""
    by: int
    """The user who deleted it."""
    run: int
    """Index of the command that the run began with."""


_SETTING = struct.Struct("<I?")
_ENTRY = struct.Struct("<QqqIQ")
_UNTIL = struct.Struct("<Q")
_RUN = struct.Struct("<qQ")


def pack_setting(setting: Setting) -> bytes:
    return _SETTING.pack(setting.days, setting.counts)


def unpack_setting(value: bytes) -> Setting:
    return Setting(*_SETTING.unpack(value))


def pack_entry(entry: Entry) -> bytes:
    return _ENTRY.pack(entry.ino, entry.until, entry.time, entry.by, entry.run)


def unpack_entry(key: bytes, value: bytes) -> Entry:
    return Entry(*keys.trash_place(key), *_ENTRY.unpack(value))


def pack_place(entry: Entry) -> bytes:
    """Of an entry, as the index by time has it."""
    return _UNTIL.pack(entry.directory) + entry.name


def unpack_place(value: bytes) -> tuple[Ino, bytes]:
    """(directory, name)"""
    return Ino(_UNTIL.unpack_from(value)[0]), value[_UNTIL.size :]


def setting_of(tree: "Tree", directory: Inode) -> tuple[Ino, Setting] | None:
    """What holds in a directory, and which directory says so: it or the nearest above.  None:
    nobody says anything.
    """
    inode = directory
    while not inode.marks & TRASHES:
        if inode.ino == ROOT:
            return None
        inode = tree.inode(inode.parent)
    value = tree.get(keys.trash_setting(inode.ino))
    assert value is not None, inode.ino
    return inode.ino, unpack_setting(value)


def lose_name(tree: "Tree", parent: Inode, name: bytes, child: Inode, cred: Cred) -> Ino:
    """What becomes of an inode that has lost a name in a directory.  Returns it if it is an orphan
    now, or a directory; 0: it has other names, or is a file in the trash.
    """
    if child.nlink:
        return Ino(0)
    if tree.counters.trash:
        # The answer tells nothing of the directories above.
        seen, tree.seen = tree.seen, None
        try:
            setting = _setting_for(tree, parent, child)
        finally:
            tree.seen = seen
        if setting is not None:
            _put_in(tree, parent.ino, name, child, setting, cred.uid)
            return child.ino if child.is_directory else Ino(0)  # kernels take it for dead
    tree.make_orphan(child)
    return child.ino


def _setting_for(tree: "Tree", parent: Inode, child: Inode) -> Setting | None:
    found = setting_of(tree, parent)
    if found is not None and found[1].days:
        return found[1]
    if child.is_directory and first_in(tree, child.ino) is not None:
        return Setting()  # it goes with what is in it: see `EmptyTrash`
    return None


def first_in(tree: "Tree", directory: Ino) -> Entry | None:
    """Something that was deleted in a directory."""
    return next((unpack_entry(*row) for row in tree.scan(keys.trash_in(directory), limit=1)), None)


def _put_in(
    tree: "Tree", directory: Ino, name: bytes, child: Inode, setting: Setting, uid: int
) -> None:
    stamp = tree.stamp
    proven = tree.counters.protected_time
    # Where nothing is known for certain, what has been proven may be long ago: as for retention.
    start = proven if stamp.proven else max(stamp.time, proven)
    until = min(start + setting.days * DAY_NS, _FOR_EVER)
    run = _run(tree, uid)
    entry = Entry(directory, name, stamp.index, child.ino, until, stamp.time, uid, run)
    child.marks |= TRASHED if setting.counts else TRASHED | UNCOUNTED
    put_entry(tree, entry)


def _run(tree: "Tree", uid: int) -> int:
    """The run that a user's deletion belongs to."""
    key, stamp = keys.deletion_run(uid), tree.stamp
    value = tree.get(key)
    run = stamp.index
    if value is not None:
        last, found = _RUN.unpack(value)
        if stamp.time - last < NOTED_NS:
            return int(found)
        if stamp.time - last < PAUSE_NS:
            run = found
    tree.put(key, _RUN.pack(stamp.time, run))
    return run


def put_entry(tree: "Tree", entry: Entry) -> None:
    tree.put(keys.trash(entry.directory, entry.name, entry.order), pack_entry(entry))
    tree.put(keys.trash_until(entry.until, entry.order), pack_place(entry))


def find_entry(tree: "Tree", directory: Ino, name: bytes, order: int) -> Entry | None:
    key = keys.trash(directory, name, order)
    value = tree.get(key)
    return None if value is None else unpack_entry(key, value)


def newest_of(tree: "Tree", directory: Ino, name: bytes) -> Entry | None:
    rows = tree.scan(keys.trash_of(directory, name), limit=1)
    return next((unpack_entry(*row) for row in rows), None)


def take_out(tree: "Tree", entry: Entry) -> Inode:
    """It is no entry any more; what it is then is for the caller to say."""
    tree.put(keys.trash(entry.directory, entry.name, entry.order), None)
    tree.put(keys.trash_until(entry.until, entry.order), None)
    inode = tree.edit(entry.ino)
    assert inode.marks & TRASHED, entry.ino
    assert inode.nlink == 0, entry.ino
    inode.marks &= ~TRASHED
    return inode


def require_own(inode: Inode, cred: Cred) -> None:
    """Raises NOT_PERMITTED.  That the kernel has checked a caller says nothing about this."""
    if cred.uid not in (0, inode.uid):
        raise FsError(Fault.NOT_PERMITTED, f"inode {inode.ino} in the trash is another user's")
