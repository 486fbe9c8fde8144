"""What must hold of retention after every command: a part of `meta.invariants`."""

from collections import Counter
from collections.abc import Iterator, Mapping

from mountfs.meta import keys
from mountfs.meta.records import RETAINED, RETAINS, UNCOMMITTED, Inode, unpack_inode
from mountfs.meta.retention import directories_of, unpack_below, unpack_retention
from mountfs.meta.tree import Tree
from mountfs.types import ROOT, Ino

_NOBODY = bytes(8)
_DEPTH_MAX = 10_000


def retention_marks(inode: Inode, counts: Mapping[int, int]) -> Iterator[str]:
    """An inode's marks, and how many rows of each kind it has."""
    kind, other = keys.RETENTION, keys.RETAINED_BELOW
    if inode.is_directory:
        kind, other = other, kind
    if bool(inode.marks & RETAINED) != bool(counts[kind]):
        yield "is marked for retention as it should not be"
    if counts[other]:
        yield f"has a row of retention that does not fit to its mode {inode.mode:o}"
    if bool(inode.marks & RETAINS) != bool(counts[keys.DEFAULT_RETENTION]):
        yield "is marked for a default retention as it should not be"


def retention_rows(tree: Tree) -> Iterator[str]:
    """What directories say of the retained files below them, and who waits for retention."""
    holds: Counter[Ino] = Counter()
    until: dict[Ino, int] = {}
    said: dict[Ino, tuple[int, int]] = {}
    now = tree.counters.protected_time
    waiting = 0
    for key, value in tree.everything():
        if key[:8] == _NOBODY:
            continue
        ino, kind = Ino(int.from_bytes(key[:8], "big")), key[8]
        if kind == keys.RETAINED_BELOW:
            found = unpack_below(value)
            said[ino] = found.holds, found.until
        elif kind == keys.RETENTION:
            retention = unpack_retention(value)
            record = tree.get(keys.inode(ino))
            if record is None or not retention.protects(now):
                continue
            inode = unpack_inode(record)
            if not inode.nlink:
                yield f"inode {ino}: is retained, and has no name"
            for parent in directories_of(tree, inode):
                for directory in _above(tree, parent):
                    holds[directory] += retention.hold
                    until[directory] = max(until.get(directory, 0), retention.until)
        elif kind == keys.INODE and unpack_inode(value).marks & UNCOMMITTED:
            waiting += 1
            if tree.get(keys.uncommitted(ino)) is None:
                yield f"inode {ino}: waits for retention, and nobody knows"
    indexed = sum(1 for _ in tree.scan(keys.uncommitteds()))
    if indexed != waiting:
        yield f"{waiting} files wait for retention, but {indexed} are known"
    for ino in said.keys() | until.keys():
        told_holds, told_until = said.get(ino, (0, 0))
        if told_holds != holds[ino]:
            yield f"inode {ino}: {holds[ino]} files below are held, but {told_holds} are counted"
        if until.get(ino, 0) > max(told_until, now):
            yield f"inode {ino}: a file below is retained until {until[ino]}, not {told_until}"


def _above(tree: Tree, ino: Ino) -> Iterator[Ino]:
    for _ in range(_DEPTH_MAX):
        yield ino
        record = tree.get(keys.inode(ino))
        if ino == ROOT or record is None:
            return
        ino = unpack_inode(record).parent
