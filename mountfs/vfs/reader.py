"""Reading: which slices, pieces and unwritten bytes a range of a file consists of, put together."""

from bisect import bisect_right
from operator import attrgetter

from mountfs.chunks.base import ChunkStore
from mountfs.errors import Fault, FsError
from mountfs.meta.extents import visible
from mountfs.meta.local import Meta
from mountfs.meta.ops.read import GetLayout, GetPiece, Layout, NextChunk
from mountfs.meta.records import Slice
from mountfs.types import CHUNK_BYTES
from mountfs.vfs.dirty import Run
from mountfs.vfs.handles import File

Bytes = bytes | bytearray | memoryview

_START = attrgetter("start")
_LAYOUTS_KEPT = 64
"""Chunks of one file whose layout is kept in memory: 4 GiB of it."""


class Reader:
    def __init__(self, meta: Meta, chunks: ChunkStore) -> None:
        self._meta = meta
        self._chunks = chunks

    async def read(self, file: File, offset: int, size: int) -> Bytes:
        """Up to `size` bytes; fewer at the end of the file."""
        stop = min(offset + size, file.size)
        if offset >= stop:
            return b""
        try:
            return await self._read(file, offset, stop)
        except FsError as error:
            if error.fault not in (Fault.STALE, Fault.CORRUPT):
                raise
        # Compaction may have moved the bytes while we were reading them: look where they are now.
        file.forget_layouts()
        return await self._read(file, offset, stop)

    async def _read(self, file: File, offset: int, stop: int) -> Bytes:
        if file.unwritten:
            return await self._read_unwritten(file, offset, stop)
        return await self.read_written(file, offset, stop)

    async def read_written(self, file: File, offset: int, stop: int) -> Bytes:
        """What the slices say of `offset:stop`; zeros where there are none."""
        chunk, start = divmod(offset, CHUNK_BYTES)
        end = stop - chunk * CHUNK_BYTES
        if end <= CHUNK_BYTES:
            return await self._read_chunk(file, chunk, start, end)
        parts = []
        while offset < stop:
            chunk, start = divmod(offset, CHUNK_BYTES)
            end = min(stop - chunk * CHUNK_BYTES, CHUNK_BYTES)
            parts.append(await self._read_chunk(file, chunk, start, end))
            offset += end - start
        return b"".join(parts)

    async def layout(self, file: File, chunk: int) -> list[Slice]:
        """The visible slices of a chunk, ascending."""
        while (seen := file.layouts.get(chunk)) is None:
            forgotten = file.forgotten
            found = await self._meta.read(GetLayout(file.ino, chunk))
            if file.forgotten == forgotten:
                return self.know(file, found, chunk)
        return seen

    def know(self, file: File, found: Layout, chunk: int = 0) -> list[Slice]:
        """The metadata has said how a chunk is laid out."""
        if found.content is not None:
            file.content = found.content
            return []
        if len(file.layouts) >= _LAYOUTS_KEPT:
            del file.layouts[next(iter(file.layouts))]
        seen = file.layouts[chunk] = visible(found.slices)
        return seen

    async def next_data(self, file: File, offset: int) -> int | None:
        """The first offset from `offset` on that is not in a hole; None if there is none."""
        while True:
            chunk = await self._meta.read(NextChunk(file.ino, offset // CHUNK_BYTES))
            if chunk is None:
                return None
            base = chunk * CHUNK_BYTES
            offset = max(offset, base)
            seen = await self.layout(file, chunk)
            if file.content is not None:
                return offset if offset < len(file.content) else None
            for piece in seen:
                if not piece.is_hole and base + piece.stop > offset:
                    return max(offset, base + piece.start)
            offset = base + CHUNK_BYTES

    async def next_hole(self, file: File, offset: int) -> int:
        """The first offset from `offset` on that is in a hole; the end of the file is one."""
        while offset < file.size:
            chunk, start = divmod(offset, CHUNK_BYTES)
            seen = await self.layout(file, chunk)
            if file.content is not None:
                return max(offset, len(file.content))
            for piece in seen:
                if piece.start > start or (piece.is_hole and piece.stop > start):
                    break
                start = max(start, piece.stop)
            offset = chunk * CHUNK_BYTES + start
            if start < CHUNK_BYTES:
                break
        return min(offset, file.size)

    async def _read_unwritten(self, file: File, offset: int, stop: int) -> Bytes:
        # Copied before anything is awaited: a flush may move these bytes while the rest is read.
        copies = [
            (max(run.start, offset), _cut(run, offset, stop))
            for run in (*file.flight, *file.dirty.runs)
            if run.start < stop and run.stop > offset
        ]
        if len(copies) == 1 and len(copies[0][1]) == stop - offset:
            return copies[0][1]
        over = bytearray(await self.read_written(file, offset, stop))
        for start, data in copies:
            over[start - offset : start - offset + len(data)] = data
        return over

    async def _read_chunk(self, file: File, chunk: int, start: int, stop: int) -> Bytes:
        seen = await self.layout(file, chunk) if file.content is None else []
        if file.content is not None:
            return file.content[start:stop].ljust(stop - start, b"\0")
        at = max(bisect_right(seen, start, key=_START) - 1, 0)
        if at < len(seen) and seen[at].start <= start and seen[at].stop >= stop:
            return await self._fetch(file, seen[at], start, stop)
        whole = bytearray(stop - start)
        while at < len(seen) and seen[at].start < stop:
            low, high = max(seen[at].start, start), min(seen[at].stop, stop)
            if low < high and not seen[at].is_hole:
                whole[low - start : high - start] = await self._fetch(file, seen[at], low, high)
            at += 1
        return whole

    async def _fetch(self, file: File, piece: Slice, start: int, stop: int) -> Bytes:
        if piece.is_hole:
            return bytes(stop - start)
        low = piece.skip + start - piece.start
        high = low + stop - start
        if piece.volume:
            return await self._chunks.read(piece.volume, piece.slice_id, low, high)
        data = await self._meta.read(GetPiece(file.ino, piece.slice_id))
        return memoryview(data)[low:high]


def _cut(run: Run, start: int, stop: int) -> bytearray:
    low, high = max(run.start, start), min(run.stop, stop)
    data = bytearray(high - low)
    run.copy_into(data, low)
    return data
