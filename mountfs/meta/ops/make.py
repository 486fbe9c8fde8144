"""open(2) with O_CREAT, mknod(2): create a file, fifo, socket or device node."""

import stat

from mountfs.errors import Fault, FsError
from mountfs.meta.command import Command, Stamp, check_name
from mountfs.meta.inherit import set_permissions
from mountfs.meta.permission import SEARCH, WRITE, permit
from mountfs.meta.records import Attributes
from mountfs.meta.tree import Tree
from mountfs.types import Cred, Ino

_TYPES = {stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK}


class Make(Command[tuple[Attributes, bool]], frozen=True, tag="make"):
    """Reply: the attributes, and whether the file is new.  Raises EXISTS if `exclusive` and there
    is one.
    """

    parent: Ino
    name: bytes
    mode: int
    umask: int
    rdev: int
    exclusive: bool
    cred: Cred

    def check(self) -> None:
        check_name(self.name)
        if stat.S_IFMT(self.mode) not in _TYPES:
            raise FsError(Fault.INVALID, f"mode {self.mode:o} is not a kind of file to make")

    def apply(self, tree: Tree, stamp: Stamp) -> tuple[Attributes, bool]:
        parent = tree.directory(self.parent)
        found = tree.dentry(self.parent, self.name)
        if found is not None:
            permit(tree, parent, self.cred, SEARCH)
            if self.exclusive:
                raise FsError(Fault.EXISTS)
            return tree.attributes(tree.inode(found[0])), False
        permit(tree, parent, self.cred, WRITE | SEARCH)

        child = tree.new_inode(parent, self.mode, self.cred, self.rdev)
        set_permissions(tree, parent, child, self.umask)
        tree.add_name(self.parent, self.name, child)
        return tree.attributes(child), True
