"""Whether servers still have connections with each other: a loss is told to the core, once."""

from collections.abc import Mapping

from mountfs.raft.messages import NodeId
from mountfs.sim.network import Network
from mountfs.sim.server import Server
from mountfs.sim.world import MS, World

LOOKS_US = 100 * MS
SILENCE_US = 500 * MS
"""Who is not heard for so long is lost; a process that has ended is noticed at once."""


class Links:
    def __init__(self, world: World, network: Network, servers: Mapping[NodeId, Server]) -> None:
        self._world = world
        self._network = network
        self._servers = servers
        self._heard: dict[tuple[NodeId, NodeId], int] = {}
        """Connections that are up, from the first to the second, and when that was seen last."""
        world.after(LOOKS_US, self._look)

    def _look(self) -> None:
        self._world.after(LOOKS_US, self._look)
        now = self._world.now
        for node, server in list(self._servers.items()):
            if not server.up:
                continue
            for other in sorted(server.raft.log.membership.everyone):
                peer = self._servers.get(other)
                if other == node or peer is None:
                    continue
                if peer.runs and self._network.connects(node, other):
                    self._heard[node, other] = now
                elif (node, other) in self._heard:
                    silent = now - self._heard[node, other] >= SILENCE_US
                    if silent or not peer.up:
                        del self._heard[node, other]
                        server.unreachable(other)
