"""Making the kernel forget what it was told under a lease.

A name is forgotten with a lock on its directory, which a program may hold that waits for our
answer; that answer may wait for another mount, which waits for us in the same way.  So names are
forgotten in a thread, and if that takes long all names of the mount at once, which needs no lock
(`INC_EPOCH`).
"""

import errno
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import trio

from mountfs.fuse import guardian, wire
from mountfs.fuse.coming import Coming
from mountfs.fuse.wire import NotifyCode
from mountfs.meta.leases import Item
from mountfs.types import Ino

T = TypeVar("T")
R = TypeVar("R")

Holds = Callable[[Collection[Ino]], set[int]]
"""Requests that wait for our answer, and may hold something of these inodes."""

EPOCH_MINOR: Final = 44
"""From this version of the protocol on, the kernel knows INC_EPOCH."""
LOOK_S: Final = 0.02
"""Forgetting a name or bytes takes microseconds, unless somebody holds the directory or the pages.
Every so long it is looked who that is: if somebody waits for an answer meanwhile who may hold it,
perhaps he waits for us.
"""
CAME_S: Final = 5.0
"""Who has it done waits for it so long: a directory may be held by whoever waits for other mounts.
"""
LOOKS_MAX: Final = 50
APPENDED_S: Final = 1.0
"""Nobody who reads or writes waits for an append."""
COMING_S: Final = 0.002
"""An inode that the kernel does not know yet is tried again so soon."""
COMING_MAX: Final = 500
THREADS_MAX: Final = 16
SLOTS: Final = 1 << 19
"""Inodes that the guardian can know of: more than a session can have leases on."""


class KernelCache:
    def __init__(self, fd: int, holds_names: Holds, holds_bytes: Holds) -> None:
        self._fd = fd
        self._holds_names = holds_names
        self._holds_bytes = holds_bytes
        self.has_epoch = False
        """Whether the kernel knows INC_EPOCH.  If not, it must not be told that it may believe
        names.
        """
        self.coming = Coming()
        self._limiter = trio.CapacityLimiter(THREADS_MAX)
        self.epochs = 0

    async def recall(self, items: Sequence[Item]) -> None:
        """Returns when the kernel has forgotten it."""
        names = [(item.ino, name) for item in items for name in item.names if not item.is_whole]
        late = self._forget_attributes([item.ino for item in items])  # that never waits
        inos = [item.ino for item in items if not item.is_own]
        if any(item.is_whole for item in items):
            self._forget_all_names()
        async with trio.open_nursery() as nursery:
            if names:
                nursery.start_soon(self._forget_names, names)
            if late:
                nursery.start_soon(self._forget_late, late)
            if inos:
                await self._forget_bytes(inos)

    async def came(self, names: Sequence[tuple[Ino, bytes]]) -> None:
        """Names have come without the kernel: that they are absent is forgotten, and what their
        directories were.
        """
        with trio.move_on_after(CAME_S):
            await self._in_thread(self._forget_each, names)
            await self._in_thread(self._forget_listed, list({parent for parent, _ in names}))

    def _forget_listed(self, directories: Sequence[Ino]) -> None:
        self._forget_attributes(directories)
        self._forget_bytes_of(directories)

    async def forget(self, inos: Sequence[Ino]) -> None:
        """All names, and these inodes."""
        self._forget_all_names()
        if inos:
            late = await self._in_thread(self._forget_attributes, inos)
            await self._forget_bytes(inos)
            if late:
                await self._forget_late(late)

    async def _forget_names(self, names: Sequence[tuple[Ino, bytes]]) -> None:
        parents = {parent for parent, _ in names}
        if not await self._patiently(self._forget_each, names, self._holds_names, parents):
            self._forget_all_names()

    async def _patiently(
        self, work: Callable[[T], None], what: T, holds: Holds, inos: Collection[Ino]
    ) -> bool:
        """Whether it was done; otherwise it will be, once those have gone who wait for us."""
        is_done = False

        async with trio.open_nursery() as nursery:

            async def do() -> None:
                nonlocal is_done
                await self._in_thread(work, what)
                is_done = True
                nursery.cancel_scope.cancel()

            nursery.start_soon(do)
            before: set[int] = set()
            for _ in range(LOOKS_MAX):
                await trio.sleep(LOOK_S)
                now = holds(inos)
                if now & before:
                    break
                before = now
            nursery.cancel_scope.cancel()
        return is_done

    async def _in_thread(self, work: Callable[[T], R], what: T) -> R:
        return await trio.to_thread.run_sync(
            work, what, limiter=self._limiter, abandon_on_cancel=True
        )

    def _forget_each(self, names: Sequence[tuple[Ino, bytes]]) -> None:
        for parent, name in names:
            # Not dropped: it may be the working directory of a program, who could not say where he
            # is any more.  The kernel asks for it when it is used next.
            self._notify(wire.notify_inval_entry(parent, name, wire.EXPIRE_ONLY))

    async def _forget_bytes(self, inos: Sequence[Ino]) -> None:
        """The kernel looks at the attributes before it gives bytes to anybody, and forgets those
        that are older without us (`AUTO_INVAL_DATA`): this is for who has mapped them, and for who
        asked for attributes when a write overtook the answer.
        """
        await self._patiently(self._forget_bytes_of, inos, self._holds_bytes, set(inos))

    async def appended(self, ino: Ino, offset: int, stop: int, last: bytes) -> None:
        """The file is longer than the kernel will think when the append is answered: it goes by
        its own idea of the size, which it does not give up for the answer to a question that a
        write has overtaken.  But it takes bytes that we store behind it.
        """
        in_time = [True]

        def lengthen(ino: Ino) -> None:
            self._notify(wire.notify_inval_inode(ino, offset - offset % mmap.PAGESIZE))
            if in_time:  # later, the file may have been cut
                self._notify(wire.notify_store(ino, stop - 1, last))

        with trio.move_on_after(APPENDED_S):
            await self._in_thread(lengthen, ino)
        in_time.clear()

    def _forget_attributes(self, inos: Sequence[Ino]) -> list[Ino]:
        """Returns those that the kernel does not know yet."""
        coming = self.coming
        unknown = [ino for ino in inos if not self._notify(wire.notify_inval_inode(ino, -1))]
        return [ino for ino in unknown if ino in coming]

    async def _forget_late(self, inos: list[Ino]) -> None:
        for _ in range(COMING_MAX):
            await trio.sleep(COMING_S)
            inos = self._forget_attributes(inos)
            if not inos:
                return

    def _forget_bytes_of(self, inos: Sequence[Ino]) -> None:
        for ino in inos:
            self._notify(wire.notify_inval_inode(ino, 0))

    def _forget_all_names(self) -> None:
        if self.has_epoch:
            self.epochs += 1
            self._notify(wire.notify(NotifyCode.INC_EPOCH))

    def _notify(self, notification: bytes) -> bool:
        """Whether the kernel knows what it is about."""
        try:
            os.write(self._fd, notification)
        except OSError as error:  # it does not know it, or is unmounted
            return error.errno != errno.ENOENT
        return True


class Guarded:
    """What the guardian is told: until when leases are good, and on which inodes."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._slots = memoryview(memory)[guardian.HEAD.size :].cast("Q")
        self._of: dict[Ino, int] = {}
        self._free: list[int] = []
        self._used = 0

    def add(self, ino: Ino) -> None:
        if ino in self._of:
            return
        if self._free:
            slot = self._free.pop()
        elif self._used < len(self._slots):
            slot = self._used
            self._used += 1
            guardian.SLOT.pack_into(self._memory, 8, self._used)
        else:
            return  # more than there can be
        self._of[ino] = slot
        self._slots[slot] = ino

    def discard(self, ino: Ino) -> None:
        slot = self._of.pop(ino, None)
        if slot is not None:
            self._slots[slot] = 0
            self._free.append(slot)

    def clear(self) -> None:
        for slot in self._of.values():
            self._slots[slot] = 0
        self._of.clear()
        self._free.clear()
        self._used = 0
        guardian.SLOT.pack_into(self._memory, 8, 0)

    def good_for(self, left_s: float) -> None:
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        guardian.SLOT.pack_into(self._memory, 0, now + int(left_s * 1e9))

    def close(self) -> None:
        self._slots.release()


@contextmanager
def guarded(device: int) -> Iterator[Guarded]:
    """Have a guardian while the block lasts."""
    size = guardian.HEAD.size + SLOTS * guardian.SLOT.size
    memory = os.memfd_create("mountfs-leases", os.MFD_CLOEXEC)
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        os.ftruncate(memory, size)
        program = [sys.executable, "-I", "-S", str(Path(guardian.__file__).resolve())]
        process = subprocess.Popen(
            [*program, str(device), str(memory), str(reading)],
            pass_fds=(device, memory, reading),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        with mmap.mmap(memory, size) as shared:
            found = Guarded(shared)
            try:
                yield found
            finally:
                found.close()
                os.close(writing)
                writing = -1
                process.wait()
    finally:
        os.close(memory)
        os.close(reading)
        if writing >= 0:
            os.close(writing)
