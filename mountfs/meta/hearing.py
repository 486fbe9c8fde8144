"""What a leader hears from the nodes that keep slices, and whom it has heard of lately.

What the reports say is for whoever sits behind `on_report`.
"""

from collections.abc import Callable, Collection
from typing import Final

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.meta.ops.nodes import NodeRecord
from mountfs.meta.reports import Report, ReportReply
from mountfs.rpc.identity import Identity

LATELY_MS: Final = 3_500
"""Reports come once a second; two may be late."""


class Told(msgspec.Struct, frozen=True):
    """A report as it goes over the network."""

    disk: str
    """What names the home of who reports."""
    report: Report


class Hearing:
    """`now` tells milliseconds that only grow."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._heard: dict[int, int] = {}
        self.on_report: Callable[[Report], ReportReply] = lambda report: ReportReply(False)
        """Takes in what was reported."""

    def take(self, report: Report) -> ReportReply:
        """To be called by who leads."""
        self._heard[report.node] = self._now()
        return self.on_report(report)

    def has_heard(self, node: int) -> bool:
        """Whether it has reported lately."""
        heard = self._heard.get(node)
        return heard is not None and self._now() - heard < LATELY_MS


def require_sender(told: Told, nodes: Collection[NodeRecord], identity: Identity | None) -> None:
    """Whoever reports is who it says it is.  Raises NOT_FOUND for one that was removed, DENIED."""
    number = told.report.node
    record = next((node for node in nodes if node.number == number), None)
    if record is None:
        raise FsError(Fault.NOT_FOUND, f"there is no node {number}: was it removed?")
    if record.disk != told.disk:
        raise FsError(
            Fault.DENIED,
            f"node {record.name} (number {number}) has another disk than what reports as it: is "
            "there a copy of its home?",
        )
    if identity is None or identity.name == record.name:
        return
    if any(identity.name == node.name for node in nodes):
        raise FsError(
            Fault.DENIED, f"what reports as node {record.name} shows the certificate of "
            f"node {identity.name}"
        )  # fmt: skip
