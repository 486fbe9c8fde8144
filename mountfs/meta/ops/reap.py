"""The end of orphans: files without a name that nobody uses any more."""

from itertools import islice

from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.command import Command, Query, Stamp
from mountfs.meta.ops.lock import locks_of, set_locks
from mountfs.meta.records import HAS_LOCKS, HAS_SLICES, HAS_XATTRS, Inode
from mountfs.meta.space import drop_chunks
from mountfs.meta.tree import Tree
from mountfs.types import Ino

SLICES_MAX = 4_096
"""About as many slices as one command gives up, so that a huge file does not hold up everybody."""


class Reap(Command[tuple[Ino, ...]], frozen=True, tag="reap"):
    """Remove orphans of `session`.  Reply: those that need another round.  Who has a name again is
    left alone.
    """

    session: int
    inos: tuple[Ino, ...]

    def apply(self, tree: Tree, stamp: Stamp) -> tuple[Ino, ...]:
        budget = SLICES_MAX
        left: list[Ino] = []
        for ino in self.inos:
            key = keys.orphan(self.session, ino)
            if tree.get(key) is None:
                continue
            if budget <= 0:
                left.append(ino)
                continue
            try:
                inode = tree.inode(ino)
            except FsError as error:
                if error.fault is not Fault.STALE:
                    raise  # it is there, but cannot be read
                tree.put(key, None)
                continue
            assert inode.nlink == 0, ino
            budget -= _drop_bytes(tree, tree.edit(ino), budget)
            if inode.marks & HAS_SLICES:
                left.append(ino)
                continue
            _drop_rest(tree, inode)
            tree.put(key, None)
        return tuple(left)


class Orphans(Query[tuple[tuple[int, Ino], ...]], frozen=True, tag="orphans"):
    """(session, ino) of up to `limit` orphans, of one session or of all."""

    session: int | None
    limit: int

    def read(self, tree: Tree) -> tuple[tuple[int, Ino], ...]:
        rows = tree.scan(keys.orphans(self.session))
        return tuple(keys.session_ino(key) for key, _ in islice(rows, self.limit))


def _drop_bytes(tree: Tree, inode: Inode, budget: int) -> int:
    """Give up slices, whole chunks at a time.  Returns how many."""
    if not inode.marks & HAS_SLICES:
        tree.drop_content(inode)
        return 1
    chunks = []
    found = 0
    for chunk in tree.chunks(inode.ino, 0, 1 << 40):
        if found >= budget:
            break
        chunks.append((chunk, tree.slice_rows(inode.ino, chunk)))
        found += max(len(chunks[-1][1]), 1)
    else:
        inode.marks &= ~HAS_SLICES
    drop_chunks(tree, inode, chunks)
    return found


def _drop_rest(tree: Tree, inode: Inode) -> None:
    if inode.marks & HAS_LOCKS:
        set_locks(tree, inode.ino, locks_of(tree, inode.ino), ())
    if inode.marks & HAS_XATTRS:
        for key, _ in list(tree.scan(keys.xattrs(inode.ino))):
            tree.put(key, None)
    if inode.mode & 0o170000 == 0o120000:
        tree.put(keys.target(inode.ino), None)
    tree.remove_inode(inode)
