"""A node's volumes, for others: slices come over the network, and are on disk when that is said."""

from collections.abc import Callable
from typing import Any

import msgspec
import trio
from crc32c import crc32c

from mountfs.chunks import needle
from mountfs.chunks.client import LocalChunks
from mountfs.chunks.disk import DiskStore
from mountfs.chunks.protocol import READ, READ_HEAD, SPACE, WRITE_HEAD, WRITTEN, Method
from mountfs.errors import Fault, FsError
from mountfs.inline import leave
from mountfs.types import SLICE_BYTES_MAX, SliceId, VolumeId
from mountfs.wire.connection import Body
from mountfs.wire.frames import Parts

WRITERS = 4


class ChunkService:
    """`may_delete` raises DENIED for who must not."""

    def __init__(
        self, disk: DiskStore, chunks: LocalChunks, may_delete: Callable[[Any], None]
    ) -> None:
        self._disk = disk
        self._chunks = chunks
        self._may_delete = may_delete
        self._writers = trio.CapacityLimiter(WRITERS)

    async def handle(self, peer: Any, method: int, body: Body) -> Parts:
        if method == Method.READ:
            return await self._read(body)
        if method == Method.WRITE:
            return await self._write(body)
        if method == Method.SPACE:
            return SPACE.pack(*self._chunks.space())
        if method == Method.DELETE:
            self._may_delete(peer)
            await leave()
            try:
                doomed = msgspec.msgpack.decode(body, type=dict[VolumeId, list[SliceId]])
            except msgspec.MsgspecError as error:
                raise FsError(Fault.INVALID, f"not a list of slices: {error}") from None
            await self.delete(doomed)
            return b""
        raise FsError(Fault.NOT_IMPLEMENTED, f"a chunkserver has no method {method}")

    async def delete(self, doomed: dict[VolumeId, list[SliceId]]) -> None:
        await trio.to_thread.run_sync(self._disk.delete, doomed)
        await trio.to_thread.run_sync(self._disk.give_back)

    async def _write(self, body: Body) -> bytes:
        if not WRITE_HEAD.size < len(body) <= WRITE_HEAD.size + SLICE_BYTES_MAX:
            raise FsError(Fault.INVALID, f"a slice of {len(body) - WRITE_HEAD.size} bytes")
        slice_id, crc = WRITE_HEAD.unpack_from(body)
        if not slice_id:
            raise FsError(Fault.INVALID, "slice 0 does not exist")
        data = memoryview(body)[WRITE_HEAD.size :]
        await leave()
        volume = await trio.to_thread.run_sync(
            self._append, SliceId(slice_id), data, crc, limiter=self._writers
        )
        await self._chunks.sync()
        return WRITTEN.pack(volume)

    def _append(self, slice_id: SliceId, data: memoryview, crc: int) -> VolumeId:
        sums = needle.checksums([data])
        if sums.crc != crc:
            raise FsError(Fault.CORRUPT, f"slice {slice_id:#x} was damaged on its way here")
        return self._disk.append(slice_id, [data], sums)

    async def _read(self, body: Body) -> Parts:
        if len(body) != READ.size:
            raise FsError(Fault.INVALID, "not a question for a slice")
        volume, slice_id, start, stop = READ.unpack(body)
        if not start < stop <= SLICE_BYTES_MAX:
            raise FsError(Fault.INVALID, f"bytes {start} to {stop} of a slice")
        data = await self._chunks.read(VolumeId(volume), SliceId(slice_id), start, stop)
        return [READ_HEAD.pack(crc32c(data)), data]
