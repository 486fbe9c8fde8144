"""The chunkservers as the leader of the metadata sees them: their records, and what they report."""

from collections.abc import Callable
from typing import Any, Final

from mountfs.errors import Fault, FsError
from mountfs.meta.command import Command
from mountfs.meta.fleet import Fleet
from mountfs.meta.machine import MetaMachine
from mountfs.meta.ops.nodes import NodeRecord, RemoveNode, all_nodes
from mountfs.meta.ops.volumes import (
    AdoptVolume,
    AllotVolume,
    ForgetVolume,
    ListVolumes,
    UsedSlices,
)
from mountfs.meta.placement import Candidate
from mountfs.meta.reports import Report, ReportReply
from mountfs.types import VolumeId

CHUNK_ROLE: Final = "chunk"
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
        self._leads = False

    # -- leading

    def began_to_lead(self) -> None:
        self._leads = True
        self.fleet.began_to_lead(self._now())
        tree = self._machine.replica.machine.tree
        after = VolumeId(0)
        while page := ListVolumes(PAGE, after).read(tree):
            # One with nothing in it may be nowhere: its leader went before it was opened.
            self.fleet.expect(
                record.number for record in page if UsedSlices(record.number, 1).read(tree)
            )
            after = page[-1].number

    def expect_less(self) -> None:
        """In safe mode, now and then: what is missing may not be needed.  When we began to lead we
        may not have known all that was done before.
        """
        tree = self._machine.replica.machine.tree
        for number in self.fleet.missing(MISSING_MAX):
            if not UsedSlices(number, 1).read(tree):
                self.fleet.expect_no_more(number)

    def lead_no_more(self) -> None:
        if self._leads:
            self._leads = False
            self.fleet.clear()

    def applied(self, command: Command[Any], reply: object) -> None:
        """A command was taken in."""
        if not self._leads or isinstance(reply, FsError):
            return
        if isinstance(command, AllotVolume) and not command.number:
            self.fleet.expect((reply.number,))  # type: ignore[attr-defined]
        elif isinstance(command, AdoptVolume):
            self.fleet.expect((command.number,))
        elif isinstance(command, ForgetVolume):
            self.fleet.expect_no_more(command.number)
        elif isinstance(command, RemoveNode):
            self.fleet.forget_node(command.number)

    # -- what is told and asked

    def hear(self, report: Report) -> ReportReply:
        """Raises NOT_FOUND for who is no chunkserver, and BUSY for the second that claims to be a
        node.
        """
        if all(node.number != report.node for node in self.nodes()):
            raise FsError(Fault.NOT_FOUND, f"node {report.node} is no chunkserver of this cluster")
        return self.fleet.hear(report, self._now())

    def nodes(self) -> list[NodeRecord]:
        nodes = all_nodes(self._machine.replica.machine.tree)
        return [node for node in nodes if CHUNK_ROLE in node.roles]

    def candidates(self) -> list[Candidate]:
        """All of them, as placement sees them."""
        now = self._now()
        return [
            self.fleet.candidate(node.number, node.location, node.leaving, now)
            for node in self.nodes()
        ]

    def is_heard(self, node: int) -> bool:
        return self.fleet.standing(node, self._now()).is_heard

    def copies(self) -> int:
        """What a cluster of so many nodes gives."""
        return max(min(COPIES, sum(not node.leaving for node in self.nodes())), 1)

    def volumes(self) -> tuple[int, int]:
        """(known, reported), for safe mode."""
        return self.fleet.count()
