"""What a leader of the simulation does about bytes: the real shells of `chunks/` that wait for
nothing but what they are given, with this server's log, clock and connections.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from random import Random
from typing import Any

import msgspec

from mountfs.chunks.allotter import LEADER, Allotter
from mountfs.chunks.collector import Collector
from mountfs.chunks.deletion import Deletion
from mountfs.chunks.orders import CALL_S, Orders
from mountfs.chunks.protocol import Allot, Method, Return
from mountfs.chunks.repairs import Repairs
from mountfs.chunks.volume_map import nodes_of
from mountfs.errors import Fault, FsError
from mountfs.meta.chunkservers import Chunkservers
from mountfs.meta.command import Command
from mountfs.meta.healing import Healer
from mountfs.meta.ops.reap import Orphans
from mountfs.meta.ops.slices import Tangles
from mountfs.meta.ops.volumes import ListVolumes, VolumeRecord, volume_of
from mountfs.meta.reports import Report
from mountfs.meta.safe_mode import SafeMode
from mountfs.sim.chunks import Chunks
from mountfs.sim.ledger import Ledger
from mountfs.sim.metadata import Metadata
from mountfs.sim.server import Answer, Server
from mountfs.sim.tasks import Tasks, Wait
from mountfs.sim.times import FLEET, HEALING, Times
from mountfs.sim.wires import Wires
from mountfs.sim.world import MS, World
from mountfs.types import Ino, VolumeId
from mountfs.vfs.compactor import Compactor
from mountfs.vfs.reader import Reader
from mountfs.vfs.reclaimer import NobodysFiles

LOOK_US = 100 * MS
HURRIED_US = 15 * MS
TANGLES = 4
"""Chunks that are compacted at a time."""

Order = Callable[[Command[Any], Answer], None]


class _Seen:
    """A server, with as much of a `MetaServer` as its duties about bytes need."""

    def __init__(self, server: Server, order: Order) -> None:
        self._server = server
        self._order = order
        self.group = self.machine = self.node = self.service = self
        self.chunkservers = Chunkservers(self, self.now)  # type: ignore[arg-type]
        self.chunkservers.fleet.config = FLEET
        self.safe_mode = SafeMode(self.chunkservers.volumes, now=self.now)

    # of the machine

    @property
    def replica(self) -> Any:
        machine = self._server.machine
        assert isinstance(machine, Metadata)
        return machine.replica

    # of the node: milliseconds.  (Nobody here asks the machine for the time.)

    def now(self) -> int:
        return self._server.clock()

    # of the group

    @property
    def raft(self) -> Any:
        return self._server.raft

    @property
    def is_leader(self) -> bool:
        return bool(self._server.raft.state.is_leader)

    def require_leader(self) -> None:
        self._server.raft.state.require_leader()

    # of the service

    async def order(self, command: Command[Any]) -> Any:
        command.check()
        answer: Wait[Any] = Wait()
        self._order(command, answer.set)
        return await answer


class _Orders(Orders):
    """Sent by simulated connections."""

    def __init__(
        self, term: Callable[[], int], wires: Wires, tasks: Tasks, name: str, times: Times
    ) -> None:
        super().__init__(term, _no_link)
        self._wires = wires
        self._tasks = tasks
        self._name = name
        self._times = times

    async def each(
        self, nodes: Iterable[int], ask: Callable[[int], Awaitable[object]]
    ) -> dict[int, FsError]:
        failed: dict[int, FsError] = {}

        async def one(node: int) -> None:
            try:
                await ask(node)
            except FsError as error:
                failed[node] = error

        for asked in [self._tasks.ask(one(node)) for node in nodes]:
            await asked
        return failed

    async def _call(self, node: int, method: int, asked: object, seconds: float) -> bytes:
        us = self._times.attempt_us if seconds == CALL_S else self._times.long_us
        body = msgspec.msgpack.encode(asked)
        return await self._wires.call(self._name, node, Method(method), body, us)


async def _no_link(node: int) -> Any:
    raise AssertionError(node)


class LeadersMeta:
    """The metadata as the leader sees it: for compaction."""

    session = 0

    def __init__(self, seen: _Seen) -> None:
        self._seen = seen

    async def propose(self, command: Command[Any]) -> Any:
        return await self._seen.order(command)

    async def read(self, query: Any) -> Any:
        self._seen.require_leader()
        return query.read(self._seen.replica.machine.tree)


class Leading:
    """One on every metaserver; it acts where that leads."""

    def __init__(
        self,
        world: World,
        server: Server,
        order: Order,
        wires: Wires,
        ledger: Ledger,
        times: Times,
    ) -> None:
        self._world = world
        self._server = server
        self._order = order
        self._wires = wires
        self._ledger = ledger
        self._times = times
        self._lot: Random = world.stream(f"lot {server.node}")
        self.carried_out: dict[str, int] = {}
        """How often which task of the healer has gone well."""
        self._collect_us = times.collect_us
        self._tasks = Tasks(world, self._gate)
        self._begin()
        server.on_boot = self._begin

    def _gate(self, happens: Callable[[], None]) -> None:
        self._server.when_running("plane", happens)

    def _begin(self) -> None:
        """The process starts, with nothing in memory."""
        world, server, times = self._world, self._server, self._times
        self._tasks.end()
        self._tasks = tasks = Tasks(world, self._gate)
        self.seen = seen = _Seen(server, self._order)
        name = f"n{server.node}"

        def term() -> int:
            seen.require_leader()
            return int(seen.raft.term)

        self.orders = _Orders(term, self._wires, tasks, name, times)

        def scan(after: VolumeId, limit: int) -> tuple[VolumeRecord, ...]:
            return ListVolumes(limit, after).read(seen.replica.machine.tree)

        as_server: Any = seen
        self.allotter = Allotter(as_server, self.orders, self._lot)
        self.healer = Healer(seen.chunkservers.fleet, scan, self._lot, HEALING)
        self.collector = Collector(
            as_server, self.orders, self.healer.suspect, grace_s=times.grace_us / 1e6
        )
        self.repairs = Repairs(as_server, self.orders, self.healer)
        self.deletion = Deletion(as_server, self.orders)
        meta: Any = LeadersMeta(seen)
        self._meta = meta
        chunks = Chunks(
            world, self._wires, self._ledger, tasks, times, name, lambda: LEADER, self._where,
            self.allotter.allot, self.allotter.give_back,
        )  # fmt: skip
        files: Any = NobodysFiles(Reader(meta, chunks))
        self._compactor = Compactor(meta, chunks, files)
        if server.life:
            for work in (self._look, self._repair, self._tidy, self._delete, self._collect):
                tasks.start(work())
            tasks.start(self._compact())

    async def _where(self, volume: VolumeId) -> Sequence[int]:
        return nodes_of(volume, volume_of(self.seen.replica.machine.tree, volume))

    def hurry(self) -> None:
        """Look for garbage as fast as can be: the run ends when there is none."""
        self._collect_us = HURRIED_US

    # -- what it is told

    def leadership(self) -> None:
        """It has begun to lead, or does not lead any more."""
        seen = self.seen
        if seen.is_leader:
            seen.chunkservers.began_to_lead()
            seen.safe_mode.began_to_lead()
        else:
            seen.chunkservers.lead_no_more()
            if seen.raft.leader:
                seen.safe_mode.heard_a_leader()

    def applied(self, command: Command[Any], reply: object) -> None:
        self.seen.chunkservers.applied(command, reply)

    def hear(self, report: Report, answer: Answer) -> None:
        try:
            self.seen.require_leader()
            answer(self.seen.chunkservers.hear(report))
        except FsError as error:
            answer(error)

    def ask(self, method: Method, body: bytes, answer: Answer) -> None:
        """ALLOT and RETURN."""

        async def handle() -> None:
            try:
                # Who led before us may have opened the session, and we have not applied that yet.
                known: Wait[Any] = Wait()
                self._server.read(Orphans(0, 1), known.set)
                await known
                if method is Method.ALLOT:
                    allot = msgspec.msgpack.decode(body, type=Allot)
                    answer(msgspec.msgpack.encode(await self.allotter.allot(allot)))
                else:
                    back = msgspec.msgpack.decode(body, type=Return)
                    await self.allotter.give_back(back)
                    answer(b"")
            except FsError as error:
                answer(error)

        self._tasks.start(handle())

    # -- what it does by itself

    @property
    def leads(self) -> bool:
        return self.seen.is_leader and bool(self.seen.raft.state.proven)

    async def _look(self) -> None:
        seen = self.seen
        while True:
            await self._tasks.sleep(LOOK_US)
            if seen.raft.leader not in (0, self._server.node):
                seen.safe_mode.heard_a_leader()
            if self.leads:
                seen.chunkservers.fleet.look(seen.now())
                if seen.safe_mode.is_on:
                    seen.chunkservers.expect_less()

    async def _repair(self) -> None:
        under_way = Tasks(self._world, self._gate)
        while True:
            await self._tasks.sleep(self._times.repair_us)
            if self.repairs.leads:
                for task in self.repairs.begin():
                    self._world.note(f"n{self._server.node} begins with {task}")
                    under_way.start(self._carry_out(task))
            else:
                under_way.end()
                self.repairs.let_go()

    async def _carry_out(self, task: Any) -> None:
        failure = await self.repairs.carry_out(task)
        name = type(task).__name__
        self._world.note(f"n{self._server.node}: {name} of {task.volume}: {failure or 'done'}")
        if not failure:
            self.carried_out[name] = self.carried_out.get(name, 0) + 1

    async def _tidy(self) -> None:
        while True:
            await self._try(self.allotter.step())
            await self._tasks.sleep(self._times.tidy_us)

    async def _collect(self) -> None:
        while True:
            await self._tasks.sleep(self._collect_us)
            await self._try(self.collector.step())

    async def _delete(self) -> None:
        while True:
            await self._tasks.sleep(self._times.delete_us)
            if self.leads and not self.seen.safe_mode.is_on:
                await self._try(self.deletion.step())

    async def _compact(self) -> None:
        while True:
            await self._tasks.sleep(self._times.tidy_us)
            if self.leads and not self.seen.safe_mode.is_on:
                await self._try(self._compact_some())

    async def _compact_some(self) -> None:
        tangles: tuple[tuple[Ino, int], ...] = await self._meta.read(Tangles(TANGLES))
        for ino, chunk in tangles:
            await self._compactor.compact_chunk(ino, chunk)

    async def _try(self, work: Awaitable[object]) -> None:
        try:
            await work
        except FsError as error:
            self._world.note(f"n{self._server.node}: {error}")
            assert error.fault not in (Fault.INVALID, Fault.NOT_IMPLEMENTED), error
