"""What must hold in the accounts of the metadata: they are what counting everything anew gives.

A directory is looked at by itself: its sums are those of the directories in it, and what lies in it
directly.  When that holds of each one it holds of all that lies below.
"""

from collections.abc import Iterator
from itertools import islice

from mountfs.meta import keys
from mountfs.meta.quota import Kind
from mountfs.meta.records import UNCOUNTED, unpack_inode
from mountfs.meta.sums import Sums, unpack_sums
from mountfs.meta.tree import Tree
from mountfs.types import ROOT, Ino

_NOBODY = bytes(8)
_Counts = tuple[int, int, int]


def account_violations(tree: Tree, directories: int) -> Iterator[str]:
    """`directories`: so many are added up at a time."""
    yield from _owners(tree)
    yield from _quotas(tree)
    while_there_are = _sums(tree)
    while some := dict(islice(while_there_are, directories)):
        yield from _some(tree, some)


def _sums(tree: Tree) -> Iterator[tuple[Ino, Sums]]:
    for key, value in tree.everything():
        if key[8] == keys.SUMS and key[:8] != _NOBODY:
            yield Ino(int.from_bytes(key[:8], "big")), unpack_sums(value)


def _some(tree: Tree, stored: dict[Ino, Sums]) -> Iterator[str]:
    counted: dict[Ino, _Counts] = dict.fromkeys(stored, (0, 0, 0))

    def charge(home: Ino, *more: int) -> None:
        before = counted.get(home)
        if before is not None:
            counted[home] = (before[0] + more[0], before[1] + more[1], before[2] + more[2])

    for key, value in tree.everything():
        if key[:8] == _NOBODY:
            continue
        if key[8] == keys.INODE:
            inode = unpack_inode(value)
            if inode.marks & UNCOUNTED:
                continue
            if not inode.is_directory:
                charge(inode.parent, inode.allocated, 1, 0)
            elif inode.ino != ROOT:
                charge(inode.parent, 0, 0, 1)
        elif key[8] == keys.SUMS:
            sums = unpack_sums(value)
            charge(sums.parent, sums.allocated, sums.files, sums.directories)
    for ino, sums in stored.items():
        told = (sums.allocated, sums.files, sums.directories)
        if told != counted[ino]:
            yield f"inode {ino}: below it are {counted[ino]}, and {told} are counted"
        yield from _directory(tree, ino, sums)


def _directory(tree: Tree, ino: Ino, sums: Sums) -> Iterator[str]:
    record = tree.get(keys.inode(ino))
    if record is None:
        if not sums.inodes:
            yield f"inode {ino}: is gone, and nothing is charged to it, but it has sums"
        return
    inode = unpack_inode(record)
    parent = inode.parent if ino != ROOT else 0
    if sums.parent != parent:
        yield f"inode {ino}: lies in {parent}, but its sums are {sums.parent}'s"


def _owners(tree: Tree) -> Iterator[str]:
    counted: dict[tuple[Kind, int], tuple[int, int]] = {}
    for key, value in tree.everything():
        if key[8] == keys.INODE and key[:8] != _NOBODY:
            inode = unpack_inode(value)
            if inode.marks & UNCOUNTED:
                continue
            for owner in ((Kind.USER, inode.uid), (Kind.GROUP, inode.gid)):
                allocated, inodes = counted.get(owner, (0, 0))
                counted[owner] = (allocated + inode.allocated, inodes + 1)
    for kind in (Kind.USER, Kind.GROUP):
        for number in tree.accounts.owners(kind):
            counted.setdefault((kind, number), (0, 0))
    for (kind, number), counts in counted.items():
        told = tree.accounts.use(kind, number)
        if told != counts:
            yield f"{kind.name.lower()} {number} has {counts}, and {told} are counted"


def _quotas(tree: Tree) -> Iterator[str]:
    for kind, number in tree.accounts.quotas():
        if kind is Kind.TREE and tree.get(keys.inode(Ino(number))) is None:
            yield f"inode {number}: has a quota, but does not exist"
            continue
        use, weighed = tree.accounts.use(kind, number), tree.accounts.weighed(kind, number)
        if use != weighed:
            yield f"{kind.name.lower()} {number} has {use}, and its quota weighs {weighed}"
