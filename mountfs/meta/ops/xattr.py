"""setxattr(2), removexattr(2), getxattr(2), listxattr(2); ACLs are some that set the mode too."""

from mountfs.errors import Fault, FsError
from mountfs.meta import acl, keys
from mountfs.meta.command import Command, Query, Stamp
from mountfs.meta.permission import permit_owner
from mountfs.meta.records import HAS_ACL, HAS_XATTRS, Attributes, Inode
from mountfs.meta.tree import Tree
from mountfs.types import KIB, Cred, Ino

CREATE, REPLACE = 1, 2

VALUE_BYTES_MAX = 64 * KIB  # XATTR_SIZE_MAX of <linux/limits.h>
NAME_BYTES_MAX = 255
LIST_BYTES_MAX = 64 * KIB  # XATTR_LIST_MAX: more could not be listed

_SPACES = (b"user.", b"trusted.", b"security.")
_XATTR_HEAD = 9  # ino and kind before the name in a key


class SetXattr(Command[Attributes], frozen=True, tag="setxattr"):
    ino: Ino
    name: bytes
    value: bytes
    flags: int
    drop_sgid: bool
    """The caller sets an ACL and is not in the file's group: as chmod(2) would, drop set-group-ID.
    """
    cred: Cred

    def check(self) -> None:
        _check_name(self.name)
        if len(self.value) > VALUE_BYTES_MAX:
            raise FsError(Fault.TOO_BIG)
        if self.flags not in (0, CREATE, REPLACE):
            raise FsError(Fault.INVALID)

    def apply(self, tree: Tree, stamp: Stamp) -> Attributes:
        inode = tree.inode(self.ino)
        key = keys.xattr(self.ino, self.name)
        old = tree.get(key) if inode.marks & HAS_XATTRS else None
        if old is not None and self.flags == CREATE:
            raise FsError(Fault.EXISTS)
        if old is None and self.flags == REPLACE:
            raise FsError(Fault.NO_ATTRIBUTE)
        if old is None and _listed(tree, inode) + len(self.name) + 1 > LIST_BYTES_MAX:
            raise FsError(Fault.NO_SPACE, "no room for another extended attribute on this file")
        if self.name in (acl.ACCESS, acl.DEFAULT):
            permit_owner(inode, self.cred)
            self._set_acl(tree, stamp)
            return tree.attributes(tree.edit(self.ino))
        inode = tree.edit(self.ino)
        inode.marks |= HAS_XATTRS
        inode.ctime = stamp.time
        tree.put(key, self.value)
        return tree.attributes(inode)

    def _set_acl(self, tree: Tree, stamp: Stamp) -> None:
        if len(self.value) <= 4:  # an ACL without entries: take it away
            remove(tree, self.ino, self.name, stamp)
            return
        entries = acl.parse(self.value)
        inode = tree.inode(self.ino)
        if self.name == acl.DEFAULT and not inode.is_directory:
            raise FsError(Fault.DENIED, "only a directory has a default ACL")
        inode = tree.edit(self.ino)
        inode.ctime = stamp.time
        if self.name == acl.ACCESS:
            inode.mode = acl.mode_bits(entries, inode.mode)
            if self.drop_sgid:
                inode.mode &= ~0o2000
            if acl.minimal(entries):  # the mode says it all
                tree.put(keys.xattr(self.ino, self.name), None)
                return
        inode.marks |= HAS_XATTRS | HAS_ACL
        tree.put(keys.xattr(self.ino, self.name), self.value)


class RemoveXattr(Command[Attributes], frozen=True, tag="removexattr"):
    ino: Ino
    name: bytes
    cred: Cred

    def check(self) -> None:
        _check_name(self.name)

    def apply(self, tree: Tree, stamp: Stamp) -> Attributes:
        inode = tree.inode(self.ino)
        if self.name in (acl.ACCESS, acl.DEFAULT):
            permit_owner(inode, self.cred)
        elif tree.get(keys.xattr(self.ino, self.name)) is None:
            raise FsError(Fault.NO_ATTRIBUTE)
        remove(tree, self.ino, self.name, stamp)
        return tree.attributes(tree.edit(self.ino))


class GetXattr(Query[bytes], frozen=True, tag="getxattr"):
    ino: Ino
    name: bytes

    def read(self, tree: Tree) -> bytes:
        inode = tree.inode(self.ino)
        value = tree.get(keys.xattr(self.ino, self.name)) if inode.marks & HAS_XATTRS else None
        if value is None:
            _check_name(self.name)
            raise FsError(Fault.NO_ATTRIBUTE)
        return value


class ListXattr(Query[tuple[bytes, ...]], frozen=True, tag="listxattr"):
    ino: Ino

    def read(self, tree: Tree) -> tuple[bytes, ...]:
        if not tree.inode(self.ino).marks & HAS_XATTRS:
            return ()
        return tuple(key[_XATTR_HEAD:] for key, _ in tree.scan(keys.xattrs(self.ino)))


def remove(tree: Tree, ino: Ino, name: bytes, stamp: Stamp) -> None:
    tree.edit(ino).ctime = stamp.time
    tree.put(keys.xattr(ino, name), None)


def _listed(tree: Tree, inode: Inode) -> int:
    if not inode.marks & HAS_XATTRS:
        return 0
    return sum(len(key) - _XATTR_HEAD + 1 for key, _ in tree.scan(keys.xattrs(inode.ino)))


def _check_name(name: bytes) -> None:
    if len(name) > NAME_BYTES_MAX:
        raise FsError(Fault.TOO_SMALL)  # ERANGE, says xattr(7)
    if name in (acl.ACCESS, acl.DEFAULT):
        return
    if not name.startswith(_SPACES):
        raise FsError(Fault.UNSUPPORTED, f"{name!r}: only user., trusted. and security.")
    if name in _SPACES:
        raise FsError(Fault.INVALID, "an extended attribute needs a name after its prefix")
