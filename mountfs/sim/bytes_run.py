"""Runs with chunkservers: what becomes of the bytes."""

import logging
from random import Random

from mountfs.meta.state_machine import Entry as Asked
from mountfs.raft.messages import AppendReply, Entry, HardState, NodeId, Term
from mountfs.sim.bytes_faults import BytesFaults
from mountfs.sim.bytes_mount import BytesMount
from mountfs.sim.bytes_work import BytesWork
from mountfs.sim.checks import Broken
from mountfs.sim.chunkserver import ChunkServer
from mountfs.sim.faults import Plan
from mountfs.sim.file_run import FileRun, violations_of
from mountfs.sim.form import CALM, Result
from mountfs.sim.history import explain
from mountfs.sim.leading import Leading
from mountfs.sim.ledger import Ledger
from mountfs.sim.machine import Machine
from mountfs.sim.metadata import Formatted, Metadata
from mountfs.sim.metaserver import MetaServer
from mountfs.sim.models import cells
from mountfs.sim.mount import Doors
from mountfs.sim.promises import Promises
from mountfs.sim.server import Server
from mountfs.sim.store import Store
from mountfs.sim.times import Times
from mountfs.sim.wires import Wires
from mountfs.sim.world import MS, S

CALM_MAX = 40 * S
"""After so much time every volume must be as it should be."""
LOOK_US = 500 * MS


class BytesRun(FileRun):
    """The metadata, and mounts whose bytes are with chunkservers."""

    def _plan(self, random: Random) -> Plan:
        faults, own = self.faults, BytesFaults(self)
        self.bytes_faults = own
        pause_us = random.choice((300, 600, 1_500)) * MS
        disks = [own.rot, own.rot, own.lose_volumes, own.lose_volumes, own.roll_back, own.fill]
        servers = [own.crash, own.crash, own.crash_for_long, own.pause, own.crash_all]
        network = [own.cut_off, own.cut_off_rack, own.slow_down]
        leaders = [faults.crash_leader, faults.pause_leader, faults.cut_off_leader]
        others = [
            faults.crash_all,
            faults.transfer,
            self._stop_mount,
            self._cut_off_mount,
            own.drain,
        ]
        kinds = random.sample([*disks, *servers, *network, *leaders, *others], random.randint(2, 7))
        likely = random.choice((0.0, 0.0, 0.02))
        heal = [faults.heal, own.heal]
        return Plan(
            [*kinds, *heal], pause_us, AppendReply, faults.crash_briefly, likely,
            random.choice((1, 3, 3)),
        )  # fmt: skip

    # -- who takes part

    def _build(self) -> None:
        random, world = self.random, self.world
        self.promises = Promises()
        self.ledger = Ledger()
        self.times = Times()
        racks = random.choice((1, 2, 3))
        count = random.choice((3, 4, 5, 6, 7))
        hosts = random.choice((count, count, max(3, count - 1)))
        locations = [f"/r{host % racks}/h{host}" for host in (n % hosts for n in range(count))]
        formatted = Formatted(self.voters, 1, random.choice((2, 4)), locations)
        self.keepers = formatted.keepers
        self.hosts = hosts
        self.bytes_work = BytesWork(formatted.files)
        self.metas: dict[NodeId, MetaServer] = {}
        self.wires = wires = Wires(world)
        wires.metas = self.metas
        wires.breaking = random.choice((0.0, 0.0, 0.01, 0.05))
        wires.straggling = random.choice((0.0, 0.0, 0.01))
        self.servers = {
            node: ChunkServer(world, wires, self.ledger, node, location, self.times)
            for node, location in formatted.keepers.items()
        }
        wires.servers = self.ledger.servers = self.servers
        slices_max = random.choice((6, 40))
        for server in self.servers.values():
            server.slices_max = slices_max
            server.sync_us = int(random.choice((0.3, 2, 10)) * MS)
            server.read_us = int(random.choice((0.2, 0.5, 5)) * MS)
        self.doors = Doors(world, self.metas)
        self.doors.breaking = random.choice((0.0, 0.0, 0.02))
        self._ttl_ms = random.choice((1_000, 3_000))
        checks = self.cluster.checks
        checks.violations = violations_of
        hard = HardState(Term(1), NodeId(0), formatted.head.index)
        for node in self.voters:
            self._came(self.cluster.add(node, formatted.head, hard, formatted.store.copy()))
        self.mounts = [
            BytesMount(
                world, self.doors, self.promises, number, list(self.voters), self.bytes_work,
                wires, self.ledger, self.times, programs=random.choice((1, 2)),
                pause_ms=random.choice((60, 150)), stays_ms=random.choice((None, None, 4_000)),
                ends=self._ends + CALM // 2, answered=self.faults.answered,
                opened=self.faults.opened,
            )
            for number in range(1, random.choice((2, 3)) + 1)
        ]  # fmt: skip

    def _came(self, server: Server) -> None:
        super()._came(server)
        meta = self.metas[server.node]
        meta.leading = Leading(self.world, server, meta.order, self.wires, self.ledger, self.times)

    def _load(self, node: NodeId, store: Store) -> Machine:
        promises, ledger, world = self.promises, self.ledger, self.world
        machine: Metadata

        def look(entry: Entry, asked: Asked, reply: object, acted: bool) -> None:
            promises.applied(node, entry, asked, reply, acted, world.now)
            ledger.applied(machine, asked, reply)
            leading = self.metas[node].leading
            assert leading is not None
            leading.applied(asked.command, reply)

        machine = Metadata(store, look)
        ledger.knows(machine)
        return machine

    def _start(self) -> None:
        for server in self.servers.values():
            server.boot()
        super()._start()

    def run(self) -> Result:
        try:
            with _quiet():
                return super().run()
        finally:
            for end in self.world.last:
                end()

    # -- the end

    def _calm(self) -> None:
        super()._calm()
        self.bytes_faults.make_well()
        for mount in self.mounts:
            assert isinstance(mount, BytesMount)
            mount.dawdles = False
        for meta in self.metas.values():
            assert meta.leading is not None
            meta.leading.hurry()

    def _wait_for_calm(self) -> None:
        super()._wait_for_calm()
        world, why = self.world, "nobody has looked"
        # What the leader does of itself may just be on its way to the others.
        while (why or self._behind()) and world.now < self._ends + CALM_MAX:
            world.run(world.now + LOOK_US)
            why = self.ledger.why_not_well(self.keepers, self.hosts)
        self.ledger.require_readable()
        if why:
            raise Broken("copies converge", why)

    def _counts(self) -> tuple[int, int]:
        return self.bytes_work.begun_count, self.bytes_work.answered_count

    def _unanswered(self) -> str:
        for mount in self.mounts:
            assert isinstance(mount, BytesMount)
            for doing in mount.doing.values():
                return f"{doing.call} of mount {mount.number}"
        return ""

    def _judge_work(self) -> None:
        for about, calls, begins in self.bytes_work.objects():
            if (stuck := explain(calls, cells, begins)) is not None:
                raise Broken("linearizability", f"{about}, {len(calls)} calls: {stuck}")


class _quiet:
    """The shells of the product log what they meet: here the trace says it."""

    def __enter__(self) -> None:
        self._log = logging.getLogger("mountfs.chunks")
        self._level = self._log.level
        self._log.setLevel(logging.CRITICAL)

    def __exit__(self, *error: object) -> None:
        self._log.setLevel(self._level)
