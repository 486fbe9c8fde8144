"""The native binding: our own channel to the kernel, and what the two sides agree on at INIT."""

import contextlib
import os
from typing import Any, Protocol

import trio

from mountfs.errors import Fault, FsError
from mountfs.fuse import wire
from mountfs.fuse.device import Channel, Reply, Request
from mountfs.fuse.kernel_cache import EPOCH_MINOR, KernelCache, guarded
from mountfs.fuse.operations import WRITE_BYTES_MAX, Operations
from mountfs.fuse.options import MountOptions
from mountfs.fuse.wire import InitFlag, Opcode
from mountfs.inline import leave
from mountfs.types import KIB, MIB, Ino
from mountfs.vfs.filesystem import Filesystem

PAGE_BYTES = 4 * KIB

WANTED = (
    InitFlag.ASYNC_READ
    | InitFlag.POSIX_LOCKS  # or locks would hold on this mount only
    | InitFlag.FLOCK_LOCKS
    | InitFlag.ATOMIC_O_TRUNC  # saves the SETATTR before an open
    | InitFlag.EXPORT_SUPPORT
    | InitFlag.BIG_WRITES
    | InitFlag.DONT_MASK  # default ACLs take the umask's place, so we must see both
    # Saves a LOOKUP for each entry of ls -l, find, du.  Always: with READDIRPLUS_AUTO the kernel
    # asks for attributes only every other time, and then for each entry by itself.
    | InitFlag.DO_READDIRPLUS
    | InitFlag.ASYNC_DIO
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.POSIX_ACL
    | InitFlag.ABORT_ERROR
    | InitFlag.MAX_PAGES  # 1 MiB in one request
    | InitFlag.CACHE_SYMLINKS  # saves READLINK
    | InitFlag.NO_OPENDIR_SUPPORT  # saves OPENDIR and RELEASEDIR: positions need no state
    | InitFlag.EXPLICIT_INVAL_DATA  # all changes come through this kernel: it may keep its pages
    | InitFlag.HANDLE_KILLPRIV_V2  # saves a look for security.capability before each write
    | InitFlag.SETXATTR_EXT
    | InitFlag.INIT_EXT
    | InitFlag.HAS_EXPIRE_ONLY
    | InitFlag.DIRECT_IO_ALLOW_MMAP
)


class Binding(Protocol):
    """A filesystem, mounted."""

    initialized: trio.Event
    """The kernel has said INIT."""
    readahead_kib: int

    async def serve(self) -> None:
        """Answer the kernel until the filesystem is unmounted."""
        ...

    def status(self) -> dict[str, Any]: ...

    def stats(self) -> dict[str, Any]: ...


class NativeBinding:
    def __init__(
        self, filesystem: Filesystem, fd: int, mountpoint: str, options: MountOptions
    ) -> None:
        self.initialized = trio.Event()
        self.readahead_kib = options.readahead_bytes // KIB
        self._filesystem = filesystem
        self._mountpoint = mountpoint
        self._options = options
        self._minor = 0
        leases = filesystem.leases
        self._kernel_cache = KernelCache(
            fd,
            lambda inos: self._channel.holds_names(inos),
            lambda inos: self._channel.holds_bytes(inos),
        )
        self._guard = contextlib.ExitStack()
        if leases is not None:
            guard = self._guard.enter_context(guarded(fd))
            leases.known.watcher = guard
            leases.on_valid = guard.good_for
            leases.on_recall = self._kernel_cache.recall
            leases.on_forget = self._kernel_cache.forget
            leases.asking = lambda: self._channel.asking()
            filesystem.on_appended = self._kernel_cache.appended
        self._operations = Operations(
            filesystem,
            timeouts=wire.Timeouts(
                *options.timeouts(shared=filesystem.shared, leased=leases is not None)
            ),
            coming=self._kernel_cache.coming,
            interrupt=lambda unique: self._channel.interrupt(unique),
            initialize=self._initialize,
        )
        self._stale: set[Ino] = set()
        """What the kernel has cached of these is not so any more."""
        self._is_stale = trio.Event()
        filesystem.on_lost = self._forget_cached
        filesystem.drop_cached = self._drop_cached
        filesystem.trash.on_names = self._kernel_cache.came
        os.set_blocking(fd, False)
        poll_s = options.poll_us / 1e6 if len(os.sched_getaffinity(0)) > 1 else 0.0
        self._channel = Channel(
            fd,
            self._operations.table(),
            buffers=filesystem.writer.buffers,
            poll_s=poll_s,
        )

    async def serve(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._invalidate)
                await self._channel.serve()
                nursery.cancel_scope.cancel()
        finally:
            self._stop_guard()

    def _stop_guard(self) -> None:
        leases = self._filesystem.leases
        if leases is not None:
            leases.known.watcher = None
            leases.on_valid = lambda seconds: None
            leases.asking = set
        self._guard.close()

    def _forget_cached(self, inos: set[Ino]) -> None:
        self._stale |= inos
        self._is_stale.set()

    async def _invalidate(self) -> None:
        while True:
            await self._is_stale.wait()
            self._is_stale = trio.Event()
            while self._stale:
                await self._drop_cached(self._stale.pop())

    async def _drop_cached(self, ino: Ino) -> None:
        # In a thread: the kernel may first wait for what it has asked us of that file.
        await leave()
        notice = wire.notify_inval_inode(ino)
        await trio.to_thread.run_sync(self._channel.write, notice, abandon_on_cancel=True)

    def status(self) -> dict[str, Any]:
        return {
            "mountpoint": self._mountpoint,
            "binding": "native",
            "fuse_protocol": f"{wire.MAJOR}.{self._minor}",
            "bugs": self._channel.bugs,
        }

    def stats(self) -> dict[str, Any]:
        """Counters since the mount; the difference of two answers is a rate."""
        writer = self._filesystem.writer
        return {
            "operations": {
                Opcode(opcode).name.lower(): {
                    "calls": counts.calls,
                    "errors": counts.errors,
                    "total_ns": counts.total_ns,
                    "slowest_ns": counts.slowest_ns,
                }
                for opcode, counts in sorted(self._channel.counts.items())
            },
            "dirty_bytes": writer.dirty_bytes,
            "unwritten_files": len(writer.unwritten),
            "cpu_s": sum(os.times()[:2]),
        }

    def _initialize(self, request: Request) -> Reply:
        asked = wire.parse_init(request.body)
        if asked.major > wire.MAJOR:  # it will say INIT again with ours
            return wire.reply(request.unique, wire.init_out_major_only())
        if asked.minor < wire.MINOR_MIN:
            raise FsError(
                Fault.UNSUPPORTED,
                f"the kernel speaks FUSE {asked.major}.{asked.minor}, mountfs needs "
                f"{wire.MAJOR}.{wire.MINOR_MIN} or later: use a newer kernel",
            )
        self._minor = min(asked.minor, wire.MINOR)
        flags = asked.flags & WANTED
        self._operations.maps_direct = bool(flags & InitFlag.DIRECT_IO_ALLOW_MMAP)
        if self._filesystem.shared:
            flags = flags & ~InitFlag.EXPLICIT_INVAL_DATA | asked.flags & InitFlag.AUTO_INVAL_DATA
        if self._filesystem.leases is not None:
            self._kernel_cache.has_epoch = asked.minor >= EPOCH_MINOR
            if not self._kernel_cache.has_epoch:
                self._operations.trust(wire.Timeouts(0, self._operations.attr_s))
        self.initialized.set()
        return wire.reply(
            request.unique,
            wire.init_out(
                flags,
                minor=self._minor,
                max_readahead=max(asked.max_readahead, MIB),
                max_background=self._options.max_background,
                congestion_threshold=self._options.max_background * 3 // 4,
                max_write=WRITE_BYTES_MAX,
                max_pages=WRITE_BYTES_MAX // PAGE_BYTES,
            ),
        )


def native_binding(
    filesystem: Filesystem, fd: int, mountpoint: str, options: MountOptions
) -> Binding:
    return NativeBinding(filesystem, fd, mountpoint, options)
