"""rename(2), renameat2(2): move a name, over another one if need be, in one step."""

from mountfs.errors import Fault, FsError
from mountfs.meta import keys, places
from mountfs.meta.command import Command, Stamp, check_name
from mountfs.meta.permission import SEARCH, WRITE, permit, permit_removal
from mountfs.meta.records import Inode, pack_dentry, pack_entry
from mountfs.meta.trash import lose_name
from mountfs.meta.tree import Tree
from mountfs.types import Cred, Ino

NOREPLACE = 1
EXCHANGE = 2


class Rename(Command[Ino], frozen=True, tag="rename"):
    """Reply: the inode that lost its last name by it, otherwise 0, and also where it is a file in
    the trash.
    """

    parent: Ino
    name: bytes
    new_parent: Ino
    new_name: bytes
    flags: int
    cred: Cred

    def check(self) -> None:
        check_name(self.name)
        check_name(self.new_name)
        if self.flags & ~(NOREPLACE | EXCHANGE) or self.flags == NOREPLACE | EXCHANGE:
            raise FsError(Fault.INVALID, f"renameat2 flags {self.flags:#x}")

    def apply(self, tree: Tree, stamp: Stamp) -> Ino:
        source, target = tree.directory(self.parent), tree.directory(self.new_parent)
        moved = tree.require(self.parent, self.name)
        found = tree.dentry(self.new_parent, self.new_name)
        over = tree.inode(found[0]) if found else None
        self._permit(tree, source, target, moved, over)
        if self.flags & EXCHANGE:
            if over is None:
                raise FsError(Fault.NOT_FOUND)
            self._refuse_loop(tree, over, self.parent)
            self._exchange(tree, stamp, moved, over)
            return Ino(0)
        if over is not None:
            if self.flags & NOREPLACE:
                raise FsError(Fault.EXISTS)
            if over.ino == moved.ino:  # two names of one file: nothing to do, says POSIX
                return Ino(0)
            _refuse_replacing(moved, over)

        lost = Ino(0)
        if over is not None:
            over = tree.remove_name(self.new_parent, self.new_name)
            lost = lose_name(tree, target, self.new_name, over, self.cred)
        moved = tree.remove_name(self.parent, self.name)
        tree.add_name(self.new_parent, self.new_name, moved)
        return lost

    def _permit(
        self, tree: Tree, source: Inode, target: Inode, moved: Inode, over: Inode | None
    ) -> None:
        permit(tree, source, self.cred, WRITE | SEARCH)
        permit(tree, target, self.cred, WRITE | SEARCH)
        permit_removal(source, moved, self.cred)
        if over is not None:
            permit_removal(target, over, self.cred)
        if self.parent != self.new_parent:
            exchanged = over if self.flags & EXCHANGE else None
            for inode in (moved, exchanged):
                if inode is not None and inode.is_directory:
                    permit(tree, inode, self.cred, WRITE)  # its ".." changes
        self._refuse_loop(tree, moved, self.new_parent)

    @staticmethod
    def _refuse_loop(tree: Tree, moved: Inode, parent: Ino) -> None:
        if moved.is_directory and tree.is_below(parent, moved.ino):
            raise FsError(Fault.INVALID, "a directory cannot move into itself")

    def _exchange(self, tree: Tree, stamp: Stamp, one: Inode, other: Inode) -> None:
        """Each name keeps its place in its directory and gets the other's inode."""
        if one.ino == other.ino:
            return
        _put(tree, stamp, self.parent, self.name, other)
        _put(tree, stamp, self.new_parent, self.new_name, one)
        places.move(tree, one, self.parent, self.new_parent)
        places.move(tree, other, self.new_parent, self.parent)
        delta = other.is_directory - one.is_directory
        tree.edit(self.parent).nlink += delta
        tree.edit(self.new_parent).nlink -= delta


def _put(tree: Tree, stamp: Stamp, parent: Ino, name: bytes, inode: Inode) -> None:
    found = tree.dentry(parent, name)
    assert found is not None, (parent, name)
    _, position, _ = found
    type = inode.mode >> 12
    tree.put(keys.dentry(parent, name), pack_dentry(inode.ino, position, type))
    tree.put(keys.entry(parent, position), pack_entry(inode.ino, type, name))
    directory = tree.edit(parent)
    directory.mtime = directory.ctime = stamp.time
    directory.version = stamp.index
    tree.edit(inode.ino).ctime = stamp.time


def _refuse_replacing(moved: Inode, over: Inode) -> None:
    if moved.is_directory and not over.is_directory:
        raise FsError(Fault.NOT_DIRECTORY)
    if over.is_directory and not moved.is_directory:
        raise FsError(Fault.IS_DIRECTORY)
    if over.is_directory and over.entries:
        raise FsError(Fault.NOT_EMPTY)
