"""Everything at once, one message and one save at a time: what must hold, holds after every step,
and when the disorder ends the group is well again.

Finer than the simulation: messages arrive in any order at all, saves are held for as long as chance
has it, and time stands still meanwhile or leaps.  (No clock drifts here.)
"""

import contextlib
from random import Random

import msgspec
import pytest
from group import CONFIG, Group, Server

from mountfs.errors import FsError
from mountfs.raft.messages import Entry, NodeId, Term
from mountfs.raft.progress import Flow
from mountfs.raft.state import Role
from mountfs.types import LogIndex

NODES = (1, 2, 3, 4, 5)
STEPS = 600
TO_LEADERS = {"propose", "read", "change", "transfer", "compact", "send_snapshot"}


class Disorder:
    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        config = msgspec.structs.replace(
            CONFIG,
            lease_reads=random.random() < 0.7,
            append_entries_max=random.choice((1, 3, 100)),
            inflight_messages_max=random.choice((1, 2, 50)),
            cached_bytes_max=random.choice((0, 300, 10_000)),
            apply_bytes_max=random.choice((1, 1_000)),
            snapshot_retry_ms=300,
            caught_up_entries=random.choice((2, 1_000)),
        )
        size = random.choice((1, 2, 3, 3, 4))
        self.group = Group(*NODES[:size], spares=NODES[size:], config=config)
        for node in NODES:
            self.group.dice[node] = random.randrange
            self.group[node].state.random = random.randrange
        self.leaders: dict[Term, NodeId] = {}
        self.applied: dict[LogIndex, Entry] = {}
        self.asked: dict[tuple[int, int], LogIndex] = {}
        """(server, request): what was committed, anywhere, when it was asked."""
        self.counted = dict.fromkeys(NODES, 0)
        self.requests = 0

    # -- what happens

    def step(self) -> None:
        group, random = self.group, self.random
        kind = random.choices(list(self.KINDS), list(self.KINDS.values()))[0]
        with contextlib.suppress(FsError):
            getattr(self, kind)(self._somebody(kind))
        for server in group.servers.values():
            if server.up:
                self.check(server)

    def _somebody(self, kind: str) -> int:
        if kind in TO_LEADERS and self.group.leader and self.random.random() < 0.8:
            return self.group.leader
        return self.random.choice(NODES)

    KINDS = {  # noqa: RUF012
        "arrive": 80,
        "lose": 3,
        "come_twice": 3,
        "pass_a_little": 20,
        "pass_much": 1,
        "hold": 2,
        "save": 6,
        "release": 3,
        "crash": 1,
        "start": 3,
        "propose": 12,
        "read": 4,
        "change": 2,
        "transfer": 1,
        "compact": 3,
        "send_snapshot": 4,
        "cut": 1,
        "heal": 2,
        "unreachable": 1,
    }

    def arrive(self, node: int) -> None:
        for _ in range(min(self.random.randint(1, 6), len(self.group.mail))):
            at = min(int(self.random.expovariate(0.5)), len(self.group.mail) - 1)
            self.group.deliver_number(list(self.group.mail)[at])

    def lose(self, node: int) -> None:
        if self.group.mail:
            del self.group.mail[self.random.choice(list(self.group.mail))]

    def come_twice(self, node: int) -> None:
        if self.group.mail:
            self.group.post(self.random.choice(list(self.group.mail.values())))

    def pass_a_little(self, node: int) -> None:
        self.group.pass_time(self.random.randrange(120))

    def pass_much(self, node: int) -> None:
        self.group.pass_time(self.random.randrange(2_000), node)

    def hold(self, node: int) -> None:
        self.group.hold(node)

    def save(self, node: int) -> None:
        if self.group.servers[node].up:
            self.group.save(node, 1)

    def release(self, node: int) -> None:
        if self.group.servers[node].up:
            self.group.release(node)

    def crash(self, node: int) -> None:
        if self.group.servers[node].up:
            self.group.crash(node)
            self.counted[node] = 0
            self.asked = {key: at for key, at in self.asked.items() if key[0] != node}

    def start(self, node: int) -> None:
        if not self.group.servers[node].up:
            self.group.start(node)

    def propose(self, node: int) -> None:
        if self.group.servers[node].up:
            self.group.propose(node, b"%d" % self.random.randrange(1_000))

    def read(self, node: int) -> None:
        if self.group.servers[node].up:
            self.requests += 1
            now = max(one.raft.log.committed for one in self.group.servers.values())
            self.asked[node, self.requests] = now
            self.group.read(node, self.requests)

    def change(self, node: int) -> None:
        if self.group.servers[node].up and self.group[node].role is Role.LEADER:
            now = self.group[node].log.membership
            if self.random.random() < 0.5:  # whoever can be a voter, and some others as learners
                everyone = {*now.voters, *now.learners}
                voters = self.random.sample(sorted(everyone), self.random.randint(1, len(everyone)))
                self.group.change(node, voters, [])
            else:
                others = [one for one in NODES if one not in now.voters]
                self.group.change(node, now.voters, others)

    def transfer(self, node: int) -> None:
        if self.group.servers[node].up:
            self.group.transfer(node, self.random.choice(NODES))

    def compact(self, node: int) -> None:
        server = self.group.servers[node]
        if server.up and not server.held:
            log = server.raft.log
            index = self.random.randint(log.base, log.applied)
            if index > log.base:
                self.group.compact(node, index)

    def send_snapshot(self, node: int) -> None:
        server = self.group.servers[node]
        if server.up and server.wanted:
            target = self.random.choice(list(server.wanted))
            whole = self.random.random() < 0.7 and self.group.servers[target].up
            self.group.send_snapshot(node, target, whole=whole)

    def cut(self, node: int) -> None:
        self.group.isolate(node)

    def heal(self, node: int) -> None:
        self.group.heal()

    def unreachable(self, node: int) -> None:
        if self.group.servers[node].up:
            self.group[node].unreachable(NodeId(self.random.choice(NODES)), self.group.now)

    # -- what must hold (paper figure 3)

    def check(self, server: Server) -> None:
        raft = server.raft
        if raft.role is Role.LEADER:
            assert self.leaders.setdefault(raft.term, raft.node) == raft.node, "election safety"
            for peer in raft.state.peers.values():
                limits = self.group.config
                assert peer.inflight <= limits.inflight_messages_max
            for index, known in self.applied.items():
                if raft.term > known.term and index > raft.log.base:
                    assert raft.log.term(index) == known.term, "leader completeness"
        for one in server.applied[self.counted[server.node] :]:
            known = self.applied.setdefault(one.index, one)
            assert known == one, "state machine safety"
        self.counted[server.node] = len(server.applied)
        for request, indexes in server.answers.items():
            asked = self.asked.pop((server.node, request), None)
            if asked is not None and indexes:
                assert min(indexes) >= asked, "a read missed what was committed before it"
        assert len(raft.state.rounds_sent) < 100
        assert len(raft.state.snapshots) <= len(NODES)

    # -- the end

    def make_well(self) -> None:
        group = self.group
        group.heal()
        for node, server in group.servers.items():
            if not server.up:
                group.start(node)
            group.release(node)
        for _ in range(200):
            group.run(100)
            for node, server in group.servers.items():
                for target in list(server.wanted):
                    group.send_snapshot(node, target)
                self.check(server)

    def judge(self) -> None:
        group = self.group
        leader = group.leader
        assert leader, [str(one.raft.log.membership) for one in group.servers.values()]
        group.read(leader, 999_999)
        index = group.propose(leader, b"last")
        group.run(1_000)
        assert group.leader == leader
        raft = group[leader]
        assert raft.log.applied >= index
        assert group.servers[leader].answers[999_999], "a read was not answered"
        assert not raft.log.membership.is_joint
        for node in raft.log.membership.everyone:
            assert group[node].log.applied == raft.log.applied, (node, raft.log.applied)
            assert group[node].leader == leader
        for peer in raft.state.peers.values():
            assert (peer.flow, peer.match, peer.inflight) == (
                Flow.REPLICATE,
                raft.log.last_index,
                0,
            )
        assert raft.state.uncommitted_bytes == 0
        assert raft.state.waiting == raft.state.unproven == []


@pytest.mark.parametrize("seed", range(40))
def test_disorder_breaks_nothing_and_ends(seed: int) -> None:
    disorder = Disorder(seed)
    for _ in range(STEPS):
        disorder.step()
    disorder.make_well()
    disorder.judge()
