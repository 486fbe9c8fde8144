"""Retention (WORM): what keeps a file unchanged and where it is, until when, and who may say so.

As S3 Object Lock defines it.  Compliance: nobody shortens it, ends it or makes it governance.
Governance: who has the right to does, and asks for that.  A legal hold keeps a file for as long as
it is on, whatever else is said.  All of it may be made longer or stricter at any time.

A file is kept at its path too: for each directory it is known how many files below it are held, and
until when the others are kept.  The latest time counts, even if that file was released before by
who may do so: finding the second latest would mean to look at all of them.
"""

import enum
import struct
from collections.abc import Collection
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.records import NS, RETAINED, RETAINS, Inode
from mountfs.types import ROOT, Cred, Ino

if TYPE_CHECKING:
    from mountfs.meta.tree import Tree

YEARS_MAX: Final = 100
LONGEST_NS: Final = YEARS_MAX * 366 * 86_400 * NS
"""Further than that from now on nothing is kept: it is a mistake, and there is no way back."""


class Mode(enum.IntEnum):
    NONE = 0
    GOVERNANCE = 1
    COMPLIANCE = 2


class Right(enum.StrEnum):
    """What user 0 may do, and others to whom a door grants it by name."""

    BYPASS_GOVERNANCE = "bypass_governance"
    LEGAL_HOLD = "legal_hold"
    DEFAULT_RETENTION = "default_retention"
    RETENTION = "retention"
    """Of files of others: the owner of a file needs no right to give it retention."""


class Retention(msgspec.Struct, frozen=True, array_like=True):
    """Of a file."""

    mode: Mode = Mode.NONE
    until: int = 0
    """Nanoseconds since 1970, in protected time; 0 without a mode."""
    hold: bool = False
    """A legal hold is on."""

    def protects(self, now: int) -> bool:
        return self.hold or self.until > now

    def why(self, ino: Ino) -> str:
        """What a person is told who wanted to change it."""
        if self.hold:
            return f"inode {ino} is kept as it is by a legal hold"
        return f"inode {ino} is kept as it is until {moment(self.until)} ({self.mode.name.lower()})"


class Default(msgspec.Struct, frozen=True, array_like=True):
    """What files below a directory get."""

    mode: Mode = Mode.NONE
    duration: int = 0
    """Nanoseconds, from when it is given."""
    idle: int = 0
    """Nanoseconds after which a file that was written and not closed gets it too; 0: never."""
    at_close: bool = True
    """A file gets it when it is closed after writing; else only when it has been idle."""


class Below(msgspec.Struct, frozen=True, array_like=True):
    """Of a directory."""

    holds: int = 0
    """Files below it with a legal hold."""
    until: int = 0
    """No file below it was ever to be kept for longer.  Only grows."""

    def protects(self, now: int) -> bool:
        return self.holds > 0 or self.until > now

    def why(self, ino: Ino) -> str:
        kept = "held by a legal hold" if self.holds else f"kept until {moment(self.until)}"
        return f"directory {ino} stays where it is: a file below it is {kept}"


_RETENTION = struct.Struct("<BBq")
_DEFAULT = struct.Struct("<BBQQ")
_BELOW = struct.Struct("<Qq")


def pack_retention(retention: Retention) -> bytes:
    return _RETENTION.pack(retention.mode, retention.hold, retention.until)


def unpack_retention(value: bytes) -> Retention:
    mode, hold, until = _RETENTION.unpack(value)
    return Retention(Mode(mode), until, bool(hold))


def pack_default(default: Default) -> bytes:
    return _DEFAULT.pack(default.mode, default.at_close, default.duration, default.idle)


def unpack_default(value: bytes) -> Default:
    mode, at_close, duration, idle = _DEFAULT.unpack(value)
    return Default(Mode(mode), duration, idle, bool(at_close))


def pack_below(below: Below) -> bytes:
    return _BELOW.pack(below.holds, below.until)


def unpack_below(value: bytes) -> Below:
    return Below(*_BELOW.unpack(value))


def moment(nanoseconds: int) -> str:
    """A point in time for people, of which the seconds are enough; rounded up, or it would be over
    before it is over.

    >>> moment(0), moment(1)
    ('1970-01-01T00:00:00Z', '1970-01-01T00:00:01Z')
    """
    seconds = -(-nanoseconds // NS)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# -- who may


def require_right(cred: Cred, rights: Collection[str], right: Right, what: str) -> None:
    """Raises NOT_PERMITTED.  That the kernel has checked a caller says nothing about this."""
    if cred.uid != 0 and right not in rights:
        raise FsError(Fault.NOT_PERMITTED, f"{what} takes user 0, or the right {right.value}")


def require_change(before: Retention, after: Retention, now: int, bypass: bool) -> None:
    """Raise NOT_PERMITTED where `after` would keep a file less than `before` does.  `bypass`: who
    asks may end governance, and has said that this is meant.
    """
    if before.mode == Mode.NONE or before.until <= now:
        return
    weaker = after.mode < before.mode or after.until < before.until
    if weaker and before.mode == Mode.COMPLIANCE:
        raise FsError(
            Fault.NOT_PERMITTED,
            f"compliance until {moment(before.until)}: nobody makes it shorter or weaker",
        )
    if weaker and not bypass:
        raise FsError(
            Fault.NOT_PERMITTED,
            f"governance until {moment(before.until)}: it takes the right to bypass it, and to ask "
            "for that, to make it shorter or weaker",
        )


# -- rows


def retention_of(tree: "Tree", inode: Inode) -> Retention:
    if not inode.marks & RETAINED:
        return Retention()
    value = tree.get(keys.retention(inode.ino))
    assert value is not None, inode.ino
    return unpack_retention(value)


def set_retention(tree: "Tree", ino: Ino, before: Retention, after: Retention) -> None:
    """Change what keeps a file, and what its directories say of it."""
    tree.counters.retention = True
    inode = tree.edit(ino)
    if after == Retention():
        inode.marks &= ~RETAINED
        tree.put(keys.retention(ino), None)
    else:
        inode.marks |= RETAINED
        tree.put(keys.retention(ino), pack_retention(after))
    for directory in directories_of(tree, inode):
        if after.hold != before.hold:
            _count_hold(tree, directory, after.hold - before.hold)
        if after.until > before.until:
            _raise_until(tree, directory, after.until)


def directories_of(tree: "Tree", file: Inode) -> list[Ino]:
    """Those that hold its names."""
    if file.nlink < 2:
        return [file.parent]
    return [Ino(keys.last_64(key)) for key, _ in tree.scan(keys.places(file.ino))]


def below(tree: "Tree", directory: Inode) -> Below:
    if not directory.marks & RETAINED:
        return Below()
    value = tree.get(keys.retained_below(directory.ino))
    assert value is not None, directory.ino
    return unpack_below(value)


def _count_hold(tree: "Tree", ino: Ino, delta: int) -> None:
    while True:
        inode = tree.inode(ino)
        found = below(tree, inode)
        assert found.holds + delta >= 0, ino
        _put_below(tree, ino, Below(found.holds + delta, found.until))
        if ino == ROOT:
            return
        ino = inode.parent


def _raise_until(tree: "Tree", ino: Ino, until: int) -> None:
    """Up to a directory that says it already: then those above it do, for it has not moved since,
    nor have they.
    """
    while True:
        inode = tree.inode(ino)
        found = below(tree, inode)
        if found.until >= until:
            return
        _put_below(tree, ino, Below(found.holds, until))
        if ino == ROOT:
            return
        ino = inode.parent


def _put_below(tree: "Tree", ino: Ino, found: Below) -> None:
    inode = tree.inode(ino)
    if not inode.marks & RETAINED:
        tree.edit(ino).marks |= RETAINED
    tree.put(keys.retained_below(ino), pack_below(found))


def default_of(tree: "Tree", directory: Ino) -> tuple[Ino, Default] | None:
    """What holds in a directory, and which directory says so: the nearest above.  None: nothing, or
    the directory is gone.
    """
    ino = directory
    try:
        while True:
            inode = tree.inode(ino)
            if inode.marks & RETAINS:
                value = tree.get(keys.default_retention(ino))
                assert value is not None, ino
                return ino, unpack_default(value)
            if ino == ROOT:
                return None
            ino = inode.parent
    except FsError as error:
        if error.fault is not Fault.STALE:
            raise
        return None


def default_for(tree: "Tree", file: Inode) -> tuple[Ino, Default] | None:
    """What a file is to get; of what holds for several names, the strictest and longest."""
    if not file.nlink:
        return None
    found = [default_of(tree, directory) for directory in directories_of(tree, file)]
    said = [one for one in found if one is not None]
    return max(said, key=lambda one: (one[1].mode, one[1].duration), default=None)
