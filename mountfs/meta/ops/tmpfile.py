"""open(2) with O_TMPFILE: create a file that has no name."""

import stat

from mountfs.meta.command import Command, Stamp
from mountfs.meta.inherit import set_permissions
from mountfs.meta.permission import SEARCH, WRITE, permit
from mountfs.meta.records import Attributes
from mountfs.meta.tree import Tree
from mountfs.types import Cred, Ino


class Tmpfile(Command[Attributes], frozen=True, tag="tmpfile"):
    parent: Ino
    mode: int
    umask: int
    cred: Cred

    def apply(self, tree: Tree, stamp: Stamp) -> Attributes:
        parent = tree.directory(self.parent)
        permit(tree, parent, self.cred, WRITE | SEARCH)

        child = tree.new_inode(parent, stat.S_IFREG | self.mode & 0o7777, self.cred)
        set_permissions(tree, parent, child, self.umask)
        tree.make_orphan(child)
        return tree.attributes(child)
