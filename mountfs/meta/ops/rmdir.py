"""rmdir(2): remove an empty directory."""

from mountfs.errors import Fault, FsError
from mountfs.meta.command import Command, Stamp, check_name
from mountfs.meta.permission import SEARCH, WRITE, permit, permit_removal
from mountfs.meta.trash import lose_name
from mountfs.meta.tree import Tree
from mountfs.types import Cred, Ino


class Rmdir(Command[Ino], frozen=True, tag="rmdir"):
    """Reply: the inode, an orphan of the session now, or in the trash."""

    parent: Ino
    name: bytes
    cred: Cred

    def check(self) -> None:
        check_name(self.name)

    def apply(self, tree: Tree, stamp: Stamp) -> Ino:
        parent = tree.directory(self.parent)
        child = tree.require(self.parent, self.name)
        permit(tree, parent, self.cred, WRITE | SEARCH)
        permit_removal(parent, child, self.cred)
        if not child.is_directory:
            raise FsError(Fault.NOT_DIRECTORY)
        if child.entries:
            raise FsError(Fault.NOT_EMPTY)

        child = tree.remove_name(self.parent, self.name)
        return lose_name(tree, parent, self.name, child, self.cred)
