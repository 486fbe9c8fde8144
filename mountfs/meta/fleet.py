"""What the leader knows of the chunkservers, from their reports and from their silence.  No I/O.

Nothing of it is kept: a new leader begins with nothing, and asks everybody for all their volumes.

A node that is not heard is *silent*, and after a time of grace *dead*: what it has is copied from
elsewhere.  The silences of a node add up until it was heard steadily for a while.  So one that
comes and goes dies like any other, and is *unsteady* when it is heard after that: what it has can
be read, but is not relied upon, until it was steady.  Its volumes are copied once, and not again
whenever it goes.

Times are milliseconds of a clock that neither goes back nor stands still.  Time in which nobody
has looked does not count: then it is we who have slept, and nobody could report meanwhile.
"""

import enum
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.meta.placement import Candidate
from mountfs.meta.reports import FSYNC, DiskReport, Report, ReportReply, VolumeReport
from mountfs.types import MIB, VolumeId

SLEPT: Final = 2
"""Who has not looked for this part of `silent_ms` has slept."""
FORMER_MAX: Final = 8
"""Incarnations of a node that are remembered."""


class FleetConfig(msgspec.Struct, frozen=True, kw_only=True):
    silent_ms: int = 5_000
    """Several reports: one that is lost, or late, is nothing."""
    grace_ms: int = 300_000
    """A machine that starts again is back before."""
    steady_ms: int = 60_000
    """Who is heard for so long without a gap has its whole time of grace again."""
    slow_ms: int = 60_000
    """So long a node is avoided that a client has found slow."""
    room_bytes: int = 64 * MIB
    """A node is full when none of its disks takes so much."""

    def __post_init__(self) -> None:
        assert 0 < self.silent_ms <= self.grace_ms, self


class Standing(enum.Enum):
    ALIVE = "alive"
    UNSTEADY = "unsteady"
    """It is heard, and was silent for longer than the time of grace not long ago."""
    SILENT = "silent"
    DEAD = "dead"
    """Silent for longer than the time of grace."""

    @property
    def is_heard(self) -> bool:
        return self in (Standing.ALIVE, Standing.UNSTEADY)


class _Node:
    __slots__ = (
        "busy",
        "claimed",
        "complete",
        "disks",
        "displaced",
        "durability",
        "former",
        "heard",
        "incarnation",
        "scrubbed",
        "sequence",
        "silence",
        "slow_until",
        "up_since",
        "volumes",
        "writing",
    )

    def __init__(self, incarnation: int, at: float) -> None:
        self.incarnation = incarnation
        self.sequence = -1
        self.complete = False
        """All of its volumes are known."""
        self.volumes: dict[VolumeId, VolumeReport] = {}
        self.writing = 0
        """How many of them are open."""
        self.disks: tuple[DiskReport, ...] = ()
        self.busy = 0.0
        self.scrubbed = 0.0
        self.durability = FSYNC
        self.heard = at
        self.up_since = at
        """Heard without a gap since."""
        self.silence = 0.0
        """Sum of its silences since it was steady, without the one that lasts."""
        self.slow_until = at
        self.former: dict[int, float] = {}
        """Incarnations that have spoken for it, and when last."""
        self.displaced: int | None = None
        """The one before, if it was not silent when this one came: either it has stopped, or there
        are two servers.
        """
        self.claimed = -1.0
        """When somebody was refused who spoke for it."""


class NodeView(msgspec.Struct, frozen=True):
    """A node, for people."""

    node: int
    standing: str
    heard_ms_ago: float
    total_bytes: int
    free_bytes: int
    volumes: int
    writing: int
    busy: float
    scrubbed: float
    slow: bool
    full: bool
    troubles: tuple[str, ...]
    """What is wrong with it, in sentences."""
    durability: str = FSYNC


class Fleet:
    def __init__(self, config: FleetConfig | None = None) -> None:
        self.config = config or FleetConfig()
        """May be replaced at any time."""
        self._clock = 0.0
        self._looked: float | None = None
        self.clear()

    def clear(self) -> None:
        """We do not lead any more."""
        self._nodes: dict[int, _Node] = {}
        self._holders: dict[VolumeId, tuple[int, ...]] = {}
        self._known: set[VolumeId] = set()
        self._reported = 0
        """How many of `_known` are in `_holders`."""
        self._began = self._clock

    def began_to_lead(self, now_ms: float) -> None:
        """With nothing.  Who is not heard from now on is silent, and then dead."""
        self._time(now_ms)
        self.clear()

    def look(self, now_ms: float) -> None:
        """To be called much more often than `silent_ms`, whether anybody reports or not."""
        self._time(now_ms)

    def hear(self, report: Report, now_ms: float) -> ReportReply:
        """Raises BUSY when two servers say that they are this node: the one that was heard first
        stays until it has been silent.
        """
        at = self._time(now_ms)
        node = self._nodes.get(report.node)
        if node is None:
            node = self._nodes[report.node] = _Node(report.incarnation, at)
        elif node.incarnation != report.incarnation:
            self._let_in(node, report, at)
        if at - node.heard >= self.config.silent_ms:
            node.silence += at - node.heard
            node.up_since = at
        elif at - node.up_since >= self.config.steady_ms:
            node.silence = 0.0
        node.heard = at
        if report.sequence <= node.sequence:
            return ReportReply(not node.complete)  # it was late, or comes again
        contiguous = node.complete and report.sequence == node.sequence + 1
        node.sequence = report.sequence
        node.complete = report.whole or contiguous
        node.disks, node.busy, node.scrubbed = report.disks, report.busy, report.scrubbed
        node.durability = report.durability
        self._take(report, node)
        return ReportReply(not node.complete)

    def slow(self, node: int, now_ms: float) -> None:
        """A client has waited for it for too long."""
        at = self._time(now_ms)
        if node in self._nodes:
            self._nodes[node].slow_until = at + self.config.slow_ms

    def forget_node(self, node: int) -> None:
        """It is no member of the cluster any more."""
        found = self._nodes.pop(node, None)
        for number in found.volumes if found else ():
            self._unhold(node, number)

    # What is known of nodes

    def standing(self, node: int, now_ms: float) -> Standing:
        """Of any node, also one that has never reported."""
        at = self._time(now_ms)
        found = self._nodes.get(node)
        if found is None:
            is_dead = at - self._began > self.config.grace_ms
            return Standing.DEAD if is_dead else Standing.SILENT
        gap = at - found.heard
        if gap < self.config.silent_ms:
            is_unsteady = found.silence > self.config.grace_ms
            return Standing.UNSTEADY if is_unsteady else Standing.ALIVE
        is_dead = found.silence + gap > self.config.grace_ms
        return Standing.DEAD if is_dead else Standing.SILENT

    def is_complete(self, node: int) -> bool:
        """Whether all volumes of the node are known.  Otherwise it may have more, or fewer."""
        return node in self._nodes and self._nodes[node].complete

    def candidate(self, node: int, location: str, draining: bool, now_ms: float) -> Candidate:
        """The node as placement sees it.  One that comes and goes is taken if there is nobody else,
        as are slow ones.
        """
        standing = self.standing(node, now_ms)
        found = self._nodes.get(node)
        if found is None:
            return Candidate(
                node=node, location=location, total_bytes=0, free_bytes=0, room_bytes=0,
                alive=False, draining=draining,
            )  # fmt: skip
        room = max((disk.free_bytes for disk in found.disks), default=0)
        return Candidate(
            node=node,
            location=location,
            total_bytes=sum(disk.total_bytes for disk in found.disks),
            free_bytes=sum(disk.free_bytes for disk in found.disks),
            room_bytes=room,
            writing=found.writing,
            alive=standing.is_heard,
            draining=draining,
            full=room < self.config.room_bytes,
            slow=found.silence > 0 or self._clock < found.slow_until,
        )

    def view(self, node: int, now_ms: float) -> NodeView:
        standing = self.standing(node, now_ms)
        found = self._nodes.get(node)
        if found is None:
            waited = self._clock - self._began
            return NodeView(node, standing.value, waited, 0, 0, 0, 0, 0.0, 0.0, False, False, ())
        one = self.candidate(node, "", False, now_ms)
        return NodeView(
            node, standing.value, self._clock - found.heard, one.total_bytes, one.free_bytes,
            len(found.volumes), found.writing, found.busy, found.scrubbed, one.slow, one.full,
            tuple(self._troubles(node, found)), found.durability,
        )  # fmt: skip

    def _troubles(self, number: int, node: _Node) -> Iterator[str]:
        if node.claimed >= 0 and self._clock - node.claimed < self.config.silent_ms:
            yield _two_servers(number)
        for disk in node.disks:
            if disk.trouble:
                yield f"disk {disk.path} takes nothing more: {disk.trouble}"
        damaged = sum(1 for volume in node.volumes.values() if volume.trouble)
        if damaged:
            yield f"{damaged} of its volumes are damaged"

    # What is known of volumes

    def reported(self, volume: VolumeId) -> dict[int, VolumeReport]:
        """What each node that has it says of it, or said last."""
        holders = self._holders.get(volume, ())
        return {node: self._nodes[node].volumes[volume] for node in holders}

    def volumes(self) -> Iterable[VolumeId]:
        """All that were reported, in no order."""
        return self._holders.keys()

    def of_node(self, node: int) -> Mapping[VolumeId, VolumeReport]:
        """What it has reported."""
        return self._nodes[node].volumes if node in self._nodes else {}

    def expect(self, volumes: Iterable[VolumeId]) -> None:
        """The metadata has records of these."""
        for number in volumes:
            if number not in self._known:
                self._known.add(number)
                self._reported += number in self._holders

    def expect_no_more(self, volume: VolumeId) -> None:
        """The record has gone."""
        if volume in self._known:
            self._known.remove(volume)
            self._reported -= volume in self._holders

    def missing(self, limit: int) -> list[VolumeId]:
        """Up to `limit` volumes that the metadata has records of and nobody has reported."""
        if self._reported == len(self._known):
            return []
        return sorted(self._known - self._holders.keys())[:limit]

    def count(self) -> tuple[int, int]:
        """(volumes that the metadata has records of, how many of them were reported by anybody):
        for safe mode.
        """
        return len(self._known), self._reported

    # How it comes to be known

    def _time(self, now_ms: float) -> float:
        if self._looked is not None:
            most = self.config.silent_ms / SLEPT
            self._clock += max(0.0, min(now_ms - self._looked, most))
        self._looked = now_ms if self._looked is None else max(now_ms, self._looked)
        return self._clock

    def _let_in(self, node: _Node, report: Report, at: float) -> None:
        """Another incarnation speaks for the node: it has started again, or there are two of them,
        and then the one before will be heard again.  Raises BUSY.
        """
        comer = report.incarnation
        last = node.former.get(comer)
        is_there = at - node.heard < self.config.silent_ms
        if last is not None and is_there:
            was_displaced = comer == node.displaced and at - last < self.config.silent_ms
            if not was_displaced:
                node.former[comer] = node.claimed = at
                raise FsError(Fault.BUSY, _two_servers(report.node))
            node.claimed = at
        node.former.pop(comer, None)
        node.former[node.incarnation] = node.heard
        while len(node.former) > FORMER_MAX:
            del node.former[next(iter(node.former))]
        node.displaced = node.incarnation if is_there and last is None else None
        node.incarnation = comer
        node.sequence = -1
        node.complete = False

    def _take(self, report: Report, node: _Node) -> None:
        if report.whole:
            there = {volume.number for volume in report.volumes}
            gone: Iterable[VolumeId] = [one for one in node.volumes if one not in there]
        else:
            gone = report.gone
        for number in gone:
            before = node.volumes.pop(number, None)
            if before is not None:
                node.writing -= before.epoch != 0
                self._unhold(report.node, number)
        for volume in report.volumes:
            before = node.volumes.get(volume.number)
            node.volumes[volume.number] = volume
            node.writing += (volume.epoch != 0) - (before is not None and before.epoch != 0)
            if before is None:
                self._hold(report.node, volume.number)

    def _hold(self, node: int, number: VolumeId) -> None:
        holders = self._holders.get(number, ())
        if not holders:
            self._reported += number in self._known
        self._holders[number] = tuple(sorted((*holders, node)))

    def _unhold(self, node: int, number: VolumeId) -> None:
        holders = tuple(one for one in self._holders[number] if one != node)
        if holders:
            self._holders[number] = holders
            return
        del self._holders[number]
        self._reported -= number in self._known

    def check(self) -> None:
        """The counts that are kept are what they would be if they were made now."""
        held: Counter[VolumeId] = Counter()
        for node in self._nodes.values():
            held.update(node.volumes.keys())
            assert node.writing == sum(1 for one in node.volumes.values() if one.epoch), node
        assert held == Counter({one: len(nodes) for one, nodes in self._holders.items()})
        assert self._reported == len(self._known & self._holders.keys())


def _two_servers(node: int) -> str:
    return (
        f"two servers say that they are node {node}: stop the one that should not, or give it "
        "an empty directory, so that it gets a number of its own"
    )
