"""Waiting for locks: who waits for which file, and who would wait for himself."""

import trio

from mountfs.errors import Fault, FsError
from mountfs.inline import leave
from mountfs.meta.local import Meta
from mountfs.meta.locks import Lock, Owner, would_deadlock
from mountfs.meta.ops.lock import ReleaseLock, TakeLock, TestLock
from mountfs.types import Ino

LOOK_AGAIN_S = 0.1


class LockTable:
    def __init__(self, meta: Meta) -> None:
        self._meta = meta
        self._released: dict[Ino, trio.Event] = {}
        self._waits: dict[Owner, Owner] = {}

    async def test(self, ino: Ino, lock: Lock) -> Lock | None:
        return await self._meta.read(TestLock(ino, lock))

    async def take(self, ino: Ino, lock: Lock, *, wait: bool) -> None:
        """Raises WOULD_BLOCK (without `wait`) or DEADLOCK.  May be cancelled while it waits; then
        nothing is held.
        """
        while True:
            in_the_way = await self._meta.propose(TakeLock(ino, lock))
            if in_the_way is None:
                return
            if not wait:
                raise FsError(Fault.WOULD_BLOCK)
            await self._wait(ino, lock, in_the_way)

    async def release(self, ino: Ino, flavor: int, owner: Owner, start: int, stop: int) -> None:
        await self._meta.propose(ReleaseLock(ino, flavor, owner, start, stop))
        released = self._released.pop(ino, None)
        if released is not None:
            released.set()

    async def _wait(self, ino: Ino, lock: Lock, in_the_way: Lock) -> None:
        owner, holder = lock.owner, in_the_way.owner
        # flock(2) knows no deadlock detection; fcntl(2) owes EDEADLK.
        if lock.flavor == 0 and would_deadlock(self._waits, owner, holder):
            raise FsError(Fault.DEADLOCK)
        released = self._released.setdefault(ino, trio.Event())
        await leave()
        self._waits[owner] = holder
        elsewhere = holder.session != self._meta.session
        try:
            # Nobody tells us yet when a lock of another mount is released.
            with trio.move_on_after(LOOK_AGAIN_S if elsewhere else float("inf")):
                await released.wait()
        finally:
            self._waits.pop(owner, None)
