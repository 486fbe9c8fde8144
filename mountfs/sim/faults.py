"""What befalls a cluster: each fault one method, which says in words what it has done.

Every fault is numbered and has a source of chance of its own, so that a run can be repeated without
some of them and the others stay as they were.
"""

from collections.abc import Callable, Iterable, Sequence
from random import Random

import msgspec

from mountfs.raft.messages import (
    Append,
    AppendReply,
    EntryKind,
    HeartbeatReply,
    Message,
    NodeId,
    TimeoutNow,
    Vote,
    VoteReply,
)
from mountfs.sim.cluster import Cluster
from mountfs.sim.server import Server
from mountfs.sim.world import MS, S, World

MOMENTS_FROM = 1_000
"""Numbers of faults that happen just when a message of some kind was sent."""
LOSSES_FROM = 2_000
"""Numbers of losses of power just when a client got its answer."""
OPENINGS_FROM = 3_000
"""Numbers of faults that happen to the leader just when a client got its session."""

Act = Callable[[Random], str]
"""Returns what it did, in words."""


class Fault(msgspec.Struct, frozen=True):
    number: int
    at: int
    what: str


class Plan(msgspec.Struct, frozen=True):
    """What befalls them in a run: a few kinds of faults (swarm testing: all together would hide
    what some of them, again and again, bring to light), and something that happens just when a
    message of some kind was sent, for mistakes that show at one moment only.
    """

    kinds: Sequence[Act]
    pause_us: int
    """Between them, on average."""
    when: type[Message] | str
    then: Callable[[Server, Random], str]
    """Happens to the sender of such a message; to who gets it, if it is an answer."""
    likely: float
    size: int | None = None
    """Voters at first, if that matters."""
    append_bytes: int | None = None
    reads: bool = False
    """Whether clients read more than they write."""
    checkpoint_entries: int | None = None


class Faults:
    """`without`: numbers of those that are left out."""

    def __init__(
        self, world: World, cluster: Callable[[], Cluster], ends: int, without: frozenset[int]
    ) -> None:
        self._world = world
        self._cluster = cluster
        self._ends = ends
        self._without = without
        self.happened: list[Fault] = []
        self.rotten: set[NodeId] = set()
        """Servers whose disks have been damaged."""
        self._moments = world.stream("moments")
        self._losses = world.stream("losses of power")
        self._openings = world.stream("openings")
        self._quiet_until = 0
        self._counts = {0: 0, MOMENTS_FROM: 0, LOSSES_FROM: 0, OPENINGS_FROM: 0}
        self.power_losses = 0.0
        """How often everybody crashes just when a client got its answer."""
        self.openings = 0.0
        """How often the leader goes just when a client got its session."""

    # -- when

    def begin(self, plan: Plan) -> None:
        self.plan = plan
        self._cluster().network.sent = self._sent
        self._world.after(self._world.stream("first fault").randrange(1 * S), self._next)

    def _next(self) -> None:
        if self._world.now >= self._ends:
            return
        number, random = self._numbered(0)
        act = random.choice(self.plan.kinds)
        pause = int(random.expovariate(1 / self.plan.pause_us))
        self._do(number, lambda: act(random))
        self._world.after(pause, self._next)

    def _numbered(self, first: int) -> tuple[int, Random]:
        self._counts[first] += 1
        number = first + self._counts[first]
        return number, self._world.stream(f"fault {number}")

    def _do(self, number: int, act: Callable[[], str]) -> None:
        if number in self._without:
            return
        what = act()
        if what:
            self._world.note(f"fault {number}: {what}")
            self.happened.append(Fault(number, self._world.now, what))

    def _sent(self, message: Message) -> None:
        """A message was sent: is it the moment?"""
        world, plan = self._world, self.plan
        if world.now < self._quiet_until or world.now >= self._ends or not plan.likely:
            return
        if not _is(message, plan.when) or self._moments.random() >= plan.likely:
            return
        number, random = self._numbered(MOMENTS_FROM)
        self._quiet_until = world.now + random.choice((50, 500)) * MS
        answer = isinstance(message, AppendReply)
        server = self._cluster().servers.get(message.target if answer else message.source)
        delay = random.choice((0, 1, 5)) * MS

        def then() -> None:
            if server is not None and server.up and self._world.now < self._ends:
                self._do(number, lambda: plan.then(server, random))

        world.after(delay, then)

    def answered(self) -> None:
        """A client got its answer."""
        if self._world.now < self._ends and self._losses.random() < self.power_losses:
            number, random = self._numbered(LOSSES_FROM)
            self._do(number, lambda: self.crash_all(random))

    def opened(self) -> None:
        """A client got its session."""
        if self._world.now < self._ends and self._openings.random() < self.openings:
            number, random = self._numbered(OPENINGS_FROM)
            act = random.choice((self.crash_leader, self.pause_leader, self.transfer))
            self._do(number, lambda: act(random))

    # -- crashes and pauses

    def _down(self, server: Server, random: Random, ms: tuple[int, ...]) -> str:
        server.crash()
        down = random.choice(ms)
        self._cluster().boot_later(server, down * MS)
        return f"{server.node} crashes for {down / 1000:g} s"

    def _down_for_a_while(self, server: Server, random: Random) -> str:
        return self._down(server, random, (1, 100, 1_000, 3_000))

    def crash_briefly(self, server: Server, random: Random) -> str:
        return self._down(server, random, (1,))

    def crash(self, random: Random) -> str:
        up = self._cluster().up()
        return self._down_for_a_while(random.choice(up), random) if up else ""

    def crash_leader(self, random: Random) -> str:
        leaders = self._cluster().leaders()
        return _all(self._down_for_a_while(server, random) + ", who leads" for server in leaders)

    def crash_all(self, random: Random) -> str:
        up = self._cluster().up()
        return _all(self._down_for_a_while(server, random) for server in up)

    def pause(self, server: Server, random: Random) -> str:
        return self._pause_for(server, random.choice((20, 100, 500, 700, 2_000)))

    def pause_briefly(self, server: Server, random: Random) -> str:
        return self._pause_for(server, random.randrange(30, 250))

    def _pause_for(self, server: Server, ms: int) -> str:
        server.pause(self._world.now + ms * MS)
        return f"{server.node} stands still for {ms / 1000:g} s"

    def pause_one(self, random: Random) -> str:
        up = self._cluster().up()
        return self.pause(random.choice(up), random) if up else ""

    def pause_leader(self, random: Random) -> str:
        leaders = self._cluster().leaders()
        return _all(self.pause(server, random) + ", who leads" for server in leaders)

    # -- the network

    def cut_off(self, random: Random) -> str:
        node = self._cluster().any_node(random)
        self._cluster().isolate(node)
        return f"{node} is cut off"

    def cut_off_server(self, server: Server, random: Random) -> str:
        self._cluster().isolate(server.node)
        return f"{server.node} is cut off"

    def cut_off_leader(self, random: Random) -> str:
        leaders = self._cluster().leaders()
        return _all(self.cut_off_server(server, random) + ", who leads" for server in leaders)

    def cut_off_other_leader(self, server: Server, random: Random) -> str:
        return self.cut_off_leader(random)

    def split(self, random: Random) -> str:
        return self._split(random, self._cluster().any_node(random))

    def _split(self, random: Random, node: NodeId) -> str:
        nodes = sorted(self._cluster().servers)
        half = set(random.sample(nodes, random.randint(0, len(nodes) // 2))) | {node}
        self._cluster().split(half)
        return f"{sorted(half)} are cut off from the others"

    def split_from(self, server: Server, random: Random) -> str:
        """It and some others, from the rest, for a while."""
        what = self._split(random, server.node)
        ms = random.choice((700, 1_500))
        self._world.after(ms * MS, self._cluster().network.heal)
        return f"{what} for {ms / 1000:g} s"

    def one_way(self, random: Random) -> str:
        nodes = sorted(self._cluster().servers)
        if len(nodes) < 2:
            return ""
        source, target = random.sample(nodes, 2)
        self._cluster().network.cut.add((source, target))
        return f"{target} does not hear {source} any more"

    def heal(self, random: Random) -> str:
        network = self._cluster().network
        if not network.cut:
            return ""
        network.heal()
        return "everybody hears everybody"

    # -- disks and clocks

    def slow_disk(self, random: Random) -> str:
        server = self._cluster().servers[self._cluster().any_node(random)]
        ms = random.choice((0.3, 2, 10, 200))
        server.disk.sync_us = int(ms * MS)
        return f"the disk of {server.node} takes {ms:g} ms"

    def full_disk(self, random: Random) -> str:
        server = self._cluster().servers[self._cluster().any_node(random)]
        seconds = random.choice((0.2, 1, 4))
        server.disk.full = True

        def room() -> None:
            server.disk.full = False

        self._world.after(int(seconds * S), room)
        return f"the disk of {server.node} is full for {seconds:g} s"

    def rot(self, random: Random) -> str:
        """Bits flip, on as many disks as the others can make up for: one at a time."""
        servers = self._cluster().servers
        members: set[NodeId] = set()
        for server in servers.values():
            if hasattr(server, "raft") and not server.lost:
                members |= server.raft.log.membership.everyone
        sound = [server for server in servers.values() if not server.lost]
        bad = members & self.rotten
        leader = self._cluster().leader()
        if leader is None:
            return ""
        log = leader.raft.log
        changing = log.membership.is_joint or log.membership_index > log.committed
        if changing or len(log.membership.voters) < 3:
            return ""
        candidates = [server for server in sound if not bad or server.node in bad]
        if not candidates:
            return ""
        server = random.choice(candidates)
        self.rotten.add(server.node)
        return f"a bit flips on the disk of {server.node}, {server.disk.rot(random)}"

    def clock_jump(self, random: Random) -> str:
        up = self._cluster().up()
        if not up:
            return ""
        server = random.choice(up)
        ms = random.randrange(2_000)
        server.jump(ms * MS)
        return f"the clock of {server.node} jumps {ms / 1000:g} s"

    # -- who counts and who leads

    def change(self, random: Random) -> str:
        return _all(self._change(server, random) for server in self._cluster().leaders())

    def _change(self, server: Server, random: Random) -> str:
        now = server.raft.log.membership
        voters, learners = list(now.voters), list(now.learners)
        match random.randrange(3):
            case 0:
                everyone = sorted(self._cluster().servers)
                others = [node for node in everyone if node not in voters]
                learners = random.sample(others, random.randint(0, len(others)))
            case 1:
                voters, learners = sorted({*voters, *learners}), []
            case 2:  # whoever leads mostly stays, and may be all that is left
                kept = random.sample(voters, random.randint(1, len(voters)))
                if random.random() < 0.7:
                    kept[0] = server.node
                voters = sorted(set(kept))
        server.when_running("operator", lambda: _ignore(server.change(voters, learners)))
        return f"{server.node} is asked for voters {voters}, learners {learners}"

    def transfer(self, random: Random) -> str:
        return _all(self._transfer(server, random) for server in self._cluster().leaders())

    def _transfer(self, server: Server, random: Random) -> str:
        target = random.choice(server.raft.log.membership.voters)
        server.when_running("operator", lambda: server.transfer(target))
        return f"{server.node} is asked to let {target} lead"


def _is(message: Message, kind: type[Message] | str) -> bool:
    if isinstance(kind, str):
        return isinstance(message, Append) and any(
            entry.kind is EntryKind.MEMBERSHIP for entry in message.entries
        )
    return isinstance(message, kind)


def _all(parts: Iterable[str]) -> str:
    return "; ".join(parts)


def _ignore(done: bool) -> None:
    """An operator looks at what has become of it later."""


REGISTER_KINDS = ("any", "membership", "reads", "votes", "leaders")
"""Of runs with registers, by what they look for most."""


def plan(faults: Faults, kind: str, random: Random) -> Plan:
    """For a run of that kind."""
    pause_us = random.choice((100, 200, 400, 1_000)) * MS
    heal = faults.heal
    match kind:
        case "leaders":  # as in figure 8 of the paper: each dies with a part of its work done
            kinds = [faults.crash_leader, faults.cut_off_leader, heal, heal]
            likely = random.choice((0.05, 0.3))
            return Plan(kinds, pause_us, AppendReply, faults.crash_briefly, likely, 5, 1)
        case "membership":
            change = faults.change
            kinds = [change, change, change, faults.split, faults.crash_leader, heal]
            then = random.choice((faults.split_from, faults.split_from, faults.crash_briefly))
            return Plan(kinds, pause_us, "membership", then, 0.3)
        case "reads":
            return _for_reads(faults, pause_us, random)
        case "votes":
            cuts = [faults.cut_off_leader, faults.split]
            kinds = [faults.crash_leader, *cuts, heal, heal, heal]
            likely = random.choice((0.02, 0.3))
            moment = random.choice((Vote, VoteReply, Append))
            return Plan(kinds, pause_us, moment, faults.crash_briefly, likely)
    return swarm(faults, [*of_servers(faults), faults.change], pause_us, random)


def of_servers(faults: Faults) -> list[Act]:
    return [
        faults.crash, faults.crash_leader, faults.crash_all, faults.pause_one,
        faults.pause_leader, faults.cut_off, faults.cut_off_leader, faults.split, faults.one_way,
        faults.slow_disk, faults.full_disk, faults.clock_jump, faults.transfer,
    ]  # fmt: skip


def swarm(faults: Faults, kinds: Sequence[Act], pause_us: int, random: Random) -> Plan:
    """Some of them, and something at a moment."""
    chosen = random.sample(kinds, random.randint(1, 6))
    return Plan(
        [*chosen, faults.heal, faults.heal],
        pause_us,
        random.choice((Vote, VoteReply, Append, AppendReply, "membership")),
        random.choice((faults.crash_briefly, faults.pause, faults.split_from)),
        random.choice((0.0, 0.0, 0.01, 0.1)),
    )


def _for_reads(faults: Faults, pause_us: int, random: Random) -> Plan:
    """A leader that answers reads without knowing that it has been replaced."""
    heal, transfer = faults.heal, faults.transfer
    size = random.choice((3, 3, 5))
    match random.randrange(4):
        case 0:
            leader = [faults.pause_leader, faults.cut_off_leader, faults.pause_leader]
            kinds = [*leader, transfer, faults.one_way, heal, heal]
            return Plan(kinds, pause_us, HeartbeatReply, faults.pause, 0.01, size, None, True)
        case 1:
            then = faults.pause_briefly
            return Plan([transfer, heal], 150 * MS, TimeoutNow, then, 0.9, size, None, True)
        case 2:
            then = faults.cut_off_server
            return Plan([transfer, heal], 150 * MS, TimeoutNow, then, 0.9, size, None, True)
    kinds = [faults.one_way, faults.one_way, heal]
    return Plan(kinds, pause_us, Vote, faults.cut_off_other_leader, 0.3, size, None, True)
