"""The filesystem: one method for each thing that a door can ask.

The one place that knows what a file is: names come from the metadata, bytes from slices and from
what is not written yet. Doors translate and do not decide.  Methods raise `FsError` and nothing
else; they run inline until they have to wait (see mountfs.inline).
"""

import logging
import math
import os
import stat
import struct
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, TypeVar

import msgspec
import trio

from mountfs.buffers import Buffers
from mountfs.chunks.base import ChunkStore
from mountfs.errors import Fault, FsError
from mountfs.inline import leave
from mountfs.meta.command import Command
from mountfs.meta.leases import Item
from mountfs.meta.local import LockingMeta
from mountfs.meta.locks import EOF, POSIX, Lock, Owner
from mountfs.meta.ops.allocate import RESERVED_BYTES_MAX, Allocate
from mountfs.meta.ops.copy_range import CopyRange
from mountfs.meta.ops.default_retention import AtClose, CommitRetention
from mountfs.meta.ops.link import Link
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.meta.ops.quota import VIRTUAL, Space, TreeSpace, VirtualXattr
from mountfs.meta.ops.read import (
    Birth,
    GetAttr,
    IsRetained,
    Layout,
    Listing,
    Lookup,
    Opening,
    ReadDir,
    Readlink,
    Usage,
)
from mountfs.meta.ops.reap import Reap
from mountfs.meta.ops.rename import Rename
from mountfs.meta.ops.retention import Kept, RequireFree
from mountfs.meta.ops.rmdir import Rmdir
from mountfs.meta.ops.setattr import SetAttr
from mountfs.meta.ops.symlink import Symlink
from mountfs.meta.ops.tmpfile import Tmpfile
from mountfs.meta.ops.touch import Touch
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.ops.xattr import GetXattr, ListXattr, RemoveXattr, SetXattr
from mountfs.meta.records import (
    NS,
    Attributes,
    ino_of,
    mode_of,
    nlink_of,
    owner_of,
    size_of,
    unpack_attributes,
)
from mountfs.types import BLOCK_BYTES, FILE_BYTES_MAX, ROOT, Cred, Ino
from mountfs.vfs import retention_xattrs
from mountfs.vfs.access_time import AccessTime, due
from mountfs.vfs.handles import Ask, File, Handle
from mountfs.vfs.headroom import KEEP_S
from mountfs.vfs.leased_meta import LeasedMeta
from mountfs.vfs.lock_table import LockTable
from mountfs.vfs.lost import lose
from mountfs.vfs.reader import Bytes, Reader
from mountfs.vfs.trash import Trash
from mountfs.vfs.writer import DIRTY_BYTES_MAX, Writer

log = logging.getLogger(__name__)

R = TypeVar("R")

_SIZE_BLOCKS = struct.Struct("<QQ")
_MTIME_CTIME = struct.Struct("<qq")
_NANOSECONDS = struct.Struct("<III")
_SIZE_AT, _ATIME_AT, _MTIME_AT, _NANOSECONDS_AT = 8, 24, 32, 48

_TOUCHES_MAX = 256
"""Access times that are kept back before they are written."""
_REAPS_MAX = 64
_KNOWN_MAX = 65_536


SLICES_AT_ONCE: Final = 16
"""Of a file, on their way to other machines."""
FREE_INODES: Final = 1 << 32
"""What statfs(2) says where no quota limits them: inodes are made as they are needed, there is no
table to run out of.
"""
FORGET_S: Final = 0.1
"""So long the kernel may take to say that a file that was deleted is out of use."""
SETTLE_S: Final = 2.0
"""Who has a lock and is interrupted before he is told of it is told all the same within that."""
KEEP_BACK_PAUSE_S: Final = 0.01
"""Between two questions whether bytes may be kept back."""
READS_MAX: Final = 4
"""So often bytes are read again because others have been written meanwhile."""
LOOKS_MAX: Final = 4
"""So often a file is asked for that others change as often."""
ROOT_S: Final = 2.0
"""So long the attributes of the root may take before those that we know are good enough."""


async def _nothing_appended(ino: Ino, offset: int, stop: int, last: bytes) -> None:
    return


class Filesystem:
    """`durable` makes all that was proposed and written so far survive the machine; `kernel` says
    that the door tells by `forget` when an inode is out of use, as the kernel does: until then a
    file without a name is kept; `shared` that others change the filesystem too: then what was known
    of a file is looked at again when it is opened, and, with `leases`, whenever one of them has
    changed it; `retention` says whether there are files that are retained, or are to be.
    """

    def __init__(
        self,
        meta: LockingMeta,
        chunks: ChunkStore,
        *,
        durable: Callable[[], Awaitable[None]],
        buffers: Buffers | None = None,
        kick: Callable[[], None] = lambda: None,
        owed: Callable[[], int] = lambda: 0,
        reclaim: Callable[[], Awaitable[None]] | None = None,
        own_copies: Callable[[], bool] = lambda: False,
        retention: Callable[[], bool] = lambda: False,
        kernel: bool = False,
        shared: bool = False,
        leases: LeasedMeta | None = None,
        read_only: bool = False,
        access_time: AccessTime = AccessTime.RELATIVE,
        directory_access_time: AccessTime = AccessTime.RELATIVE,
        sync_writes: bool = False,
        sync_directories: bool = False,
        dirty_bytes_max: int = DIRTY_BYTES_MAX,
    ) -> None:
        self._meta = meta
        self._chunks = chunks
        self._durable = durable
        self._kernel = kernel
        self.shared = shared
        self.leases = leases
        if leases is not None:
            leases.on_touched = self._touched
            leases.on_give_up = self.write_out
            leases.is_kept_back = self._is_unwritten
        self.on_appended: Callable[[Ino, int, int, bytes], Awaitable[None]] = _nothing_appended
        """Told of an append (the inode, from where on the door's bytes are not right, where it
        ends, its last byte) where the door may have cached the end of the file, or the file had
        grown without the door knowing.
        """
        self._root: Attributes | None = None
        """Attributes of the root, as they were when we asked last."""
        self._inodes_before = 0
        self._unlocking: dict[Ino, set[trio.Event]] = {}
        """Files whose locks end with a last close that has returned already."""
        self._read_only = read_only
        self.access_time = access_time
        self.directory_access_time = directory_access_time
        self._sync_writes = sync_writes
        """Every write is on disk when it returns: the mount option `sync`."""
        self._sync_directories = sync_directories
        """Every change of a name is: `dirsync`."""
        self.reader = Reader(meta, chunks)
        self.writer = Writer(
            meta,
            chunks,
            buffers=buffers or Buffers(),
            dirty_bytes_max=dirty_bytes_max,
            kick=kick,
            owed=owed,
            reclaim=reclaim or self.reap,
            own_copies=own_copies,
            slices_at_once=SLICES_AT_ONCE if shared else 1,
            refused=self._refused,
            quota_known_s=KEEP_S if shared else 0.0,
            give_back=self._give_back,
        )
        self._retention = retention
        self._retaining: dict[Ino, trio.Event] = {}
        """Files that are closed, and are being given the retention of their tree."""
        self._doubtful: set[Ino] = set()
        """Files of which the door may have cached bytes that were not taken."""
        self.locks = LockTable(meta)
        self.trash = Trash(meta, self._propose_name)
        self._files: dict[Ino, File] = {}
        self._handles: dict[int, Handle] = {}
        self._next_handle = 1
        self._atimes: dict[Ino, int] = {}
        self._orphans: set[Ino] = set()
        self._removed: set[Ino] = set()
        """Directories that the kernel has seen removed, and has not forgotten."""
        self._reborn: dict[Ino, int] = {}
        """Those of them that have come back, and how often."""
        self._forgotten: list[Ino] = []
        self._forgets: trio.Event | None = None
        """Set, and gone, when the kernel has forgotten something again; None: nobody waits for it.
        """
        self.on_lost: Callable[[set[Ino]], None] = lambda inos: None
        """Told of files whose open files have lost something: what the door has cached of them is
        not so.
        """
        self.drop_cached: Callable[[Ino], Awaitable[None]] = _nothing_is_cached
        """Has the door forget what it has cached of the bytes and attributes of a file."""
        self._known: dict[Ino, bytes] = {}
        """Of files that were opened lately, what tells whether their bytes have changed since."""

    # -- names

    async def lookup(self, parent: Ino, name: bytes, cred: Cred) -> Attributes:
        attributes = await self._meta.read(Lookup(parent, name, cred))
        if self.leases is not None:
            await self._settled(ino_of(attributes))
        return self._now(attributes)

    async def make(
        self, parent: Ino, name: bytes, mode: int, umask: int, rdev: int, cred: Cred
    ) -> Attributes:
        """mknod(2)"""
        command = Make(parent, name, mode, umask, rdev, True, cred)
        attributes, _ = await self._propose_name(command)
        return attributes

    async def mkdir(
        self, parent: Ino, name: bytes, mode: int, umask: int, cred: Cred
    ) -> Attributes:
        return await self._propose_name(Mkdir(parent, name, mode, umask, cred))

    async def symlink(self, parent: Ino, name: bytes, target: bytes, cred: Cred) -> Attributes:
        return await self._propose_name(Symlink(parent, name, target, cred))

    async def readlink(self, ino: Ino) -> bytes:
        target = await self._meta.read(Readlink(ino))
        await self._touch(ino, await self._meta.read(GetAttr(ino)), self.access_time)
        return target

    async def link(self, ino: Ino, parent: Ino, name: bytes, cred: Cred) -> Attributes:
        attributes = await self._propose_name(Link(ino, parent, name, cred))
        self._orphans.discard(ino)
        return self._now(attributes)

    async def unlink(self, parent: Ino, name: bytes, cred: Cred) -> None:
        await self._retained()
        await self._lost(await self._propose_name(Unlink(parent, name, cred), grows=False))

    async def rmdir(self, parent: Ino, name: bytes, cred: Cred) -> None:
        await self._lost_one(await self._propose_name(Rmdir(parent, name, cred), grows=False))

    async def rename(
        self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int, cred: Cred
    ) -> None:
        if self.writer.unwritten:
            # A program that writes a new version and renames it over the old one must not find an
            # empty file after a crash: the bytes go first.
            await self._flush_name(parent, name, cred)
        await self._retained()
        command = Rename(parent, name, new_parent, new_name, flags, cred)
        await self._lost_one(await self._propose_name(command, grows=False))

    async def readdir(self, ino: Ino, after: int, limit: int, *, with_attributes: bool) -> Listing:
        """Up to `limit` entries after a position (0: from the start), "." and ".." first."""
        listing = await self._meta.read(ReadDir(ino, after, limit, with_attributes))
        if after == 0 and not self._read_only:
            listed = await self._meta.read(GetAttr(ino))
            await self._touch(ino, listed, self.directory_access_time)
        if with_attributes and (self._atimes or self.writer.unwritten):
            atimes, files = self._atimes, self._files
            for at, (position, child, type, name, attributes) in enumerate(listing):
                if attributes and (child in atimes or child in files):
                    listing[at] = (position, child, type, name, self._now(attributes))
        return listing

    async def forget(self, inos: Iterable[Ino]) -> None:
        """The kernel does not know these inodes any more."""
        for ino in inos:
            self._removed.discard(ino)
            if ino in self._orphans and ino not in self._files:
                self._orphans.discard(ino)
                self._forgotten.append(ino)
        if self._forgets is not None:
            self._forgets.set()
            self._forgets = None
        if len(self._forgotten) >= _REAPS_MAX:
            await self.reap()

    async def reap(self) -> None:
        """Remove files that have lost their last name and their last user."""
        while self._forgotten:
            inos, self._forgotten = tuple(self._forgotten), []
            try:
                left = await self._meta.propose(Reap(self._meta.session, inos))
            except FsError as error:
                if error.fault is not Fault.SESSION_ENDED:  # then the cluster removes them
                    raise
                return
            self._forgotten.extend(left)
            if left:
                await leave()

    def generation(self, attributes: Attributes) -> int:
        """Of an inode that is looked up.  In a directory that a kernel has seen removed it lets
        nothing be done, as long as somebody is there (it is his working directory, say): one that
        has come back from the trash is another one to it.
        """
        if not self._removed and not self._reborn:
            return 0
        ino = ino_of(attributes)
        if ino in self._removed and nlink_of(attributes) and stat.S_ISDIR(mode_of(attributes)):
            self._removed.discard(ino)
            self._reborn[ino] = self._reborn.get(ino, 0) + 1
        return self._reborn.get(ino, 0)

    # -- attributes

    async def getattr(self, ino: Ino) -> Attributes:
        if self.leases is not None:
            await self._settled(ino)
            known = self.leases.attributes(ino)
            if known is not None:
                return self._now(known)
        if ino == ROOT and self.shared and self._root is not None:
            return self._now(await self._root_attributes(self._root))
        attributes = await self._meta.read(GetAttr(ino))
        if ino == ROOT:
            self._root = attributes
        return self._now(attributes)

    async def _root_attributes(self, before: Attributes) -> Attributes:
        """What they were `before`, if nobody answers: umount(8) asks for them first, and a mount
        can always be unmounted.
        """
        await leave()
        with trio.move_on_after(ROOT_S):
            self._root = before = await self._meta.read(GetAttr(ROOT))
        return before

    async def _usage(self, ino: Ino) -> tuple[int, Space | None]:
        """(how many inodes there are, what the trees leave that one lies in); as of before, if
        nobody answers: umount(8) asks for that too.
        """
        if not self.shared:
            inodes, _ = await self._meta.read(Usage())
            return inodes, await self._space(ino)
        space: Space | None = None
        await leave()
        with trio.move_on_after(ROOT_S):
            self._inodes_before, _ = await self._meta.read(Usage())
            space = await self._space(ino)
        return self._inodes_before, space

    async def _space(self, ino: Ino) -> Space | None:
        try:
            return await self._meta.read(TreeSpace(ino))
        except FsError as error:
            if error.fault is not Fault.STALE:
                raise
            return None  # it is gone, and so is what it had

    async def birth(self, ino: Ino) -> int:
        """When the inode was made, in nanoseconds."""
        return await self._meta.read(Birth(ino))

    async def setattr(self, change: SetAttr) -> Attributes:
        file = self._files.get(change.ino)
        if file is not None and file.unwritten:
            # Later writes must not undo this change, nor earlier ones come after it.
            await self._flush_before(file, change)
        attributes = await self._propose(change)
        if change.atime is not None or change.atime_now:
            self._atimes.pop(change.ino, None)
        if change.size is not None and file is not None:
            self._changed(file, attributes)
        return self._now(attributes)

    async def _flush_before(self, file: File, change: SetAttr) -> None:
        try:
            await self.writer.flush(file)
        except FsError as error:
            if error.fault is not Fault.OVER_QUOTA or change.size is None:
                raise
            # A file that is cut gives its quota room: nothing behind the cut is to be in the way.
            self.writer.cut(file, change.size)
            await self.writer.flush(file)

    async def setxattr(
        self, ino: Ino, name: bytes, value: bytes, flags: int, drop_sgid: bool, cred: Cred
    ) -> None:
        if retention_xattrs.is_one(name):
            await self._set_retention(ino, name, value, cred)
            return
        await self._require_room()
        await self._propose(SetXattr(ino, name, value, flags, drop_sgid, cred))

    async def removexattr(self, ino: Ino, name: bytes, cred: Cred) -> None:
        await self._propose(RemoveXattr(ino, name, cred))

    async def getxattr(self, ino: Ino, name: bytes) -> bytes:
        if retention_xattrs.is_one(name):
            return retention_xattrs.value(name, (await self._meta.read(Kept(ino)))[0])
        if name.startswith(VIRTUAL):
            return await self._meta.read(VirtualXattr(ino, name))
        return await self._meta.read(GetXattr(ino, name))

    async def listxattr(self, ino: Ino) -> tuple[bytes, ...]:
        return await self._meta.read(ListXattr(ino))

    async def statfs(self, ino: Ino = ROOT) -> tuple[int, int, int, int]:
        """(total bytes, free bytes, inodes in use, inodes that may still be made), of the tree with
        a quota that a file or directory lies in, if it lies in one.
        """
        inodes, space = await self._usage(ino)
        total, free = self._chunks.space()
        free = max(free - self.writer.promised_bytes, 0)
        if space is None:
            return total, free, inodes, FREE_INODES
        if space.bytes_limit:
            free = min(free, max(space.bytes_limit - space.bytes, 0))
            total = max(min(space.bytes_limit, space.bytes + free), free)
        if not space.inodes_limit:
            return total, free, inodes, FREE_INODES
        return total, free, space.inodes, max(space.inodes_limit - space.inodes, 0)

    # -- open files

    async def open(self, ino: Ino, flags: int, *, drop_privileges: bool = False) -> Handle:
        """open(2) of what exists.  O_TRUNC is honoured, with `drop_privileges` as for a write."""
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if writes and self._read_only:
            raise FsError(Fault.READ_ONLY)
        layout: Layout | None = None
        if writes:
            await self._retained(ino)
        known = None if self.leases is None else self.leases.attributes(ino)
        opened_before = self._files.get(ino)
        ask = _ask(opened_before)
        if self.shared and known is None:
            opened = await self._meta.read(Opening(ino))
            attributes, layout = opened.attributes, opened.layout
            if not nlink_of(attributes) and ino not in self._files and ino not in self._orphans:
                # Somebody else has removed the name by which the kernel has found it: on STALE it
                # looks again, and with O_CREAT makes a new file.
                raise FsError(Fault.STALE, f"inode {ino} has lost its name elsewhere")
            retained = opened.retained
        else:
            attributes = await self._meta.read(GetAttr(ino)) if known is None else known
            retained = writes and self._retention() and await self._meta.read(IsRetained(ino))
        if writes and retained:
            await self._propose(RequireFree(ino))
        if flags & os.O_TRUNC and writes:
            change = SetAttr(ino=ino, cred=_CHECKED, size=0, drop_privileges=drop_privileges)
            attributes, layout = await self.setattr(change), None
            ask = _ask(opened_before)
        handle = self._open(ino, size_of(attributes), flags)
        file = handle.file
        file.written |= bool(flags & os.O_TRUNC and writes)
        if self.shared:
            is_news = self._is_news(file, ask, attributes)
            handle.unchanged = is_news and self._renew(file, attributes)
            if layout is not None and file.handles == 1 and is_news and not file.unwritten:
                self.reader.know(file, layout)
        if ino in self._doubtful:
            self._doubtful.discard(ino)
            handle.unchanged = False
        return handle

    async def create(
        self, parent: Ino, name: bytes, flags: int, mode: int, umask: int, cred: Cred
    ) -> tuple[Attributes, Handle]:
        """open(2) with O_CREAT."""
        exclusive = bool(flags & os.O_EXCL)
        command = Make(parent, name, stat.S_IFREG | mode & 0o7777, umask, 0, exclusive, cred)
        attributes, new = await self._propose_name(command)
        ino = ino_of(attributes)
        if new:
            handle = self._open(ino, 0, flags)
            handle.file.charged = (parent, *owner_of(attributes))
            self._learn_own(handle.file, attributes)
            return attributes, handle
        if not stat.S_ISREG(mode_of(attributes)):
            raise FsError(Fault.EXISTS)
        handle = await self.open(ino, flags)
        return self._now(await self._meta.read(GetAttr(ino))), handle

    async def tmpfile(
        self, parent: Ino, flags: int, mode: int, umask: int, cred: Cred
    ) -> tuple[Attributes, Handle]:
        """open(2) with O_TMPFILE."""
        attributes = await self._propose_name(Tmpfile(parent, mode, umask, cred))
        ino = ino_of(attributes)
        self._orphans.add(ino)
        handle = self._open(ino, 0, flags)
        self._learn_own(handle.file, attributes)
        return attributes, handle

    def handle(self, number: int) -> Handle:
        """Raises BAD_HANDLE."""
        try:
            return self._handles[number]
        except KeyError:
            raise FsError(Fault.BAD_HANDLE, f"file handle {number} is not open") from None

    async def read(self, handle: Handle, offset: int, size: int) -> Bytes:
        """Up to `size` bytes; fewer only at the end of the file."""
        file = handle.file
        if handle.lost is not None:
            handle.require()
        if self.leases is not None:
            if file.taking and handle.reads_cached:
                await self._taken(file)
            if not file.is_current(self.leases.lease(file.ino)):
                await self._be_current(self.leases, file)
        elif file.is_stale:
            await self._look_again(file)
        for _ in range(READS_MAX):  # the door keeps them, and they must not be older than a write
            taken = file.taken
            data = await self.reader.read(file, offset, size)
            if file.taken == taken:
                break
        noted = file.ino in self._atimes and self.access_time is not AccessTime.STRICT
        if not noted and not handle.flags & os.O_NOATIME:
            attributes = file.seen
            if attributes is None:
                attributes = await self._meta.read(GetAttr(file.ino))
            await self._touch(file.ino, attributes, self.access_time)
        return data

    async def write(
        self, handle: Handle, offset: int, data: memoryview, *, drop_privileges: bool = False
    ) -> bool:
        """Write all of `data`.  The reply says whether its memory is kept: then it is ours now."""
        if offset + len(data) > FILE_BYTES_MAX:
            raise FsError(Fault.FILE_TOO_LARGE)
        if self._read_only:
            raise FsError(Fault.READ_ONLY)
        file = handle.file
        if file.refused is not None:
            raise file.refused
        if drop_privileges and not file.drop_privileges:
            await self._drop_privileges(file.ino)
        if self.leases is None:
            if file.is_stale:
                await self._look_again(file)
            kept = await self._write(handle, offset, data, drop_privileges)
        else:
            kept = await self._write_leased(self.leases, handle, offset, data, drop_privileges)
        if self._sync_writes or handle.flags & (os.O_SYNC | os.O_DSYNC):
            # The kernel leaves it to us: it asks for no FSYNC after a direct write.
            await self.fsync(handle)
        return kept

    async def _write(
        self, handle: Handle, offset: int, data: memoryview, drop_privileges: bool
    ) -> bool:
        file = handle.file
        if handle.lost is not None:
            handle.require()
        file.written = True
        kept = await self.writer.write(file, offset, data, drop_privileges)
        if file.unwritten:
            file.writers.add(handle)
        return bool(kept)

    async def _write_leased(
        self,
        leases: LeasedMeta,
        handle: Handle,
        offset: int,
        data: memoryview,
        drop_privileges: bool,
    ) -> bool:
        """Where others write, too: at the end of the file, as it is when the bytes are taken over,
        if it was opened to append.
        """
        file, ino = handle.file, handle.file.ino
        appends = bool(handle.flags & os.O_APPEND)
        size, last, placed = len(data), bytes(data[-1:]), offset

        def end() -> int | None:
            nonlocal placed
            placed = file.size
            return placed if leases.keeps_back(ino) else None

        over: trio.Event | None = None
        try:
            while True:
                if file.is_stale or not leases.keeps_back(ino):
                    if over is None:
                        over = trio.Event()
                        file.taking.add(over)
                    await self._ask_to_keep_back(leases, file)
                size_before = file.size
                if handle.lost is not None:
                    handle.require()
                file.written = True
                taken = await self.writer.write(
                    file, offset, data, drop_privileges, end if appends else None
                )
                if taken is not None:
                    break
        finally:
            if over is not None:
                file.taking.discard(over)
                over.set()
        if file.unwritten:
            file.writers.add(handle)
            if not leases.keeps_back(ino):
                await self.writer.flush(file)
        if not handle.writes_direct:  # the door holds what it has cached of it until we answer
            if placed != offset:
                self.on_lost({ino})
        elif placed != offset or (file.cached_readers and offset + size > size_before):
            file.settling = settling = trio.Event()
            try:
                await leave()
                await self.on_appended(ino, min(offset, placed), placed + size, last)
            finally:
                settling.set()
                if file.settling is settling:
                    file.settling = None
        return taken

    async def _taken(self, file: File) -> None:
        """Wait for those writes that the door has in its cache already: it may have lost them since
        and ask for bytes to keep, and those must not be older.
        """
        await leave()
        for over in list(file.taking):
            await over.wait()

    async def _settled(self, ino: Ino) -> None:
        """Wait until the door may hear how long a file is."""
        file = self._files.get(ino)
        settling = None if file is None else file.settling
        if settling is not None:
            await leave()
            await settling.wait()

    async def flush(self, handle: Handle, owner: int) -> None:
        """close(2) of one descriptor: its process loses its locks; what was written leaves this
        process' memory.
        """
        file = handle.file
        try:
            if file.dirty.runs or file.flight:
                await self.writer.flush(file)
        finally:
            if file.holders:
                await self._unlock(file, POSIX, self.owner(owner))
        _raise_refused(handle)
        handle.require()

    async def release(self, handle: Handle) -> None:
        """The last descriptor of an open(2) is closed."""
        del self._handles[handle.number]
        file = handle.file
        if handle.held:
            try:
                await self._let_others_see(file)
            finally:
                await self._unlock_all(handle)
        handle.close()
        if file.handles:
            return
        if file.unwritten:
            if file.ino in self._orphans:
                self.writer.drop(file)
            else:
                try:
                    await self._flush_closed(file)
                except FsError:
                    if file.unwritten:  # or it is tried again in vain; close(2) was told
                        raise
                if file.handles:  # opened again while we flushed
                    return
        if not file.unwritten and self._files.get(file.ino) is file:
            del self._files[file.ino]
            if file.written and file.ino not in self._orphans and self._retention():
                await self._retain(file.ino)
            if not self._kernel and file.ino in self._orphans:
                await self.forget([file.ino])
                await self.reap()

    async def fsync(self, handle: Handle) -> None:
        """The bytes and the name of a file survive the machine."""
        handle.require()
        await self.writer.flush(handle.file, synced=True)
        _raise_refused(handle)
        handle.require()
        await self._durable()

    async def durable(self) -> None:
        """What was done to names survives the machine."""
        await self._durable()

    async def sync(self) -> None:
        """All of the filesystem survives the machine."""
        await self.flush_all()
        await self._durable()

    async def flush_all(self) -> None:
        """Give all that is dirty to the volumes and the metadata.  Raises the first error, after
        trying all.
        """
        failed: FsError | None = None
        for file in list(self.writer.unwritten):
            try:
                await self.writer.flush(file)
            except FsError as error:
                failed = failed or error
        await self.write_access_times()
        await self.reap()
        if failed is not None:
            raise failed

    async def allocate(
        self, handle: Handle, mode: int, offset: int, length: int, *, drop_privileges: bool = False
    ) -> None:
        """fallocate(2)"""
        handle.require()
        file = handle.file
        await self.writer.flush(file)
        if mode & ~1 == 0 and not self._chunks.has_room(self.writer.dirty_bytes + length):
            raise FsError(Fault.NO_SPACE)
        stop = offset + length
        if stop > FILE_BYTES_MAX:
            raise FsError(Fault.FILE_TOO_LARGE)
        step = RESERVED_BYTES_MAX if mode & ~1 == 0 else length
        while True:
            part = min(step, stop - offset)
            attributes = await self._propose(
                Allocate(file.ino, mode, offset, part, drop_privileges)
            )
            self._changed(file, attributes)
            offset += part
            if offset >= stop:
                return

    async def copy_range(
        self, source: Handle, offset: int, target: Handle, target_offset: int, length: int,
        *, drop_privileges: bool = False,
    ) -> int:  # fmt: skip
        """copy_file_range(2): returns how many bytes were copied, perhaps fewer than asked for."""
        source.require()
        target.require()
        await self.writer.flush(source.file)
        await self.writer.flush(target.file)
        command = CopyRange(
            source.file.ino, offset, target.file.ino, target_offset, length, drop_privileges
        )
        attributes, copied = await self._propose(command)
        self._changed(target.file, attributes)
        return copied

    async def seek(self, handle: Handle, offset: int, whence: int) -> int:
        """lseek(2) with SEEK_DATA or SEEK_HOLE.  Raises PAST_END."""
        handle.require()
        file = handle.file
        await self.writer.flush(file)
        if offset < 0 or offset >= file.size:
            raise FsError(Fault.PAST_END)
        if whence == os.SEEK_HOLE:
            return await self.reader.next_hole(file, offset)
        found = await self.reader.next_data(file, offset)
        if found is None or found >= file.size:
            raise FsError(Fault.PAST_END)
        return found

    # -- locks

    async def test_lock(self, ino: Ino, lock: Lock) -> Lock | None:
        return await self.locks.test(ino, lock)

    async def take_lock(self, handle: Handle, lock: Lock, *, wait: bool) -> None:
        file = handle.file
        handle.require()
        for unlocked in list(self._unlocking.get(file.ino, ())):
            await leave()
            await unlocked.wait()
        while True:
            try:
                await self.locks.take(file.ino, lock, wait=wait)
            except trio.Cancelled:
                file.note_lock(handle, lock)  # it may be held: then it is released by close(2)
                raise
            except FsError as error:
                if error.fault is not Fault.SESSION_ENDED:
                    raise
            else:
                if lock.owner.session == self._meta.session:
                    break
            # With the session everything has ended that was held in it: begin anew in the next one.
            session = await self._meta.session_now()
            handle.require()
            lock = msgspec.structs.replace(lock, owner=Owner(session, lock.owner.number))
        file.note_lock(handle, lock)
        try:
            await self._see_others(file)
        except FsError:
            await self.release_lock(handle, lock.flavor, lock.owner, lock.start, lock.stop)
            raise

    async def release_lock(
        self, handle: Handle, flavor: int, owner: Owner, start: int = 0, stop: int = EOF
    ) -> None:
        try:
            await self._let_others_see(handle.file)
        finally:
            handle.file.note_unlock(flavor, owner, start, stop)
            await self.locks.release(handle.file.ino, flavor, owner, start, stop)

    async def _let_others_see(self, file: File) -> None:
        """Whoever has a lock next sees what was written under it."""
        if self.shared and file.unwritten:
            await self.writer.flush(file)

    async def _see_others(self, file: File) -> None:
        """Whoever gets a lock sees what others have done who had it before.  Who is interrupted
        meanwhile has it all the same, unless it takes long.
        """
        if not self.shared:
            return
        await leave()
        with trio.move_on_after(SETTLE_S, shield=True):
            return await self._look_at_others(file)
        await self._look_at_others(file)

    async def _look_at_others(self, file: File) -> None:
        ask = file.ask()
        attributes = await self._meta.read(GetAttr(file.ino))
        if not self._is_news(file, ask, attributes) or not self._renew(file, attributes):
            await self.drop_cached(file.ino)

    def owner(self, number: int) -> Owner:
        """A lock owner of this mount, as the kernel numbers them."""
        return Owner(self._meta.session, number)

    def seconds_since_write(self, ino: Ino) -> float:
        """How long ago somebody wrote to a file that is open; infinite for others."""
        file = self._files.get(ino)
        return (self._meta.now() - file.mtime) / NS if file is not None else math.inf

    def moved(self, ino: Ino) -> None:
        """Compaction has put the bytes of a file elsewhere."""
        file = self._files.get(ino)
        if file is not None:
            file.forget_layouts()

    # -- retention

    async def _set_retention(self, ino: Ino, name: bytes, value: bytes, cred: Cred) -> None:
        retention, _ = await self._meta.read(Kept(ino))
        command = retention_xattrs.command(ino, name, value, retention, cred)
        await self.write_out(ino)
        await self._propose(command)

    async def write_out(self, ino: Ino) -> None:
        """What was written to a file is in the metadata: what comes later is something else."""
        file = self._files.get(ino)
        if file is not None and file.unwritten:
            await self.writer.flush(file)

    async def _retain(self, ino: Ino) -> None:
        """A file that was written is closed.  close(2) has returned already: who opens it to write,
        or takes a name away, waits.  What fails here is done again when the file was left alone.
        """
        retained = self._retaining[ino] = trio.Event()
        try:
            if await self._meta.read(AtClose(ino)):
                await self._meta.propose(CommitRetention(ino))
        except FsError as error:
            if error.fault is not Fault.STALE:
                log.warning("inode %d gets its retention later: %s", ino, error)
        finally:
            retained.set()
            if self._retaining.get(ino) is retained:
                del self._retaining[ino]

    async def _retained(self, ino: Ino | None = None) -> None:
        """Wait for `_retain` of a file, or of all."""
        if not self._retaining:
            return
        for closed, retained in list(self._retaining.items()):
            if ino in (None, closed):
                await leave()
                await retained.wait()

    def _refused(self, file: File) -> None:
        """What was written to a file was not taken: the door may have it in its cache."""
        self._doubtful.add(file.ino)
        self._known.pop(file.ino, None)
        file.forget_layouts()

    def session_lost(self, session: int) -> None:
        """The session that we had has ended, and there is another one."""
        orphans = {*self._orphans, *self._forgotten}
        self._orphans.clear()
        self._forgotten.clear()
        self.writer.forget_names()
        changed = lose(session, self._handles.values(), orphans, self.writer)
        for ino in changed:
            self._known.pop(ino, None)
        self.on_lost(changed)

    @property
    def lost(self) -> int:
        """How many open files have lost something, and say so."""
        return sum(handle.lost is not None for handle in self._handles.values())

    # -- inside

    async def _propose(self, command: Command[R]) -> R:
        if self._read_only:
            raise FsError(Fault.READ_ONLY)
        try:
            return await self._meta.propose(command)
        except FsError as error:
            if error.fault is not Fault.OVER_QUOTA or not await self._give_back():
                raise
        return await self._meta.propose(command)

    async def _give_back(self) -> bool:
        """Remove what was deleted here and still counts.  Returns whether there was anything.

        The kernel says a moment after the last close that a file is out of use: it is waited for.
        """
        if not self._forgotten and not self._closed_orphans:
            return False
        await leave()
        with trio.move_on_after(FORGET_S):
            while self._closed_orphans:
                self._forgets = self._forgets or trio.Event()
                await self._forgets.wait()
        found = bool(self._forgotten)
        await self.reap()
        return found

    @property
    def _closed_orphans(self) -> bool:
        return any(ino not in self._files for ino in self._orphans)

    async def _propose_name(self, command: Command[R], *, grows: bool = True) -> R:
        """A change of names.  What makes new ones leaves the last of a full disk to those that
        take them away.
        """
        if grows:
            await self._require_room()
        reply = await self._propose(command)
        if self._sync_directories:
            await self._durable()
        return reply

    async def _require_room(self) -> None:
        await self.writer.require_room(0)

    def _open(self, ino: Ino, size: int, flags: int) -> Handle:
        file = self._files.get(ino)
        if file is None:
            file = self._files[ino] = File(ino, size)
        file.handles += 1
        handle = Handle(self._next_handle, file, flags)
        self._next_handle += 1
        self._handles[handle.number] = handle
        return handle

    def _renew(self, file: File, attributes: Attributes) -> bool:
        """Somebody else may have changed a file since we knew it.  Returns whether nobody has."""
        known = self._known.pop(file.ino, None)
        now = _content_of(attributes)
        self._known[file.ino] = now
        if len(self._known) > _KNOWN_MAX:
            del self._known[next(iter(self._known))]
        file.seen = attributes
        file.size = max(size_of(attributes), file.stop)
        if known == now:
            return True
        file.forget_layouts()
        return False

    def _changed(self, file: File, attributes: Attributes) -> None:
        """A command of ours has changed the bytes of a file."""
        file.written = True
        file.acted += 1
        file.size = size_of(attributes)
        file.forget_layouts()
        self._learn_own(file, attributes)

    def _learn_own(self, file: File, attributes: Attributes) -> None:
        """A command of ours has made it, or made it what it is."""
        if self.trusts(attributes):
            self._is_news(file, file.ask(), attributes)
        else:
            file.touched += 1

    def _is_news(self, file: File, ask: Ask, attributes: Attributes) -> bool:
        leases = self.leases
        lease = 0
        if leases is not None and self.trusts(attributes):
            lease = leases.lease(file.ino)
        return file.is_news(ask, lease=lease)

    def _touched(self, items: Sequence[Item]) -> None:
        for item in items:
            file = self._files.get(item.ino)
            if file is not None:
                file.touched += 1

    def _is_unwritten(self, ino: Ino) -> bool:
        file = self._files.get(ino)
        return file is not None and file.unwritten

    async def _be_current(self, leases: LeasedMeta, file: File) -> None:
        """Know what the file is, and be told when it is something else: the kernel keeps what it
        reads.
        """
        for attempt in range(LOOKS_MAX):
            if file.is_current(leases.lease(file.ino)):
                return
            if attempt:
                await leave()
                await trio.sleep(KEEP_BACK_PAUSE_S)
            await self._look_again(file)
        if not file.is_current(leases.lease(file.ino)):
            self.on_lost({file.ino})

    async def _ask_to_keep_back(self, leases: LeasedMeta, file: File) -> None:
        """Know what the file is, and have nobody else look at it or change it until we have given
        away what is written next.
        """
        while True:
            ask = file.ask()
            opened = await leases.keep_back(file.ino)
            if self._is_news(file, ask, opened.attributes):
                self._renew(file, opened.attributes)
            if leases.keeps_back(file.ino) and not file.is_stale:
                return
            await leave()
            await trio.sleep(KEEP_BACK_PAUSE_S)

    async def _look_again(self, file: File) -> None:
        """What others have made of a file that is open here."""
        ask = file.ask()
        opened = await self._meta.read(Opening(file.ino))
        if not self._is_news(file, ask, opened.attributes):
            return
        self._renew(file, opened.attributes)
        if opened.layout is not None and not file.unwritten:
            file.forget_layouts()
            self.reader.know(file, opened.layout)

    def trusts(self, attributes: Attributes) -> bool:
        """Whether the door may believe attributes that it was just given until it is told."""
        leases = self.leases
        return leases is None or leases.attributes(ino_of(attributes)) is attributes

    def trusts_name(self, parent: Ino, name: bytes, child: Ino) -> bool:
        """The same of a name; `child` 0: that it is not there."""
        return self.leases is None or self.leases.child(parent, name) == child

    def _now(self, attributes: Attributes) -> Attributes:
        """Attributes with what has not reached the metadata yet: unwritten bytes, access times."""
        if not (self._atimes or self.writer.unwritten):
            return attributes
        ino = ino_of(attributes)
        file = self._files.get(ino)
        atime = self._atimes.get(ino)
        if atime is None and (file is None or not file.unwritten):
            return attributes
        patched = bytearray(attributes)
        atime_ns, mtime_ns, ctime_ns = _NANOSECONDS.unpack_from(patched, _NANOSECONDS_AT)
        if atime is not None:
            seconds, atime_ns = divmod(atime, NS)
            struct.pack_into("<q", patched, _ATIME_AT, seconds)
        if file is not None and file.unwritten:
            _, blocks = _SIZE_BLOCKS.unpack_from(patched, _SIZE_AT)
            _SIZE_BLOCKS.pack_into(patched, _SIZE_AT, file.size, blocks + _unwritten_blocks(file))
            seconds, mtime_ns = divmod(file.mtime, NS)
            ctime_ns = mtime_ns
            _MTIME_CTIME.pack_into(patched, _MTIME_AT, seconds, seconds)
        _NANOSECONDS.pack_into(patched, _NANOSECONDS_AT, atime_ns, mtime_ns, ctime_ns)
        return Attributes(bytes(patched))

    async def _drop_privileges(self, ino: Ino) -> None:
        """A write takes set-user-ID away at once, not when its bytes are flushed."""
        if mode_of(await self._meta.read(GetAttr(ino))) & (stat.S_ISUID | stat.S_ISGID):
            await self._propose(SetAttr(ino=ino, cred=_CHECKED, drop_privileges=True))

    async def _lost(self, ino: Ino) -> None:
        """An inode has lost its last name."""
        if not ino:
            return
        self._orphans.add(ino)
        if not self._kernel and ino not in self._files:
            await self.forget([ino])
            await self.reap()

    async def _lost_one(self, ino: Ino) -> None:
        """The same of what may be a directory: that the kernel does not believe in any more."""
        if ino and self._kernel:
            self._removed.add(ino)
        await self._lost(ino)

    async def _flush_name(self, parent: Ino, name: bytes, cred: Cred) -> None:
        ino = ino_of(await self._meta.read(Lookup(parent, name, cred)))
        file = self._files.get(ino)
        if file is not None and file.unwritten:
            await self.writer.flush(file)

    async def _unlock_all(self, handle: Handle) -> None:
        """close(2) has not waited for this; who asks for a lock from now on does."""
        ino, unlocked = handle.file.ino, trio.Event()
        self._unlocking.setdefault(ino, set()).add(unlocked)
        try:
            for flavor, owner in {(lock.flavor, lock.owner) for lock in handle.held}:
                await self._unlock(handle.file, flavor, owner)
        finally:
            unlocked.set()
            self._unlocking[ino].discard(unlocked)
            if not self._unlocking[ino]:
                del self._unlocking[ino]

    async def _unlock(self, file: File, flavor: int, owner: Owner) -> None:
        file.note_unlock(flavor, owner)
        await self.locks.release(file.ino, flavor, owner, 0, EOF)

    async def _touch(self, ino: Ino, attributes: Attributes, rule: AccessTime) -> None:
        if self._read_only or rule is AccessTime.NEVER:
            return
        now = self._meta.now()
        seen = unpack_attributes(attributes)
        atime = self._atimes.get(ino, seen.atime_s * NS + seen.atime_ns)
        mtime, ctime = seen.mtime_s * NS + seen.mtime_ns, seen.ctime_s * NS + seen.ctime_ns
        if due(rule, atime, mtime, ctime, now):
            self._atimes[ino] = now
            if len(self._atimes) > _TOUCHES_MAX:
                await self.write_access_times()

    async def _flush_closed(self, file: File) -> None:
        """Flush a file that nobody has open any more.  What a quota refuses is lost: close(2) has
        said so, and it must not wait for ever.
        """
        try:
            await self.writer.flush(file)
        except FsError as error:
            if error.fault is not Fault.OVER_QUOTA or file.handles:
                raise
            log.warning("inode %d: %d bytes are lost: %s", file.ino, file.dirty.bytes, error)
            self.writer.drop(file)

    async def flush_file(self, file: File, *, full_only: bool = False) -> None:
        """Flush a file behind the requests; one that nobody has open any more is let go."""
        if file.handles:
            await self.writer.flush(file, full_only=full_only)
        else:
            await self._flush_closed(file)
        if not file.handles and not file.unwritten and self._files.get(file.ino) is file:
            del self._files[file.ino]

    async def write_access_times(self) -> None:
        if self._atimes:
            times, self._atimes = self._atimes, {}
            await self._meta.propose(Touch(tuple(times.items())))


def _ask(file: File | None) -> Ask:
    return Ask(1, -1, 0) if file is None else file.ask()


def _raise_refused(handle: Handle) -> None:
    """Who wrote what was not taken is told, although that was found out behind its back."""
    writes = handle.flags & os.O_ACCMODE != os.O_RDONLY
    if writes and handle.file.refused is not None:
        raise handle.file.refused


async def _nothing_is_cached(ino: Ino) -> None:
    """By a door that has no cache."""


def _content_of(attributes: Attributes) -> bytes:
    """Size, times of change, and nothing that reading changes."""
    return (
        attributes[_SIZE_AT : _SIZE_AT + 8]
        + attributes[_MTIME_AT : _MTIME_AT + 16]
        + (attributes[_NANOSECONDS_AT + 4 : _NANOSECONDS_AT + 12])
    )


def _unwritten_blocks(file: File) -> int:
    runs = [*file.flight, *file.dirty.runs]
    return sum(-(-run.size // BLOCK_BYTES) for run in runs) * (BLOCK_BYTES // 512)


_CHECKED = Cred(0, 0, (), True)
