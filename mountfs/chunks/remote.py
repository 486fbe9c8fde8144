"""A `ChunkStore` over the nodes of a cluster: a slice goes to all replicas of a volume at once, and
is read from whichever answers first.

What is written is on the disks of all of them when `write` returns; so there is nothing left for
`sync`.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

import trio
from crc32c import crc32c

from mountfs.buffers import Buffers
from mountfs.chunks.base import Stored
from mountfs.chunks.borrowing import Borrowing
from mountfs.chunks.hedge import Hedges
from mountfs.chunks.needle import Buffer
from mountfs.chunks.open_volumes import OpenVolumes
from mountfs.chunks.pool import OpenVolume
from mountfs.chunks.protocol import READ, READ_HEAD, SPACE, WRITE_HEAD, Method
from mountfs.chunks.race import Race, now_ms
from mountfs.chunks.volume_map import VolumeMap
from mountfs.errors import Fault, FsError
from mountfs.inline import leave
from mountfs.types import SliceId, VolumeId
from mountfs.wire.connection import Body, Disconnected
from mountfs.wire.frames import Parts

log = logging.getLogger(__name__)

ATTEMPT_S: Final = 15.0
STRAGGLER_S: Final = 2.0
"""When one replica has taken a slice, the others have so long, or a few times as long as that one
took: then the slice goes into another volume, without them.
"""
STRAGGLER_TIMES: Final = 5
RETRY_FIRST_S: Final = 0.05
RETRY_MAX_S: Final = 1.0
SPACE_S: Final = 5.0
HERE: Final = 0
"""How near a node on this machine is."""
COPIES: Final = 3
"""As long as nobody has said otherwise, a cluster of so many nodes or more has so many."""


class Link(Protocol):
    async def call(self, method: int, parts: Parts = b"") -> Body: ...


class RemoteChunks:
    """`nodes` says which have the role chunk; `link` connects to one (Disconnected, FsError);
    `near` says how far away nodes are: 0 for those on this machine (see `Hedges.order`).
    """

    def __init__(
        self,
        nodes: Callable[[], Sequence[int]],
        link: Callable[[int], Awaitable[Link]],
        volumes: VolumeMap,
        open_volumes: OpenVolumes,
        *,
        hedges: Hedges,
        near: Callable[[], Mapping[int, int]] = dict,
        buffers: Buffers | None = None,
        soft_s: float | None = None,
    ) -> None:
        self._nodes = nodes
        self._link = link
        self.volumes = volumes
        self._open = open_volumes
        self.hedges = hedges
        self._near = near
        self.borrowing = Borrowing(self._attempt, buffers or Buffers())
        self._soft_s = soft_s
        self._total = self._free = 0
        self.reads = 0
        self.writes = 0
        self.rewrites = 0
        """Slices that went into another volume because a node failed."""
        self.problem = ""

    # -- writing

    async def write(self, slice_id: SliceId, parts: Sequence[Buffer], copies: int = 0) -> Stored:
        """Raises NO_SPACE when no node has room; TIMED_OUT if `soft`; and what else the leader says
        when it is asked for volumes.
        """
        self.writes += 1
        await leave()
        crc = size = 0
        for part in parts:
            crc = crc32c(part, crc)
            size += len(part)
        with self._patience():
            pause = _Pause()
            while True:
                try:
                    volume = await self._open.one(copies)
                    if await self._write_to(volume, slice_id, crc, parts):
                        self._free = max(self._free - size, 0)  # until we have asked again
                        self.volumes.learn(volume.record)
                        self.problem = ""
                        return Stored(volume.record.number, crc)
                except FsError as error:
                    if error.fault is not Fault.UNAVAILABLE:
                        raise
                    self.problem = str(error)
                await pause()
        raise self._gave_up()

    async def _write_to(
        self, volume: OpenVolume, slice_id: SliceId, crc: int, parts: Sequence[Buffer]
    ) -> bool:
        """Whether all replicas have it."""
        record = volume.record
        body = [WRITE_HEAD.pack(slice_id, crc, record.number, record.epoch), *parts]
        failed: dict[int, FsError] = {}
        volume.writing += 1
        try:
            if len(record.replicas) == 1:
                await self._write_one(record.replicas[0], body, failed)
            else:
                await self._write_all(record.replicas, body, failed)
        finally:
            volume.writing -= 1
        if not failed:
            volume.taken += 1
            if self.volumes.now(record.number) is None:
                self.volumes.learn(record)
            return True
        self.rewrites += 1
        if any(error.fault is not Fault.VOLUME_CLOSED for error in failed.values()):
            self.problem = "; ".join(map(str, failed.values()))
        await self._open.failed(volume, failed)
        return False

    async def _write_one(self, node: int, body: Parts, failed: dict[int, FsError]) -> None:
        """`failed` says why it has not taken it.  One that has too much to do is asked again, for
        as long as an attempt may take.
        """
        until = trio.current_time() + ATTEMPT_S
        pause = _Pause()
        while True:
            try:
                answer = await self._attempt(node, Method.WRITE, body)
            except FsError as error:
                is_busy = error.fault is Fault.UNAVAILABLE and not isinstance(error, _NoAnswer)
                if not is_busy or trio.current_time() > until:
                    failed[node] = error
                    return
            else:
                if len(answer):
                    failed[node] = FsError(Fault.DEVICE, f"node {node} says what makes no sense")
                return
            await pause()

    async def _write_all(
        self, replicas: Sequence[int], body: Parts, failed: dict[int, FsError]
    ) -> None:
        """Returns when all have it, or one has not."""
        begun = trio.current_time()
        waiting = set(replicas)

        async def write(node: int) -> None:
            await self._write_one(node, body, failed)
            waiting.discard(node)
            now = trio.current_time()
            if failed:
                scope.cancel()
            elif waiting:
                more = max(STRAGGLER_S, STRAGGLER_TIMES * (now - begun))
                scope.deadline = min(scope.deadline, now + more)

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                for node in replicas:
                    nursery.start_soon(write, node)
        if not failed:
            took = trio.current_time() - begun
            for node in waiting:
                failed[node] = _NoAnswer(f"node {node}: no answer within {took:.1f} s")

    # -- reading

    async def read(self, volume: VolumeId, slice_id: SliceId, start: int, stop: int) -> memoryview:
        """Raises CORRUPT when no replica has it whole, or DEVICE; TIMED_OUT if `soft`."""
        self.reads += 1
        data = await self.borrowing.read_soon(volume, slice_id, start, stop)
        if data is not None:
            return data
        await leave()
        wanted = Wanted(volume, slice_id, start, stop)
        with self._patience():
            pause = _Pause()
            while True:
                try:
                    data = await self._read_once(wanted)
                except FsError as error:
                    if error.fault is not Fault.UNAVAILABLE:
                        raise
                    self.problem = str(error)
                else:
                    self.problem = ""
                    return data
                await pause()
        raise self._gave_up()

    async def _read_once(self, wanted: "Wanted") -> memoryview:
        """Raises UNAVAILABLE when somebody who may have it does not answer."""
        nodes = await self.volumes.replicas(wanted.volume)
        while True:
            try:
                return await self._read_from(nodes, wanted)
            except FsError as error:
                self.volumes.forget(wanted.volume)
                if error.fault is Fault.UNAVAILABLE:
                    raise
                # What was said may be of copies that are no replicas any more.
                before, nodes = nodes, await self.volumes.replicas(wanted.volume)
                if nodes == before:
                    raise

    async def _read_from(self, nodes: Sequence[int], wanted: "Wanted") -> memoryview:
        """Raises as `Race.run`."""
        if not nodes:
            what = f"slice {wanted.slice_id:#x}: there is no volume {wanted.volume}"
            raise FsError(Fault.CORRUPT, what)
        if len(nodes) > 1:  # so that reads spread, and those of a slice go to where it is in memory
            turn = wanted.slice_id % len(nodes)
            nodes = (*nodes[turn:], *nodes[:turn])
        near = self._near()
        read = self.hedges.read(nodes, wanted.size, near, now_ms())
        return await Race(read, lambda node: self._fetch(node, wanted)).run()

    async def _fetch(self, node: int, wanted: "Wanted") -> memoryview:
        """From one node.  Raises CORRUPT, UNAVAILABLE, and what it says."""
        if self._near().get(node) == HERE:
            found = await self.borrowing.read(node, *wanted)
            if found is not None:
                return found
        answer = await self._attempt(node, Method.READ, READ.pack(*wanted))
        data = memoryview(answer)[READ_HEAD.size :]
        whole = len(answer) == READ_HEAD.size + wanted.size
        if not whole or READ_HEAD.unpack_from(answer)[0] != crc32c(data):
            await self._have_verified(node, wanted)
            raise FsError(
                Fault.CORRUPT,
                f"node {node}: slice {wanted.slice_id:#x} came damaged over the network",
            )
        return memoryview(bytearray(data))

    async def _have_verified(self, node: int, wanted: "Wanted") -> None:
        """Have the node look whether the bytes are damaged where they lie, so that it is known and
        healed.  Raises CORRUPT if they are.
        """
        try:
            await self._attempt(node, Method.VERIFY, READ.pack(*wanted))
        except FsError as error:
            if error.fault is Fault.CORRUPT:
                raise
            log.info("node %d was asked to verify a slice: %s", node, error)

    def forget_volumes(self) -> None:
        """There is another session, which writes to volumes of its own."""
        self._open.forget()

    async def sync(self) -> None:
        return

    async def close(self) -> None:
        """We write no more: others may have our volumes.  If nobody hears it, they are given out
        again when our session has ended.
        """
        try:
            await self._open.give_back()
        except FsError as error:
            log.warning("volumes could not be given back: %s", error)
        self.borrowing.close()

    # -- room

    def space(self) -> tuple[int, int]:
        """(total, free) bytes that files can have, as of a few seconds ago."""
        copies = max(min(COPIES, len(self._nodes())), 1)
        return self._total // copies, self._free // copies

    def has_room(self, size_bytes: int) -> bool:
        return self.space()[1] >= size_bytes or not self._total

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

    async def _attempt(self, node: int, method: int, parts: Parts) -> Body:
        """Raises `_NoAnswer`, and what the node says."""
        try:
            with trio.fail_after(ATTEMPT_S):
                return await (await self._connected(node)).call(method, parts)
        except Disconnected as error:
            raise _NoAnswer(f"node {node}: {error}") from error
        except trio.TooSlowError:
            raise _NoAnswer(f"node {node}: no answer within {ATTEMPT_S:g} s") from None
        except _NoAnswer:
            raise
        except FsError as error:
            raise FsError(error.fault, f"node {node}: {error}") from error

    async def _connected(self, node: int) -> Link:
        try:
            return await self._link(node)
        except FsError as error:
            if error.fault in (Fault.UNAVAILABLE, Fault.BUSY):
                raise _NoAnswer(f"node {node}: {error}") from error
            raise

    def _patience(self) -> trio.CancelScope:
        return trio.move_on_after(self._soft_s if self._soft_s is not None else float("inf"))

    def _gave_up(self) -> FsError:
        return FsError(Fault.TIMED_OUT, f"no node answers within {self._soft_s} s: {self.problem}")


class Wanted(NamedTuple):
    """Bytes `start` to `stop` of a slice."""

    volume: VolumeId
    slice_id: SliceId
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


class _NoAnswer(FsError):
    """Nobody knows whether it was done."""

    def __init__(self, detail: str) -> None:
        super().__init__(Fault.UNAVAILABLE, detail)


class _Pause:
    """Between attempts: short at first, then longer."""

    def __init__(self) -> None:
        self.count = 0
        self._wait_s = RETRY_FIRST_S

    async def __call__(self) -> None:
        self.count += 1
        if self.count > 1:
            await trio.sleep(self._wait_s)
            self._wait_s = min(2 * self._wait_s, RETRY_MAX_S)
