"""Reading from volumes of chunkservers on this machine, by files that they lend.

A server is asked once for each volume, and once for each slice where it lies; then reads go to the
page cache or the disk without it.  All is verified as the server would.  Whatever is not as it
should be (a slice that has moved or gone, a checksum that does not match) is left to the server to
answer: here it only means "not this way".
"""

import array
import logging
import os
import socket
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

import trio

from mountfs.buffers import Buffers
from mountfs.chunks.client import LocalReads
from mountfs.chunks.file import VolumeFile
from mountfs.chunks.index import Place
from mountfs.chunks.lending import ASKED, LENT, TOKEN_BYTES, is_of_us
from mountfs.chunks.protocol import PLACE, PLACED, Method
from mountfs.chunks.reader import NeedleReader
from mountfs.chunks.volume import BadSuperblock
from mountfs.errors import Fault, FsError, disk_error
from mountfs.types import SliceId, VolumeId
from mountfs.wire.connection import Body, Disconnected

log = logging.getLogger(__name__)

FILES_MAX: Final = 256
PLACES_MAX: Final = 65_536
HEADS_MAX: Final = 16_384
AGE_S: Final = 30.0
"""A file is borrowed anew after so long: one that was compacted or dropped would take space for as
long as it is open here.
"""
AGAIN_S: Final = 30.0
"""A server that lends nothing is asked again after so long."""
CALL_S: Final = 5.0

Call = Callable[[int, int, bytes], Awaitable[Body]]
"""(node, method, body) -> the answer.  Raises FsError."""


class _Volume:
    """A file that a node has lent."""

    __slots__ = ("borrowed", "file", "generation", "node", "places")

    def __init__(self, node: int, file: VolumeFile, generation: int, now: float) -> None:
        self.node = node
        self.file = file
        self.generation = generation
        self.borrowed = now
        self.places: dict[SliceId, Place] = {}


class _Lender:
    """A node on this machine."""

    def __init__(self) -> None:
        self.asking = trio.Lock()
        self.socket: trio.socket.SocketType | None = None
        self.token = b""
        self.refused_until = 0.0


class Borrowing:
    """`call` asks a node something over `wire`."""

    def __init__(self, call: Call, buffers: Buffers) -> None:
        self._call = call
        self._lenders: dict[int, _Lender] = {}
        self._volumes: OrderedDict[VolumeId, _Volume] = OrderedDict()
        self._places = 0
        self._files = _Files(self._volumes, buffers)
        self._chunks = LocalReads(self._files)
        self.reads = 0

    async def read(
        self, node: int, volume: VolumeId, slice_id: SliceId, start: int, stop: int
    ) -> memoryview | None:
        """Bytes of a slice that a node on this machine has; None: ask the node."""
        lender = self._lenders.setdefault(node, _Lender())
        if lender.refused_until > trio.current_time():
            return None
        try:
            lent = await self._lent(node, lender, volume)
            if lent is None:
                return None
            if slice_id not in lent.places and not await self._place(lent, volume, slice_id):
                return None
            data = await self._chunks.read(volume, slice_id, start, stop)
        except FsError as error:
            log.info("volume %d of node %d is not read here: %s", volume, node, error)
            self._forget(volume)
            return None
        self.reads += 1
        return data

    async def read_soon(
        self, volume: VolumeId, slice_id: SliceId, start: int, stop: int
    ) -> memoryview | None:
        """The same without asking anybody, if it is known where, and in memory or on a quick disk.

        Free of Trio (see `mountfs.inline`).
        """
        lent = self._fresh(volume)
        if lent is None or slice_id not in lent.places:
            return None
        try:
            data = await self._chunks.read_soon(volume, slice_id, start, stop)
        except FsError as error:
            log.info("volume %d of node %d is not read here: %s", volume, lent.node, error)
            self._forget(volume)
            return None
        if data is not None:
            self.reads += 1
        return data

    def close(self) -> None:
        for lender in self._lenders.values():
            if lender.socket is not None:
                lender.socket.close()
        self._lenders.clear()
        self._volumes.clear()

    # -- borrowing

    async def _lent(self, node: int, lender: _Lender, volume: VolumeId) -> _Volume | None:
        found = self._fresh(volume)
        if found is not None:
            return found
        async with lender.asking:
            found = self._fresh(volume)
            if found is not None:
                return found
            try:
                with trio.fail_after(CALL_S):
                    return await self._borrow(node, lender, volume)
            except (OSError, trio.TooSlowError, FsError, Disconnected, BadSuperblock) as error:
                log.info("node %d lends nothing: %s", node, error)
                if lender.socket is not None:
                    lender.socket.close()
                    lender.socket = None
                lender.refused_until = trio.current_time() + AGAIN_S
                return None

    def _fresh(self, volume: VolumeId) -> _Volume | None:
        """The file of any node: where several on this machine have copies, one of them is read, so
        that what was learned of it is of use.
        """
        found = self._volumes.get(volume)
        if found is None or trio.current_time() - found.borrowed > AGE_S:
            return None
        return found

    async def _borrow(self, node: int, lender: _Lender, volume: VolumeId) -> _Volume | None:
        if lender.socket is None:
            told = bytes(await self._call(node, Method.LEND, b""))
            if len(told) <= TOKEN_BYTES:
                raise FsError(Fault.DEVICE, "it says where in a way that makes no sense")
            lender.token = told[:TOKEN_BYTES]
            lender.socket = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            await lender.socket.connect("\0" + told[TOKEN_BYTES:].decode())
            if not is_of_us(lender.socket):
                raise FsError(Fault.DENIED, "who listens there is another user")
        await lender.socket.send(ASKED.pack(lender.token, volume))
        answer, ancillary, _, _ = await lender.socket.recvmsg(
            LENT.size, socket.CMSG_SPACE(array.array("i").itemsize)
        )
        fds = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        try:
            if len(answer) != LENT.size:
                raise FsError(Fault.UNAVAILABLE, "it has closed the connection")
            (generation,) = LENT.unpack(answer)
            if not fds:
                self._forget(volume)
                return None
            file = VolumeFile.borrowed(Path(f"volume {volume} of node {node}"), fds.pop())
        finally:
            for fd in fds:
                os.close(fd)
        if (file.superblock.volume, file.superblock.generation) != (volume, generation):
            raise FsError(Fault.CORRUPT, f"it lends another file than that of volume {volume}")
        return self._keep(node, volume, file, generation)

    def _keep(self, node: int, volume: VolumeId, file: VolumeFile, generation: int) -> _Volume:
        before = self._volumes.pop(volume, None)
        found = _Volume(node, file, generation, trio.current_time())
        if before is not None and (before.node, before.generation) == (node, generation):
            found.places = before.places
        elif before is not None:
            self._places -= len(before.places)
        self._volumes[volume] = found
        while len(self._volumes) > FILES_MAX or self._places > PLACES_MAX:
            _, oldest = self._volumes.popitem(last=False)
            self._places -= len(oldest.places)
            if oldest is found:
                break
        return found

    async def _place(self, lent: _Volume, volume: VolumeId, slice_id: SliceId) -> bool:
        answer = await self._call(lent.node, Method.PLACE, PLACE.pack(volume, slice_id))
        if len(answer) != PLACED.size:
            raise FsError(Fault.DEVICE, "its answer to PLACE makes no sense")
        generation, offset, length = PLACED.unpack(answer)
        if generation != lent.generation:
            self._forget(volume)  # it was compacted: borrow the new file
            return False
        place = Place(offset, length)
        if not place.is_possible:
            return False
        lent.places[slice_id] = place
        self._places += 1
        return True

    def _forget(self, volume: VolumeId) -> None:
        found = self._volumes.pop(volume, None)
        if found is not None:
            self._places -= len(found.places)


class _Files:
    """The files that are lent, as `LocalReads` and `NeedleReader` want them."""

    def __init__(self, volumes: Mapping[VolumeId, _Volume], buffers: Buffers) -> None:
        self._volumes = volumes
        self._reader = NeedleReader(self, threading.Lock(), HEADS_MAX, buffers)

    def get(self, volume: VolumeId, slice_id: SliceId) -> Place | None:
        lent = self._volumes.get(volume)
        return lent.places.get(slice_id) if lent is not None else None

    def read_now(
        self, volume: VolumeId, slice_id: SliceId, start: int, stop: int
    ) -> memoryview | None:
        return self._read(volume, slice_id, start, stop, os.RWF_NOWAIT)

    def read(self, volume: VolumeId, slice_id: SliceId, start: int, stop: int) -> memoryview:
        data = self._read(volume, slice_id, start, stop, 0)
        assert data is not None
        return data

    def fetch(self, volume_id: VolumeId, slice_id: SliceId, start: int, stop: int) -> None:
        lent = self._volumes.get(volume_id)
        if lent is not None:
            self._reader.fetch(lent.file, slice_id, start, stop)

    def _read(
        self, volume: VolumeId, slice_id: SliceId, start: int, stop: int, flags: int
    ) -> memoryview | None:
        lent = self._volumes.get(volume)
        if lent is None:
            raise FsError(Fault.UNAVAILABLE, f"volume {volume} is not lent any more")
        try:
            return self._reader.read(lent.file, slice_id, start, stop, flags)
        except OSError as error:
            raise disk_error(error, f"{lent.file.path}: reading slice {slice_id:#x}") from error
