"""fallocate(2): grow a file, punch a hole, zero a range."""

from mountfs.errors import Fault, FsError
from mountfs.meta.command import Command, Stamp
from mountfs.meta.records import Attributes
from mountfs.meta.space import drop_privileges, erase, reserve
from mountfs.meta.tree import Tree
from mountfs.types import FILE_BYTES_MAX, Ino

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10
RESERVED_BYTES_MAX = 1 << 40
"""So much is reserved by one command: each chunk takes its time."""
_MODES = {0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE}


class Allocate(Command[Attributes], frozen=True, tag="allocate"):
    ino: Ino
    mode: int
    offset: int
    length: int
    drop_privileges: bool

    def check(self) -> None:
        if self.mode not in _MODES:
            raise FsError(Fault.UNSUPPORTED, f"fallocate mode {self.mode:#x}")
        if self.offset < 0 or self.length <= 0:
            raise FsError(Fault.INVALID)
        if self.offset + self.length > FILE_BYTES_MAX:
            raise FsError(Fault.FILE_TOO_LARGE)
        if not self.mode & (PUNCH_HOLE | ZERO_RANGE) and self.length > RESERVED_BYTES_MAX:
            raise FsError(Fault.INVALID, f"{self.length} bytes are reserved in steps")

    def apply(self, tree: Tree, stamp: Stamp) -> Attributes:
        if not tree.inode(self.ino).is_regular:
            raise FsError(Fault.INVALID)
        inode = tree.edit(self.ino)
        stop = self.offset + self.length
        if self.mode & (PUNCH_HOLE | ZERO_RANGE):
            erase(tree, inode, self.offset, stop)
            inode.mtime = stamp.time
        else:
            reserve(tree, inode, self.offset, stop)
        if not self.mode & KEEP_SIZE and stop > inode.size:
            inode.size = stop
            inode.mtime = stamp.time
        inode.ctime = stamp.time
        inode.version = stamp.index
        if self.drop_privileges:
            drop_privileges(tree, inode)
        return tree.attributes(inode)
