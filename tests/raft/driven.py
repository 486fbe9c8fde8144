"""Whole nodes in one process: real drivers on real journals, and a network that does as it is told.

Time is Trio's: with the clock that jumps, seconds of an election cost nothing.
"""

import contextlib
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import trio

from mountfs.kv.journal import Journal
from mountfs.raft.config import Config
from mountfs.raft.driver import Group, Node
from mountfs.raft.log_record import GroupId
from mountfs.raft.messages import Entry, HardState, Membership, NodeId, SnapshotHead, Term
from mountfs.raft.storage import Storage
from mountfs.types import KIB, LogIndex

CONFIG = Config(heartbeat_ms=50, election_ms=400, snapshot_retry_ms=100)
ONE = GroupId(1)
END_S = 60.0
"""Of the clock in use; nothing in these tests takes as long, unless it hangs."""


class Commands:
    """A machine that remembers what it was told, and answers with how many came before."""

    def __init__(self, base: int = 0) -> None:
        self.applied = LogIndex(base)
        self.commands: list[bytes] = []
        self.subjects: list[Any] = []
        """What came with proposals that were made here."""
        self.snapshots: dict[int, list[bytes]] = {}
        """What `install` finds, by index."""
        self.failure: Exception | None = None

    def apply(self, entry: Entry, subject: Any) -> object:
        if self.failure is not None:
            raise self.failure
        assert entry.index == self.applied + 1, (entry, self.applied)
        self.applied = entry.index
        self.commands.append(entry.data)
        self.subjects.append(subject)
        return len(self.commands) - 1

    def skip(self, index: LogIndex) -> None:
        assert index == self.applied + 1, (index, self.applied)
        self.applied = index

    def install(self, head: SnapshotHead) -> None:
        self.commands = list(self.snapshots[head.index])
        self.applied = head.index


class Here:
    """A node that runs."""

    def __init__(self, node: Node, journal: Journal, scope: trio.CancelScope) -> None:
        self.node = node
        self.journal = journal
        self.scope = scope
        self.ended = trio.Event()
        self.error: BaseException | None = None
        """With what it ended by itself."""

    def __getitem__(self, group: GroupId) -> Group:
        return self.node.groups[group]

    def machine(self, group: GroupId = ONE) -> Commands:
        machine = self.node.groups[group].machine
        assert isinstance(machine, Commands)
        return machine


class _Sender:
    def __init__(self, cluster: "Cluster", source: NodeId) -> None:
        self._cluster = cluster
        self._source = source

    def send(self, node: NodeId, body: bytes) -> None:
        self._cluster.post(self._source, node, body)


class Cluster:
    """Nodes by number, each with servers of the same groups."""

    def __init__(
        self, path: Path, numbers: Iterable[int], groups: Iterable[GroupId], config: Config
    ) -> None:
        self.path = path
        self.groups = list(groups)
        self.config = config
        self.membership = Membership(tuple(NodeId(number) for number in numbers))
        self.here: dict[int, Here] = {}
        self.cut: set[tuple[int, int]] = set()
        """(source, target) between which nothing passes."""
        self.posted: dict[tuple[int, int], int] = {}
        """Envelopes, by (source, target)."""
        self._mail: deque[tuple[NodeId, NodeId, bytes]] = deque()
        self._posted = trio.Event()
        self._nursery: trio.Nursery
        self._chance = random.Random(7)

    def __getitem__(self, number: int) -> Here:
        return self.here[number]

    # -- nodes come and go

    def start(self, number: int) -> Here:
        directory = self.path / str(number)
        directory.mkdir(exist_ok=True)
        journal = Journal(directory, segment_bytes=256 * KIB, keep_spare=0)
        storage = Storage(journal)
        for group in self.groups:
            if group not in storage.groups:
                head = SnapshotHead(LogIndex(0), Term(0), self.membership)
                storage.create(group, head, HardState())
        node = Node(
            NodeId(number),
            storage,
            _Sender(self, NodeId(number)),
            self.config,
            clock=trio.current_time,
            chance=random.Random(self._chance.random()),
        )
        here = self.here[number] = Here(node, journal, trio.CancelScope())
        for group in self.groups:
            node.start(group, Commands(storage.groups[group].base.index))
        self._nursery.start_soon(self._run, here)
        return here

    async def _run(self, here: Here) -> None:
        try:
            with here.scope:
                await here.node.run()
        except BaseExceptionGroup as error:
            here.error = error
        finally:
            here.ended.set()

    async def crash(self, number: int) -> None:
        """Its memory is gone; what it gave to the kernel is not."""
        here = self.here.pop(number)
        here.scope.cancel()
        await here.ended.wait()
        here.journal._close_files()  # without the sync of an orderly end

    # -- the network

    def post(self, source: NodeId, target: NodeId, body: bytes) -> None:
        if (source, target) in self.cut:
            return
        self.posted[source, target] = self.posted.get((source, target), 0) + 1
        self._mail.append((source, target, body))
        self._posted.set()

    async def deliver(self) -> None:
        while True:
            await self._posted.wait()
            self._posted = trio.Event()
            while self._mail:
                source, target, body = self._mail.popleft()
                here = self.here.get(target)
                if here is not None and not here.ended.is_set():
                    here.node.received(source, [body])
            await trio.lowlevel.checkpoint()

    def isolate(self, number: int) -> None:
        for other in self.membership.voters:
            self.cut |= {(number, other), (other, number)}

    def heal(self) -> None:
        self.cut.clear()

    # -- what is waited for

    async def until(self, holds: Callable[[], object]) -> None:
        with trio.fail_after(END_S):
            while True:  # nobody tells us
                if holds():
                    return
                await trio.sleep(0.005)

    def leading(self, group: GroupId = ONE) -> list[Here]:
        """Who leads and has proved it."""
        return [
            here
            for here in self.here.values()
            if not here.ended.is_set()
            and group in here.node.groups
            and here[group].is_leader
            and here[group].raft.state.proven
        ]

    async def leader(self, group: GroupId = ONE, *, other_than: int = 0) -> Here:
        """One who leads, whom a majority follows."""

        def found() -> list[Here]:
            leading = [one for one in self.leading(group) if one.node.number != other_than]
            return sorted(leading, key=lambda one: one[group].raft.term)

        await self.until(found)
        return found()[-1]

    async def lead(self, number: int, group: GroupId = ONE) -> Here:
        """Have a node lead."""
        leader = await self.leader(group)
        if leader.node.number != number:
            leader[group].transfer(NodeId(number))
        await self.until(lambda: self[number] in self.leading(group))
        return self[number]

    async def agree(self, group: GroupId = ONE) -> list[bytes]:
        """All who are here have taken in the same; returns it."""

        def same() -> bool:
            logs = [here[group].raft.log for here in self.here.values()]
            applied = {here.machine(group).applied for here in self.here.values()}
            return applied == {max(log.last_index for log in logs)}

        await self.until(same)
        first, *others = (here.machine(group).commands for here in self.here.values())
        assert all(other == first for other in others)
        return first


@contextlib.asynccontextmanager
async def a_cluster(
    path: Path,
    nodes: int = 3,
    *,
    groups: Iterable[GroupId] = (ONE,),
    config: Config = CONFIG,
) -> AsyncIterator[Cluster]:
    cluster = Cluster(path, range(1, nodes + 1), groups, config)
    try:
        with trio.fail_after(10 * END_S):
            async with trio.open_nursery() as cluster._nursery:
                cluster._nursery.start_soon(cluster.deliver)
                for number in range(1, nodes + 1):
                    cluster.start(number)
                yield cluster
                cluster._nursery.cancel_scope.cancel()
    finally:
        for here in cluster.here.values():
            here.journal._close_files()


class Answers:
    """What proposers were told, and that it was once each."""

    def __init__(self) -> None:
        self.got: dict[object, object] = {}

    def of(self, name: object) -> Callable[[object], None]:
        def done(answer: object) -> None:
            assert name not in self.got, (name, self.got[name], answer)
            self.got[name] = answer

        return done
