"""Writing: bytes gather in memory, and leave it as slices (or, few of them, with the metadata).

Dirty memory is bounded for the whole filesystem: who would exceed the bound first helps to flush.
What a flush could not write stays dirty, is seen by reads, and is tried again; the caller that
waits for it gets the error.
"""

import logging
import time
from collections.abc import Awaitable, Callable

import crc32c
import trio

from mountfs.chunks.base import ChunkStore
from mountfs.errors import Fault, FsError
from mountfs.inline import leave
from mountfs.meta.local import Meta
from mountfs.meta.ops import write as ops
from mountfs.meta.ops.slices import Discard, ReserveSlices
from mountfs.types import KIB, MIB, SLICE_BYTES_MAX, SliceId, VolumeId
from mountfs.vfs.buffers import Buffers
from mountfs.vfs.dirty import Run
from mountfs.vfs.handles import File

log = logging.getLogger(__name__)

SLICES_RESERVED = 1_024
BUFFER_BYTES = MIB + 64 * KIB
"""Room for the largest request of a door."""
SMALL_BYTES = ops.INLINE_BYTES_MAX
"""A flush of up to so many bytes goes into the metadata: one write to the log, instead of one there
and one to a volume.
"""
SYNCED_BYTES = 64 * KIB
"""The same for a flush that fsync(2) waits for: one trip to the disk instead of two."""
KEEP_BYTES = 128 * KIB
"""A write from this size on is kept in the buffer it came in, instead of copied."""
BUFFERS_KEPT = 40
RUNS_MAX = 512
"""In one command."""


class Writer:
    def __init__(
        self,
        meta: Meta,
        chunks: ChunkStore,
        *,
        dirty_bytes_max: int,
        kick: Callable[[], None],
        owed: Callable[[], int],
        reclaim: Callable[[], Awaitable[None]],
    ) -> None:
        self._meta = meta
        self._chunks = chunks
        self._dirty_bytes_max = dirty_bytes_max
        self._kick = kick
        self._reclaim = reclaim
        self._owed = owed
        """Bytes that the metadata is going to take of the disk."""
        self._next_slice: int = 0
        self._last_slice: int = 0
        self.dirty_bytes = 0
        """Of all files, with what is on its way."""
        self.unwritten: dict[File, float] = {}
        """Files with dirty bytes, and since when (trio.current_time)."""
        self.buffers = Buffers(BUFFER_BYTES, BUFFERS_KEPT)
        self._idle = trio.Condition()
        self._waiting = 0
        """Who waits for a flush of somebody else to end."""

    async def write(self, file: File, offset: int, data: memoryview, drop_privileges: bool) -> bool:
        """Take bytes over.  Waits only where dirty memory is full.

        The reply says whether the memory of `data`, one of `buffers`, is kept.  Raises NO_SPACE
        when the disk is full.
        """
        size = len(data)
        if self.dirty_bytes + size > self._dirty_bytes_max:
            await self._make_room(size)
        await self.require_room(size)
        dirty = file.dirty
        before = dirty.bytes
        keep = size >= KEEP_BYTES and isinstance(data.obj, bytearray)
        kept = dirty.write(offset, data, keep=keep)
        self.dirty_bytes += dirty.bytes - before
        file.size = max(file.size, offset + size)
        file.mtime = time.time_ns()
        file.drop_privileges |= drop_privileges
        if file not in self.unwritten:
            self.unwritten[file] = trio.current_time()
        if dirty.bytes > SLICE_BYTES_MAX:
            self._kick()
        return kept

    async def require_room(self, size: int) -> None:
        """Raise NO_SPACE unless so many bytes fit beside those that are on their way there."""
        if self._chunks.has_room(self.promised_bytes + size):
            return
        await self._reclaim()  # what was deleted may not be given back yet
        if not self._chunks.has_room(self.promised_bytes + size):
            raise FsError(Fault.NO_SPACE)

    @property
    def promised_bytes(self) -> int:
        """What is free on the disk, but spoken for."""
        return self.dirty_bytes + self._owed()

    async def flush(self, file: File, *, synced: bool = False, full_only: bool = False) -> None:
        """Give what is dirty to volumes and metadata.  Not yet durable: that takes a sync."""
        while file.flushing:
            await leave()
            self._waiting += 1
            try:
                async with self._idle:
                    if file.flushing:
                        await self._idle.wait()
            finally:
                self._waiting -= 1
        runs = file.dirty.take(full_only=full_only)
        if not runs:
            return
        file.flushing, file.flight = True, runs
        size = sum(run.size for run in runs)
        try:
            await self._flush(file, runs, size, synced)
        except BaseException as error:
            file.flight = []
            before = file.dirty.bytes
            if not (isinstance(error, FsError) and error.fault is Fault.STALE):
                file.dirty.put_back(runs)
            self.dirty_bytes += file.dirty.bytes - before - size
            self._settle(file)
            raise
        else:
            file.flight = []
            self.dirty_bytes -= size
            for run in runs:
                for part in run.parts:
                    if isinstance(part, memoryview):
                        self.buffers.put(part.obj)
            self._settle(file)
        finally:
            file.flushing = False
            if self._waiting:
                await leave()
                with trio.CancelScope(shield=True):
                    async with self._idle:
                        self._idle.notify_all()

    def _settle(self, file: File) -> None:
        if not file.dirty.runs:
            self.unwritten.pop(file, None)

    def drop(self, file: File) -> None:
        """Forget what is dirty: the file is gone."""
        self.dirty_bytes -= sum(run.size for run in file.dirty.take())
        if not file.flight:
            self.unwritten.pop(file, None)

    async def _flush(self, file: File, runs: list[Run], size: int, synced: bool) -> None:
        limit = SYNCED_BYTES if synced else SMALL_BYTES
        written: list[tuple[SliceId, VolumeId, int]] = []
        try:
            for at in range(0, len(runs), RUNS_MAX):
                records = []
                for run in runs[at : at + RUNS_MAX]:
                    if size <= limit:
                        data = bytes(run.joined())
                        records.append(ops.Run(run.start, run.size, 0, data=data))
                        continue
                    slice_id = await self._slice_id()
                    volume = await self._chunks.write(slice_id, run.parts)
                    written.append((slice_id, volume, run.size))
                    crc = 0
                    for part in run.parts:
                        crc = crc32c.crc32c(part, crc)
                    records.append(ops.Run(run.start, run.size, crc, slice_id, volume))
                command = ops.Write(file.ino, tuple(records), file.mtime, file.drop_privileges)
                await self._meta.propose(command)
                written.clear()
        except FsError:
            if written:
                await self._discard(written)
            raise
        finally:
            file.forget_layouts()
        file.drop_privileges = False

    async def _discard(self, written: list[tuple[SliceId, VolumeId, int]]) -> None:
        try:
            await self._meta.propose(Discard(tuple(written)))
        except FsError as error:  # they stay in the volume until fsck finds them
            log.warning("%d slices could not be given back: %s", len(written), error)

    async def _slice_id(self) -> SliceId:
        if self._next_slice == self._last_slice:
            first = await self._meta.propose(ReserveSlices(SLICES_RESERVED))
            self._next_slice = first
            self._last_slice = self._next_slice + SLICES_RESERVED
        self._next_slice += 1
        return SliceId(self._next_slice - 1)

    async def _make_room(self, size: int) -> None:
        await leave()
        while self.dirty_bytes + size > self._dirty_bytes_max and self.unwritten:
            oldest = next(iter(self.unwritten))
            await self.flush(oldest)
            await trio.lowlevel.checkpoint()


DIRTY_BYTES_MAX = 128 * MIB
