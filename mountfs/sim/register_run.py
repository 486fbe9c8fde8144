"""Runs of registers."""

from collections import defaultdict
from random import Random

from mountfs.raft.messages import HardState, Membership, NodeId, SnapshotHead, Term
from mountfs.sim.checks import Broken
from mountfs.sim.faults import Plan, plan
from mountfs.sim.form import CALM, Run
from mountfs.sim.history import Call, explain
from mountfs.sim.machine import Machine
from mountfs.sim.models import register
from mountfs.sim.register import RegisterMachine
from mountfs.sim.store import Store
from mountfs.sim.workload import Client
from mountfs.types import LogIndex


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
