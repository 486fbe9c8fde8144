"""Writing: bytes gather in memory, and leave it as slices (or, few of them, with the metadata).

Dirty memory is bounded for the whole filesystem: who would exceed the bound first helps to flush.
What a flush could not write stays dirty, is seen by reads, and is tried again; the caller that
waits for it gets the error.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable

import trio

from mountfs.buffers import Buffers
from mountfs.chunks.base import ChunkStore
from mountfs.errors import Fault, FsError
from mountfs.inline import leave
from mountfs.meta.extents import put
from mountfs.meta.local import Meta
from mountfs.meta.ops import write as ops
from mountfs.meta.ops.copies import GetCopies
from mountfs.meta.ops.slices import Discard, ReserveSlices
from mountfs.meta.records import Slice
from mountfs.types import BLOCK_BYTES, CHUNK_BYTES, KIB, MIB, SLICE_BYTES_MAX, SliceId, VolumeId
from mountfs.vfs.dirty import Dirty, Run
from mountfs.vfs.handles import File
from mountfs.vfs.headroom import Headroom

log = logging.getLogger(__name__)

SLICES_RESERVED = 1_024
RESERVED_S = 300.0
"""Names are used within that time, or not at all: a cluster takes no slices with old names."""
WRITES_MAX = 4
"""So often the bytes of a flush are written when their slices come too late."""
SMALL_BYTES = ops.INLINE_BYTES_MAX
"""A flush of up to so many bytes goes into the metadata: one write to the log, instead of one there
and one to a volume.
"""
SYNCED_BYTES = 64 * KIB
"""The same for a flush that fsync(2) waits for: one trip to the disk instead of two."""
KEEP_BYTES = 128 * KIB
"""A write from this size on is kept in the buffer it came in, instead of copied."""
RUNS_MAX = 512
LANDING_BYTES = 16 * MIB
"""A command of a flush takes no more runs, or no more bytes, at once: their memory is free when it
is applied, and who waits for room need not wait for all that is dirty.
"""
_FOR_EVER = (Fault.STALE, Fault.NOT_PERMITTED)
"""Bytes that were refused so are not tried again: the file is gone, or is kept as it is."""


async def _nothing() -> bool:
    return False


class Writer:
    def __init__(
        self,
        meta: Meta,
        chunks: ChunkStore,
        *,
        buffers: Buffers,
        dirty_bytes_max: int,
        kick: Callable[[], None],
        owed: Callable[[], int],
        reclaim: Callable[[], Awaitable[None]],
        own_copies: Callable[[], bool] = lambda: False,
        slices_at_once: int = 1,
        quota_known_s: float = 0.0,
        give_back: Callable[[], Awaitable[bool]] = _nothing,
        refused: Callable[[File], None] = lambda file: None,
    ) -> None:
        """`own_copies` says whether some files are to have another number of copies;
        `slices_at_once`, of one file, are on their way: more than one is good where each waits for
        a network; `quota_known_s`: how long what quotas leave is known, once it was asked for;
        `give_back` removes what was deleted and still counts for them, and says whether there was
        anything; `refused` is told of a file that takes nothing any more.
        """
        self._give_back = give_back
        self._refused = refused
        self._slices_at_once = slices_at_once
        self._own_copies = own_copies
        self._meta = meta
        self._chunks = chunks
        self._dirty_bytes_max = dirty_bytes_max
        self._kick = kick
        self._reclaim = reclaim
        self._owed = owed
        """Bytes that the metadata is going to take of the disk."""
        self._next_slice: int = 0
        self._last_slice: int = 0
        self._reserved_at = 0.0
        self.dirty_bytes = 0
        """Of all files, with what is on its way."""
        self.unwritten: dict[File, float] = {}
        """Files with dirty bytes, and since when (trio.current_time)."""
        self.buffers = buffers
        self._headroom = Headroom(meta, self._unwritten_space, keep_s=quota_known_s)
        self._progress = trio.Event()
        """Set, and replaced, when something has landed or a flush is over."""

    async def write(
        self,
        file: File,
        offset: int,
        data: memoryview,
        drop_privileges: bool,
        end: Callable[[], int | None] | None = None,
    ) -> bool | None:
        """Take bytes over.  Waits only where dirty memory is full, or a quota nearly is.

        `end` is asked, when it is time, where they go instead of to `offset`; it may say None:
        nowhere now, because others decide where the file ends.  The reply says whether the memory
        of `data`, one of `buffers`, is kept; None: nothing was taken over, because `end` said so.
        Raises NO_SPACE when the disk is full, OVER_QUOTA.
        """
        size = len(data)
        if await self._headroom.is_near(file, size):
            return await self._write_through(file, offset, data, drop_privileges, end)
        if self.dirty_bytes + size > self._dirty_bytes_max:
            await self._make_room(size)
        await self.require_room(size)
        if end is not None:
            found = end()
            if found is None:
                return None
            offset = found
        dirty = file.dirty
        file.taken += 1
        before = dirty.bytes
        keep = size >= KEEP_BYTES and isinstance(data.obj, bytearray)
        kept = dirty.write(offset, data, keep=keep)
        self.dirty_bytes += dirty.bytes - before
        file.size = max(file.size, offset + size)
        file.mtime = self._meta.now()
        file.drop_privileges |= drop_privileges
        if file not in self.unwritten:
            self.unwritten[file] = trio.current_time()
        if dirty.bytes > SLICE_BYTES_MAX:
            self._kick()
        return kept

    async def _write_through(
        self,
        file: File,
        offset: int,
        data: memoryview,
        drop_privileges: bool,
        end: Callable[[], int | None] | None,
    ) -> bool | None:
        """Give bytes to volumes and metadata at once: they are taken over only if they fit."""
        await leave()
        await self.require_room(len(data))
        while file.dirty.runs or file.flushing:  # what came before them
            await self.flush(file)
        if end is not None:
            found = end()
            if found is None:
                return None
            offset = found
        new = Dirty()
        new.write(offset, data)
        file.flushing, file.flight = True, new.take()  # no await since we looked
        file.taken += 1
        self.dirty_bytes += len(data)
        file.mtime = self._meta.now()
        drop_privileges, file.drop_privileges = drop_privileges | file.drop_privileges, False
        self.unwritten.setdefault(file, trio.current_time())
        inline = len(data) <= SMALL_BYTES
        fence = file.fence
        try:
            while batch := _batch(file.flight):
                await self._write(file, batch, inline, drop_privileges, fence)
                _require_not_lost(file, fence)
                file.size = max(file.size, batch[-1].stop)
                self._land(file, batch)
        except BaseException:
            left, file.flight = file.flight, []
            self.dirty_bytes -= sum(run.size for run in left)
            file.drop_privileges |= drop_privileges
            self._settle(file)
            raise
        finally:
            file.flushing = False
            self._announce()
        return False

    def _unwritten_space(self) -> int:
        """How much the bytes in memory may take, at most."""
        runs = (run for file in self.unwritten for run in (*file.flight, *file.dirty.runs))
        return sum((run.size // BLOCK_BYTES + 2) * BLOCK_BYTES for run in runs)

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
            progress = self._progress  # it may be over when we have left
            await leave()
            await progress.wait()
        await self._flush(file, file.dirty.take(full_only=full_only), synced)

    async def _flush(self, file: File, runs: list[Run], synced: bool) -> None:
        if not runs:
            return
        file.flushing, file.flight = True, runs
        drop_privileges, file.drop_privileges = file.drop_privileges, False
        fence = file.fence
        inline = sum(run.size for run in runs) <= (SYNCED_BYTES if synced else SMALL_BYTES)
        try:
            while batch := _batch(file.flight):
                await self._write(file, batch, inline, drop_privileges, fence)
                _require_not_lost(file, fence)
                self._land(file, batch)
        except BaseException as error:
            left, file.flight = file.flight, []
            before = file.dirty.bytes
            if not isinstance(error, FsError) or error.fault not in _FOR_EVER:
                file.dirty.put_back(left)
                file.drop_privileges |= drop_privileges
            elif error.fault is Fault.NOT_PERMITTED:
                file.refused = error
                self._refused(file)
            self.dirty_bytes += file.dirty.bytes - before - sum(run.size for run in left)
            self._settle(file)
            raise
        finally:
            file.flushing = False
            self._announce()

    def _land(self, file: File, runs: list[Run]) -> None:
        """These runs are slices now."""
        file.flight = file.flight[len(runs) :]
        for run in runs:
            self.dirty_bytes -= run.size
            for part in run.parts:
                if isinstance(part, memoryview):
                    self.buffers.put(part.obj)
        self._settle(file)
        self._announce()

    def _announce(self) -> None:
        reached, self._progress = self._progress, trio.Event()
        reached.set()

    def _settle(self, file: File) -> None:
        if not file.unwritten:
            self.unwritten.pop(file, None)
            file.writers.clear()

    def cut(self, file: File, size: int) -> None:
        """Forget what is dirty behind a new end of the file."""
        before = file.dirty.bytes
        file.dirty.cut(size)
        self.dirty_bytes += file.dirty.bytes - before
        self._settle(file)

    def drop(self, file: File) -> None:
        """Forget what is dirty: the file is gone."""
        self.dirty_bytes -= sum(run.size for run in file.dirty.take())
        self._settle(file)

    def lose(self, file: File) -> None:
        """Forget what is unwritten, and let nothing land that is on its way."""
        file.fence += 1
        file.touched += 1
        flight, file.flight = file.flight, []
        self.dirty_bytes -= sum(run.size for run in flight)
        self.drop(file)
        file.writers.clear()

    def forget_names(self) -> None:
        """Slices get other names from now on: those were reserved in another session."""
        self._next_slice = self._last_slice

    async def _write(
        self, file: File, runs: list[Run], inline: bool, drop_privileges: bool, fence: int
    ) -> None:
        """Make slices of runs, or, `inline`, let the metadata carry them; and tell the metadata."""
        for attempt in range(1, WRITES_MAX + 1):
            try:
                return await self._write_once(file, runs, inline, drop_privileges, fence)
            except FsError as error:
                if error.fault is not Fault.SLICE_EXPIRED or attempt == WRITES_MAX:
                    raise
                log.warning("written again, under new names: %s", error)
                self._next_slice = self._last_slice

    async def _write_once(
        self, file: File, runs: list[Run], inline: bool, drop_privileges: bool, fence: int
    ) -> None:
        written: list[tuple[SliceId, VolumeId, int]] = []
        try:
            if inline:
                records = [
                    ops.Run(run.start, run.size, 0, data=bytes(run.joined())) for run in runs
                ]
            else:
                records = await self._store(file, runs, written)
            _require_not_lost(file, fence)  # from here on nothing waits until it is asked
            command = ops.Write(file.ino, tuple(records), file.mtime, drop_privileges)
            try:
                _, piece = await self._meta.propose(command)
            except FsError as error:
                if error.fault is not Fault.OVER_QUOTA or not await self._give_back():
                    raise
                _, piece = await self._meta.propose(command)
        except FsError as error:
            # What nobody has answered may still be carried out, and then they are in use.
            if written and error.fault is not Fault.TIMED_OUT:
                await self._discard(written)
            raise
        _show(file, records, piece)

    async def _store(
        self, file: File, runs: list[Run], written: list[tuple[SliceId, VolumeId, int]]
    ) -> list[ops.Run]:
        """Make a slice of each run; those that are stored are in `written`, also when others could
        not be.
        """
        copies = await self._copies(file)
        records: dict[int, ops.Run] = {}

        async def store(number: int) -> None:
            run = runs[number]
            slice_id = await self._slice_id()
            volume, crc = await self._chunks.write(slice_id, run.parts, copies)
            written.append((slice_id, volume, run.size))
            records[number] = ops.Run(run.start, run.size, crc, slice_id, volume)

        if self._slices_at_once == 1 or len(runs) == 1:
            for number in range(len(runs)):
                await store(number)
        else:
            await leave()
            await each_of(range(len(runs)), store, self._slices_at_once)
        return [records[number] for number in range(len(runs))]

    async def _copies(self, file: File) -> int:
        """How many copies of its bytes there are to be; 0: as many as usual."""
        if not self._own_copies():
            return 0
        if file.copies is None:
            file.copies = await self._meta.read(GetCopies(file.ino))
        return file.copies

    async def _discard(self, written: list[tuple[SliceId, VolumeId, int]]) -> None:
        try:
            await self._meta.propose(Discard(tuple(written)))
        except FsError as error:  # they stay in the volume until somebody looks for such
            log.warning("%d slices could not be given back: %s", len(written), error)

    async def _slice_id(self) -> SliceId:
        now = trio.current_time()
        if self._next_slice == self._last_slice or now - self._reserved_at > RESERVED_S:
            first = await self._meta.propose(ReserveSlices(SLICES_RESERVED))
            self._reserved_at = now
            self._next_slice = first
            self._last_slice = self._next_slice + SLICES_RESERVED
        self._next_slice += 1
        return SliceId(self._next_slice - 1)

    async def _make_room(self, size: int) -> None:
        await leave()
        refused: dict[File, FsError] = {}
        """Files of others that are over their quota: that is no matter of ours, if there is one
        that is not.
        """
        while self.dirty_bytes + size > self._dirty_bytes_max and self.unwritten:
            oldest = next((file for file in self.unwritten if file not in refused), None)
            if oldest is None:
                raise next(iter(refused.values()))
            if oldest.flushing:
                await self._progress.wait()
                continue
            try:
                await self._flush(oldest, oldest.dirty.take(bytes_max=LANDING_BYTES), False)
            except FsError as error:
                if error.fault is not Fault.OVER_QUOTA:
                    raise
                refused[oldest] = error
            await trio.lowlevel.checkpoint()


async def each_of(
    numbers: Iterable[int], work: Callable[[int], Awaitable[None]], at_once: int
) -> None:
    """Do `work` for each, for some at a time.  When one fails the others are cancelled, and what it
    has said is raised.
    """
    left = iter(numbers)
    failed: list[FsError] = []

    async def some() -> None:
        try:
            for number in left:
                await work(number)
        except FsError as error:
            failed.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(some)
    if failed:
        raise failed[0]


def _require_not_lost(file: File, fence: int) -> None:
    """Raises LOST where what is on its way is not wanted any more."""
    if file.fence != fence:
        raise FsError(Fault.LOST, f"inode {file.ino}: what was being written was lost meanwhile")


def _show(file: File, runs: list[ops.Run], piece: SliceId) -> None:
    """Put new slices over those that are known of a file; `piece` is the name of the first run
    that the metadata carries, 0 where it is part of the content.
    """
    file.acted += 1
    if not piece or file.content is not None:
        file.forget_layouts()
        return
    file.forgotten += 1  # what was asked for before may not have them
    fresh: set[int] = set()
    for number, run in enumerate(runs):
        chunk, start = divmod(run.offset, CHUNK_BYTES)
        seen = file.layouts.get(chunk)
        if seen is None:
            continue
        if chunk not in fresh:  # somebody may be reading by the old one
            fresh.add(chunk)
            seen = file.layouts[chunk] = list(seen)
        name = run.slice_id if run.volume else SliceId(piece + number)
        stop = start + run.length
        put(seen, Slice(start, stop, name, 0, run.volume, run.length, run.crc))


def _batch(runs: list[Run]) -> list[Run]:
    """The first of the runs, as many as go into one command; at least one, if there is one."""
    size = 0
    batch = runs[:RUNS_MAX]
    for number, run in enumerate(batch):
        size += run.size
        if number and size > LANDING_BYTES:
            return batch[:number]
    return batch


DIRTY_BYTES_MAX = 128 * MIB
