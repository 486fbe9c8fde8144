"""The trash of a tree: say how long it keeps what is deleted, look into it, empty it."""

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.command import Command, Query, Stamp
from mountfs.meta.records import TRASHES, UNCOUNTED
from mountfs.meta.trash import (
    DAYS_MAX,
    Entry,
    Setting,
    find_entry,
    first_in,
    pack_setting,
    put_entry,
    setting_of,
    take_out,
    unpack_entry,
    unpack_place,
)
from mountfs.meta.tree import Tree
from mountfs.types import ROOT, Cred, Ino

ENTRIES_MAX = 1_000
"""In one command, so that it does not hold up everybody."""
LOOKED_MAX = 2_000
"""Entries of all trees that a query goes through for those of one tree."""
NOBODYS = 0
"""The session of files that have left the trash: whoever leads removes them."""


class SetTrash(Command[None], frozen=True, tag="set_trash"):
    """What holds for what is deleted below a directory from now on, unless one further down says
    otherwise; None: nothing is said, and what is said above holds.  Raises NOT_DIRECTORY,
    NOT_PERMITTED.

    What is in the trash already stays as it is.
    """

    directory: Ino
    setting: Setting | None
    cred: Cred

    def check(self) -> None:
        if self.setting is not None and not 0 <= self.setting.days <= DAYS_MAX:
            raise FsError(Fault.INVALID, f"trash is kept for 0 to {DAYS_MAX:,} days")

    def apply(self, tree: Tree, stamp: Stamp) -> None:
        tree.directory(self.directory)
        if self.cred.uid != 0:
            raise FsError(Fault.NOT_PERMITTED, "the trash of a tree is set by user 0")
        inode = tree.edit(self.directory)
        key = keys.trash_setting(self.directory)
        if self.setting is None:
            inode.marks &= ~TRASHES
            tree.put(key, None)
            return
        inode.marks |= TRASHES
        tree.put(key, pack_setting(self.setting))
        tree.counters.trash = True


class GetTrash(Query[tuple[Ino, Setting] | None], frozen=True, tag="get_trash"):
    """What holds in a directory, and which one says so: it or the nearest above.  None: nothing."""

    directory: Ino

    def read(self, tree: Tree) -> tuple[Ino, Setting] | None:
        return setting_of(tree, tree.directory(self.directory))


class EmptyTrash(Command[int], frozen=True, tag="empty_trash"):
    """Remove entries for good, by (until, order) of each.  What is not there any more is left out,
    and so is a directory as long as something that was deleted in it is there: that goes first.
    Reply: how many went.

    Without a `cred` only those go whose time is over; with one, those of that user, or, of user 0,
    all of them.  A directory whose time is over before that of something in it is kept as long as
    that.
    """

    entries: tuple[tuple[int, int], ...]
    cred: Cred | None = None

    def check(self) -> None:
        if len(self.entries) > ENTRIES_MAX:
            raise FsError(Fault.INVALID, f"{ENTRIES_MAX:,} entries at a time")

    def apply(self, tree: Tree, stamp: Stamp) -> int:
        return sum(self._remove(tree, until, order) for until, order in self.entries)

    def _remove(self, tree: Tree, until: int, order: int) -> bool:
        if self.cred is None and until > tree.counters.protected_time:
            return False
        entry = entry_at(tree, until, order)
        if entry is None:
            return False
        inode = tree.inode(entry.ino)
        if self.cred is not None and self.cred.uid not in (0, inode.uid):
            return False
        within = first_in(tree, entry.ino) if inode.is_directory else None
        if within is not None:
            if self.cred is None and within.until > until:
                tree.put(keys.trash_until(until, order), None)
                put_entry(tree, msgspec.structs.replace(entry, until=within.until))
            return False
        take_out(tree, entry)
        tree.put(keys.orphan(NOBODYS, entry.ino), b"")
        return True


class DueTrash(Query[tuple[tuple[int, int], ...]], frozen=True, tag="due_trash"):
    """(until, order) of the first `limit` entries whose time is over at `now`."""

    now: int
    limit: int

    def read(self, tree: Tree) -> tuple[tuple[int, int], ...]:
        found = []
        for key, _ in tree.scan(keys.trash_untils(), limit=self.limit):
            until, order = keys.until_and_order(key)
            if until > self.now:
                break
            found.append((until, order))
        return tuple(found)


class Listed(msgspec.Struct, frozen=True, array_like=True):
    """An entry, and what it is."""

    entry: Entry
    uid: int
    gid: int
    mode: int
    size: int
    allocated: int
    counted: bool
    """It is charged to where it was deleted, and to its owner."""


class TrashPage(msgspec.Struct, frozen=True, array_like=True):
    found: tuple[Listed, ...]
    after: tuple[int, int]
    """Where to go on; (0, 0): that was all."""
    now: int
    """The time by which the time of entries is over."""


class ListTrash(Query[TrashPage], frozen=True, tag="list_trash"):
    """Up to `limit` entries behind one that were deleted in a directory or below it, as it lies
    now; the next to go come first.  `uid`: only what belongs to that user; 0: all.  A page may be
    empty and not the last.
    """

    directory: Ino
    uid: int
    limit: int
    after: tuple[int, int] = (0, 0)

    def read(self, tree: Tree) -> TrashPage:
        if not tree.inode(self.directory).is_directory:
            raise FsError(Fault.NOT_DIRECTORY)
        found: list[Listed] = []
        below: dict[Ino, bool] = {self.directory: True, ROOT: self.directory == ROOT}
        looked, last = 0, (0, 0)
        for key, value in tree.scan(keys.trash_untils(self.after), limit=LOOKED_MAX):
            looked, last = looked + 1, keys.until_and_order(key)
            directory, name = unpack_place(value)
            if not _is_below(tree, directory, below):
                continue
            listed = _listed(tree, directory, name, last[1])
            if self.uid in (0, listed.uid):
                found.append(listed)
                if len(found) >= self.limit:
                    return TrashPage(tuple(found), last, tree.counters.protected_time)
        after = last if looked == LOOKED_MAX else (0, 0)
        return TrashPage(tuple(found), after, tree.counters.protected_time)


def entry_at(tree: Tree, until: int, order: int) -> Entry | None:
    value = tree.get(keys.trash_until(until, order))
    if value is None:
        return None
    entry = find_entry(tree, *unpack_place(value), order)
    assert entry is not None, (until, order)
    return entry


def _is_below(tree: Tree, directory: Ino, known: dict[Ino, bool]) -> bool:
    way = []
    while directory not in known:
        way.append(directory)
        directory = tree.inode(directory).parent
    said = known[directory]
    for one in way:
        known[one] = said
    return said


def _listed(tree: Tree, directory: Ino, name: bytes, order: int) -> Listed:
    entry = find_entry(tree, directory, name, order)
    assert entry is not None, (directory, name, order)
    inode = tree.inode(entry.ino)
    return Listed(
        entry, inode.uid, inode.gid, inode.mode, inode.size, inode.allocated,
        not inode.marks & UNCOUNTED,
    )  # fmt: skip


class FindTrash(Query[tuple[Listed, ...]], frozen=True, tag="find_trash"):
    """What was deleted in a directory under a name, newest first: up to `limit` entries, of them
    those that were deleted at `at` or before; 0: all.  Only what belongs to `uid`; 0: all.
    """

    directory: Ino
    name: bytes
    uid: int
    at: int
    limit: int

    def read(self, tree: Tree) -> tuple[Listed, ...]:
        if b"\0" in self.name:
            return ()
        found: list[Listed] = []
        for key, value in tree.scan(keys.trash_of(self.directory, self.name), limit=LOOKED_MAX):
            entry = unpack_entry(key, value)
            if self.at and entry.time > self.at:
                continue
            listed = _listed(tree, self.directory, self.name, entry.order)
            if self.uid in (0, listed.uid):
                found.append(listed)
                if len(found) >= self.limit:
                    break
        return tuple(found)
