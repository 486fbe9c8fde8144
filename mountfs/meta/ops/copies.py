"""How many copies the bytes of a file are to have: a property of directories, which what is made in
them inherits.
"""

from mountfs.errors import Fault, FsError
from mountfs.meta.command import Command, Query, Stamp
from mountfs.meta.ops.volumes import COPIES_MAX
from mountfs.meta.records import COPIES_SHIFT, copies_of
from mountfs.meta.tree import Tree
from mountfs.types import Ino


class SetCopies(Command[None], frozen=True, tag="set_copies"):
    """What is made in a directory from now on, and what is written to a file, is kept so often; 0:
    as often as the cluster keeps what nobody has said anything of.

    What was written before stays as it is.  Raises STALE.
    """

    ino: Ino
    copies: int

    def check(self) -> None:
        if not 0 <= self.copies <= COPIES_MAX:
            raise FsError(Fault.INVALID, f"{self.copies} copies; up to {COPIES_MAX} are possible")

    def apply(self, tree: Tree, stamp: Stamp) -> None:
        inode = tree.edit(self.ino)
        inode.marks += (self.copies - copies_of(inode.marks)) << COPIES_SHIFT
        inode.ctime = stamp.time
        if self.copies:
            tree.counters.own_copies = True


class GetCopies(Query[int], frozen=True, tag="get_copies"):
    """Of a file or directory; 0: nobody has said anything of it.  Raises STALE."""

    ino: Ino

    def read(self, tree: Tree) -> int:
        return copies_of(tree.inode(self.ino).marks)
