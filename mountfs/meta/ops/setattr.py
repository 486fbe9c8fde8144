"""chmod(2), chown(2), truncate(2), utimensat(2): change what stat(2) tells."""

import stat

from mountfs.errors import Fault, FsError
from mountfs.meta import acl, keys
from mountfs.meta.command import Command, Stamp
from mountfs.meta.permission import WRITE, permit, permit_owner
from mountfs.meta.records import HAS_ACL, HAS_SLICES, Attributes, Inode
from mountfs.meta.space import drop_privileges, erase
from mountfs.meta.tree import Tree
from mountfs.types import FILE_BYTES_MAX, Cred, Ino

_FOREVER = 1 << 64


class SetAttr(Command[Attributes], frozen=True, tag="setattr", kw_only=True):
    """None leaves a field as it is.  Times are nanoseconds since 1970, `*_now` the stamp's."""

    ino: Ino
    cred: Cred
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime: int | None = None
    mtime: int | None = None
    atime_now: bool = False
    mtime_now: bool = False
    drop_privileges: bool = False

    def check(self) -> None:
        if self.size is not None and not 0 <= self.size <= FILE_BYTES_MAX:
            raise FsError(Fault.FILE_TOO_LARGE)

    def apply(self, tree: Tree, stamp: Stamp) -> Attributes:
        self._permit(tree, tree.inode(self.ino))
        inode = tree.edit(self.ino)
        inode.ctime = stamp.time
        if self.size is not None:
            self._truncate(tree, inode, self.size, stamp)
        if self.uid is not None:
            inode.uid = self.uid
        if self.gid is not None:
            inode.gid = self.gid
        if self.drop_privileges and not inode.is_directory:
            drop_privileges(tree, inode)
        if self.mode is not None:
            self._chmod(tree, inode, self.mode)
        if self.atime_now or self.atime is not None:
            inode.atime = stamp.time if self.atime is None else self.atime
        if self.mtime_now or self.mtime is not None:
            inode.mtime = stamp.time if self.mtime is None else self.mtime
        return tree.attributes(inode)

    def _permit(self, tree: Tree, inode: Inode) -> None:
        cred = self.cred
        if self.size is not None:
            if inode.is_directory:
                raise FsError(Fault.IS_DIRECTORY)
            if not inode.is_regular:
                raise FsError(Fault.INVALID)
            permit(tree, inode, cred, WRITE)
        if cred.checked or cred.uid == 0:
            return
        if self.mode is not None or self.atime is not None or self.mtime is not None:
            permit_owner(inode, cred)
        elif (self.atime_now or self.mtime_now) and cred.uid != inode.uid:
            permit(tree, inode, cred, WRITE)
        if self.uid is not None and self.uid != inode.uid:
            raise FsError(Fault.NOT_PERMITTED)
        if self.gid is not None:
            permit_owner(inode, cred)
            if self.gid != inode.gid and self.gid not in (cred.gid, *cred.groups):
                raise FsError(Fault.NOT_PERMITTED)

    @staticmethod
    def _truncate(tree: Tree, inode: Inode, size: int, stamp: Stamp) -> None:
        if size < inode.size:
            erase(tree, inode, size, _FOREVER)
            if size == 0:  # no slice is left: what is written next may be small again
                inode.marks &= ~HAS_SLICES
        inode.size = size
        inode.mtime = stamp.time
        inode.version = stamp.index

    def _chmod(self, tree: Tree, inode: Inode, mode: int) -> None:
        cred = self.cred
        mode &= 0o7777
        member = cred.checked or cred.uid == 0 or inode.gid in (cred.gid, *cred.groups)
        if not member:
            mode &= ~stat.S_ISGID
        inode.mode = stat.S_IFMT(inode.mode) | mode
        if inode.marks & HAS_ACL:
            key = keys.xattr(inode.ino, acl.ACCESS)
            stored = tree.get(key)
            if stored is not None:
                tree.put(key, acl.pack(acl.with_mode(acl.parse(stored), mode)))
