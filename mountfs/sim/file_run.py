"""Runs of the metadata."""

from collections.abc import Iterable
from functools import partial
from random import Random

from mountfs.meta.invariants import violations
from mountfs.meta.state_machine import Entry as Asked
from mountfs.meta.state_machine import decode_entry
from mountfs.raft.messages import AppendReply, EntryKind, HardState, NodeId, Term
from mountfs.sim.checks import Broken
from mountfs.sim.faults import Plan, of_servers, swarm
from mountfs.sim.form import CALM, Run
from mountfs.sim.history import explain
from mountfs.sim.leased_mount import LeasedMount
from mountfs.sim.leasing import Leasing
from mountfs.sim.machine import Machine
from mountfs.sim.metadata import Formatted, Metadata, OnChanges
from mountfs.sim.metaserver import MetaServer
from mountfs.sim.mount import Doors, Mount
from mountfs.sim.operator import Operator
from mountfs.sim.promises import Promises
from mountfs.sim.server import Server
from mountfs.sim.store import Store
from mountfs.sim.work import Work
from mountfs.sim.world import MS, S
from mountfs.types import Ino


class FileRun(Run):
    """The metadata, its sessions and its clients."""

    _held_max = 0
    """Leases that a session may have; 0: there are none."""
    _leases_ms = 0
    _is_tepid = False
    _is_quiet = False
    """Servers go on, and connections: what mounts believe lasts."""

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
            case "leases":
                leaders = [faults.crash_leader, faults.cut_off_leader, faults.pause_leader]
                kinds = [*mounts, self._cut_off_mount, *random.sample(leaders, 2), heal]
                self._is_quiet = random.random() < 0.5
                if self._is_quiet:
                    kinds = [*mounts, self._cut_off_mount, self._unheard, self._unheard]
                    return Plan(
                        [*kinds, self._evict], 2 * pause_us, AppendReply, faults.crash_briefly, 0.0
                    )
                likely = random.choice((0.0, 0.02))
                return Plan(
                    [*kinds, self._evict, self._lead_unheard, self._lead_unheard],
                    pause_us,
                    AppendReply,
                    faults.crash_briefly,
                    likely,
                )
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
        is_leased = self.kind == "leases"
        files = random.choice((1, 3)) if is_leased else 3
        bursts = is_leased and random.random() < 0.6
        directories = 1 if bursts else random.choice((1, 1, 2, 3))
        formatted = Formatted(self.voters, directories, files)
        weights = {"names": 4, "files": 3, "locks": 2, "wild": random.choice((0, 3, 6))}
        if is_leased:
            wild = random.choice((0, 0, 2))
            weights = {"looks": 14, "names": 3, "files": 2, "modes": 3, "wild": wild}
            if bursts:  # changes meet
                weights = {"looks": 2, "names": 5, "opens": 5, "modes": 5}
        self.work = Work(formatted, random.choice((2, 4)), weights)
        self.metas: dict[NodeId, MetaServer] = {}
        self.doors = Doors(self.world, self.metas)
        self.doors.breaking = random.choice((0.0, 0.0, 0.02, 0.1))
        self.doors.straggling = random.choice((0.0, 0.01))
        self._ttl_ms = random.choice((1_000, 3_000))
        self._held_max = random.choice((2, 4, 1_000)) if is_leased else 0
        self._leases_ms = random.choice((1_000, 2_500)) if is_leased else 0
        self._is_tepid = bursts or (is_leased and random.random() < 0.3)
        checks = self.cluster.checks
        checks.violations = violations_of
        hard = HardState(Term(1), NodeId(0), formatted.head.index)
        for node in self.voters:
            self._came(self.cluster.add(node, formatted.head, hard, formatted.store.copy()))
        self._operator = Operator(self.world, self.cluster, self.metas, self.faults, self._came)
        stays: tuple[int | None, ...] = (None, None, 3_000)
        if self.kind == "sessions":
            stays = (None, 300, 1_000)
            self.faults.openings = random.choice((0.1, 0.5))
        form = LeasedMount if is_leased else Mount
        self.mounts = [
            form(
                self.world, self.doors, self.promises, number, list(self.voters), self.work,
                programs=random.choice((1, 2, 3)),
                pause_ms=random.choice((20, 60) if is_leased else (60, 150)),
                stays_ms=random.choice(stays), ends=self._ends + CALM // 2,
                answered=self.faults.answered, opened=self.faults.opened,
            )
            for number in range(1, random.choice((2, 3, 4)) + 1)
        ]  # fmt: skip
        for mount in self.mounts:
            if isinstance(mount, LeasedMount):
                mount.late_us = random.choice((1, 100, 300)) * MS
                mount.slow_us = random.choice((1, 100, 300)) * MS
                mount.bursts = bursts
                mount.look_us = random.choice((20, 100)) * MS
                mount.deaf = random.choice((0.0, 0.0, 0.1))
        if self._is_quiet:
            self.doors.breaking = self.doors.straggling = self.faults.power_losses = 0.0
        if is_leased:
            self.doors.losing = random.choice((0.0, 0.05, 0.2))
            self.doors.stalling = random.choice((0.0, 0.02, 0.1))

    def _came(self, server: Server) -> None:
        if self.plan.checkpoint_entries is not None:
            server.checkpoint_entries = self.plan.checkpoint_entries
        meta = MetaServer(self.world, server, self.promises, self._ttl_ms)
        self.metas[server.node] = meta
        if self._held_max:
            leases_ms = min(self._ttl_ms, self._leases_ms)
            meta.leasing = Leasing(
                self.world, meta, self.doors.push, leases_ms, self._held_max,
                is_tepid=self._is_tepid,
            )  # fmt: skip

    def _load(self, node: NodeId, store: Store) -> Machine:
        promises, world = self.promises, self.world
        return Metadata(
            store,
            lambda entry, asked, reply, acted: promises.applied(
                node, entry, asked, reply, acted, world.now
            ),
            self._on_changes(node) if self._held_max else None,
        )

    def _on_changes(self, node: NodeId) -> OnChanges:
        def changed(asked: Asked, seen: set[Ino], committed: dict[bytes, bytes | None]) -> None:
            leasing = self.metas[node].leasing
            assert leasing is not None
            leasing.applied(asked, seen, committed)

        return changed

    def _start(self) -> None:
        for mount in self.mounts:
            mount.start()

    def _calm(self) -> None:
        super()._calm()
        self.doors.cut.clear()
        self.doors.breaking = self.doors.straggling = self.doors.losing = 0.0
        self.doors.stalling = 0.0
        for mount in self.mounts:
            if isinstance(mount, LeasedMount):
                mount.deaf, mount.late_us, mount.slow_us = 0.0, 1 * MS, 1 * MS

    # -- faults of their own

    def _stop_mount(self, random: Random) -> str:
        """Long enough, now and then, for its session to end."""
        mount = random.choice(self.mounts)
        seconds = random.choice((0.3, 1, 2, 4))
        mount.stop(self.world.now + int(seconds * S))
        return f"mount {mount.number} stands still for {seconds:g} s"

    def _lead_unheard(self, random: Random) -> str:
        """Another leads, and a mount does not hear of it."""
        mount = random.choice(self.mounts)
        self._cut_off(mount)
        act = random.choice((self.faults.transfer, self.faults.transfer, self.faults.crash_leader))
        return f"mount {mount.number} reaches nobody for 2 s; {act(random)}"

    def _unheard(self, random: Random) -> str:
        mount = random.choice(self.mounts)
        self._cut_off(mount)
        return f"mount {mount.number} reaches nobody for 2 s"

    def _cut_off(self, mount: Mount) -> None:
        pairs = {(mount.number, node) for node in self.cluster.servers}
        self.doors.cut |= pairs
        self.world.after(2 * S, lambda: self.doors.cut.difference_update(pairs))

    def _evict(self, random: Random) -> str:
        """As an operator does it."""
        server = self.cluster.leader()
        if server is None or not server.runs:
            return ""
        meta = self.metas[server.node]
        sessions = sorted(meta.machine.sessions)
        if not sessions or meta.leasing is None:
            return ""
        session = random.choice(sessions)
        for mount in self.mounts:
            if mount.session.number == session and random.random() < 0.7:
                self._cut_off(mount)  # it does not hear of it
        server.when_running("operator", partial(meta.leasing.evict, session))
        return f"{server.node} is told to end session {session}"

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
        self._judge_work()
        history = {
            int(index): decode_entry(entry.data)
            for index, entry in self.cluster.checks.history.items()
            if entry.kind is EntryKind.COMMAND
        }
        self.promises.judge(history)

    def _judge_work(self) -> None:
        ended, ending = self.promises.ended, self.promises.ending
        for session, at in ended.items():
            self.work.session_ended(session, ending.get(session, 0), at)
        for what, calls, model, begins in self.work.objects():
            if (stuck := explain(calls, model, begins)) is not None:
                raise Broken("linearizability", f"{what}, {len(calls)} calls: {stuck}")


def violations_of(machine: Machine) -> Iterable[str]:
    assert isinstance(machine, Metadata)
    return violations(machine.replica.machine.tree)
