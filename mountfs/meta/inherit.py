"""What a new file takes over from its directory beside the group: the default ACL, or else the
umask.
"""

from mountfs.meta import acl, keys
from mountfs.meta.records import HAS_ACL, HAS_XATTRS, Inode
from mountfs.meta.tree import Tree


def set_permissions(tree: Tree, parent: Inode, child: Inode, umask: int) -> None:
    """Settle the mode and ACLs of `child`, made with the mode that the caller asked for (acl(5),
    OBJECT CREATION).
    """
    stored = None
    if parent.marks & HAS_ACL:
        stored = tree.get(keys.xattr(parent.ino, acl.DEFAULT))
    if stored is None:
        child.mode &= ~(umask & 0o777)
        return
    access, child.mode = acl.inherit(acl.parse(stored), child.mode)
    if not acl.minimal(access):
        _put(tree, child, acl.ACCESS, acl.pack(access))
    if child.is_directory:
        _put(tree, child, acl.DEFAULT, stored)


def _put(tree: Tree, inode: Inode, name: bytes, value: bytes) -> None:
    tree.put(keys.xattr(inode.ino, name), value)
    inode.marks |= HAS_XATTRS | HAS_ACL
