"""The retention that files of a tree get by themselves, when they are closed or left alone."""

from itertools import islice

from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.command import Command, Query, Stamp
from mountfs.meta.ops.retention import start_of
from mountfs.meta.records import RETAINS, UNCOMMITTED, Inode
from mountfs.meta.retention import (
    LONGEST_NS,
    YEARS_MAX,
    Default,
    Mode,
    Retention,
    Right,
    default_for,
    default_of,
    pack_default,
    require_right,
    retention_of,
    set_retention,
)
from mountfs.meta.tree import Tree
from mountfs.types import Cred, Ino


class SetDefault(Command[None], frozen=True, tag="set_default_retention"):
    """What holds for files that are written below a directory from now on, unless one further down
    says otherwise.  Mode NONE: nothing is said.  Raises NOT_DIRECTORY, NOT_PERMITTED.
    """

    directory: Ino
    default: Default
    cred: Cred
    rights: tuple[str, ...] = ()

    def check(self) -> None:
        default = self.default
        if not (0 <= default.duration <= LONGEST_NS and 0 <= default.idle <= LONGEST_NS):
            raise FsError(Fault.INVALID, f"a file is kept for 0 to {YEARS_MAX} years")
        if default.mode == Mode.NONE:
            return
        if not default.duration:
            raise FsError(Fault.INVALID, "for how long files are to be kept has to be said")
        if not default.at_close and not default.idle:
            raise FsError(Fault.INVALID, "either at close, or after how long they are left alone")

    def apply(self, tree: Tree, stamp: Stamp) -> None:
        tree.directory(self.directory)
        require_right(self.cred, self.rights, Right.DEFAULT_RETENTION, "retention of a tree")
        inode = tree.edit(self.directory)
        key = keys.default_retention(self.directory)
        if self.default.mode == Mode.NONE:
            inode.marks &= ~RETAINS
            tree.put(key, None)
            return
        inode.marks |= RETAINS
        tree.put(key, pack_default(self.default))
        tree.counters.default_retention = True


class GetDefault(Query[tuple[Ino, Default] | None], frozen=True, tag="get_default_retention"):
    """What holds in a directory, and which one says so: it or the nearest above.  None: nothing."""

    directory: Ino

    def read(self, tree: Tree) -> tuple[Ino, Default] | None:
        return default_of(tree, tree.directory(self.directory).ino)


class CommitRetention(Command[Retention | None], frozen=True, tag="commit_retention"):
    """Give a file that was written the retention of its tree, if that is due: it was closed, or,
    with `idle`, nothing has changed for as long as the tree says.  Reply: what it has got.
    """

    ino: Ino
    idle: bool = False

    def apply(self, tree: Tree, stamp: Stamp) -> Retention | None:
        try:
            inode = tree.inode(self.ino)
        except FsError as error:
            if error.fault is not Fault.STALE:
                raise
            return None
        if not inode.marks & UNCOMMITTED:
            return None
        found = default_for(tree, inode)
        if found is not None and not _is_due(inode, found[1], stamp.time, self.idle):
            return None
        inode = tree.edit(self.ino)
        inode.marks &= ~UNCOMMITTED
        tree.put(keys.uncommitted(self.ino), None)
        if found is None:
            return None
        default, before = found[1], retention_of(tree, inode)
        until = start_of(tree, stamp) + default.duration
        after = Retention(max(default.mode, before.mode), max(until, before.until), before.hold)
        set_retention(tree, self.ino, before, after)
        return after


class Uncommitted(Query[tuple[tuple[Ino, bool], ...]], frozen=True, tag="uncommitted"):
    """Up to `limit` files behind inode `after` that were written and are to get the retention of
    their tree: (ino, whether it has been left alone for long enough at the time `now`).
    """

    limit: int
    now: int
    after: Ino = Ino(0)

    def read(self, tree: Tree) -> tuple[tuple[Ino, bool], ...]:
        rows = islice(tree.scan(keys.uncommitteds(self.after)), self.limit)
        inos = [Ino(keys.last_64(key)) for key, _ in rows]
        return tuple((ino, self._is_due(tree, ino)) for ino in inos)

    def _is_due(self, tree: Tree, ino: Ino) -> bool:
        inode = tree.inode(ino)
        found = default_for(tree, inode)
        return found is None or _is_due(inode, found[1], self.now, True)


class AtClose(Query[bool], frozen=True, tag="at_close"):
    """Whether a file that is closed now is to get the retention of its tree."""

    ino: Ino

    def read(self, tree: Tree) -> bool:
        inode = tree.inode(self.ino)
        if not inode.marks & UNCOMMITTED:
            return False
        found = default_for(tree, inode)
        return found is not None and found[1].at_close


def _is_due(inode: Inode, default: Default, now: int, idle: bool) -> bool:
    if not idle:
        return default.at_close
    return bool(default.idle) and now - inode.ctime >= default.idle
