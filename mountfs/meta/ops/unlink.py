"""unlink(2): take a name away; the file goes with its last name and its last user."""

from mountfs.errors import Fault, FsError
from mountfs.meta.command import Command, Stamp, check_name
from mountfs.meta.permission import SEARCH, WRITE, permit, permit_removal
from mountfs.meta.trash import lose_name
from mountfs.meta.tree import Tree
from mountfs.types import Cred, Ino


class Unlink(Command[Ino], frozen=True, tag="unlink"):
    """Reply: the inode if that was its last name (an orphan of the session now), otherwise 0, and
    also where it is in the trash.
    """

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
        if child.is_directory:
            raise FsError(Fault.IS_DIRECTORY)

        child = tree.remove_name(self.parent, self.name)
        return lose_name(tree, parent, self.name, child, self.cred)
