"""A `ChunkStore` over the nodes of a cluster: each slice on one of them, for now.

What is written is on that node's disk when `write` returns; so there is nothing left for `sync`.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import trio
from crc32c import crc32c

from mountfs.chunks.base import Stored
from mountfs.chunks.needle import Buffer
from mountfs.chunks.protocol import (
    READ,
    READ_HEAD,
    SPACE,
    WRITE_HEAD,
    WRITTEN,
    Method,
    node_of,
)
from mountfs.errors import Fault, FsError
from mountfs.inline import leave
from mountfs.types import SliceId, VolumeId
from mountfs.wire.connection import Body, Disconnected
from mountfs.wire.frames import Parts

log = logging.getLogger(__name__)

ATTEMPT_S: Final = 15.0
RETRY_FIRST_S: Final = 0.05
RETRY_MAX_S: Final = 1.0
SPACE_S: Final = 5.0


class Link(Protocol):
    async def call(self, method: int, parts: Parts = b"") -> Body: ...


class RemoteChunks:
    """`nodes` says which have the role chunk; `link` connects to one (Disconnected, FsError)."""

    def __init__(
        self,
        nodes: Callable[[], Sequence[int]],
        link: Callable[[int], Awaitable[Link]],
        *,
        soft_s: float | None = None,
    ) -> None:
        self._nodes = nodes
        self._link = link
        self._soft_s = soft_s
        self._preferred = 0
        """Who took our last slice."""
        self._total = self._free = 0
        self.reads = 0
        self.writes = 0
        self.problem = ""

    async def write(self, slice_id: SliceId, parts: Sequence[Buffer]) -> Stored:
        """Raises NO_SPACE when no node has room; TIMED_OUT if `soft`."""
        self.writes += 1
        await leave()
        crc = size = 0
        for part in parts:
            crc = crc32c(part, crc)
            size += len(part)
        body = [WRITE_HEAD.pack(slice_id, crc), *parts]
        with self._patience():
            wait_s = RETRY_FIRST_S
            while True:
                full: FsError | None = None
                candidates = self._candidates()
                for node in candidates:
                    try:
                        volume = await self._write_to(node, body)
                    except FsError as error:
                        if error.fault is not Fault.NO_SPACE:
                            log.warning("node %d did not take a slice: %s", node, error)
                            self.problem = f"node {node}: {error}"
                            continue
                        full = error
                        continue
                    self._preferred = node
                    self._free = max(self._free - size, 0)  # until we have asked again
                    self.problem = ""
                    return Stored(volume, crc)
                if full is not None:
                    raise full
                await trio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_MAX_S)
        raise self._gave_up()

    async def _write_to(self, node: int, body: Parts) -> VolumeId:
        answer = await self._attempt(node, Method.WRITE, body)
        if len(answer) == WRITTEN.size:
            volume = VolumeId(WRITTEN.unpack(answer)[0])
            if node_of(volume) == node:
                return volume
        raise FsError(Fault.DEVICE, f"node {node} does not say where it has put a slice")

    async def read(self, volume: VolumeId, slice_id: SliceId, start: int, stop: int) -> memoryview:
        """Raises CORRUPT; TIMED_OUT if `soft`."""
        self.reads += 1
        await leave()
        node = node_of(volume)
        asked = READ.pack(volume, slice_id, start, stop)
        with self._patience():
            wait_s = RETRY_FIRST_S
            while True:
                try:
                    answer = await self._attempt(node, Method.READ, asked)
                except FsError as error:
                    if error.fault is not Fault.UNAVAILABLE:
                        raise
                    self.problem = str(error)
                    await trio.sleep(wait_s)
                    wait_s = min(2 * wait_s, RETRY_MAX_S)
                    continue
                self.problem = ""
                data = memoryview(answer)[READ_HEAD.size :]
                whole = len(answer) == READ_HEAD.size + stop - start
                if whole and READ_HEAD.unpack_from(answer)[0] == crc32c(data):
                    return memoryview(bytearray(data))
                raise FsError(
                    Fault.CORRUPT, f"node {node}: slice {slice_id:#x} came damaged over the network"
                )
        raise self._gave_up()

    async def sync(self) -> None:
        return

    def space(self) -> tuple[int, int]:
        """(total, free) bytes of all nodes, as of a few seconds ago."""
        return self._total, self._free

    def has_room(self, size_bytes: int) -> bool:
        return self._free >= size_bytes or not self._total

    async def keep_asking(self) -> None:
        """How much room there is, until cancelled."""
        while True:
            await self.ask_for_room()
            await trio.sleep(SPACE_S)

    async def ask_for_room(self) -> None:
        total = free = 0

        async def ask(node: int) -> None:
            nonlocal total, free
            try:
                answer = await self._attempt(node, Method.SPACE, b"")
            except FsError:
                return
            if len(answer) != SPACE.size:
                log.warning("node %d does not say how much room it has", node)
                return
            more = SPACE.unpack(answer)
            total, free = total + more[0], free + more[1]

        with trio.move_on_after(SPACE_S):  # one that is silent holds nobody up
            async with trio.open_nursery() as nursery:
                for node in self._nodes():
                    nursery.start_soon(ask, node)
        if total:
            self._total, self._free = total, free

    def _candidates(self) -> list[int]:
        """All who take slices, first who took the last one."""
        nodes = list(self._nodes())
        return sorted(nodes, key=lambda node: (node != self._preferred, node))

    async def _attempt(self, node: int, method: int, parts: Parts) -> Body:
        """Raises UNAVAILABLE when there was no answer: it may have been done all the same."""
        try:
            with trio.fail_after(ATTEMPT_S):
                return await (await self._link(node)).call(method, parts)
        except Disconnected as error:
            raise FsError(Fault.UNAVAILABLE, f"node {node}: {error}") from error
        except trio.TooSlowError:
            raise FsError(
                Fault.UNAVAILABLE, f"node {node}: no answer within {ATTEMPT_S:g} s"
            ) from None

    def _patience(self) -> trio.CancelScope:
        return trio.move_on_after(self._soft_s if self._soft_s is not None else float("inf"))

    def _gave_up(self) -> FsError:
        return FsError(Fault.TIMED_OUT, f"no node answers within {self._soft_s} s: {self.problem}")
