"""Compaction in the background: overwritten slices are merged, and volumes with garbage written
anew.
"""

import trio

from mountfs.chunks.base import ChunkStore
from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.local import Meta
from mountfs.meta.ops.chunk_rows import ROWS_URGENT, ChunkRows, CountRows
from mountfs.meta.ops.copies import GetCopies
from mountfs.meta.ops.read import GetAttr
from mountfs.meta.ops.slices import (
    Discard,
    ReserveSlices,
    Rewrite,
    Settle,
    Tangles,
    crc_of_rows,
)
from mountfs.meta.records import Slice, size_of
from mountfs.types import CHUNK_BYTES, Ino
from mountfs.vfs.compaction import Plan, plan
from mountfs.vfs.filesystem import Filesystem
from mountfs.vfs.handles import File

CHUNKS_AT_ONCE = 16
"""In one tick, so that the work stays in the background."""
TANGLES_SEEN = 1_024
QUIET_S = 10
"""A file that was written to so recently is left alone: its next bytes would make the work vain."""


class Compactor:
    def __init__(
        self,
        meta: Meta,
        chunks: ChunkStore,
        filesystem: Filesystem,
    ) -> None:
        self._meta = meta
        self._chunks = chunks
        self._filesystem = filesystem

    async def run_once(self) -> None:
        """Compact some chunks of files that have slices lying over one another."""
        compacted = 0
        for ino, chunk in await self._meta.read(Tangles(TANGLES_SEEN)):
            compacted += await self.compact_chunk(ino, chunk)
            await trio.lowlevel.checkpoint()
            if compacted == CHUNKS_AT_ONCE:
                return

    async def compact_chunk(self, ino: Ino, chunk: int) -> bool:
        """Say what the slices of a chunk say with fewer bytes and rows.

        The reply says whether it was its time."""
        busy = self._filesystem.seconds_since_write(ino) < QUIET_S
        if busy and await self._meta.read(CountRows(ino, chunk)) < ROWS_URGENT:
            return False
        try:
            rows = await self._meta.read(ChunkRows(ino, chunk))
        except FsError as error:
            if error.fault is Fault.STALE:
                return False
            raise
        if not rows:
            await self._meta.propose(Settle(ino, chunk, 0, crc_of_rows([])))
            return False
        wanted = plan([piece for _, _, piece in rows])
        places = tuple((order, number) for order, number, _ in rows)
        if wanted is None:
            judged = crc_of_rows((keys.slice_(ino, chunk, *row[:2]), row[2]) for row in rows)
            await self._meta.propose(Settle(ino, chunk, len(rows), judged))
        else:
            await self._rewrite(ino, chunk, places, wanted)
        return True

    async def _rewrite(
        self, ino: Ino, chunk: int, places: tuple[tuple[int, int], ...], wanted: Plan
    ) -> None:
        size = size_of(await self._meta.read(GetAttr(ino)))
        file = File(ino, max(size, (chunk + 1) * CHUNK_BYTES))
        added = list(wanted.keep)
        written = []
        try:
            for start, stop in wanted.rewrite:
                base = chunk * CHUNK_BYTES
                data = await self._filesystem.reader.read_written(file, base + start, base + stop)
                slice_id = await self._meta.propose(ReserveSlices(1))
                copies = await self._meta.read(GetCopies(ino))
                volume, crc = await self._chunks.write(slice_id, [data], copies)
                written.append((slice_id, volume, stop - start))
                added.append(Slice(start, stop, slice_id, 0, volume, stop - start, crc))
            added.sort(key=lambda piece: piece.start)
            await self._meta.propose(Rewrite(ino, chunk, places, tuple(added)))
        except FsError as error:
            if written:
                await self._meta.propose(Discard(tuple(written)))
            if error.fault not in (Fault.BUSY, Fault.STALE):
                raise
        self._filesystem.moved(ino)
