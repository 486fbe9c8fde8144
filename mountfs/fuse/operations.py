"""What the kernel asks, translated: a handler for each opcode, none of which decides anything.

The table at the end says which requests there are; every other is answered ENOSYS, and the kernel
does not ask again.
"""

import os
from collections.abc import Callable

from mountfs.errors import Fault, FsError
from mountfs.fuse import wire
from mountfs.fuse.coming import Coming
from mountfs.fuse.device import Handler, Reply, Request
from mountfs.fuse.wire import Opcode
from mountfs.meta.locks import EOF, FLOCK, POSIX, Lock
from mountfs.meta.ops.setattr import SetAttr
from mountfs.meta.records import NS, Attributes, ino_of, nearest_time
from mountfs.types import BLOCK_BYTES, MIB, NAME_BYTES_MAX, Cred, Ino
from mountfs.vfs.access_time import AccessTime
from mountfs.vfs.asking import ASK, groups_of
from mountfs.vfs.filesystem import Filesystem
from mountfs.vfs.handles import Handle
from mountfs.vfs.known import NO_INO

ENTRIES_MAX = 1_024
"""Of a directory, in one answer."""
WRITE_BYTES_MAX = MIB


class Operations:
    def __init__(
        self,
        filesystem: Filesystem,
        *,
        timeouts: wire.Timeouts,
        coming: Coming,
        interrupt: Callable[[int], None],
        initialize: Callable[[Request], Reply],
    ) -> None:
        self._fs = filesystem
        self._leased = filesystem.leases is not None
        self._coming = coming
        self.maps_direct = True
        """Whether the kernel maps files that are read past its cache."""
        self.trust(timeouts)
        self._interrupt = interrupt
        self._initialize = initialize
        self._counts_reads = filesystem.access_time is AccessTime.STRICT
        """Whether each read is to come to us, so that it can be seen: then the kernel may not keep
        what it has read from one open to the next.  (Reads of one open that it has in its cache
        stay unseen, as on every FUSE filesystem.)
        """
        self._counts_listings = filesystem.directory_access_time is AccessTime.STRICT

    @property
    def attr_s(self) -> float:
        return self._timeouts.attr_s

    def trust(self, timeouts: wire.Timeouts) -> None:
        """How long the kernel may believe what we have a lease on; or, where there are none,
        everything.
        """
        self._timeouts = timeouts
        self._untrusted = wire.Timeouts(0, 0)
        self._untrusted_name = wire.Timeouts(0, timeouts.attr_s)
        self._untrusted_attributes = wire.Timeouts(timeouts.entry_s, 0, timeouts.entry_s)

    # -- names

    async def lookup(self, request: Request) -> Reply:
        name = wire.parse_name(request.body)
        try:
            attributes = await self._fs.lookup(Ino(request.nodeid), name, _cred(request))
        except FsError as error:
            if error.fault is not Fault.NOT_FOUND:
                raise
            trusted = self._of_name(request.nodeid, name, NO_INO, None)
            return wire.reply(request.unique, trusted.negative)  # remembered as absent
        return self._entry(request, name, attributes)

    async def forget(self, request: Request) -> Reply:
        inos = [Ino(request.nodeid)]
        self._coming.discard(inos)
        await self._fs.forget(inos)
        return None

    async def batch_forget(self, request: Request) -> Reply:
        inos = [Ino(nodeid) for nodeid, _ in wire.parse_batch_forget(request.body)]
        self._coming.discard(inos)
        await self._fs.forget(inos)
        return None

    async def mknod(self, request: Request) -> Reply:
        asked, name = wire.parse_mknod(request.body)
        attributes = await self._fs.make(
            Ino(request.nodeid), name, asked.mode, asked.umask, asked.rdev, _cred(request)
        )
        return self._made(request, name, attributes)

    async def mkdir(self, request: Request) -> Reply:
        asked, name = wire.parse_mkdir(request.body)
        attributes = await self._fs.mkdir(
            Ino(request.nodeid), name, asked.mode, asked.umask, _cred(request)
        )
        return self._made(request, name, attributes)

    async def symlink(self, request: Request) -> Reply:
        name, target = wire.parse_two_names(request.body)
        attributes = await self._fs.symlink(Ino(request.nodeid), name, target, _cred(request))
        return self._made(request, name, attributes)

    async def readlink(self, request: Request) -> Reply:
        return wire.reply(request.unique, await self._fs.readlink(Ino(request.nodeid)))

    async def link(self, request: Request) -> Reply:
        old, name = wire.parse_link(request.body)
        attributes = await self._fs.link(Ino(old), Ino(request.nodeid), name, _cred(request))
        return self._made(request, name, attributes)

    async def unlink(self, request: Request) -> Reply:
        name = wire.parse_name(request.body)
        await self._fs.unlink(Ino(request.nodeid), name, _cred(request))
        return wire.reply(request.unique)

    async def rmdir(self, request: Request) -> Reply:
        name = wire.parse_name(request.body)
        await self._fs.rmdir(Ino(request.nodeid), name, _cred(request))
        return wire.reply(request.unique)

    async def rename(self, request: Request) -> Reply:
        return await self._rename(request, *wire.parse_rename(request.body), 0)

    async def rename2(self, request: Request) -> Reply:
        new_parent, flags, name, new_name = wire.parse_rename2(request.body)
        return await self._rename(request, new_parent, name, new_name, flags)

    async def _rename(
        self, request: Request, new_parent: int, name: bytes, new_name: bytes, flags: int
    ) -> Reply:
        await self._fs.rename(
            Ino(request.nodeid), name, Ino(new_parent), new_name, flags, _cred(request)
        )
        return wire.reply(request.unique)

    async def readdir(self, request: Request) -> Reply:
        return await self._list(request, plus=False)

    async def readdirplus(self, request: Request) -> Reply:
        return await self._list(request, plus=True)

    async def _list(self, request: Request, *, plus: bool) -> Reply:
        asked = wire.parse_read(request.body)
        smallest = 152 if plus else 32
        limit = min(asked.size // smallest + 1, ENTRIES_MAX)
        listing = await self._fs.readdir(
            Ino(request.nodeid), asked.offset, limit, with_attributes=plus
        )
        parts, room = [], asked.size
        for position, ino, type, name, attributes in listing:
            if plus:
                timeouts = self._timeouts
                if self._leased and attributes:
                    timeouts = self._of_name(request.nodeid, name, Ino(ino), attributes)
                generation = self._fs.generation(attributes) if attributes else 0
                part = wire.direntplus(timeouts, attributes, ino, position, name, type, generation)
            else:
                part = wire.dirent(ino, position, name, type)
            room -= len(part)
            if room < 0:
                break
            parts.append(part)
        return wire.reply(request.unique, b"".join(parts))

    # -- attributes

    async def getattr(self, request: Request) -> Reply:
        attributes = await self._fs.getattr(Ino(request.nodeid))
        return wire.reply(request.unique, self._of(attributes).attr + attributes)

    async def statx(self, request: Request) -> Reply:
        ino = Ino(request.nodeid)
        attributes = await self._fs.getattr(ino)
        birth = await self._fs.birth(ino)
        return wire.reply(request.unique, wire.statx_out(self._of(attributes), attributes, birth))

    async def setattr(self, request: Request) -> Reply:
        asked = wire.parse_setattr(request.body)
        valid = asked.valid
        change = SetAttr(
            ino=Ino(request.nodeid),
            cred=_cred(request),
            mode=asked.mode if valid & wire.FATTR_MODE else None,
            uid=asked.uid if valid & wire.FATTR_UID else None,
            gid=asked.gid if valid & wire.FATTR_GID else None,
            size=asked.size if valid & wire.FATTR_SIZE else None,
            atime=_time(
                valid, wire.FATTR_ATIME, wire.FATTR_ATIME_NOW, asked.atime, asked.atimensec
            ),
            mtime=_time(
                valid, wire.FATTR_MTIME, wire.FATTR_MTIME_NOW, asked.mtime, asked.mtimensec
            ),
            atime_now=bool(valid & wire.FATTR_ATIME_NOW),
            mtime_now=bool(valid & wire.FATTR_MTIME_NOW),
            drop_privileges=bool(valid & wire.FATTR_KILL_SUIDGID),
        )
        attributes = await self._fs.setattr(change)
        # Who has asked takes them over when he is woken, also after he was to forget them.
        timeouts = self._untrusted if self._leased else self._timeouts
        return wire.reply(request.unique, timeouts.attr + attributes)

    async def statfs(self, request: Request) -> Reply:
        total, free, inodes, free_inodes = await self._fs.statfs(Ino(request.nodeid))
        return wire.reply(
            request.unique,
            wire.statfs_out(
                blocks=total // BLOCK_BYTES,
                bfree=free // BLOCK_BYTES,
                bavail=free // BLOCK_BYTES,
                files=inodes + free_inodes,
                ffree=free_inodes,
                bsize=BLOCK_BYTES,
                namelen=NAME_BYTES_MAX,
                frsize=BLOCK_BYTES,
            ),
        )

    async def access(self, request: Request) -> Reply:
        raise FsError(Fault.NOT_IMPLEMENTED)  # the kernel decides; it does not ask again

    async def setxattr(self, request: Request) -> Reply:
        asked, name, value = wire.parse_setxattr(request.body)
        drop_sgid = bool(asked.setxattr_flags & wire.SETXATTR_ACL_KILL_SGID)
        await self._fs.setxattr(
            Ino(request.nodeid), name, value, asked.flags, drop_sgid, _cred(request)
        )
        return wire.reply(request.unique)

    async def removexattr(self, request: Request) -> Reply:
        name = wire.parse_name(request.body)
        await self._fs.removexattr(Ino(request.nodeid), name, _cred(request))
        return wire.reply(request.unique)

    async def getxattr(self, request: Request) -> Reply:
        size, name = wire.parse_getxattr(request.body)
        return _sized(request, size, await self._fs.getxattr(Ino(request.nodeid), name))

    async def listxattr(self, request: Request) -> Reply:
        size = wire.parse_listxattr(request.body)
        names = await self._fs.listxattr(Ino(request.nodeid))
        if request.uid != 0:  # xattr(7): trusted attributes are invisible to ordinary processes
            names = tuple(name for name in names if not name.startswith(b"trusted."))
        return _sized(request, size, b"".join(name + b"\0" for name in names))

    # -- open files

    async def open(self, request: Request) -> Reply:
        asked = wire.parse_open(request.body)
        drop = bool(asked.open_flags & wire.OPEN_KILL_SUIDGID)
        handle = await self._fs.open(Ino(request.nodeid), asked.flags, drop_privileges=drop)
        return wire.reply(request.unique, wire.open_out(handle.number, self._open_flags(handle)))

    async def create(self, request: Request) -> Reply:
        asked, name = wire.parse_create(request.body)
        attributes, handle = await self._fs.create(
            Ino(request.nodeid), name, asked.flags, asked.mode, asked.umask, _cred(request)
        )
        return self._created(request, name, attributes, handle)

    async def tmpfile(self, request: Request) -> Reply:
        asked, name = wire.parse_create(request.body)
        attributes, handle = await self._fs.tmpfile(
            Ino(request.nodeid), asked.flags, asked.mode, asked.umask, _cred(request)
        )
        return self._created(request, name, attributes, handle)

    async def read(self, request: Request) -> Reply:
        asked = wire.parse_read(request.body)
        data = await self._fs.read(self._fs.handle(asked.fh), asked.offset, asked.size)
        if type(data) is memoryview:
            request.spent = data.obj
        return wire.reply_parts(request.unique, data)

    async def write(self, request: Request) -> Reply:
        asked, data = wire.parse_write(request.body)
        drop = bool(asked.write_flags & wire.WRITE_KILL_SUIDGID)
        handle = self._fs.handle(asked.fh)
        request.kept = await self._fs.write(handle, asked.offset, data, drop_privileges=drop)
        return wire.reply(request.unique, wire.write_out(len(data)))

    async def flush(self, request: Request) -> Reply:
        asked = wire.parse_flush(request.body)
        await self._fs.flush(self._fs.handle(asked.fh), asked.lock_owner)
        return wire.reply(request.unique)

    async def release(self, request: Request) -> Reply:
        asked = wire.parse_release(request.body)
        await self._fs.release(self._fs.handle(asked.fh))
        return wire.reply(request.unique)

    async def fsync(self, request: Request) -> Reply:
        asked = wire.parse_fsync(request.body)
        await self._fs.fsync(self._fs.handle(asked.fh))
        return wire.reply(request.unique)

    async def fsyncdir(self, request: Request) -> Reply:
        await self._fs.durable()
        return wire.reply(request.unique)

    async def syncfs(self, request: Request) -> Reply:
        await self._fs.sync()
        return wire.reply(request.unique)

    async def fallocate(self, request: Request) -> Reply:
        asked = wire.parse_fallocate(request.body)
        handle = self._fs.handle(asked.fh)
        await self._fs.allocate(handle, asked.mode, asked.offset, asked.length)
        return wire.reply(request.unique)

    async def copy_file_range(self, request: Request) -> Reply:
        return wire.reply(request.unique, wire.write_out(await self._copy(request)))

    async def copy_file_range_64(self, request: Request) -> Reply:
        return wire.reply(request.unique, wire.copy_file_range_out(await self._copy(request)))

    async def _copy(self, request: Request) -> int:
        asked = wire.parse_copy_file_range(request.body)
        source, target = self._fs.handle(asked.fh_in), self._fs.handle(asked.fh_out)
        return await self._fs.copy_range(source, asked.off_in, target, asked.off_out, asked.len)

    async def lseek(self, request: Request) -> Reply:
        asked = wire.parse_lseek(request.body)
        found = await self._fs.seek(self._fs.handle(asked.fh), asked.offset, asked.whence)
        return wire.reply(request.unique, wire.lseek_out(found))

    async def ioctl(self, request: Request) -> Reply:
        asked, question = wire.parse_ioctl(request.body)
        if asked.cmd != ASK:
            raise FsError(Fault.NOT_IMPLEMENTED)  # the program hears ENOTTY
        cred = Cred(request.uid, request.gid, groups_of(request.pid))
        question = question.partition(b"\0")[0]
        answer = await self._fs.trash.answer(Ino(request.nodeid), cred, question) + b"\0"
        if len(answer) > asked.out_size:
            raise FsError(Fault.TOO_BIG)
        return wire.reply(request.unique, wire.ioctl_out(answer))

    async def opendir(self, request: Request) -> Reply:
        # Positions need no state, so there is nothing to open: the kernel does without from now on,
        # and caches listings as if FOPEN_KEEP_CACHE and FOPEN_CACHE_DIR had been answered.
        if not self._counts_listings and (self._leased or not self._fs.shared):
            raise FsError(Fault.NOT_IMPLEMENTED)
        return wire.reply(request.unique, wire.open_out(0, 0))

    async def releasedir(self, request: Request) -> Reply:
        return wire.reply(request.unique)

    # -- locks

    async def getlk(self, request: Request) -> Reply:
        asked = wire.parse_lk(request.body)
        found = await self._fs.test_lock(Ino(request.nodeid), self._lock(asked))
        if found is None:
            return wire.reply(request.unique, wire.lk_out(0, 0, wire.F_UNLCK, 0))
        kind = wire.F_WRLCK if found.exclusive else wire.F_RDLCK
        return wire.reply(request.unique, wire.lk_out(found.start, found.stop - 1, kind, found.pid))

    async def setlk(self, request: Request) -> Reply:
        return await self._set_lock(request, wait=False)

    async def setlkw(self, request: Request) -> Reply:
        return await self._set_lock(request, wait=True)

    async def _set_lock(self, request: Request, *, wait: bool) -> Reply:
        asked = wire.parse_lk(request.body)
        lock = self._lock(asked)
        handle = self._fs.handle(asked.fh)
        if asked.type == wire.F_UNLCK:
            await self._fs.release_lock(handle, lock.flavor, lock.owner, lock.start, lock.stop)
        else:
            await self._fs.take_lock(handle, lock, wait=wait)
        return wire.reply(request.unique)

    def _lock(self, asked: wire.LkIn) -> Lock:
        flavor = FLOCK if asked.lk_flags & wire.LK_FLOCK else POSIX
        stop = min(asked.end + 1, EOF)
        exclusive = asked.type == wire.F_WRLCK
        return Lock(flavor, self._fs.owner(asked.owner), asked.start, stop, exclusive, asked.pid)

    # -- the connection

    async def init(self, request: Request) -> Reply:
        return self._initialize(request)

    async def destroy(self, request: Request) -> Reply:
        return wire.reply(request.unique)

    async def interrupt(self, request: Request) -> Reply:
        self._interrupt(wire.parse_interrupt(request.body))
        return None

    def _entry(self, request: Request, name: bytes, attributes: Attributes) -> Reply:
        ino = ino_of(attributes)
        timeouts = self._of_name(request.nodeid, name, ino, attributes)
        generation = self._fs.generation(attributes)
        return wire.reply(request.unique, wire.entry_out(timeouts, attributes, ino, generation))

    def _made(self, request: Request, name: bytes, attributes: Attributes) -> Reply:
        ino = ino_of(attributes)
        timeouts = self._of_new(request.nodeid, name, ino)
        generation = self._fs.generation(attributes)
        return wire.reply(request.unique, wire.entry_out(timeouts, attributes, ino, generation))

    def _created(
        self, request: Request, name: bytes, attributes: Attributes, handle: Handle
    ) -> Reply:
        ino = ino_of(attributes)
        timeouts = self._of_new(request.nodeid, name, ino)
        entry = wire.entry_out(timeouts, attributes, ino)
        opened = wire.open_out(handle.number, self._open_flags(handle))
        return wire.reply(request.unique, entry + opened)

    def _of(self, attributes: Attributes) -> wire.Timeouts:
        """How long the kernel may believe attributes."""
        if not self._leased or self._fs.trusts(attributes):
            return self._timeouts
        return self._untrusted

    def _of_name(
        self, parent: int, name: bytes, child: Ino, attributes: Attributes | None
    ) -> wire.Timeouts:
        """The same of a name, and of what it stands for."""
        if not self._leased:
            return self._timeouts
        named = self._fs.trusts_name(Ino(parent), name, child)
        if attributes is None or self._fs.trusts(attributes):
            if child != NO_INO:
                self._coming.add(child)
            return self._timeouts if named else self._untrusted_name
        return self._untrusted_attributes if named else self._untrusted

    def _of_new(self, parent: int, name: bytes, child: Ino) -> wire.Timeouts:
        """The same of a name that was just made.  Whoever has asked takes the attributes over when
        he is woken, and the kernel does not look whether it was to forget them meanwhile.
        """
        if not self._leased:
            return self._timeouts
        named = self._fs.trusts_name(Ino(parent), name, child)
        return self._untrusted_attributes if named else self._untrusted

    def _open_flags(self, handle: Handle) -> int:
        """KEEP_CACHE: nobody has changed the file but through this kernel, so what it has cached is
        right.

        DIRECT_IO for who only writes: the bytes go straight to us instead of through the page
        cache, and the kernel does not ask for `security.capability` before the first write.  It
        still drops what it has cached of that range, but too late for who reads meanwhile: he would
        see the new size, and zeros.  So those who read while others write so read past the cache,
        too, and those who write while others read from the cache write through it.  Not where other
        mounts write: they would hear later of the bytes than who reads from the cache.  There we
        have the kernel forget the end of the file before it hears of the new one.
        """
        keep = wire.FOPEN_KEEP_CACHE if handle.unchanged else 0
        file = handle.file
        if handle.flags & os.O_ACCMODE == os.O_WRONLY:
            if file.cached_readers and not self._leased:
                return keep
            handle.write_direct()
            return wire.FOPEN_DIRECT_IO | keep | wire.FOPEN_PARALLEL_DIRECT_WRITES
        if file.direct_writers and self.maps_direct:
            return wire.FOPEN_DIRECT_IO | keep
        handle.read_cached()
        return 0 if self._counts_reads else keep

    def table(self) -> dict[int, Handler]:
        """Opcode → handler."""
        return {opcode: getattr(self, opcode.name.lower()) for opcode in _OPCODES}


_OPCODES = (
    Opcode.LOOKUP, Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.GETATTR, Opcode.SETATTR,
    Opcode.READLINK, Opcode.SYMLINK, Opcode.MKNOD, Opcode.MKDIR, Opcode.UNLINK, Opcode.RMDIR,
    Opcode.RENAME, Opcode.RENAME2, Opcode.LINK, Opcode.OPEN, Opcode.READ, Opcode.WRITE,
    Opcode.STATFS, Opcode.RELEASE, Opcode.FSYNC, Opcode.SETXATTR, Opcode.GETXATTR,
    Opcode.LISTXATTR, Opcode.REMOVEXATTR, Opcode.FLUSH, Opcode.INIT, Opcode.OPENDIR,
    Opcode.RELEASEDIR, Opcode.READDIR, Opcode.READDIRPLUS, Opcode.FSYNCDIR, Opcode.GETLK,
    Opcode.SETLK, Opcode.SETLKW, Opcode.ACCESS, Opcode.CREATE, Opcode.TMPFILE, Opcode.INTERRUPT,
    Opcode.DESTROY, Opcode.FALLOCATE, Opcode.LSEEK, Opcode.COPY_FILE_RANGE,
    Opcode.COPY_FILE_RANGE_64, Opcode.SYNCFS, Opcode.STATX, Opcode.IOCTL,
)  # fmt: skip


def _cred(request: Request) -> Cred:
    return Cred(request.uid, request.gid, (), True)


def _time(valid: int, given: int, now: int, seconds: int, nanoseconds: int) -> int | None:
    if not valid & given or valid & now:
        return None
    return nearest_time(seconds * NS + nanoseconds)


def _sized(request: Request, size: int, value: bytes) -> Reply:
    """The protocol of getxattr(2): size 0 asks for the size."""
    if size == 0:
        return wire.reply(request.unique, wire.getxattr_out(len(value)))
    if len(value) > size:
        raise FsError(Fault.TOO_SMALL)
    return wire.reply(request.unique, value)
