"""The first command of a filesystem: its root directory."""

import stat

from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.command import Command, Stamp
from mountfs.meta.records import Inode
from mountfs.meta.tree import FIRST_POSITION, Tree
from mountfs.types import ROOT


class MakeRoot(Command[None], frozen=True, tag="make_root"):
    """It belongs to `uid` and `gid`, with mode 0755."""

    uid: int
    gid: int

    def apply(self, tree: Tree, stamp: Stamp) -> None:
        if tree.get(keys.inode(ROOT)) is not None:
            raise FsError(Fault.EXISTS, "the filesystem has a root directory")
        root = Inode()
        root.ino, root.parent = ROOT, ROOT
        root.mode, root.nlink = stat.S_IFDIR | 0o755, 2
        root.size = root.allocated = root.rdev = 0
        root.uid, root.gid = self.uid, self.gid
        root.atime = root.mtime = root.ctime = root.btime = stamp.time
        root.next_position, root.entries, root.version, root.marks = FIRST_POSITION, 0, 0, 0
        tree.counters.inodes += 1
        tree.take_in(root)
