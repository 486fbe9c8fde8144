"""A `ChunkStore` over the disk of this process: what is in memory is answered at once, what may
wait for the disk goes to a thread.
"""

import os
from collections.abc import Sequence
from time import perf_counter
from typing import Final, Protocol

import trio

from mountfs.chunks import needle
from mountfs.chunks.base import Stored
from mountfs.chunks.disk import DiskStore
from mountfs.chunks.needle import Buffer
from mountfs.errors import Fault, FsError
from mountfs.inline import leave, pause
from mountfs.types import KIB, SliceId, VolumeId

INLINE_BYTES: Final = 256 * KIB
"""A smaller slice is copied into the page cache faster than a thread can be asked to do it."""
READERS: Final = 32
"""Threads that read at once.  A disk with a queue wants many, a processor few."""
WRITERS: Final = 4
THREADED_BYTES: Final = 512 * KIB
"""A read of this size is worth a thread even if the bytes are in memory: requests that come
meanwhile need not wait for the copy.
"""
POLLED_BYTES: Final = 64 * KIB
"""What a quick disk brings sooner than a thread is woken."""
POLL_S: Final = 0.000_5
"""The disk is asked for so long whether it is done; then a thread waits for it."""


class Readable(Protocol):
    """Where bytes of slices are read, by threads: `DiskStore` says what each does."""

    def read_now(
        self, volume: VolumeId, slice_id: SliceId, start: int, stop: int
    ) -> memoryview | None: ...

    def read(self, volume: VolumeId, slice_id: SliceId, start: int, stop: int) -> memoryview: ...

    def fetch(self, volume_id: VolumeId, slice_id: SliceId, start: int, stop: int) -> None: ...


class LocalReads:
    """Reads for tasks."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._readers = trio.CapacityLimiter(READERS)
        self._spare_cpu = len(os.sched_getaffinity(0)) > 1
        self._polls = Polls(enabled=self._spare_cpu)
        self.reads = 0
        self.reads_waited = 0
        """Reads, and those that were not answered from memory at once: of the disk, or large."""

    async def read(self, volume: VolumeId, slice_id: SliceId, start: int, stop: int) -> memoryview:
        """Bytes `start` to `stop` of a slice, verified.  Raises CORRUPT or DEVICE."""
        data = await self.read_soon(volume, slice_id, start, stop)
        if data is not None:
            return data
        await leave()
        return await trio.to_thread.run_sync(
            self._source.read, volume, slice_id, start, stop, limiter=self._readers
        )

    async def read_soon(
        self, volume: VolumeId, slice_id: SliceId, start: int, stop: int
    ) -> memoryview | None:
        """The same if it takes no thread, but memory or a quick disk."""
        size = stop - start
        self.reads += 1
        if size < THREADED_BYTES or not self._spare_cpu:
            data = self._source.read_now(volume, slice_id, start, stop)
            if data is not None:
                return data
        self.reads_waited += 1
        if size <= POLLED_BYTES and self._polls.worth_it():
            return await self._poll(volume, slice_id, start, stop)
        return None

    async def _poll(
        self, volume: VolumeId, slice_id: SliceId, start: int, stop: int
    ) -> memoryview | None:
        """Let the disk begin, and ask again and again whether it is done, between requests: for a
        quick disk that takes less time than waking a thread and being woken by it.
        """
        self._source.fetch(volume, slice_id, start, stop)
        begun = perf_counter()
        while await pause():
            data = self._source.read_now(volume, slice_id, start, stop)
            if data is not None:
                self._polls.succeeded()
                return data
            if perf_counter() - begun > POLL_S:
                self._polls.failed()
                break
        return None


class LocalChunks(LocalReads):
    def __init__(self, disk: DiskStore) -> None:
        super().__init__(disk)
        self._disk = disk
        self._writers = trio.CapacityLimiter(WRITERS)
        self._one_sync = trio.Lock()
        self._next: _Round | None = None
        """The round of syncing that has not begun, for whoever comes now."""

    async def write(self, slice_id: SliceId, parts: Sequence[Buffer], copies: int = 0) -> Stored:
        """Store a slice, 1 to SLICE_BYTES_MAX bytes.  Raises NO_SPACE or DEVICE."""
        size = sum(map(len, parts))
        if size < INLINE_BYTES and self._disk.appends_at_once(size):
            return self._append(slice_id, parts)
        await leave()
        return await trio.to_thread.run_sync(self._append, slice_id, parts, limiter=self._writers)

    def _append(self, slice_id: SliceId, parts: Sequence[Buffer]) -> Stored:
        sums = needle.checksums(parts)
        return Stored(self._disk.append(slice_id, parts, sums), sums.crc)

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


class Polls:
    """Whether polling the disk pays: after each failure, twice as many reads go without."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._skipped = 0
        self._skips = 0

    def worth_it(self) -> bool:
        if self._skips:
            self._skips -= 1
            return False
        return self._enabled

    def succeeded(self) -> None:
        self._skipped = 0

    def failed(self) -> None:
        self._skipped = min(2 * self._skipped + 1, 255)
        self._skips = self._skipped


class _Round:
    """One sync, and those who wait for it."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.failure: FsError | None = None

    async def result(self) -> None:
        await self.done.wait()
        if self.failure is not None:
            raise FsError(self.failure.fault, self.failure.detail)
