"""Who may do what: the permission bits, ACLs and the sticky bit, as path_resolution(7) and acl(5)
say.
"""

import stat

from mountfs.errors import Fault, FsError
from mountfs.meta import acl, keys
from mountfs.meta.records import HAS_ACL, Inode
from mountfs.meta.tree import Tree
from mountfs.types import Cred

READ, WRITE, SEARCH = 4, 2, 1


def permit(tree: Tree, inode: Inode, cred: Cred, want: int) -> None:
    """Raise DENIED unless `cred` has all of `want` (READ | WRITE | SEARCH) on the inode."""
    if cred.checked or cred.uid == 0:
        return
    if not _allows(tree, inode, cred, want):
        raise FsError(Fault.DENIED)


def permit_removal(directory: Inode, child: Inode, cred: Cred) -> None:
    """In a sticky directory only the owner of the file or of the directory removes or renames a
    name.
    """
    if cred.checked or cred.uid == 0 or not directory.mode & stat.S_ISVTX:
        return
    if cred.uid not in (child.uid, directory.uid):
        raise FsError(Fault.NOT_PERMITTED)


def permit_owner(inode: Inode, cred: Cred) -> None:
    if not (cred.checked or cred.uid in (0, inode.uid)):
        raise FsError(Fault.NOT_PERMITTED)


def _allows(tree: Tree, inode: Inode, cred: Cred, want: int) -> bool:
    mode = inode.mode
    if cred.uid == inode.uid:
        return not want & ~(mode >> 6)
    if inode.marks & HAS_ACL:
        stored = tree.get(keys.xattr(inode.ino, acl.ACCESS))
        if stored is not None:
            return acl.permits(acl.parse(stored), inode.gid, cred, want)
    if inode.gid == cred.gid or inode.gid in cred.groups:
        return not want & ~(mode >> 3)
    return not want & ~mode
