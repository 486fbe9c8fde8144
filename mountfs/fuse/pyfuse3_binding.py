"""The portable binding: the same filesystem through pyfuse3 and libfuse (`-o binding=pyfuse3`).

It mounts as the native binding does and gives the connection to libfuse, which speaks the protocol.
A handler is a translation and decides nothing.

What pyfuse3 cannot carry, and what a program gets then:

- `fallocate`, `O_TMPFILE`: ENOSYS to the kernel, EOPNOTSUPP to the program.
- `lseek` with SEEK_HOLE and SEEK_DATA: to the kernel a file is one run of data up to its end.
- `copy_file_range`: the kernel copies the bytes through its page cache; nothing is shared.
- Locks: no request reaches us, the kernel keeps `fcntl` and `flock` locks for this mount alone.
- `statx`: no birth time, `struct stat` of Linux has none.
- Set-user-ID and set-group-ID that a change takes away: the kernel sees to it, at the price of a
  look for `security.capability` before a write.  It does not where open(2) truncates; there we take
  them from what everybody but root opens, as we do not learn who has CAP_FSETID.
- Set-group-ID when an ACL is set: the kernel's flag is not passed on, so we look for the caller's
  groups in /proc.
- `setxattr` with XATTR_CREATE and XATTR_REPLACE: pyfuse3 asks for the attribute first.
- The umask where the directory has a default ACL: right when root mounts; when fusermount3 does,
  the kernel has applied the umask already and the default ACL can only take more away.
- `ioctl`: only root and who owns the mount undelete something (over the control socket).
- What would only save requests or time (cached listings, `max_background`, `poll_us`, direct
  writes): not there, and it is slower for that.

pyfuse3 keeps its session in global variables: one mount in a process.
"""

import contextlib
import errno
import functools
import importlib
import logging
import os
import stat
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from time import perf_counter_ns
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import trio

from mountfs.errors import Fault, FsError
from mountfs.fuse import mount as mounting
from mountfs.fuse.binding import Binding
from mountfs.fuse.device import Counts
from mountfs.fuse.mount import StrPath
from mountfs.fuse.operations import ENTRIES_MAX
from mountfs.fuse.options import MountOptions
from mountfs.meta import acl
from mountfs.meta.ops.setattr import SetAttr
from mountfs.meta.ops.undelete import Name
from mountfs.meta.records import NS, Attributes, ino_of, nearest_time, unpack_attributes
from mountfs.types import BLOCK_BYTES, KIB, NAME_BYTES_MAX, ROOT, Cred, Ino
from mountfs.vfs.access_time import AccessTime
from mountfs.vfs.filesystem import Filesystem

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

Context = Any
"""pyfuse3.RequestContext: uid, gid, pid, umask of the caller."""
Entry = Any
"""pyfuse3.EntryAttributes"""
FileInfo = Any
"""pyfuse3.FileInfo"""

MS_POSIXACL: Final = 1 << 16
"""Of mount(2): the umask is left to the filesystem.  pyfuse3 does not say so at INIT."""
_FIRST_ENTRIES: Final = 32
"""The smallest answer to READDIRPLUS holds about so many.  How large it may be is not told."""
_INSTALL: Final = (
    "install it with: pip install 'mountfs[pyfuse3]' "
    "(it is compiled; on Debian and Ubuntu first: "
    "apt install gcc pkg-config python3-dev libfuse3-dev), or mount without binding=pyfuse3"
)


@contextlib.contextmanager
def pyfuse3_binding(
    filesystem: Filesystem, mountpoint: StrPath, source: StrPath, options: MountOptions
) -> Iterator[Binding]:
    """Mount on `mountpoint`; at the end close the connection, and unmount if nobody else has.

    `source` is what the mount table shows, the home.  Raises what `mount.mount` raises, and
    NOT_IMPLEMENTED if there is no pyfuse3; then nothing is mounted.
    """
    pyfuse3 = _load()
    binding = Pyfuse3Binding(pyfuse3, filesystem, os.fspath(mountpoint), options)
    fd = mounting.mount(
        mountpoint, source, replace(options, ms_flags=options.ms_flags | MS_POSIXACL)
    )
    try:
        with _session(pyfuse3, binding.handlers, fd, debug=options.debug):
            yield binding
    finally:
        if mounting.find_mount(mountpoint, source=source) is not None:
            mounting.unmount(mountpoint, lazy=True)


def _load() -> Any:
    try:
        return importlib.import_module("pyfuse3")
    except ImportError as error:
        raise FsError(
            Fault.NOT_IMPLEMENTED, f"binding=pyfuse3 needs pyfuse3 ({error}); {_INSTALL}"
        ) from None


@contextlib.contextmanager
def _session(pyfuse3: Any, handlers: "Handlers", fd: int, *, debug: bool) -> Iterator[None]:
    """libfuse on a connection that is mounted already.  Closes `fd` at the end."""
    global _in_session
    assert not _in_session, "pyfuse3 holds one mount in a process"
    _in_session = True
    try:
        try:
            # libfuse takes an answer of "not yet" for a failure of the whole connection.
            os.set_blocking(fd, True)
            pyfuse3.init(handlers, f"/dev/fd/{fd}", {"debug"} if debug else set())
        except BaseException:
            os.close(fd)
            raise
        try:
            yield
        finally:
            pyfuse3.close(unmount=False)
    finally:
        _in_session = False


_in_session = False


class Pyfuse3Binding:
    """Use `pyfuse3_binding`."""

    def __init__(
        self, pyfuse3: Any, filesystem: Filesystem, mountpoint: str, options: MountOptions
    ) -> None:
        self.initialized = trio.Event()
        self.readahead_kib = options.readahead_bytes // KIB
        self.handlers = Handlers(
            pyfuse3,
            filesystem,
            entry_timeout_s=options.timeouts(shared=filesystem.shared)[0],
            attr_timeout_s=options.timeouts(shared=filesystem.shared)[1],
            initialized=self.initialized,
        )
        self._pyfuse3 = pyfuse3
        self._filesystem = filesystem
        self._mountpoint = mountpoint
        filesystem.trash.on_names = self._names_came

    async def _names_came(self, names: Sequence[Name]) -> None:
        """The kernel is not to remember that they are absent, nor what their directories were."""
        for directory in {directory for directory, _ in names}:
            with contextlib.suppress(OSError):  # it does not know it
                self._pyfuse3.invalidate_inode(directory, attr_only=True)
        for directory, name in names:
            self._pyfuse3.invalidate_entry_async(directory, name, ignore_enoent=True)

    async def serve(self) -> None:
        await self._pyfuse3.main()

    def status(self) -> dict[str, Any]:
        return {
            "mountpoint": self._mountpoint,
            "binding": "pyfuse3",
            "pyfuse3": self._pyfuse3.__version__,
            "bugs": self.handlers.bugs,
        }

    def stats(self) -> dict[str, Any]:
        """Counters since the mount, as those of the native binding."""
        writer = self._filesystem.writer
        return {
            "operations": {
                name: {
                    "calls": counts.calls,
                    "errors": counts.errors,
                    "total_ns": counts.total_ns,
                    "slowest_ns": counts.slowest_ns,
                }
                for name, counts in sorted(self.handlers.counts.items())
            },
            "dirty_bytes": writer.dirty_bytes,
            "unwritten_files": len(writer.unwritten),
            "cpu_s": sum(os.times()[:2]),
        }


def _answers(
    handler: Callable[Concatenate["Handlers", P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate["Handlers", P], Coroutine[Any, Any, R]]:
    """A handler whose failures become errnos, the one exception that pyfuse3 expects."""
    name = handler.__name__

    @functools.wraps(handler)
    async def counted(self: "Handlers", /, *args: P.args, **kwargs: P.kwargs) -> R:
        counts = self.counts.get(name)
        if counts is None:
            counts = self.counts[name] = Counts()
        begun = perf_counter_ns()
        try:
            return await handler(self, *args, **kwargs)
        except Exception as error:
            counts.errors += 1
            raise self.fuse_error(self.failed(name, error)) from None
        finally:
            took = perf_counter_ns() - begun
            counts.calls += 1
            counts.total_ns += took
            counts.slowest_ns = max(counts.slowest_ns, took)

    return counted


class Handlers:
    """What pyfuse3 calls, by the names and parameters of `pyfuse3.Operations`.

    It is not derived from that class, so that it can be defined where pyfuse3 is not installed.
    """

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = True

    def __init__(
        self,
        pyfuse3: Any,
        filesystem: Filesystem,
        *,
        entry_timeout_s: float,
        attr_timeout_s: float,
        initialized: trio.Event,
    ) -> None:
        self.counts: dict[str, Counts] = {}
        """By handler."""
        self.bugs = 0
        """Requests that ended in an exception that should not be: answered EIO, and logged."""
        self.fuse_error: Callable[[int], Exception] = pyfuse3.FUSEError
        self._pyfuse3 = pyfuse3
        self._fs = filesystem
        self._entry_timeout_s = entry_timeout_s
        self._attr_timeout_s = attr_timeout_s
        self._initialized = initialized
        self._lookups: dict[int, int] = {ROOT: 1}
        """Inode -> how often the kernel was told of it and has not forgotten it.  Only those that
        it has in its cache.
        """

    def init(self) -> None:
        self._initialized.set()

    def failed(self, name: str, error: Exception) -> int:
        """The errno of a failure; what concerns the operator is logged."""
        if isinstance(error, FsError):
            if error.fault in (Fault.CORRUPT, Fault.DEVICE):
                log.error("%s: %s", name, error)
            return error.fault.value.errno
        self.bugs += 1
        log.error("bug in %s: please report it", name, exc_info=error)
        return errno.EIO

    # -- names

    @_answers
    async def lookup(self, parent: int, name: bytes, ctx: Context) -> Entry:
        try:
            attributes = await self._fs.lookup(Ino(parent), name, _cred(ctx))
        except FsError as error:
            if error.fault is not Fault.NOT_FOUND:
                raise
            return self._absent()
        return self._looked_up(attributes)

    async def forget(self, forgotten: Sequence[tuple[int, int]]) -> None:
        """Has no answer, so a failure must end here."""
        gone = []
        for inode, times in forgotten:
            left = self._lookups.pop(inode, 0) - times
            if left > 0:
                self._lookups[inode] = left
            else:
                gone.append(Ino(inode))
        try:
            await self._fs.forget(gone)
        except Exception as error:
            self.failed("forget", error)

    @_answers
    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, ctx: Context) -> Entry:
        attributes = await self._fs.make(Ino(parent), name, mode, ctx.umask, rdev, _cred(ctx))
        return self._looked_up(attributes)

    @_answers
    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: Context) -> Entry:
        attributes = await self._fs.mkdir(
            Ino(parent), name, stat.S_IMODE(mode), ctx.umask, _cred(ctx)
        )
        return self._looked_up(attributes)

    @_answers
    async def symlink(self, parent: int, name: bytes, target: bytes, ctx: Context) -> Entry:
        return self._looked_up(await self._fs.symlink(Ino(parent), name, target, _cred(ctx)))

    @_answers
    async def readlink(self, inode: int, ctx: Context) -> bytes:
        return await self._fs.readlink(Ino(inode))

    @_answers
    async def link(self, inode: int, parent: int, name: bytes, ctx: Context) -> Entry:
        return self._looked_up(await self._fs.link(Ino(inode), Ino(parent), name, _cred(ctx)))

    @_answers
    async def unlink(self, parent: int, name: bytes, ctx: Context) -> None:
        await self._fs.unlink(Ino(parent), name, _cred(ctx))

    @_answers
    async def rmdir(self, parent: int, name: bytes, ctx: Context) -> None:
        await self._fs.rmdir(Ino(parent), name, _cred(ctx))

    @_answers
    async def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, ctx: Context
    ) -> None:
        await self._fs.rename(Ino(parent), name, Ino(new_parent), new_name, flags, _cred(ctx))

    @_answers
    async def opendir(self, inode: int, ctx: Context) -> int:
        """A position needs no state; but a listing is asked for by handle, so that is the inode."""
        return inode

    @_answers
    async def readdir(self, inode: int, after: int, token: Any) -> None:
        """The answer is full when pyfuse3 says so; what went into it counts as looked up."""
        told: list[Ino] = []
        limit = _FIRST_ENTRIES
        room = True
        while room:
            listing = await self._fs.readdir(Ino(inode), after, limit, with_attributes=True)
            for position, ino, type, name, attributes in listing:
                entry = self._entry(attributes) if attributes else self._nameless(ino, type)
                room = self._pyfuse3.readdir_reply(token, name, entry, position)
                if not room:
                    break
                if attributes:  # not "." and "..", which the kernel does not look up
                    told.append(ino)
                after = position
            if len(listing) < limit:
                break
            limit = min(2 * limit, ENTRIES_MAX)
        for ino in told:  # only now: if we fail, the kernel gets none of them
            self._lookups[ino] = self._lookups.get(ino, 0) + 1

    @_answers
    async def releasedir(self, inode: int) -> None:
        pass

    @_answers
    async def fsyncdir(self, inode: int, datasync: bool) -> None:
        await self._fs.durable()

    # -- attributes

    @_answers
    async def getattr(self, inode: int, ctx: Context) -> Entry:
        return self._entry(await self._fs.getattr(Ino(inode)))

    @_answers
    async def setattr(
        self, inode: int, asked: Entry, fields: Any, handle: int | None, ctx: Context
    ) -> Entry:
        change = SetAttr(
            ino=Ino(inode),
            cred=_cred(ctx),
            mode=asked.st_mode if fields.update_mode else None,
            uid=asked.st_uid if fields.update_uid else None,
            gid=asked.st_gid if fields.update_gid else None,
            size=asked.st_size if fields.update_size else None,
            atime=nearest_time(asked.st_atime_ns) if fields.update_atime else None,
            mtime=nearest_time(asked.st_mtime_ns) if fields.update_mtime else None,
        )
        return self._entry(await self._fs.setattr(change))

    @_answers
    async def statfs(self, ctx: Context) -> Any:
        total, free, inodes, free_inodes = await self._fs.statfs()  # pyfuse3 does not say of what
        answer = self._pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = BLOCK_BYTES
        answer.f_blocks = total // BLOCK_BYTES
        answer.f_bfree = answer.f_bavail = free // BLOCK_BYTES
        answer.f_files = inodes + free_inodes
        answer.f_ffree = answer.f_favail = free_inodes
        answer.f_namemax = NAME_BYTES_MAX
        return answer

    @_answers
    async def access(self, inode: int, mode: int, ctx: Context) -> bool:
        raise FsError(Fault.NOT_IMPLEMENTED)  # the kernel decides; it does not ask again

    @_answers
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Context) -> None:
        drop_sgid = name == acl.ACCESS and await self._is_outside_group(Ino(inode), ctx)
        await self._fs.setxattr(Ino(inode), name, value, 0, drop_sgid, _cred(ctx))

    @_answers
    async def removexattr(self, inode: int, name: bytes, ctx: Context) -> None:
        await self._fs.removexattr(Ino(inode), name, _cred(ctx))

    @_answers
    async def getxattr(self, inode: int, name: bytes, ctx: Context) -> bytes:
        return await self._fs.getxattr(Ino(inode), name)

    @_answers
    async def listxattr(self, inode: int, ctx: Context) -> Sequence[bytes]:
        names = await self._fs.listxattr(Ino(inode))
        if ctx.uid != 0:  # xattr(7): trusted attributes are invisible to ordinary processes
            names = tuple(name for name in names if not name.startswith(b"trusted."))
        return names

    # -- open files

    @_answers
    async def open(self, inode: int, flags: int, ctx: Context) -> FileInfo:
        handle = await self._fs.open(Ino(inode), flags, drop_privileges=ctx.uid != 0)
        return self._opened(handle.number)

    @_answers
    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: Context
    ) -> tuple[FileInfo, Entry]:
        attributes, handle = await self._fs.create(
            Ino(parent), name, flags, mode, ctx.umask, _cred(ctx)
        )
        return self._opened(handle.number), self._looked_up(attributes)

    @_answers
    async def read(self, handle: int, offset: int, size: int) -> Any:
        return await self._fs.read(self._fs.handle(handle), offset, size)

    @_answers
    async def write(self, handle: int, offset: int, data: bytes) -> int:
        await self._fs.write(self._fs.handle(handle), offset, memoryview(data))
        return len(data)

    @_answers
    async def flush(self, handle: int) -> None:
        await self._fs.flush(self._fs.handle(handle), 0)  # nobody has locks to lose

    @_answers
    async def release(self, handle: int) -> None:
        await self._fs.release(self._fs.handle(handle))

    @_answers
    async def fsync(self, handle: int, datasync: bool) -> None:
        await self._fs.fsync(self._fs.handle(handle))

    @_answers
    async def poll(self, inode: int, handle: int, poll_handle: Any, ctx: Context) -> int:
        raise FsError(Fault.NOT_IMPLEMENTED)  # files are always ready; it does not ask again

    # -- what pyfuse3 wants to have

    def _looked_up(self, attributes: Attributes) -> Entry:
        ino = ino_of(attributes)
        self._lookups[ino] = self._lookups.get(ino, 0) + 1
        return self._entry(attributes)

    def _entry(self, attributes: Attributes) -> Entry:
        known = unpack_attributes(attributes)
        entry = self._pyfuse3.EntryAttributes()
        entry.entry_timeout = self._entry_timeout_s
        entry.attr_timeout = self._attr_timeout_s
        entry.generation = self._fs.generation(attributes)
        entry.st_ino = known.ino
        entry.st_mode = known.mode
        entry.st_nlink = known.nlink
        entry.st_uid = known.uid
        entry.st_gid = known.gid
        entry.st_rdev = known.rdev
        entry.st_size = known.size
        entry.st_blocks = known.blocks
        entry.st_blksize = known.blksize
        entry.st_atime_ns = known.atime_s * NS + known.atime_ns
        entry.st_mtime_ns = known.mtime_s * NS + known.mtime_ns
        entry.st_ctime_ns = known.ctime_s * NS + known.ctime_ns
        return entry

    def _absent(self) -> Entry:
        """That there is no such name, which the kernel may remember."""
        entry = self._pyfuse3.EntryAttributes()
        entry.st_ino = 0
        entry.entry_timeout = self._entry_timeout_s
        return entry

    def _nameless(self, ino: int, type: int) -> Entry:
        """ "." or "..": all that the kernel looks at is the number and the type."""
        entry = self._pyfuse3.EntryAttributes()
        entry.st_ino = ino
        entry.st_mode = type << 12
        return entry

    def _opened(self, number: int) -> FileInfo:
        """All changes come through this kernel, so what it has cached is right.

        Not direct_io, as the native binding does for those who only write: then the kernel would
        not take set-user-ID away any more.
        """
        seen = self._fs.access_time is AccessTime.STRICT  # as in the native binding
        return self._pyfuse3.FileInfo(fh=number, keep_cache=not seen)

    async def _is_outside_group(self, ino: Ino, ctx: Context) -> bool:
        """Whether the caller may not keep set-group-ID of a file, as chmod(2) decides it."""
        if ctx.uid == 0:
            return False
        gid = unpack_attributes(await self._fs.getattr(ino)).gid
        if gid == ctx.gid:
            return False
        try:
            groups: set[int] = self._pyfuse3.get_sup_groups(ctx.pid)
        except (OSError, RuntimeError):  # of another pid namespace, or gone
            return True
        return gid not in groups


def _cred(ctx: Context) -> Cred:
    return Cred(ctx.uid, ctx.gid, (), True)
