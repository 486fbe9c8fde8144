"""Retention of one file: set it, make it longer; with the right to, make governance shorter."""

from mountfs.errors import Fault, FsError
from mountfs.meta.command import Command, Query, Stamp
from mountfs.meta.records import Inode
from mountfs.meta.retention import (
    LONGEST_NS,
    YEARS_MAX,
    Mode,
    Retention,
    Right,
    require_change,
    require_right,
    retention_of,
    set_retention,
)
from mountfs.meta.tree import Tree
from mountfs.types import Cred, Ino


class SetRetention(Command[Retention], frozen=True, tag="set_retention", kw_only=True):
    """Reply: what holds now.  The owner of a file may; what is said only makes it stricter, but by
    `bypass`, which takes a right and ends governance, never compliance.

    Raises INVALID for what is no file with a name, or a time that is past or too far away;
    NOT_PERMITTED.
    """

    ino: Ino
    mode: Mode
    """NONE: it is to end."""
    until: int = 0
    """Nanoseconds since 1970.  0 leaves it as it is where there is a time, and only the mode
    changes.
    """
    duration: int = 0
    """Nanoseconds from now on, instead of `until`."""
    cred: Cred
    bypass: bool = False
    rights: tuple[str, ...] = ()
    """Those that the caller has besides what `cred` says."""

    def check(self) -> None:
        if not (0 <= self.until < 1 << 63 and 0 <= self.duration <= LONGEST_NS):
            raise FsError(Fault.INVALID, f"a file is kept for 0 to {YEARS_MAX} years")
        if self.until and self.duration:
            raise FsError(Fault.INVALID, "either until when, or for how long")
        if self.mode == Mode.NONE and (self.until or self.duration):
            raise FsError(Fault.INVALID, "without a mode there is no time")

    def apply(self, tree: Tree, stamp: Stamp) -> Retention:
        inode = require_file(tree, self.ino)
        if self.cred.uid != inode.uid:
            require_right(self.cred, self.rights, Right.RETENTION, "retention of another's file")
        if self.bypass:
            require_right(self.cred, self.rights, Right.BYPASS_GOVERNANCE, "to bypass governance")
        start, before = start_of(tree, stamp), retention_of(tree, inode)
        after = Retention(self.mode, self._until(before, start), before.hold)
        if after.until <= start and self.mode != Mode.NONE:
            raise FsError(Fault.INVALID, "until when it is to be kept has to be said, and not past")
        if after.until > start + LONGEST_NS:
            raise FsError(Fault.INVALID, f"a file is kept for up to {YEARS_MAX} years")
        require_change(before, after, tree.counters.protected_time, self.bypass)
        set_retention(tree, self.ino, before, after)
        return after

    def _until(self, before: Retention, start: int) -> int:
        if self.mode == Mode.NONE:
            return 0
        if self.duration:
            return start + self.duration
        return self.until or before.until


class Kept(Query[tuple[Retention, int]], frozen=True, tag="kept"):
    """(retention of a file, the time by which it ends).  Raises STALE."""

    ino: Ino

    def read(self, tree: Tree) -> tuple[Retention, int]:
        inode = tree.inode(self.ino)
        found = Retention() if inode.is_directory else retention_of(tree, inode)
        return found, tree.counters.protected_time


class RequireFree(Command[None], frozen=True, tag="require_free"):
    """open(2) for writing: raises NOT_PERMITTED if the file is kept as it is.  It is no query, for
    the time by which that ends goes on with commands.
    """

    ino: Ino

    def apply(self, tree: Tree, stamp: Stamp) -> None:
        inode = tree.inode(self.ino)
        if inode.is_directory:
            return
        retention = retention_of(tree, inode)
        if retention.protects(tree.counters.protected_time):
            raise FsError(Fault.NOT_PERMITTED, retention.why(self.ino))


def require_file(tree: Tree, ino: Ino) -> Inode:
    """Raises STALE, INVALID."""
    inode = tree.inode(ino)
    if not inode.is_regular:
        raise FsError(Fault.INVALID, f"inode {ino} is no regular file: only those have retention")
    if not inode.nlink:
        raise FsError(Fault.INVALID, f"inode {ino} has no name: nothing would be kept by it")
    return inode


def start_of(tree: Tree, stamp: Stamp) -> int:
    """From when on a time that begins now is counted.  Where nothing is known for certain, the
    leader's clock: what has been proven may be long ago, and then it would be over too early.
    """
    proven = tree.counters.protected_time
    return proven if stamp.proven else max(stamp.time, proven)
