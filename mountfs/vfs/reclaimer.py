"""The leader's work on bytes: slices that nobody refers to are deleted where they are, and slices
that lie over one another are merged.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec
import trio

from mountfs.chunks.allotter import LEADER, Allotter
from mountfs.chunks.config import HedgeConfig
from mountfs.chunks.hedge import Hedges
from mountfs.chunks.open_volumes import OpenVolumes
from mountfs.chunks.protocol import Delete, Method
from mountfs.chunks.remote import Link, RemoteChunks
from mountfs.chunks.volume_map import VolumeMap
from mountfs.errors import Fault, FsError
from mountfs.meta.command import Command, Query
from mountfs.meta.ops.slices import Garbage, Reclaimed
from mountfs.meta.ops.volumes import GetVolumes, VolumeRecord
from mountfs.meta.server import MetaServer
from mountfs.types import SliceId, VolumeId
from mountfs.vfs.compactor import Compactor
from mountfs.vfs.reader import Reader
from mountfs.wire.connection import Disconnected

log = logging.getLogger(__name__)

R = TypeVar("R")

LOOK_S: Final = 5.0
BATCH: Final = 4_096
CALL_S: Final = 30.0


class LeadersMeta:
    """The metadata as the leader sees it: commands through the log, queries from the state."""

    session = 0

    def __init__(self, server: MetaServer) -> None:
        self._server = server

    def now(self) -> int:
        return self._server.machine.now()

    async def propose(self, command: Command[R]) -> R:
        return await self._server.service.order(command)  # type: ignore[no-any-return]

    async def read(self, query: Query[R]) -> R:
        self._server.group.require_leader()
        return query.read(self._server.machine.replica.machine.tree)


class _Files:
    """What `Compactor` asks of a filesystem, where nobody has a file open."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def seconds_since_write(self, ino: int) -> float:
        return float("inf")

    def moved(self, ino: int) -> None:
        """Who reads by the old places finds nothing there, and looks again."""


class Reclaimer:
    """`nodes` says who keeps slices; `link` connects to a node."""

    def __init__(
        self,
        server: MetaServer,
        nodes: Callable[[], list[int]],
        link: Callable[[int], Awaitable[Link]],
        allotter: Allotter,
    ) -> None:
        self._server = server
        self._nodes = nodes
        self._link = link
        self._meta = LeadersMeta(server)
        self._volumes = VolumeMap(self._where)
        self._chunks = RemoteChunks(
            nodes,
            link,
            self._volumes,
            OpenVolumes(lambda: LEADER, allotter.allot, allotter.give_back),
            hedges=Hedges(HedgeConfig()),
        )
        files: Any = _Files(Reader(self._meta, self._chunks))
        self._compactor = Compactor(self._meta, self._chunks, files)
        self.unreachable: dict[int, str] = {}
        """Which node has not deleted what it should, and why."""
        self.per_second = BATCH / LOOK_S
        """Slices that are deleted, at most."""
        self._after = SliceId(0)
        """So far we have looked: what is on nodes that are down must not keep us from the rest."""

    async def run(self) -> None:
        while True:
            await trio.sleep(LOOK_S)
            group = self._server.group
            if not group.is_leader or not group.raft.state.proven:
                continue
            if self._server.safe_mode.is_on:
                continue
            try:
                await self._reclaim()
                with trio.move_on_after(CALL_S):
                    await self._compactor.run_once()
            except FsError as error:
                if error.fault not in (Fault.NOT_LEADER, Fault.UNAVAILABLE):
                    log.warning("reclaiming: %s", error)

    async def _reclaim(self) -> None:
        by_node: dict[int, dict[VolumeId, list[SliceId]]] = {}
        term = self._server.group.raft.term
        found = await self._meta.read(Garbage(BATCH, self._after))
        self._after = found[-1][0] if len(found) == BATCH else SliceId(0)
        left: set[SliceId] = set()
        for _, volume, _ in found:
            self._volumes.forget(volume)
        there = set(self._nodes())  # who was removed never comes back
        if not there:
            return  # the first node has not introduced itself yet
        for node in self.unreachable.keys() - there:
            del self.unreachable[node]
        for slice_id, volume, _ in found:
            for node in there.intersection(await self._volumes.replicas(volume)):
                by_node.setdefault(node, {}).setdefault(volume, []).append(slice_id)
        for node, doomed in by_node.items():
            try:
                with trio.fail_after(CALL_S):
                    link = await self._link(node)
                    await link.call(Method.DELETE, msgspec.msgpack.encode(Delete(term, doomed)))
            except (Disconnected, trio.TooSlowError, FsError) as error:
                if self.unreachable.get(node) != str(error):
                    log.warning("node %d keeps deleted slices for now: %s", node, error)
                self.unreachable[node] = str(error)
                left.update(one for ids in doomed.values() for one in ids)
                continue
            self.unreachable.pop(node, None)
        # A slice is not garbage any more when no replica has it.
        gone = tuple(slice_id for slice_id, _, _ in found if slice_id not in left)
        if gone:
            await self._meta.propose(Reclaimed(gone))

    async def _where(self, numbers: tuple[VolumeId, ...]) -> tuple[VolumeRecord, ...]:
        return await self._meta.read(GetVolumes(numbers))
