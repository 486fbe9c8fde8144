"""The leader's work on bytes: slices that nobody refers to are deleted where they are, and slices
that lie over one another are merged.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import trio

from mountfs.chunks.allotter import LEADER, Allotter
from mountfs.chunks.config import HedgeConfig
from mountfs.chunks.deletion import LOOK_S, Deletion
from mountfs.chunks.hedge import Hedges
from mountfs.chunks.open_volumes import OpenVolumes
from mountfs.chunks.orders import Orders
from mountfs.chunks.remote import Link, RemoteChunks
from mountfs.chunks.volume_map import VolumeMap
from mountfs.errors import Fault, FsError
from mountfs.meta.command import Command, Query
from mountfs.meta.ops.volumes import GetVolumes, VolumeRecord
from mountfs.meta.server import MetaServer
from mountfs.types import VolumeId
from mountfs.vfs.compactor import Compactor
from mountfs.vfs.reader import Reader

log = logging.getLogger(__name__)

R = TypeVar("R")

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


class NobodysFiles:
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
        orders: Orders,
    ) -> None:
        self._server = server
        self._meta = LeadersMeta(server)
        self.deletion = Deletion(server, orders)
        self._chunks = RemoteChunks(
            nodes,
            link,
            VolumeMap(self._where),
            OpenVolumes(lambda: LEADER, allotter.allot, allotter.give_back),
            hedges=Hedges(HedgeConfig()),
        )
        files: Any = NobodysFiles(Reader(self._meta, self._chunks))
        self._compactor = Compactor(self._meta, self._chunks, files)

    async def run(self) -> None:
        while True:
            await trio.sleep(LOOK_S)
            group = self._server.group
            if not group.is_leader or not group.raft.state.proven:
                continue
            if self._server.safe_mode.is_on:
                continue
            try:
                await self.deletion.step()
                with trio.move_on_after(CALL_S):
                    await self._compactor.run_once()
            except FsError as error:
                if error.fault not in (Fault.NOT_LEADER, Fault.UNAVAILABLE):
                    log.warning("reclaiming: %s", error)

    async def _where(self, numbers: tuple[VolumeId, ...]) -> tuple[VolumeRecord, ...]:
        return await self._meta.read(GetVolumes(numbers))
