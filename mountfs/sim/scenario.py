"""One seed, one run: a group, its clients, and what befalls them."""

from collections.abc import Callable

import msgspec

from mountfs.raft.config import Config
from mountfs.raft.messages import (
    Append,
    AppendReply,
    EntryKind,
    HeartbeatReply,
    Membership,
    Message,
    NodeId,
    TimeoutNow,
    Vote,
    VoteReply,
)
from mountfs.sim.checks import Broken, Checks
from mountfs.sim.history import Operation, linearizable
from mountfs.sim.network import Network
from mountfs.sim.server import Server
from mountfs.sim.workload import Client
from mountfs.sim.world import MS, S, World

CALM = 8 * S
"""After the faults: everything must be well again, and all answered."""


def _is(message: Message, kind: type[Message] | str) -> bool:
    if isinstance(kind, str):
        return isinstance(message, Append) and any(
            entry.kind is EntryKind.MEMBERSHIP for entry in message.entries
        )
    return isinstance(message, kind)


KINDS = ("any", "any", "membership", "reads", "votes", "leaders")
"""Of runs, by what they look for most."""


class _Plan(msgspec.Struct, frozen=True):
    kinds: list[Callable[[], None]]
    pause_us: int
    """Between them, on average."""
    when: type[Message] | str
    then: Callable[[Server], None]
    """Happens to the sender of such a message; to who gets it, if it is an answer."""
    likely: float
    size: int | None = None
    """Voters at first, if that matters."""
    append_bytes: int | None = None
    reads: bool = False
    """Whether clients read more than they write."""


class Result(msgspec.Struct, frozen=True):
    seed: int
    digest: str
    operations: int
    answered: int
    elections: int
    faults: int
    committed: int


class Run:
    def __init__(
        self, seed: int, *, seconds: int = 20, trace: bool = False, kind: str = ""
    ) -> None:
        """`kind`: one of KINDS instead of any."""
        self.seed = seed
        self.world = world = World(seed)
        if trace:
            world.lines = []
        self._seconds = seconds
        random = world.random
        self.checks = Checks()
        self.servers: dict[NodeId, Server] = {}
        self.network = Network(world, lambda message: self.servers[message.target].deliver(message))
        self._plan = plan = self._choose(kind or random.choice(KINDS))
        self._quiet_until = 0
        size = plan.size or random.choice((1, 3, 3, 3, 5))
        self._spares = 2
        voters = tuple(NodeId(number) for number in range(1, size + 1))
        config = Config(
            heartbeat_ms=50,
            election_ms=300,
            lease_reads=random.random() < 0.7,
            append_bytes_max=plan.append_bytes or random.choice((200, 2_000, 200_000)),
            inflight_messages_max=random.choice((1, 4, 64)),
            cached_bytes_max=random.choice((0, 5_000, 1_000_000)),
            apply_bytes_max=random.choice((100, 100_000)),
            snapshot_retry_ms=200,
            caught_up_entries=random.choice((5, 1_000)),
        )
        everyone = [NodeId(number) for number in range(1, size + self._spares + 1)]
        membership = Membership(voters)
        for node in everyone:
            server = Server(
                world, self.network, self.checks, self.servers, node, config, membership
            )
            server.clock_rate = 1 + random.uniform(-0.04, 0.04)
            server.clock_offset = random.randrange(1_000 * S)
            server.checkpoint_entries = random.choice((20, 100, 1_000))
            server.disk.sync_us = int(random.choice((0.3, 2, 10, 50)) * MS)
            self.servers[node] = server
        self._power_losses = random.choice((0.0, 0.0, 0.01))
        """How often everybody crashes just when a client got its answer."""
        self.network.loss = random.choice((0.0, 0.01, 0.1))
        self.network.doubled = random.choice((0.0, 0.05))
        self.network.straggling = random.choice((0.0, 0.01))
        self.network.sent = self._sent
        # Slow enough, two stand for election before they hear of each other.
        self.network.delay_us = random.choice((MS // 2, MS // 2, 5 * MS, 20 * MS))
        self.history: list[Operation] = []
        self.faults = 0
        self._ends = seconds * S

    def run(self) -> Result:
        """Raises Broken."""
        world = self.world
        for server in self.servers.values():
            server.boot()
        reads = self._plan.reads
        keys = 1 if reads else world.random.choice((1, 4, 10))
        for number in range(1, (8 if reads else world.random.choice((2, 5, 8))) + 1):
            Client(
                world,
                self.servers,
                number,
                self.history,
                keys=keys,
                ends=self._ends + CALM // 2,
                answered=self.answered,
                reads=reads,
            ).start()
        world.after(world.random.randrange(1 * S), self._fault)
        world.run(self._ends)
        self._make_well()
        world.run(self._ends + CALM)
        self._judge()
        committed = max(server.raft.log.committed for server in self.servers.values())
        answered = sum(one.returned is not None for one in self.history)
        return Result(
            self.seed,
            world.digest,
            len(self.history),
            answered,
            self.checks.leaders_seen,
            self.faults,
            committed,
        )

    # -- what befalls them

    def _fault(self) -> None:
        world = self.world
        if world.now >= self._ends:
            return
        self.faults += 1
        world.random.choice(self._plan.kinds)()
        world.after(int(world.random.expovariate(1 / self._plan.pause_us)), self._fault)

    def _choose(self, kind: str) -> "_Plan":
        """What befalls them in this run: a few kinds of faults (swarm testing: all together would
        hide what some of them, again and again, bring to light), and something that happens just
        when a message of some kind was sent, for mistakes that show at one moment only.
        """
        random = self.world.random
        pause_us = random.choice((100, 200, 400, 1_000)) * MS
        change, heal = self._change, self._heal
        match kind:
            case "leaders":  # as in figure 8 of the paper: each dies with a part of its work done
                kinds = [self._crash_leader, self._cut_off_leader, heal, heal]
                likely = random.choice((0.05, 0.3))
                return _Plan(kinds, pause_us, AppendReply, self._crash_briefly, likely, 5, 1)
            case "membership":
                kinds = [change, change, change, self._split, self._crash_leader, heal]
                then = random.choice((self._split_from, self._crash_briefly))
                return _Plan(kinds, pause_us, "membership", then, 0.3)
            case "reads":
                return self._choose_for_reads(pause_us)
            case "votes":
                kinds = [self._crash_leader, self._cut_off_leader, self._split, heal, heal, heal]
                likely = random.choice((0.02, 0.3))
                moment = random.choice((Vote, VoteReply, Append))
                return _Plan(kinds, pause_us, moment, self._crash_briefly, likely)
        kinds = [
            self._crash,
            self._crash_leader,
            self._crash_all,
            self._pause_one,
            self._pause_leader,
            self._cut_off,
            self._cut_off_leader,
            self._split,
            self._one_way,
            self._slow_disk,
            self._clock_jump,
            self._change,
            self._transfer,
        ]
        chosen = random.sample(kinds, random.randint(1, 6))
        return _Plan(
            [*chosen, heal, heal],
            pause_us,
            random.choice((Vote, VoteReply, Append, AppendReply, "membership")),
            random.choice((self._crash_briefly, self._pause, self._split_from)),
            random.choice((0.0, 0.0, 0.01, 0.1)),
        )

    def _choose_for_reads(self, pause_us: int) -> "_Plan":
        """A leader that answers reads without knowing that it has been replaced."""
        heal = self._heal
        size = self.world.random.choice((3, 3, 5))
        match self.world.random.randrange(4):
            case 0:
                leader = [self._pause_leader, self._cut_off_leader, self._pause_leader]
                kinds = [*leader, self._transfer, self._one_way, heal, heal]
                return _Plan(kinds, pause_us, HeartbeatReply, self._pause, 0.01, size, None, True)
            case 1:
                kinds = [self._transfer, heal]
                return _Plan(
                    kinds, 150 * MS, TimeoutNow, self._pause_briefly, 0.9, size, None, True
                )
            case 2:
                kinds = [self._transfer, heal]
                return _Plan(
                    kinds, 150 * MS, TimeoutNow, self._cut_off_server, 0.9, size, None, True
                )
        kinds = [self._one_way, self._one_way, heal]
        return _Plan(kinds, pause_us, Vote, self._cut_off_other_leader, 0.3, size, None, True)

    def _sent(self, message: Message) -> None:
        """A message was sent: is it the moment?"""
        world, plan = self.world, self._plan
        if world.now < self._quiet_until or world.now >= self._ends or not plan.likely:
            return
        if _is(message, plan.when) and world.chance(plan.likely):
            self._quiet_until = world.now + world.random.choice((50, 500)) * MS
            self.faults += 1
            answer = isinstance(message, AppendReply)
            server = self.servers[message.target if answer else message.source]
            delay = world.random.choice((0, 1, 5)) * MS
            world.after(delay, lambda: plan.then(server) if server.up else None)

    def _crash_briefly(self, server: Server) -> None:
        server.crash()
        self.world.after(1 * MS, lambda: None if server.up else server.boot())

    def _split_from(self, server: Server) -> None:
        """It and some others, from the rest, for a while."""
        self._split(server.node)
        self.world.after(700 * MS, self._heal)

    def _up(self) -> list[Server]:
        return [server for server in self.servers.values() if server.up]

    def _leaders(self) -> list[Server]:
        return [server for server in self._up() if server.raft.state.is_leader]

    def _down_for_a_while(self, server: Server) -> None:
        server.crash()
        down = int(self.world.random.choice((1, 100, 1_000, 3_000)) * MS)
        self.world.after(down, lambda: None if server.up else server.boot())

    def _crash(self) -> None:
        if up := self._up():
            self._down_for_a_while(self.world.random.choice(up))

    def _crash_leader(self) -> None:
        for server in self._leaders():
            self._down_for_a_while(server)

    def _crash_all(self) -> None:
        for server in self._up():
            self._down_for_a_while(server)

    def answered(self) -> None:
        """A client got its answer."""
        if self.world.now < self._ends and self.world.chance(self._power_losses):
            self.faults += 1
            self._crash_all()

    def _pause_one(self) -> None:
        if up := self._up():
            self._pause(self.world.random.choice(up))

    def _pause_leader(self) -> None:
        for server in self._leaders():
            self._pause(server)

    def _pause_briefly(self, server: Server) -> None:
        server.pause(self.world.now + self.world.random.randrange(30, 250) * MS)

    def _pause(self, server: Server) -> None:
        pause = int(self.world.random.choice((20, 100, 500, 700, 2_000)) * MS)
        server.pause(self.world.now + pause)

    def _isolate(self, node: NodeId) -> None:
        self.world.note(f"{node} is cut off")
        for other in self.servers:
            self.network.cut |= {(node, other), (other, node)}

    def _cut_off(self) -> None:
        self._isolate(self.world.random.choice(sorted(self.servers)))

    def _cut_off_server(self, server: Server) -> None:
        self._isolate(server.node)

    def _cut_off_other_leader(self, server: Server) -> None:
        self._cut_off_leader()

    def _cut_off_leader(self) -> None:
        for server in self._leaders():
            self._isolate(server.node)

    def _split(self, with_node: NodeId | None = None) -> None:
        random = self.world.random
        nodes = sorted(self.servers)
        half = set(random.sample(nodes, random.randint(0, len(nodes) // 2)))
        half.add(with_node or random.choice(nodes))
        self.world.note(f"{sorted(half)} are cut off")
        self.network.cut = {
            (one, other) for one in nodes for other in nodes if (one in half) != (other in half)
        }

    def _one_way(self) -> None:
        source, target = self.world.random.sample(sorted(self.servers), 2)
        self.network.cut.add((source, target))

    def _heal(self) -> None:
        self.network.heal()

    def _slow_disk(self) -> None:
        server = self.world.random.choice(sorted(self.servers.values(), key=lambda one: one.node))
        server.disk.sync_us = int(self.world.random.choice((0.3, 2, 10, 200)) * MS)

    def _clock_jump(self) -> None:
        """Forward: a clock that counts on while everything stood still."""
        if up := self._up():
            self.world.random.choice(up).clock_offset += self.world.random.randrange(2 * S)

    def _change(self) -> None:
        random = self.world.random
        for server in self._leaders():
            now = server.raft.log.membership
            everyone = sorted(self.servers)
            voters = list(now.voters)
            learners = list(now.learners)
            match random.randrange(3):
                case 0:
                    others = [node for node in everyone if node not in voters]
                    learners = random.sample(others, random.randint(0, len(others)))
                case 1:
                    voters = sorted({*voters, *learners})
                    learners = []
                case 2:
                    kept = random.randint(1, len(voters))
                    voters = sorted(random.sample(voters, kept))
            server.change(voters, learners)

    def _transfer(self) -> None:
        for server in self._leaders():
            voters = server.raft.log.membership.voters
            server.transfer(self.world.random.choice(voters))

    # -- the end

    def _make_well(self) -> None:
        self.network.heal()
        self.network.loss = self.network.doubled = self.network.straggling = 0.0
        self.network.snapshot_ms = (5,)
        self.network.delay_us = MS // 2
        for server in self.servers.values():
            server.disk.sync_us = 1 * MS
            if not server.up:
                server.boot()

    def _judge(self) -> None:
        for key in sorted({one.key for one in self.history}):
            operations = [one for one in self.history if one.key == key]
            if not linearizable(operations):
                raise Broken("linearizability", f"key {key}: {len(operations)} operations")
        unanswered = [one for one in self.history if one.returned is None]
        if unanswered:
            raise Broken("progress", f"never answered: {unanswered[0]}")
        leaders = self._leaders()
        if not leaders:
            raise Broken("progress", "nobody leads at the end")
        leader = max(leaders, key=lambda one: one.raft.term)
        for node in leader.raft.log.membership.everyone:
            server = self.servers[node]
            if server.machine.applied != leader.machine.applied:
                raise Broken(
                    "progress",
                    f"{node} is at {server.machine.applied}, not {leader.machine.applied}",
                )
            if server.machine != leader.machine:
                raise Broken("state machine safety", f"{node} differs from {leader.node}")
