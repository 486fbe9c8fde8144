"""Access times, as they gathered while files were read: many in one command, none of them worth one
of its own.
"""

from mountfs.errors import Fault, FsError
from mountfs.meta.command import Command, Stamp
from mountfs.meta.tree import Tree
from mountfs.types import Ino


class Touch(Command[None], frozen=True, tag="touch"):
    """`times`: inode and its access time in nanoseconds.  Files that are gone by now are passed
    over.
    """

    times: tuple[tuple[Ino, int], ...]

    def apply(self, tree: Tree, stamp: Stamp) -> None:
        for ino, atime in self.times:
            try:
                tree.inode(ino)
            except FsError as error:
                if error.fault is not Fault.STALE:
                    raise  # it is there, but cannot be read
                continue
            tree.edit(ino).atime = atime
