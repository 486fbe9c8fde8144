"""What a leader has been told of a node's volumes, and so what it is to be told next.  No I/O.

The first report to a leader has all volumes, later ones those that have changed.  Whenever it is
not known what the leader has heard, the next one has all again.
"""

from collections.abc import Iterable

from mountfs.meta.reports import FSYNC, DiskReport, Report, ReportReply, VolumeReport
from mountfs.types import VolumeId


class Telling:
    """`incarnation` is another one whenever the node has started."""

    def __init__(self, node: int, incarnation: int, durability: str = FSYNC) -> None:
        self._node = node
        self._durability = durability
        self._incarnation = incarnation
        self._sequence = 0
        self._leader = ""
        self._told: dict[VolumeId, VolumeReport] | None = None
        """What `_leader` knows; None: we do not know."""
        self._telling: dict[VolumeId, VolumeReport] = {}
        """What it knows when it has heard the report under way."""

    def next(
        self,
        leader: str,
        disks: tuple[DiskReport, ...],
        volumes: Iterable[VolumeReport],
        busy: float = 0.0,
        scrubbed: float = 0.0,
    ) -> Report:
        """For `leader`, whoever that is.  `answered` or `failed` comes before the next."""
        if leader != self._leader:
            self._leader, self._told = leader, None
        self._telling = {volume.number: volume for volume in volumes}
        told = self._told
        known = {} if told is None else told
        news = (one for one in self._telling.values() if known.get(one.number) != one)
        gone = (number for number in known if number not in self._telling)
        self._sequence += 1
        return Report(
            node=self._node,
            incarnation=self._incarnation,
            disks=disks,
            volumes=tuple(news),
            gone=tuple(gone),
            whole=told is None,
            sequence=self._sequence,
            busy=busy,
            scrubbed=scrubbed,
            durability=self._durability,
        )

    def answered(self, reply: ReportReply) -> None:
        self._told = None if reply.wants_whole else self._telling

    def failed(self) -> None:
        """It may have been heard, or not."""
        self._told = None
