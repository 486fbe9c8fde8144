"""What all runs have: a group, what befalls it, and the judgement at the end."""

from random import Random

import msgspec

from mountfs.raft.config import Config
from mountfs.raft.messages import NodeId
from mountfs.sim.checks import Broken
from mountfs.sim.cluster import Cluster
from mountfs.sim.faults import Fault, Faults, Plan
from mountfs.sim.machine import Machine
from mountfs.sim.operator import Operator
from mountfs.sim.server import Server
from mountfs.sim.store import Store
from mountfs.sim.world import MS, S, World

CALM = 8 * S
"""After the faults: everything must be well again, and all answered."""


class Result(msgspec.Struct, frozen=True):
    seed: int
    kind: str
    digest: str
    operations: int
    answered: int
    elections: int
    faults: int
    committed: int


class Run:
    """Those of one form have the same machine, clients and checks of what these saw."""

    def __init__(
        self, seed: int, kind: str, seconds: int, without: frozenset[int], *, trace: bool
    ) -> None:
        self.seed = seed
        self.kind = kind
        self.world = world = World(seed)
        if trace:
            world.lines = []
        self._ends = seconds * S
        self.random = random = world.stream("run")
        self.faults = Faults(world, lambda: self.cluster, self._ends, without)
        self._operator: Operator | None = None
        self.plan = plan = self._plan(random)
        size = plan.size or random.choice((1, 3, 3, 3, 5))
        self.voters = tuple(NodeId(number) for number in range(1, size + 1))
        # A clock that jumps differs more from others than a lease can bear.
        leases = random.random() < 0.7 and self.faults.clock_jump not in plan.kinds
        config = Config(
            heartbeat_ms=50,
            election_ms=300,
            lease_reads=leases,
            append_bytes_max=plan.append_bytes or random.choice((200, 2_000, 200_000)),
            inflight_messages_max=random.choice((1, 4, 64)),
            cached_bytes_max=random.choice((0, 5_000, 1_000_000)),
            apply_bytes_max=random.choice((100, 100_000)),
            snapshot_retry_ms=200,
            caught_up_entries=random.choice((5, 1_000)),
            rest_ms=self._rest(),
        )
        self.cluster = Cluster(world, config, self._load)
        self.faults.power_losses = random.choice((0.0, 0.0, 0.01))
        network = self.cluster.network
        network.loss = random.choice((0.0, 0.01, 0.1))
        network.doubled = random.choice((0.0, 0.05))
        network.straggling = random.choice((0.0, 0.01))
        # Slow enough, two stand for election before they hear of each other.
        network.delay_us = random.choice((MS // 2, MS // 2, 5 * MS, 20 * MS))
        self._build()
        for server in self.cluster.servers.values():
            if plan.checkpoint_entries is not None:
                server.checkpoint_entries = plan.checkpoint_entries

    def run(self) -> Result:
        """Raises Broken."""
        world, cluster = self.world, self.cluster
        for server in list(cluster.servers.values()):
            server.boot()
        cluster.links.watch()
        self._start()
        self.faults.begin(self.plan)
        world.run(self._ends)
        world.note("calm")
        self._calm()
        self._wait_for_calm()
        self._judge()
        operations, answered = self._counts()
        return Result(
            self.seed,
            self.kind,
            world.digest,
            operations,
            answered,
            cluster.checks.leaders_seen,
            len(self.faults.happened),
            max(server.raft.log.committed for server in cluster.up()),
        )

    def _rest(self) -> int:
        """After how many milliseconds an idle group rests; and then clients nap together at times,
        so that it does.
        """
        random = self.world.stream("rest")
        if random.random() < 0.6:
            return 0
        at = 0
        while at < self._ends:
            at += int(random.expovariate(1 / (4 * S)))
            nap = random.randrange(500, 3_000) * MS
            self.world.naps.append((at, at + nap))
            at += nap
        return random.choice((200, 500))

    @property
    def happened(self) -> list[Fault]:
        return self.faults.happened

    # -- what a form of run is made of

    def _plan(self, random: Random) -> Plan:
        raise NotImplementedError

    def _load(self, node: NodeId, store: Store) -> Machine:
        raise NotImplementedError

    def _build(self) -> None:
        """Servers, not up yet."""
        raise NotImplementedError

    def _start(self) -> None:
        """Clients."""
        raise NotImplementedError

    def _calm(self) -> None:
        self.cluster.make_well()

    def _wait_for_calm(self) -> None:
        self.world.run(self._ends + CALM)

    def _counts(self) -> tuple[int, int]:
        """(operations, those that were answered)"""
        raise NotImplementedError

    def _unanswered(self) -> str:
        """What should have been answered by now, in words."""
        raise NotImplementedError

    def _judge_clients(self) -> None:
        raise NotImplementedError

    # -- the end

    def _judge(self) -> None:
        self._judge_clients()
        if unanswered := self._unanswered():
            raise Broken("progress", f"never answered: {unanswered}")
        leader = self.cluster.leader()
        if leader is None:
            raise Broken("progress", "nobody leads at the end")
        if behind := self._behind():
            raise Broken("progress", behind)
        for server in self._group(leader):
            self.cluster.checks.same_state(server.node, server.machine)

    def _group(self, leader: Server) -> list[Server]:
        """Those that should have all that the leader has."""
        members = sorted(leader.raft.log.membership.everyone)
        servers = [self.cluster.servers[node] for node in members]
        return [server for server in servers if not server.lost]

    def _behind(self) -> str:
        """Who has not applied what the leader has, in words."""
        leader = self.cluster.leader()
        if leader is None:
            return ""
        for server in self._group(leader):
            if server.machine.applied != leader.machine.applied:
                return f"{server.node} is at {server.machine.applied}, not {leader.machine.applied}"
        return ""
