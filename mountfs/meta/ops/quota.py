"""Quotas: set and take away; how much there is of what they limit, and how much is left."""

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.meta.command import Command, Query, Stamp
from mountfs.meta.quota import WORDS, Kind, Limits, Quota
from mountfs.meta.records import UNCOUNTED
from mountfs.meta.tree import Tree
from mountfs.types import Ino

NUMBER_MAX = (1 << 32) - 2
"""Of a user or a group: the next one means nobody, says chown(2)."""
VIRTUAL = b"mountfs."
"""How the names of attributes begin that are kept nowhere, but told."""
UNLIMITED = -1


class SetQuota(Command[None], frozen=True, tag="set_quota"):
    """From now on a directory with all below it, a user or a group has no more than that; what is
    over it already stays.  Raises STALE, NOT_DIRECTORY, NOT_FOUND for a directory.
    """

    kind: Kind
    number: int
    limits: Limits

    def check(self) -> None:
        self.limits.check()
        if self.kind is not Kind.TREE and not 0 <= self.number <= NUMBER_MAX:
            raise FsError(Fault.INVALID, f"{self.number} is not the number of a {self.kind.name}")

    def apply(self, tree: Tree, stamp: Stamp) -> None:
        if self.kind is Kind.TREE:
            tree.directory(Ino(self.number))
        use = tree.accounts.use(self.kind, self.number)
        quota = Quota(self.limits).noted(*use, stamp.time)
        tree.accounts.stage(self.kind, self.number, quota)


class DeleteQuota(Command[None], frozen=True, tag="delete_quota"):
    """Raises NOT_FOUND where there is none."""

    kind: Kind
    number: int

    def apply(self, tree: Tree, stamp: Stamp) -> None:
        if tree.accounts.quota(self.kind, self.number) is None:
            raise FsError(Fault.NOT_FOUND, f"{WORDS[self.kind]} {self.number} has no quota")
        tree.accounts.stage(self.kind, self.number, None)


class Told(msgspec.Struct, frozen=True, array_like=True):
    """A quota, and what there is of what it limits."""

    kind: Kind
    number: int
    quota: Quota | None
    bytes: int
    inodes: int


class GetQuota(Query[Told], frozen=True, tag="get_quota"):
    """Raises STALE, NOT_DIRECTORY for what is no directory."""

    kind: Kind
    number: int

    def read(self, tree: Tree) -> Told:
        if self.kind is Kind.TREE:
            _require_directory(tree, Ino(self.number))
        return _told(tree, self.kind, self.number)


class ListQuotas(Query[tuple[Told, ...]], frozen=True, tag="list_quotas"):
    """The first `limit` quotas behind one, (0, 0) for the beginning: of trees, users, groups, each
    by number.
    """

    kind: int
    number: int
    limit: int

    def read(self, tree: Tree) -> tuple[Told, ...]:
        after = (self.kind, self.number)
        behind = [one for one in tree.accounts.quotas() if one > after]
        return tuple(_told(tree, *one) for one in behind[: self.limit])


class Owners(Query[tuple[tuple[int, int, int], ...]], frozen=True, tag="owners"):
    """(number, bytes, inodes) of the first `limit` users or groups, from `first` on, that have
    something.
    """

    kind: Kind
    first: int
    limit: int

    def read(self, tree: Tree) -> tuple[tuple[int, int, int], ...]:
        accounts = tree.accounts
        found = [number for number in accounts.owners(self.kind) if number >= self.first]
        return tuple((number, *accounts.use(self.kind, number)) for number in found[: self.limit])


class Below(Query[tuple[int, int, int]], frozen=True, tag="below"):
    """(bytes, files, directories) below a directory, itself not counted.  Raises STALE,
    NOT_DIRECTORY.
    """

    ino: Ino

    def read(self, tree: Tree) -> tuple[int, int, int]:
        _require_directory(tree, self.ino)
        sums = tree.accounts.sums(self.ino)
        return sums.allocated, sums.files, sums.directories


class Leeway(msgspec.Struct, frozen=True, array_like=True):
    """How much a file may grow before a quota refuses it."""

    exists: bool
    """There is a quota somewhere in the filesystem.  Without one the rest says nothing."""
    bytes: int = UNLIMITED
    """By all quotas together that the file counts for."""
    home: Ino = Ino(0)
    uid: int = 0
    gid: int = 0
    """Files with the same home and owners share it."""


class Room(Query[Leeway], frozen=True, tag="room"):
    """Raises STALE."""

    ino: Ino

    def read(self, tree: Tree) -> Leeway:
        if not tree.accounts.has_quotas:
            return Leeway(False)
        inode = tree.inode(self.ino)
        if inode.marks & UNCOUNTED:
            return Leeway(False)
        now = tree.counters.last_time
        left = [
            max(limit - one.bytes, 0)
            for one in tree.accounts.limits_of(inode)
            if (limit := one.quota.bytes_limit(now))
        ]
        room = min(left, default=UNLIMITED)
        return Leeway(True, room, inode.parent, inode.uid, inode.gid)


class Space(msgspec.Struct, frozen=True, array_like=True):
    """What df(1) is to show of a tree.  A limit of 0: there is none."""

    bytes_limit: int
    bytes: int
    inodes_limit: int
    inodes: int


class TreeSpace(Query[Space | None], frozen=True, tag="tree_space"):
    """Of the trees that a file or directory lies in, the limit that leaves least; None: it lies in
    none that has a quota.  Raises STALE.
    """

    ino: Ino

    def read(self, tree: Tree) -> Space | None:
        accounts = tree.accounts
        if not accounts.has_quotas:
            return None
        inode = tree.inode(self.ino)
        if inode.marks & UNCOUNTED:
            return None
        bytes_limits: list[tuple[int, int, int]] = []
        inodes_limits: list[tuple[int, int, int]] = []
        for ino, sums in accounts.chain(self.ino if inode.is_directory else inode.parent):
            quota = accounts.quota(Kind.TREE, ino)
            if quota is None:
                continue
            limits = quota.limits
            if limit := limits.hard_bytes or limits.soft_bytes:
                bytes_limits.append((limit - sums.allocated, limit, sums.allocated))
            if limit := limits.hard_inodes or limits.soft_inodes:
                inodes_limits.append((limit - sums.inodes, limit, sums.inodes))
        if not bytes_limits and not inodes_limits:
            return None
        _, *of_bytes = min(bytes_limits, default=(0, 0, 0))
        _, *of_inodes = min(inodes_limits, default=(0, 0, 0))
        return Space(*of_bytes, *of_inodes)


class VirtualXattr(Query[bytes], frozen=True, tag="virtual_xattr"):
    """What getxattr(2) says of a name that begins with VIRTUAL.  Raises NO_ATTRIBUTE."""

    ino: Ino
    name: bytes

    def read(self, tree: Tree) -> bytes:
        if not tree.inode(self.ino).is_directory:
            raise FsError(Fault.NO_ATTRIBUTE)
        sums = tree.accounts.sums(self.ino)
        quota = tree.accounts.quota(Kind.TREE, self.ino)
        told = {
            b"mountfs.dir.rbytes": sums.allocated,
            b"mountfs.dir.rfiles": sums.files,
            b"mountfs.dir.rsubdirs": sums.directories,
        }
        if quota is not None:
            limits = quota.limits
            told |= {
                b"mountfs.quota.hard_bytes": limits.hard_bytes,
                b"mountfs.quota.soft_bytes": limits.soft_bytes,
                b"mountfs.quota.hard_inodes": limits.hard_inodes,
                b"mountfs.quota.soft_inodes": limits.soft_inodes,
                b"mountfs.quota.grace_s": limits.grace_s,
            }
        if self.name not in told:
            raise FsError(Fault.NO_ATTRIBUTE)
        return b"%d" % told[self.name]


def _require_directory(tree: Tree, ino: Ino) -> None:
    if not tree.inode(ino).is_directory:
        raise FsError(Fault.NOT_DIRECTORY)


def _told(tree: Tree, kind: Kind, number: int) -> Told:
    return Told(kind, number, tree.accounts.quota(kind, number), *tree.accounts.use(kind, number))
