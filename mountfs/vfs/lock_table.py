"""Locks as programs ask for them: at once, or waiting for as long as it takes.

Who holds what is for the metadata to say, and whose turn it is when several wait.
"""

from mountfs.errors import Fault, FsError
from mountfs.meta.local import LockingMeta
from mountfs.meta.locks import Lock, Owner
from mountfs.meta.ops.lock import ReleaseLock, TestLock
from mountfs.types import Ino


class LockTable:
    def __init__(self, meta: LockingMeta) -> None:
        self._meta = meta

    async def test(self, ino: Ino, lock: Lock) -> Lock | None:
        return await self._meta.read(TestLock(ino, lock))

    async def take(self, ino: Ino, lock: Lock, *, wait: bool) -> None:
        """Raises WOULD_BLOCK (without `wait`), DEADLOCK or NO_LOCKS.  May be cancelled while it
        waits; then nothing is held.
        """
        while await self._meta.take_lock(ino, lock, waits=wait) is not None:
            if not wait:
                raise FsError(Fault.WOULD_BLOCK)
            await self._meta.await_lock(ino, lock)

    async def release(self, ino: Ino, flavor: int, owner: Owner, start: int, stop: int) -> None:
        if owner.session != self._meta.session:
            return  # its locks have ended with it
        try:
            await self._meta.propose(ReleaseLock(ino, flavor, owner, start, stop))
        except FsError as error:
            if error.fault is not Fault.SESSION_ENDED:
                raise
