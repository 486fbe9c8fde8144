"""A chunkserver: the volumes of a node, for others.

Slices come over the network and are on disk when that is said.  Anybody may write to a volume that
is open, and read; what becomes of volumes is for the leader to say.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import msgspec
import trio
from crc32c import crc32c

from mountfs.chunks import needle
from mountfs.chunks.client import INLINE_BYTES
from mountfs.chunks.consent import Consent, refusal
from mountfs.chunks.copying import Copying, Source
from mountfs.chunks.disks import Disk, Disks
from mountfs.chunks.fence import Fence
from mountfs.chunks.lending import Lender
from mountfs.chunks.protocol import (
    LIST_MAX,
    PLACE,
    PLACED,
    READ,
    READ_HEAD,
    SPACE,
    WRITE_HEAD,
    Copy,
    Delete,
    Drop,
    List,
    Method,
    Open,
    Seal,
)
from mountfs.chunks.rewrite import DamagedNeedle
from mountfs.chunks.throttle import Throttle
from mountfs.errors import Fault, FsError
from mountfs.inline import leave
from mountfs.meta.reports import ASYNC, FSYNC
from mountfs.types import KIB, SLICE_BYTES_MAX, SliceId, VolumeId
from mountfs.wire.connection import Body
from mountfs.wire.frames import Parts

log = logging.getLogger(__name__)

WRITERS: Final = 4
"""Threads that store slices."""
ORDERS: Final = 4
"""Threads that obey."""
WRITES_MAX: Final = 256
READS_MAX: Final = 1_024
ORDERS_MAX: Final = 64
COPIES_MAX: Final = 4
"""Requests of a kind that may be under way; more are refused, and may be tried again."""

STRETCH_BYTES: Final = 64 * KIB
"""A read of this size is sent from the file, if it can be.  For smaller ones copying costs less."""

SYNC_S: Final = 0.5
"""So often what was taken without waiting for a disk is written to it."""

T = TypeVar("T")


class ChunkService:
    """`may_order` raises DENIED for who is not a node; `link` connects to one (Disconnected,
    FsError).
    """

    def __init__(
        self,
        disks: Disks,
        may_order: Callable[[Any], None],
        link: Callable[[int], Awaitable[Source]],
        *,
        copy_bytes_per_s: float = 0.0,
        durability: str = FSYNC,
        consent: Consent | None = None,
    ) -> None:
        """`copy_bytes_per_s`: what COPY may bring in, all orders together; 0: as much as there is.
        It can be changed later: `throttle.rate`.  With the durability ASYNC a slice is taken before
        it is on the disk, and `sync_behind` sees to it.  `consent` is asked before anything goes.
        """
        self._consent = consent
        self._syncs = durability != ASYNC
        self.throttle = Throttle(copy_bytes_per_s)
        self.fence = Fence(disks.read_term(), disks.keep_term)
        self._disks = disks
        self.lender: Lender | None = None
        """Who lends files of volumes, if somebody does."""
        self._may_order = may_order
        self._copying = Copying(disks, link, self.throttle)
        self._writers = trio.CapacityLimiter(WRITERS)
        self._obeying = trio.CapacityLimiter(ORDERS)
        self._under_way = dict.fromkeys(Method, 0)

    async def sync_behind(self) -> None:
        """Until cancelled: what was taken is on the disks soon."""
        while not self._syncs:
            await trio.sleep(SYNC_S)
            for disk in self._disks.disks:
                if disk.store.unsynced:
                    try:
                        await disk.chunks.sync()
                    except FsError as error:  # the volumes with it are reported
                        log.error("%s: %s", disk.path, error)

    async def handle(self, peer: Any, method: int, body: Body) -> Parts:
        if method == Method.READ:
            with self._one_more(Method.READ, READS_MAX):
                return await self._read(body, from_file=getattr(peer, "sends_files", False))
        if method == Method.WRITE:
            with self._one_more(Method.WRITE, WRITES_MAX):
                return await self._write(body)
        if method == Method.VERIFY:
            with self._one_more(Method.READ, READS_MAX):
                await self._read(body, from_file=False)
                return b""
        if method == Method.SPACE:
            return SPACE.pack(*self._disks.space())
        if method == Method.PLACE:
            return self._place(body)
        if method == Method.LEND:
            if self.lender is None:
                raise FsError(Fault.NOT_IMPLEMENTED, "files are not lent here")
            return self.lender.token + self.lender.name.encode()
        if method == Method.LIST:
            with self._one_more(Method.LIST, ORDERS_MAX):
                return await self._list(body)
        return await self._order(peer, method, body)

    async def _order(self, peer: Any, method: int, body: Body) -> Parts:
        """What the leader says."""
        if method not in (Method.OPEN, Method.SEAL, Method.COPY, Method.DELETE, Method.DROP):
            raise FsError(Fault.NOT_IMPLEMENTED, f"a chunkserver has no method {method}")
        self._may_order(peer)
        await leave()
        if method == Method.COPY:
            with self._one_more(Method.COPY, COPIES_MAX):
                return await self._copy(_decoded(body, Copy))
        with self._one_more(Method(method), ORDERS_MAX):
            if method == Method.OPEN:
                return await self._open(_decoded(body, Open))
            if method == Method.SEAL:
                return await self._seal(_decoded(body, Seal))
            if method == Method.DELETE:
                return await self._delete(_decoded(body, Delete))
            return await self._drop(_decoded(body, Drop))

    # -- slices

    async def _write(self, body: Body) -> bytes:
        if not WRITE_HEAD.size < len(body) <= WRITE_HEAD.size + SLICE_BYTES_MAX:
            raise FsError(Fault.INVALID, f"a slice of {len(body) - WRITE_HEAD.size} bytes")
        slice_id, crc, volume, epoch = WRITE_HEAD.unpack_from(body)
        if not slice_id or not volume or not epoch:
            what = f"slice {slice_id:#x}, volume {volume}, epoch {epoch}: no such thing exists"
            raise FsError(Fault.INVALID, what)
        disk = self._disks.disk_of(VolumeId(volume))
        if disk is None:
            raise FsError(Fault.VOLUME_CLOSED, f"volume {volume} is not here")
        data = memoryview(body)[WRITE_HEAD.size :]
        args = (disk, SliceId(slice_id), data, crc, VolumeId(volume), epoch)
        if len(data) < INLINE_BYTES and disk.store.appends_at_once(len(data), VolumeId(volume)):
            _append(*args)
            await leave()
        else:
            await leave()
            await trio.to_thread.run_sync(_append, *args, limiter=self._writers)
        if self._syncs:
            await disk.chunks.sync()
        return b""

    async def _read(self, body: Body, *, from_file: bool) -> Parts:
        if len(body) != READ.size:
            raise FsError(Fault.INVALID, "not a question for a slice")
        volume, slice_id, start, stop = READ.unpack(body)
        if not start < stop <= SLICE_BYTES_MAX:
            raise FsError(Fault.INVALID, f"bytes {start} to {stop} of a slice")
        disk = self._disks.disk_of(VolumeId(volume))
        if disk is None:
            what = f"slice {slice_id:#x}: volume {volume} is not here"
            raise FsError(Fault.CORRUPT, what)
        try:
            if from_file and stop - start >= STRETCH_BYTES:
                found = disk.store.stretch(VolumeId(volume), SliceId(slice_id), start, stop)
                if found is not None:
                    disk.chunks.reads += 1
                    return [READ_HEAD.pack(found[0]), found[1]]
            data = await disk.chunks.read(VolumeId(volume), SliceId(slice_id), start, stop)
        except FsError as error:
            self._note(disk, VolumeId(volume), SliceId(slice_id), error)
            raise
        return [READ_HEAD.pack(crc32c(data)), data]

    def _place(self, body: Body) -> bytes:
        """Where a slice lies, for who has borrowed the file."""
        if len(body) != PLACE.size:
            raise FsError(Fault.INVALID, "not a question for a place")
        volume, slice_id = PLACE.unpack(body)
        disk = self._disks.disk_of(VolumeId(volume))
        found = None if disk is None else disk.store.whereabouts(VolumeId(volume), slice_id)
        return PLACED.pack(*(found or (0, 0, 0)))

    def _note(self, disk: Disk, volume: VolumeId, slice_id: SliceId, error: FsError) -> None:
        """A slice could not be read: the leader is to know, if it is damaged."""
        what = str(error)
        if error.fault is Fault.DEVICE:
            found = disk.store.place(volume, slice_id)
            if found is None:
                return
            what = f"{found[0]}: slice {slice_id:#x} at offset {found[1].offset}: {error}"
        elif not isinstance(error, DamagedNeedle):
            return
        log.error("%s", what)
        disk.store.note_bad(volume, slice_id, what)

    async def _list(self, body: Body) -> bytes:
        asked = _decoded(body, List)
        if not 0 < asked.limit <= LIST_MAX or not 0 <= asked.after < 1 << 64:
            raise FsError(Fault.INVALID, f"{asked.limit} slices behind {asked.after:#x}")
        disk = self._disks.disk_of(asked.volume)
        if disk is None:
            raise FsError(Fault.NOT_FOUND, f"volume {asked.volume} is not here")
        await leave()
        look = disk.store.damaged if asked.damaged else disk.store.listing
        found = await trio.to_thread.run_sync(
            look, asked.volume, asked.after, asked.limit, limiter=self._obeying
        )
        return msgspec.msgpack.encode(found)

    # -- volumes

    async def _open(self, order: Open) -> bytes:
        _require_volume(order.volume)
        if not 0 < order.epoch < 1 << 32:
            raise FsError(Fault.INVALID, f"epoch {order.epoch}")
        async with self.fence.order(order.term):
            await self._obey(self._disks.open_volume, order.volume, order.epoch)
        return b""

    async def _seal(self, order: Seal) -> bytes:
        _require_volume(order.volume)
        async with self.fence.order(order.term):
            report = await self._obey(self._disks.seal, order.volume)
        return msgspec.msgpack.encode(report)

    async def _delete(self, order: Delete) -> bytes:
        if not all(0 < one < 1 << 64 for slices in order.slices.values() for one in slices):
            raise FsError(Fault.INVALID, "no names of slices")
        await self.fence.hear(order.term)
        needed = await self._consent.needed(order.slices) if self._consent else {}
        slices = {
            volume: [one for one in names if one not in needed.get(volume, ())]
            for volume, names in order.slices.items()
        }
        async with self.fence.order(order.term):
            await self._obey(self._disks.delete, slices)
        if needed:
            error = refusal(needed)
            log.error("was told to delete what is needed: %s", error)
            raise error
        return b""

    async def _drop(self, order: Drop) -> bytes:
        await self.fence.hear(order.term)
        if self._consent is not None:
            await self._consent.require_droppable(order.volume)
        async with self.fence.order(order.term):
            await self._obey(self._disks.drop, order.volume)
        return b""

    async def _copy(self, order: Copy) -> bytes:
        """It takes nothing away, so a later leader need not wait until it is done."""
        _require_volume(order.volume)
        if order.bytes_max < 1 or not 0 <= order.after < 1 << 64:
            raise FsError(Fault.INVALID, f"{order.bytes_max} bytes behind {order.after:#x}")
        if not all(0 < one < 1 << 64 for one in order.slices):
            raise FsError(Fault.INVALID, "no names of slices")
        await self.fence.hear(order.term)
        return msgspec.msgpack.encode(await self._copying.run(order))

    async def _obey(self, work: Callable[..., T], *args: Any) -> T:
        return await trio.to_thread.run_sync(work, *args, limiter=self._obeying)

    @contextmanager
    def _one_more(self, method: Method, most: int) -> Iterator[None]:
        if self._under_way[method] >= most:
            what = f"{most} requests of the kind {method.name} are under way: try again later"
            raise FsError(Fault.UNAVAILABLE, what)
        self._under_way[method] += 1
        try:
            yield
        finally:
            self._under_way[method] -= 1


def _append(
    disk: Disk, slice_id: SliceId, data: memoryview, crc: int, volume: VolumeId, epoch: int
) -> None:
    sums = needle.checksums([data])
    if sums.crc != crc:
        raise FsError(Fault.CORRUPT, f"slice {slice_id:#x} was damaged on its way here")
    disk.store.append(slice_id, [data], sums, volume, epoch)


def _decoded(body: Body, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise FsError(Fault.INVALID, f"not a {kind.__name__}: {error}") from None


def _require_volume(volume: VolumeId) -> None:
    if not 0 < volume < 1 << 32:
        raise FsError(Fault.INVALID, f"volume {volume}")
