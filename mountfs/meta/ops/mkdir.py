"""mkdir(2): create an empty directory."""

import stat

from mountfs.meta.command import Command, Stamp, check_name
from mountfs.meta.inherit import set_permissions
from mountfs.meta.permission import SEARCH, WRITE, permit
from mountfs.meta.records import Attributes
from mountfs.meta.tree import Tree
from mountfs.types import Cred, Ino


class Mkdir(Command[Attributes], frozen=True, tag="mkdir"):
    parent: Ino
    name: bytes
    mode: int
    umask: int
    cred: Cred

    def check(self) -> None:
        check_name(self.name)

    def apply(self, tree: Tree, stamp: Stamp) -> Attributes:
        parent = tree.directory(self.parent)
        tree.require_absent(self.parent, self.name)
        permit(tree, parent, self.cred, WRITE | SEARCH)

        child = tree.new_inode(parent, stat.S_IFDIR | self.mode & 0o7777, self.cred)
        set_permissions(tree, parent, child, self.umask)
        tree.add_name(self.parent, self.name, child)
        return tree.attributes(child)
