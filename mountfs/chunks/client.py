"""A `ChunkStore` over the disk of this process: what is in memory is answered at once, what may
wait for the disk goes to a thread.
"""

from collections.abc import Sequence
from typing import Final

import trio

from mountfs.chunks.disk import DiskStore
from mountfs.chunks.needle import Buffer
from mountfs.errors import Fault, FsError
from mountfs.inline import leave
from mountfs.types import KIB, SliceId, VolumeId

INLINE_BYTES: Final = 256 * KIB
"""A smaller slice is copied into the page cache faster than a thread can be asked to do it."""
READERS: Final = 32
"""Threads that read at once.  A disk with a queue wants many, a processor few."""
WRITERS: Final = 4


class LocalChunks:
    def __init__(self, disk: DiskStore) -> None:
        self._disk = disk
        self._readers = trio.CapacityLimiter(READERS)
        self._writers = trio.CapacityLimiter(WRITERS)
        self._one_sync = trio.Lock()
        self._next: _Round | None = None
        """The round of syncing that has not begun, for whoever comes now."""

    async def write(self, slice_id: SliceId, parts: Sequence[Buffer]) -> VolumeId:
        """Store a slice, 1 to SLICE_BYTES_MAX bytes.  Raises NO_SPACE or DEVICE."""
        size = sum(map(len, parts))
        if size < INLINE_BYTES and self._disk.appends_at_once(size):
            return self._disk.append(slice_id, parts)
        await leave()
        return await trio.to_thread.run_sync(
            self._disk.append, slice_id, parts, limiter=self._writers
        )

    async def read(self, volume: VolumeId, slice_id: SliceId, start: int, stop: int) -> memoryview:
        """Bytes `start` to `stop` of a slice, verified.  Raises CORRUPT or DEVICE."""
        data = self._disk.read_now(volume, slice_id, start, stop)
        if data is not None:
            return data
        await leave()
        return await trio.to_thread.run_sync(
            self._disk.read, volume, slice_id, start, stop, limiter=self._readers
        )

    async def sync(self) -> None:
        """All that was written before the call is durable on return.

        One round runs at a time, and all who come meanwhile share the next one: the one under way
        may have begun before their bytes were there.  Raises DEVICE.
        """
        await leave()
        if self._next is not None:
            await self._next.result()
            return
        mine = self._next = _Round()
        # Others count on it, so whoever began a round ends it, cancelled or not.
        with trio.CancelScope(shield=True):
            async with self._one_sync:
                self._next = None
                try:
                    await trio.to_thread.run_sync(self._disk.sync)
                except FsError as error:
                    mine.failure = error
                    raise
                except BaseException as error:
                    mine.failure = FsError(Fault.DEVICE, f"sync: {error}")
                    raise
                finally:
                    mine.done.set()

    def space(self) -> tuple[int, int]:
        """(total, free) bytes of the disk; what is kept in reserve is not free."""
        return self._disk.space()

    def has_room(self, size_bytes: int) -> bool:
        """Whether so many more bytes fit."""
        return self._disk.space()[1] >= size_bytes

    async def compact_one(self) -> bool:
        """Compact the volume that gives back most, if one is worth it.  Returns whether one was."""
        volumes = self._disk.debt().volumes
        if not volumes:
            return False
        await leave()
        await trio.to_thread.run_sync(self._disk.compact, volumes[0])
        return True


class _Round:
    """One sync, and those who wait for it."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.failure: FsError | None = None

    async def result(self) -> None:
        await self.done.wait()
        if self.failure is not None:
            raise FsError(self.failure.fault, self.failure.detail)
