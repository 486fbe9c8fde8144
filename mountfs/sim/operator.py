"""People who run the cluster: they add machines, take some away, and replace those whose disk is
damaged, by the commands that `mountfs node` has for that.
"""

from collections.abc import Callable
from random import Random
from typing import Any

from mountfs.meta.membership_policy import why_not_to_remove
from mountfs.meta.ops.nodes import AddNode, LeaveNode, NodeRecord
from mountfs.raft.messages import HardState, NodeId, SnapshotHead, Term
from mountfs.sim.cluster import Cluster
from mountfs.sim.faults import Faults
from mountfs.sim.metadata import names_of
from mountfs.sim.metaserver import MetaServer
from mountfs.sim.server import Server
from mountfs.sim.store import Store
from mountfs.sim.world import MS, World
from mountfs.types import LogIndex

LOOKS_US = 300 * MS
MACHINES_MAX = 12


class Operator:
    def __init__(
        self,
        world: World,
        cluster: Cluster,
        metas: dict[NodeId, MetaServer],
        faults: Faults,
        came: Callable[[Server], None],
    ) -> None:
        """`came`: told of each new server."""
        self._world = world
        self._cluster = cluster
        self._metas = metas
        self._faults = faults
        self._came = came
        self._machines = len(cluster.servers)
        self._joining: set[int] = set()
        """Machines that have not been told their number yet."""
        self._leaving: set[NodeId] = set()
        self._replaced: set[NodeId] = set()
        world.after(LOOKS_US, self._look)

    # -- what an operator decides to do

    def grow(self, random: Random) -> str:
        if not self._may_join():
            return ""
        return f"machine {self._join()} joins"

    def shrink(self, random: Random) -> str:
        leader = self._leader()
        if leader is None or self.is_busy or self._any_rotten():
            return ""
        members = sorted(leader.server.raft.log.membership.everyone)
        node = random.choice(members)
        if len(leader.server.raft.log.membership.voters) < 2:
            return ""
        self._leaving.add(node)
        return f"{node} is to leave"

    @property
    def is_busy(self) -> bool:
        return bool(self._joining or self._leaving)

    def rot(self, random: Random) -> str:
        """Only while everything else is as it should be: or more would be lost than the others can
        make up for.
        """
        return "" if self._leaving else self._faults.rot(random)

    def _any_rotten(self) -> bool:
        leader = self._leader()
        if leader is None:
            return True
        return bool(self._faults.rotten & leader.server.raft.log.membership.everyone)

    # -- and how it is done

    def _leader(self) -> MetaServer | None:
        server = self._cluster.leader()
        if server is None or not server.runs or not server.raft.state.proven:
            return None
        return self._metas[server.node]

    def _may_join(self) -> bool:
        return self._machines < MACHINES_MAX and not self.is_busy

    def _join(self) -> int:
        self._machines += 1
        self._joining.add(self._machines)
        return self._machines

    def _look(self) -> None:
        self._world.after(LOOKS_US, self._look)
        leader = self._leader()
        if leader is None:
            return
        for server in list(self._cluster.servers.values()):
            node = server.node
            if server.lost and node not in self._replaced:
                self._replaced.add(node)
                if self._machines < MACHINES_MAX + 4:
                    self._world.note(f"machine {self._join()} is to replace {node}")
                self._leaving.add(node)
        leader.server.when_running("operator", lambda: self._go_on(leader))

    def _go_on(self, leader: MetaServer) -> None:
        records = {NodeId(node.number): node for node in leader.nodes()}
        for machine in sorted(self._joining):
            self._ask_to_join(leader, machine)
        for node in sorted(self._leaving):
            record = records.get(node)
            if record is None or record.leaving:
                self._leaving.discard(node)
            elif self._may_leave(leader, node):
                leader.order(LeaveNode(node), lambda reply: None)

    def _may_leave(self, leader: MetaServer, node: NodeId) -> bool:
        membership = leader.server.raft.log.membership
        if membership.is_joint:
            return False
        return why_not_to_remove(node, membership, leader.is_alive) is None

    def _ask_to_join(self, leader: MetaServer, machine: int) -> None:
        membership = leader.server.raft.log.membership

        def told(reply: Any) -> None:
            if isinstance(reply, NodeRecord) and machine in self._joining:
                self._joining.discard(machine)
                base = SnapshotHead(LogIndex(0), Term(0), membership)
                number = NodeId(reply.number)
                server = self._cluster.add(number, base, HardState(), Store())
                self._came(server)
                server.boot()

        leader.order(AddNode(*names_of(machine)), told)
