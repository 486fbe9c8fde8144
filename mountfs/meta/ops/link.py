"""link(2): another name for a file; for an O_TMPFILE file, its first."""

from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.command import Command, Stamp, check_name
from mountfs.meta.permission import SEARCH, WRITE, permit
from mountfs.meta.records import Attributes
from mountfs.meta.tree import Tree
from mountfs.types import Cred, Ino


class Link(Command[Attributes], frozen=True, tag="link"):
    ino: Ino
    parent: Ino
    name: bytes
    cred: Cred

    def check(self) -> None:
        check_name(self.name)

    def apply(self, tree: Tree, stamp: Stamp) -> Attributes:
        inode = tree.inode(self.ino)
        if inode.is_directory:
            raise FsError(Fault.NOT_PERMITTED, "a directory has one name only")
        parent = tree.directory(self.parent)
        tree.require_absent(self.parent, self.name)
        permit(tree, parent, self.cred, WRITE | SEARCH)

        inode = tree.edit(self.ino)
        if inode.nlink == 0:
            orphan = keys.orphan(stamp.session, self.ino)
            if tree.get(orphan) is None:
                raise FsError(Fault.NOT_FOUND, "the file has no name, and is another session's")
            tree.put(orphan, None)
        tree.add_name(self.parent, self.name, inode)
        inode.ctime = stamp.time
        return tree.attributes(inode)
