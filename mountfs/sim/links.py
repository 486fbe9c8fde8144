"""What the shells of servers know of the connections between them: that one is lost, some time
after that, and not before.  Groups that rest rely on it.
"""

from random import Random

from mountfs.raft.messages import NodeId
from mountfs.sim.network import Network
from mountfs.sim.server import Server
from mountfs.sim.world import MS, World

LOOK_US = 100 * MS
LOST_MS = (300, 1_000, 2_000)
"""How long a connection is silent before it is taken for lost."""


class Links:
    def __init__(self, world: World, network: Network, servers: dict[NodeId, Server]) -> None:
        self._world = world
        self._network = network
        self._servers = servers
        self._lost_us = Random(f"{world.seed}/links").choice(LOST_MS) * MS
        self._silent: dict[tuple[NodeId, NodeId], int] = {}
        """Since when one has heard nothing of another."""
        self._told: set[tuple[NodeId, NodeId]] = set()

    def watch(self) -> None:
        world = self._world
        for one in list(self._servers.values()):
            for other in list(self._servers.values()):
                if one is other or not one.up:
                    continue
                pair = (one.node, other.node)
                if other.runs and self._network.connects(*pair):
                    self._silent.pop(pair, None)
                    self._told.discard(pair)
                elif world.now - self._silent.setdefault(pair, world.now) >= self._lost_us:
                    self._tell(one, other.node, pair)
        world.after(LOOK_US, self.watch)

    def _tell(self, one: Server, node: NodeId, pair: tuple[NodeId, NodeId]) -> None:
        if pair not in self._told:
            self._told.add(pair)
            one.when_running("links", lambda: one.unreachable(node))
