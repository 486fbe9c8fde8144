"""The chunkservers as the leader of the metadata sees them: their records, and what they report."""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.assigned import Assigned
from mountfs.meta.command import Command
from mountfs.meta.fleet import Fleet
from mountfs.meta.machine import MetaMachine
from mountfs.meta.ops.nodes import CHUNK, NodeRecord, RemoveNode, all_nodes
from mountfs.meta.ops.volumes import (
    AdoptVolume,
    AllotVolume,
    ForgetVolume,
    ListVolumes,
    SetReplicas,
    UsedSlices,
    volume_of,
)
from mountfs.meta.placement import Candidate
from mountfs.meta.reports import Report, ReportReply
from mountfs.types import FIRST_REPLICATED, VolumeId

COPIES: Final = 3
"""Of a volume, in a cluster of so many nodes or more, unless somebody says otherwise."""
PAGE: Final = 1_000
MISSING_MAX: Final = 1_000
"""So many volumes that are missing are looked at in one go."""


class Chunkservers:
    """`now`: milliseconds of a clock that does not go back."""

    def __init__(self, machine: MetaMachine, now: Callable[[], float]) -> None:
        self._machine = machine
        self._now = now
        self.fleet = Fleet()
        self.assigned = Assigned()
        self._leads = False

    # -- leading

    def began_to_lead(self) -> None:
        self._leads = True
        self.fleet.began_to_lead(self._now())
        self.assigned.clear()
        tree = self._machine.replica.machine.tree
        after = VolumeId(0)
        while page := ListVolumes(PAGE, after).read(tree):
            self.fleet.expect(record.number for record in page)
            self.assigned.take(page)
            after = page[-1].number

    def expect_less(self) -> None:
        """In safe mode, now and then: what is missing may not be needed.  One with nothing in it
        may be nowhere: its leader went before it was opened.
        """
        tree = self._machine.replica.machine.tree
        for number in self.fleet.missing(MISSING_MAX):
            if not UsedSlices(number, 1).read(tree):
                self.fleet.expect_no_more(number)

    def lead_no_more(self) -> None:
        if self._leads:
            self._leads = False
            self.fleet.clear()
            self.assigned.clear()

    def applied(self, command: Command[Any], reply: object) -> None:
        """A command was taken in."""
        if not self._leads or isinstance(reply, FsError):
            return
        if isinstance(command, AllotVolume) and not command.number:
            self._has_record(reply.number)  # type: ignore[attr-defined]
        elif isinstance(command, AdoptVolume | SetReplicas):
            self._has_record(command.number)
        elif isinstance(command, ForgetVolume):
            self.fleet.expect_no_more(command.number)
            self.assigned.forget(command.number)
        elif isinstance(command, RemoveNode):
            self.fleet.forget_node(command.number)

    def _has_record(self, number: VolumeId) -> None:
        record = volume_of(self._machine.replica.machine.tree, number)
        if record is not None:
            self.fleet.expect((number,))
            self.assigned.take((record,))

    # -- what is told and asked

    def hear(self, report: Report) -> ReportReply:
        """Raises NOT_FOUND for who is no chunkserver, and BUSY for the second that claims to be a
        node.
        """
        row = self._machine.replica.machine.tree.get(keys.node(report.node))
        if row is None or CHUNK not in msgspec.msgpack.decode(row, type=NodeRecord).roles:
            raise FsError(Fault.NOT_FOUND, f"node {report.node} is no chunkserver of this cluster")
        return self.fleet.hear(report, self._now())

    def nodes(self) -> list[NodeRecord]:
        nodes = all_nodes(self._machine.replica.machine.tree)
        return [node for node in nodes if CHUNK in node.roles]

    def candidates(self) -> list[Candidate]:
        """All of them, as placement sees them."""
        now = self._now()
        return [
            self.fleet.candidate(node.number, node.location, node.is_emptied, now)
            for node in self.nodes()
        ]

    def is_heard(self, node: int) -> bool:
        return self.fleet.standing(node, self._now()).is_heard

    def copies(self) -> int:
        """What a cluster of so many nodes gives."""
        return max(min(COPIES, sum(not node.is_emptied for node in self.nodes())), 1)

    def kept_by(self, node: int) -> int | None:
        """How many volumes are to be taken elsewhere before the node may go.  None: it is there, or
        may be, and has not told yet what it has.
        """
        view = self.fleet.view(node, self._now())
        is_complete = self.fleet.is_complete(node)
        if not is_complete and view.heard_ms_ago < self.fleet.config.silent_ms:
            return None
        return self.assigned.count(node) + len(self.unrecorded(node))

    def unrecorded(self, node: int) -> list[VolumeId]:
        """Volumes that a node has made when it was alone, and that have no record yet."""
        return [
            number
            for number in self.fleet.of_node(node)
            if number < FIRST_REPLICATED and number not in self.assigned
        ]

    def volumes(self) -> tuple[int, int]:
        """(known, reported), for safe mode."""
        return self.fleet.count()
