"""Getting slices of a sealed volume from another node that has it.

Both sides list theirs by name; what is not here is read there, whole, and verified before it is
stored.  A part of the work is done at a time, and all of it can be done again: what is here already
is not read.

A slice that the source cannot give, or gives wrongly, does not keep the others from being copied;
it is told of at the end of the part.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final, Protocol

import msgspec
import trio
from crc32c import crc32c

from mountfs.chunks import needle
from mountfs.chunks.disks import Disk, Disks
from mountfs.chunks.protocol import LIST_MAX, READ, READ_HEAD, Copied, Copy, List, Method
from mountfs.chunks.throttle import Throttle
from mountfs.errors import Fault, FsError
from mountfs.types import SLICE_BYTES_MAX, SliceId, VolumeId
from mountfs.wire.connection import Body, Disconnected
from mountfs.wire.frames import Parts

log = logging.getLogger(__name__)

READS: Final = 4
"""At once, for one order."""
WRITERS: Final = 2
"""Threads that store what was copied, beside those of the clients."""
PAGE: Final = 4_096
"""Slices in one answer to LIST; at most LIST_MAX."""
CALL_S: Final = 15.0
"""So long the source may take for one answer."""
BAD_MAX: Final = 100
"""With more slices that cannot be had, the order ends."""
RATE_LOOK_S: Final = 0.5
"""How long it may take until a change of the limit is noticed."""

_OF_ONE_SLICE: Final = (Fault.CORRUPT, Fault.DEVICE, Fault.NOT_FOUND)
"""What a source says when it cannot give a slice, but perhaps others."""

_SLICES = msgspec.msgpack.Decoder(list[tuple[int, int]])


class Source(Protocol):
    """A connection to a node."""

    async def call(self, method: int, parts: Parts = b"") -> Body: ...


class Copying:
    """`link` connects to a node (Disconnected, FsError)."""

    def __init__(
        self,
        disks: Disks,
        link: Callable[[int], Awaitable[Source]],
        throttle: Throttle,
    ) -> None:
        self._disks = disks
        self._link = link
        self._throttle = throttle
        self._writers = trio.CapacityLimiter(WRITERS)

    async def run(self, order: Copy) -> Copied:
        """All that it counts is on disk.

        The volume is sealed, if it was not.  Raises UNAVAILABLE when the source does not answer;
        CORRUPT, naming the source, when it has answered rubbish or cannot give a slice; NO_SPACE,
        DEVICE.  What was copied until then stays, and is not copied again.
        """
        disk = await trio.to_thread.run_sync(self._disks.sealed, order.volume)
        part = _Part(self, disk, order)
        try:
            await part.run()
        finally:
            disk.store.trim(order.volume)
        await disk.chunks.sync()
        if part.bad:
            raise FsError(Fault.CORRUPT, "; ".join(map(str, part.bad[:3])))
        return Copied(part.after, part.needles, part.bytes, part.done)

    async def ask(self, node: int, method: Method, body: Parts) -> Body:
        """Raises UNAVAILABLE when there was no answer, and what the node says."""
        try:
            with trio.fail_after(CALL_S):
                return await (await self._link(node)).call(method, body)
        except Disconnected as error:
            raise FsError(Fault.UNAVAILABLE, f"node {node}: {error}") from error
        except FsError as error:
            raise FsError(error.fault, f"node {node}: {error}") from error
        except trio.TooSlowError:
            what = f"node {node}: no answer within {CALL_S:g} s"
            raise FsError(Fault.UNAVAILABLE, what) from None

    async def wait(self, size: int) -> None:
        """Until the limit allows so many bytes more."""
        while wait_s := self._throttle.take(size, trio.current_time()):  # noqa: ASYNC110
            await trio.sleep(min(wait_s, RATE_LOOK_S))  # the rate may change meanwhile

    async def store(
        self, disk: Disk, volume: VolumeId, slice_id: SliceId, data: memoryview
    ) -> bool:
        def put() -> bool:
            return disk.store.put(volume, slice_id, [data], needle.checksums([data]))

        return await trio.to_thread.run_sync(put, limiter=self._writers)


class _Part:
    """What is done for one order."""

    def __init__(self, copying: Copying, disk: Disk, order: Copy) -> None:
        self._copying = copying
        self._disk = disk
        self._order = order
        self._started = 0
        """Bytes that were asked for, to stop in time."""
        self.after = order.after
        """Slices up to this one were seen to."""
        self.needles = 0
        self.bytes = 0
        self.done = False
        self.bad: list[FsError] = []

    async def run(self) -> None:
        if self._order.slices:
            await self._get_named()
            return
        while not self.done:
            page = await self._page(self.after, PAGE)
            if not page:
                self.done = True
                return
            missing = await self._missing(page)
            if not await self._get(missing):
                return
            self.after = page[-1][0]

    async def _get_named(self) -> None:
        wanted = sorted(one for one in set(self._order.slices) if one > self.after)
        found = []
        for slice_id in wanted:
            page = await self._page(SliceId(slice_id - 1), 1)
            if page and page[0][0] == slice_id:
                found.append(page[0])
            else:
                self._note_bad(FsError(Fault.CORRUPT, self._says(f"has no slice {slice_id:#x}")))
        if await self._get(found):
            self.after = wanted[-1] if wanted else self.after
            self.done = True

    async def _page(self, after: SliceId, limit: int) -> Sequence[tuple[SliceId, int]]:
        """What the source has behind a slice.  Raises CORRUPT when that makes no sense."""
        order = self._order
        body = msgspec.msgpack.encode(List(order.volume, after, limit))
        answer = await self._copying.ask(order.source, Method.LIST, body)
        try:
            page = _SLICES.decode(answer)
        except msgspec.MsgspecError as error:
            raise FsError(Fault.CORRUPT, self._says(f"lists no slices: {error}")) from None
        before = int(after)
        for slice_id, length in page:
            if not before < slice_id < 1 << 64 or not 0 < length <= SLICE_BYTES_MAX:
                what = f"lists slice {slice_id:#x} of {length} bytes behind {before:#x}"
                raise FsError(Fault.CORRUPT, self._says(what))
            before = slice_id
        if len(page) > limit:
            raise FsError(Fault.CORRUPT, self._says(f"lists {len(page)} slices, not {limit}"))
        return [(SliceId(slice_id), length) for slice_id, length in page]

    async def _missing(self, page: Sequence[tuple[SliceId, int]]) -> Sequence[tuple[SliceId, int]]:
        """What of a page is not here."""
        here = await trio.to_thread.run_sync(self._here, page[-1][0])
        missing = []
        for slice_id, length in page:
            own = here.get(slice_id)
            if own is None:
                missing.append((slice_id, length))
            elif own != length:
                what = f"has {length} bytes as slice {slice_id:#x}, of which {own} are here"
                self._note_bad(FsError(Fault.CORRUPT, self._says(what)))
        return missing

    def _here(self, last: SliceId) -> dict[SliceId, int]:
        """What is here behind `after`, up to the slice `last`."""
        found: dict[SliceId, int] = {}
        after = self.after
        while after < last:
            page = self._disk.store.listing(self._order.volume, after, LIST_MAX)
            found.update((one, length) for one, length in page if one <= last)
            if len(page) < LIST_MAX:
                break
            after = page[-1][0]
        return found

    async def _get(self, slices: Sequence[tuple[SliceId, int]]) -> bool:
        """False: there were too many bytes, `after` is the last slice that was seen to."""
        coming = iter(slices)
        failure: FsError | None = None

        async def work() -> None:
            nonlocal failure
            try:
                await self._get_some(coming)
            except FsError as error:
                failure = failure or error
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(min(READS, len(slices))):
                nursery.start_soon(work)
        if failure is not None:
            raise failure
        return next(coming, None) is None

    async def _get_some(self, coming: Iterator[tuple[SliceId, int]]) -> None:
        while self._started < self._order.bytes_max:
            slice_id, length = next(coming, (SliceId(0), 0))
            if not slice_id:
                return
            self._started += length
            self.after = slice_id  # all before it have been begun, and end before we say so
            await self._copying.wait(length)
            await self._get_one(slice_id, length)

    async def _get_one(self, slice_id: SliceId, length: int) -> None:
        volume = self._order.volume
        try:
            data = await self._read(slice_id, length)
        except FsError as error:
            if error.fault not in _OF_ONE_SLICE:
                raise
            self._started -= length
            self._note_bad(error)
            return
        try:
            new = await self._copying.store(self._disk, volume, slice_id, data)
        except FsError as error:
            if error.fault is not Fault.CORRUPT:
                raise
            self._note_bad(error)
            return
        if new:
            self.needles += 1
            self.bytes += length

    async def _read(self, slice_id: SliceId, length: int) -> memoryview:
        """All of a slice, from the source.  Raises CORRUPT when it is not what was asked for."""
        order = self._order
        asked = READ.pack(order.volume, slice_id, 0, length)
        answer = await self._copying.ask(order.source, Method.READ, asked)
        data = memoryview(answer)[READ_HEAD.size :]
        if len(answer) != READ_HEAD.size + length:
            what = f"gives {len(data)} bytes of slice {slice_id:#x}, not {length}"
            raise FsError(Fault.CORRUPT, self._says(what))
        if READ_HEAD.unpack_from(answer)[0] != crc32c(data):
            try:  # it may be damaged there, and then that is to be known
                await self._copying.ask(order.source, Method.VERIFY, asked)
            except FsError as error:
                if error.fault is not Fault.NOT_IMPLEMENTED:
                    raise
            what = f"gives slice {slice_id:#x} with a checksum that does not match"
            raise FsError(Fault.CORRUPT, self._says(what))
        return data

    def _note_bad(self, error: FsError) -> None:
        log.error("copying volume %d: %s", self._order.volume, error)
        self.bad.append(error)
        if len(self.bad) > BAD_MAX:
            raise error

    def _says(self, what: str) -> str:
        return f"node {self._order.source}, asked for volume {self._order.volume}, {what}"
