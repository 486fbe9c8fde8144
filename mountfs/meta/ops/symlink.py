"""symlink(2): create a symbolic link."""

import stat

from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.command import Command, Stamp, check_name
from mountfs.meta.permission import SEARCH, WRITE, permit
from mountfs.meta.records import Attributes
from mountfs.meta.tree import Tree
from mountfs.types import Cred, Ino

_TARGET_BYTES_MAX = 4095  # PATH_MAX without its NUL


class Symlink(Command[Attributes], frozen=True, tag="symlink"):
    parent: Ino
    name: bytes
    target: bytes
    cred: Cred

    def check(self) -> None:
        check_name(self.name)
        if not self.target:
            raise FsError(Fault.NOT_FOUND, "a symlink needs a target")
        if len(self.target) > _TARGET_BYTES_MAX:
            raise FsError(Fault.NAME_TOO_LONG)

    def apply(self, tree: Tree, stamp: Stamp) -> Attributes:
        parent = tree.directory(self.parent)
        tree.require_absent(self.parent, self.name)
        permit(tree, parent, self.cred, WRITE | SEARCH)

        child = tree.new_inode(parent, stat.S_IFLNK | 0o777, self.cred)
        child.size = len(self.target)
        tree.put(keys.target(child.ino), self.target)
        tree.add_name(self.parent, self.name, child)
        return tree.attributes(child)
