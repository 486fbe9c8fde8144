"""The servers of a run and the network between them."""

from collections.abc import Callable
from random import Random

from mountfs.raft.config import Config
from mountfs.raft.messages import HardState, Message, NodeId, SnapshotHead
from mountfs.sim.checks import Checks
from mountfs.sim.disk import Disk
from mountfs.sim.links import Links
from mountfs.sim.machine import Machine
from mountfs.sim.network import Network
from mountfs.sim.server import Server
from mountfs.sim.store import Store
from mountfs.sim.transfer import Transfers
from mountfs.sim.world import MS, S, World

WELL_SYNC_US = 1 * MS

Load = Callable[[NodeId, Store], Machine]


class Cluster:
    def __init__(self, world: World, config: Config, load: Load) -> None:
        self._world = world
        self._config = config
        self._load = load
        self._is_well = False
        self.checks = Checks()
        self.servers: dict[NodeId, Server] = {}
        self.network = Network(world, self._deliver)
        self.transfers = Transfers(world, self.network, self.servers.get)
        self.links = Links(world, self.network, self.servers)

    def add(self, node: NodeId, base: SnapshotHead, hard: HardState, store: Store) -> Server:
        """A server that is not up yet, with these on its disk."""
        random = self._world.stream(f"server {node}")
        disk = Disk(self._world, base, hard, store)
        disk.sync_us = int(random.choice((0.3, 2, 10, 50)) * MS)
        if self._is_well:
            disk.sync_us = WELL_SYNC_US

        def load(found: Store) -> Machine:
            return self._load(node, found)

        server = Server(self._world, self.network, self.checks, node, self._config, disk, load)
        server.send_snapshot = lambda target: self.transfers.offer(server, target)
        server.clock_rate = 1 + random.uniform(-0.04, 0.04)
        server.clock_offset = random.randrange(1_000 * S)
        server.checkpoint_entries = random.choice((20, 100, 1_000))
        self.servers[node] = server
        return server

    def _deliver(self, message: Message) -> None:
        server = self.servers.get(message.target)
        if server is not None:
            server.deliver(message)

    def up(self) -> list[Server]:
        return [server for server in self.servers.values() if server.up]

    def leaders(self) -> list[Server]:
        """Those who think so."""
        return [server for server in self.up() if server.raft.state.is_leader]

    def leader(self) -> Server | None:
        """The one who is right."""
        return max(self.leaders(), key=lambda one: one.raft.term, default=None)

    def isolate(self, node: NodeId) -> None:
        for other in self.servers:
            self.network.cut |= {(node, other), (other, node)}

    def split(self, half: set[NodeId]) -> None:
        nodes = sorted(self.servers)
        self.network.cut = {
            (one, other) for one in nodes for other in nodes if (one in half) != (other in half)
        }

    def boot_later(self, server: Server, us: int) -> None:
        self._world.after(us, lambda: None if server.up else server.boot())

    def any_node(self, random: Random) -> NodeId:
        return random.choice(sorted(self.servers))

    def make_well(self) -> None:
        """No more faults: whoever can be up is, and hears everybody at once."""
        self._is_well = True
        network = self.network
        network.heal()
        network.loss = network.doubled = network.straggling = 0.0
        network.snapshot_ms = (5,)
        network.delay_us = MS // 2
        for server in self.servers.values():
            server.disk.sync_us = WELL_SYNC_US
            server.disk.full = False
            if not server.up:
                server.boot()
