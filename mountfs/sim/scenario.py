"""One seed, one run: a group, its clients, and what befalls them."""

from collections import defaultdict
from collections.abc import Iterable
from random import Random

import msgspec

from mountfs.meta.invariants import violations
from mountfs.meta.state_machine import decode_entry
from mountfs.raft.config import Config
from mountfs.raft.messages import (
    AppendReply,
    EntryKind,
    HardState,
    Membership,
    NodeId,
    SnapshotHead,
    Term,
)
from mountfs.sim.checks import Broken
from mountfs.sim.cluster import Cluster
from mountfs.sim.faults import REGISTER_KINDS, Fault, Faults, Plan, of_servers, plan, swarm
from mountfs.sim.history import Call, explain
from mountfs.sim.machine import Machine
from mountfs.sim.metadata import Formatted, Metadata
from mountfs.sim.metaserver import MetaServer
from mountfs.sim.models import register
from mountfs.sim.mount import Doors, Mount
from mountfs.sim.operator import Operator
from mountfs.sim.promises import Promises
from mountfs.sim.register import RegisterMachine
from mountfs.sim.server import Server
from mountfs.sim.store import Store
from mountfs.sim.work import Work
from mountfs.sim.workload import Client
from mountfs.sim.world import MS, S, World
from mountfs.types import LogIndex

CALM = 8 * S
"""After the faults: everything must be well again, and all answered."""

SECONDS = 20

FILE_KINDS = ("files", "sessions", "disks", "snapshots")
"""Of runs with the metadata, by what they look for most."""

KINDS = (*REGISTER_KINDS, *FILE_KINDS)

_LIKELY = ("any", *REGISTER_KINDS, "files", "files", *FILE_KINDS)
"""What a run is if nobody says it."""


class Result(msgspec.Struct, frozen=True):
    seed: int
    kind: str
    digest: str
    operations: int
    answered: int
    elections: int
    faults: int
    committed: int


def run(
    seed: int,
    *,
    kind: str = "",
    seconds: int = SECONDS,
    without: frozenset[int] = frozenset(),
    trace: bool = False,
) -> "Run":
    """A run that has not begun; `kind`: one of KINDS instead of what the seed says."""
    chosen = kind or kind_of(seed)
    form = RegisterRun if chosen in REGISTER_KINDS else FileRun
    return form(seed, chosen, seconds, without, trace=trace)


def kind_of(seed: int) -> str:
    return World(seed).stream("kind").choice(_LIKELY)


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
        world.run(self._ends + CALM)
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
        for node in sorted(leader.raft.log.membership.everyone):
            server = self.cluster.servers[node]
            if server.lost:
                continue
            if server.machine.applied != leader.machine.applied:
                raise Broken(
                    "progress",
                    f"{node} is at {server.machine.applied}, not {leader.machine.applied}",
                )
            self.cluster.checks.same_state(node, server.machine)


class RegisterRun(Run):
    """Little state and quick clients: what finds mistakes in Raft soonest."""

    def _plan(self, random: Random) -> Plan:
        return plan(self.faults, self.kind, random)

    def _load(self, node: NodeId, store: Store) -> Machine:
        return RegisterMachine(store)

    def _build(self) -> None:
        base = SnapshotHead(LogIndex(0), Term(0), Membership(self.voters))
        for number in range(1, len(self.voters) + 3):  # some may become members later
            self.cluster.add(NodeId(number), base, HardState(), Store())

    def _start(self) -> None:
        random, reads = self.random, self.plan.reads
        self.calls: dict[int, list[Call]] = defaultdict(list)
        keys = 1 if reads else random.choice((1, 4, 10))
        pause_ms = random.choice((20, 60, 150)) if self.kind == "any" else 30
        for number in range(1, (8 if reads else random.choice((2, 5, 8))) + 1):
            Client(
                self.world,
                self.cluster.servers,
                number,
                self.calls,
                keys=keys,
                pause_ms=pause_ms,
                ends=self._ends + CALM // 2,
                answered=self.faults.answered,
                reads=reads,
            ).start()

    def _all(self) -> list[Call]:
        return [call for calls in self.calls.values() for call in calls]

    def _counts(self) -> tuple[int, int]:
        return len(self._all()), sum(call.returned is not None for call in self._all())

    def _unanswered(self) -> str:
        return next((str(call) for call in self._all() if call.returned is None), "")

    def _judge_clients(self) -> None:
        for key, calls in sorted(self.calls.items()):
            if (stuck := explain(calls, register, 0)) is not None:
                raise Broken("linearizability", f"key {key}, {len(calls)} calls: {stuck}")


class FileRun(Run):
    """The metadata, its sessions and its clients."""

    def _plan(self, random: Random) -> Plan:
        faults = self.faults
        pause_us = random.choice((200, 400, 1_000)) * MS
        heal, crash, rot = faults.heal, faults.crash, self._rot
        mounts = [self._stop_mount, self._cut_off_mount]
        match self.kind:
            case "sessions":
                leaders = [faults.crash_leader, faults.cut_off_leader, faults.pause_leader]
                kinds = [*mounts, *mounts, *random.sample(leaders, 2), faults.transfer, heal]
                likely = random.choice((0.0, 0.02))
                return Plan(kinds, pause_us, AppendReply, faults.crash_briefly, likely)
            case "disks":
                kinds = [rot, rot, faults.full_disk, faults.slow_disk, crash, faults.crash_all]
                likely = random.choice((0.0, 0.02))
                return Plan(
                    [*kinds, heal], pause_us, AppendReply, faults.crash_briefly, likely,
                    random.choice((3, 3, 5)), checkpoint_entries=random.choice((20, 100)),
                )  # fmt: skip
            case "snapshots":
                kinds = [self._grow, self._grow, self._shrink, rot, crash, faults.cut_off, heal]
                return Plan(
                    kinds, pause_us, "membership", faults.crash_briefly, 0.1,
                    random.choice((1, 3, 3)), checkpoint_entries=random.choice((10, 40)),
                )  # fmt: skip
        several = [*of_servers(faults), rot, *mounts, self._grow, self._shrink]
        return swarm(faults, several, pause_us, random)

    # -- who takes part

    def _build(self) -> None:
        random = self.random
        self.promises = Promises()
        formatted = Formatted(self.voters, random.choice((1, 1, 2, 3)), 3)
        weights = {"names": 4, "files": 3, "locks": 2, "wild": random.choice((0, 3, 6))}
        self.work = Work(formatted, random.choice((2, 4)), weights)
        self.metas: dict[NodeId, MetaServer] = {}
        self.doors = Doors(self.world, self.metas)
        self.doors.breaking = random.choice((0.0, 0.0, 0.02, 0.1))
        self.doors.straggling = random.choice((0.0, 0.01))
        self._ttl_ms = random.choice((1_000, 3_000))
        checks = self.cluster.checks
        checks.violations = _violations
        hard = HardState(Term(1), NodeId(0), formatted.head.index)
        for node in self.voters:
            self._came(self.cluster.add(node, formatted.head, hard, formatted.store.copy()))
        self._operator = Operator(self.world, self.cluster, self.metas, self.faults, self._came)
        stays: tuple[int | None, ...] = (None, None, 3_000)
        if self.kind == "sessions":
            stays = (None, 300, 1_000)
            self.faults.openings = random.choice((0.1, 0.5))
        self.mounts = [
            Mount(
                self.world, self.doors, self.promises, number, list(self.voters), self.work,
                programs=random.choice((1, 2, 3)), pause_ms=random.choice((60, 150)),
                stays_ms=random.choice(stays), ends=self._ends + CALM // 2,
                answered=self.faults.answered, opened=self.faults.opened,
            )
            for number in range(1, random.choice((2, 3, 4)) + 1)
        ]  # fmt: skip

    def _came(self, server: Server) -> None:
        if self.plan.checkpoint_entries is not None:
            server.checkpoint_entries = self.plan.checkpoint_entries
        self.metas[server.node] = MetaServer(self.world, server, self.promises, self._ttl_ms)

    def _load(self, node: NodeId, store: Store) -> Machine:
        promises, world = self.promises, self.world
        return Metadata(
            store,
            lambda entry, asked, reply, acted: promises.applied(
                node, entry, asked, reply, acted, world.now
            ),
        )

    def _start(self) -> None:
        for mount in self.mounts:
            mount.start()

    def _calm(self) -> None:
        super()._calm()
        self.doors.cut.clear()
        self.doors.breaking = self.doors.straggling = 0.0

    # -- faults of their own

    def _stop_mount(self, random: Random) -> str:
        """Long enough, now and then, for its session to end."""
        mount = random.choice(self.mounts)
        seconds = random.choice((0.3, 1, 2, 4))
        mount.stop(self.world.now + int(seconds * S))
        return f"mount {mount.number} stands still for {seconds:g} s"

    def _cut_off_mount(self, random: Random) -> str:
        mount = random.choice(self.mounts)
        nodes = sorted(self.cluster.servers)
        some = random.sample(nodes, random.randint(1, len(nodes)))
        pairs = {(mount.number, node) for node in some}
        self.doors.cut |= pairs
        seconds = random.choice((0.5, 2, 4))
        self.world.after(int(seconds * S), lambda: self.doors.cut.difference_update(pairs))
        return f"mount {mount.number} does not reach {some} for {seconds:g} s"

    def _grow(self, random: Random) -> str:
        assert self._operator is not None
        return self._operator.grow(random)

    def _shrink(self, random: Random) -> str:
        assert self._operator is not None
        return self._operator.shrink(random)

    def _rot(self, random: Random) -> str:
        assert self._operator is not None
        return self._operator.rot(random)

    # -- the end

    def _counts(self) -> tuple[int, int]:
        return self.work.begun_count, self.work.answered_count

    def _unanswered(self) -> str:
        for mount in self.mounts:
            for op in mount.stuck.values():
                return f"{op.asks} of mount {mount.number}"
        return ""

    def _judge_clients(self) -> None:
        ended, ending = self.promises.ended, self.promises.ending
        for session, at in ended.items():
            self.work.session_ended(session, ending.get(session, 0), at)
        for what, calls, model, begins in self.work.objects():
            if (stuck := explain(calls, model, begins)) is not None:
                raise Broken("linearizability", f"{what}, {len(calls)} calls: {stuck}")
        history = {
            int(index): decode_entry(entry.data)
            for index, entry in self.cluster.checks.history.items()
            if entry.kind is EntryKind.COMMAND
        }
        self.promises.judge(history)


def _violations(machine: Machine) -> Iterable[str]:
    assert isinstance(machine, Metadata)
    return violations(machine.replica.machine.tree)
