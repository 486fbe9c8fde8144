"""What the leader of the metadata does about bytes: it gives out volumes, and sees that they are
where they should be.
"""

import random
from typing import Final

import msgspec
import trio

from mountfs.chunks.allotter import LEADER, Allotter
from mountfs.chunks.balancer import Balancer
from mountfs.chunks.collector import Collector
from mountfs.chunks.orders import Orders
from mountfs.chunks.protocol import Allot, Method, Return
from mountfs.chunks.repairs import Repairs
from mountfs.errors import Fault, FsError
from mountfs.inline import leave
from mountfs.meta.client import Router
from mountfs.meta.healing import Healer
from mountfs.meta.ops.volumes import ListVolumes, VolumeRecord
from mountfs.meta.patience import patience
from mountfs.meta.server import MetaServer
from mountfs.types import VolumeId
from mountfs.wire.connection import Body
from mountfs.wire.stream import Client

LEADERS: Final = frozenset({int(Method.ALLOT), int(Method.RETURN)})
"""Methods that only the leader answers."""


class Leading:
    """On every node that has the metadata; it acts where that leads.  `router`: how this node
    connects to others, as a client does.
    """

    def __init__(self, server: MetaServer, router: Router) -> None:
        self._server = server
        self._router = router

        def scan(after: VolumeId, limit: int) -> tuple[VolumeRecord, ...]:
            return ListVolumes(limit, after).read(server.machine.replica.machine.tree)

        def term() -> int:
            server.group.require_leader()
            return server.group.raft.term

        self.orders = Orders(term, self.link)
        lot = random.SystemRandom()
        healer = Healer(server.chunkservers.fleet, scan, lot)
        self.allotter = Allotter(server, self.orders, lot)
        self.collector = Collector(server, self.orders, healer.suspect)
        self.repairs = Repairs(server, self.orders, healer)
        self.balancer = Balancer(server, self.repairs)

    def be_patient(self, grace_s: float) -> None:
        """How long a node may be silent; see `patience`."""
        fleet, healer = self._server.chunkservers.fleet, self.repairs.healer
        fleet.config, healer.config = patience(grace_s)

    async def handle(self, method: int, body: Body) -> bytes:
        """Answers ALLOT and RETURN.  Raises INVALID, and what they do."""
        await leave()
        asked: Allot | Return
        try:
            if method == Method.ALLOT:
                asked = msgspec.msgpack.decode(body, type=Allot)
            else:
                asked = msgspec.msgpack.decode(body, type=Return)
        except msgspec.MsgspecError as error:
            raise FsError(Fault.INVALID, f"not a request for volumes: {error}") from None
        if asked.session == LEADER:
            raise FsError(Fault.INVALID, "only the leader writes as the leader")
        # Who led before us may have opened the session, and we have not applied that yet.
        if not self._server.group.read_now():
            await self._server.group.wait_read()
        if isinstance(asked, Allot):
            return msgspec.msgpack.encode(await self.allotter.allot(asked))
        await self.allotter.give_back(asked)
        return b""

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.allotter.run)
            nursery.start_soon(self.collector.run)
            nursery.start_soon(self.repairs.run)
            nursery.start_soon(self.balancer.run)

    def nodes(self) -> list[int]:
        """Who keeps slices."""
        return [node.number for node in self._server.chunkservers.nodes()]

    async def link(self, node: int) -> Client:
        """Raises UNAVAILABLE for one that is not known; Disconnected, and what it says."""
        self._router.learn(self._server.service.cluster())
        return await self._router.link_to(node)
