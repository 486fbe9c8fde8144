"""What is wrong with a volume: its record, compared with what the nodes say.  No I/O.

A replica is *good* if its node is there to stay and reports it without trouble.  Everything is
judged by how many good ones there are.  A record gives up a copy that can be read only when as many
good ones as there should be remain, or will have been made, and all agree on what they have.  The
bytes stay where they are even then, until every replica that the record has left is good: only
`Step.REMOVE` gives them up.
"""

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from mountfs.meta.fleet import Fleet, Standing
from mountfs.meta.healing_config import HealingConfig
from mountfs.meta.ops.volumes import VolumeRecord
from mountfs.meta.placement import COPIES_MIN, broken_rule, host_of
from mountfs.meta.reports import VolumeReport


class Cause(enum.Enum):
    """What may be wrong with a volume: words for people."""

    MISSING = "no copy is there"
    LAST = "one copy left"
    SHORT = "too few copies"
    WAITING = "too few copies until a silent node is back"
    DAMAGED = "a copy is damaged"
    DIFFERING = "copies differ"
    DRAINING = "a copy is on a node that is draining"
    MISPLACED = "copies are in the wrong places"
    OVER = "too many copies"
    STRAY = "a node has a copy that it should not have"
    UNKNOWN = "the metadata has never heard of it"


class Step(enum.Enum):
    """What could be done about it."""

    SEAL = enum.auto()
    COPY = enum.auto()
    REPAIR = enum.auto()
    RECONCILE = enum.auto()
    MOVE = enum.auto()
    SHRINK = enum.auto()
    RESCUE = enum.auto()
    REMOVE = enum.auto()


MOVES_BYTES: Final = frozenset({Step.COPY, Step.REPAIR, Step.RECONCILE, Step.MOVE})

URGENCY: Final = {
    Cause.DAMAGED: 8,
    Cause.DIFFERING: 8,
    Cause.DRAINING: 9,
    Cause.MISPLACED: 10,
    Cause.OVER: 11,
    Cause.STRAY: 12,
}
"""Of what is not short of copies: that comes first, with the number of copies as its urgency."""
LEAST_URGENT: Final = 13

Age = Callable[[str, int], float]
"""For how long, in milliseconds, something was so of a node's copy (0: of the volume).  To ask is
to say that it is so now.
"""


class Member(msgspec.Struct, frozen=True):
    """A node of the cluster that keeps slices."""

    node: int
    location: str = ""
    draining: bool = False
    """It is to have nothing: it leaves."""


class Cluster:
    """All nodes, at one moment."""

    def __init__(
        self,
        fleet: Fleet,
        members: Iterable[Member],
        now_ms: float,
        before: "Cluster | None" = None,
    ) -> None:
        self.candidates = []
        """Those that are heard, but not steadily, are no place for a copy that is to last."""
        self.standings: dict[int, Standing] = {}
        self.draining: set[int] = set()
        self.complete: set[int] = set()
        hosts: set[str] = set()
        for member in members:
            standing = fleet.standing(member.node, now_ms)
            one = fleet.candidate(member.node, member.location, member.draining, now_ms)
            if standing is not Standing.ALIVE:
                one = msgspec.structs.replace(one, alive=False)
            self.candidates.append(one)
            self.standings[member.node] = standing
            if member.draining:
                self.draining.add(member.node)
            else:
                hosts.add(host_of(member.node, member.location))
            if fleet.is_complete(member.node):
                self.complete.add(member.node)
        self.hosts = len(hosts)
        """The most copies that the cluster can give, once all that stay are back."""
        self.locations = {one.node: one.location for one in self.candidates}
        self.usable = [one.node for one in self.candidates if one.usable]
        self.sound = {
            node
            for node, standing in self.standings.items()
            if standing is Standing.ALIVE and node in self.complete - self.draining
        }
        """What these have is good, unless they say that it is not."""
        self.fullness = {
            one.node: 1 - one.free_bytes / max(1, one.total_bytes) for one in self.candidates
        }
        self._broken: dict[tuple[int, ...], str] = {}
        if before and before.locations == self.locations and before.usable == self.usable:
            self._broken = before._broken

    def standing(self, node: int) -> Standing:
        """Who is no member does not come back."""
        return self.standings.get(node, Standing.DEAD)

    def broken(self, replicas: tuple[int, ...]) -> str:
        """How they break the rule; "": they do not.  Many volumes have the same replicas."""
        found = self._broken.get(replicas)
        if found is None:
            found = self._broken[replicas] = broken_rule(replicas, self.locations, self.usable)
        return found


def is_well(record: VolumeRecord, reports: Mapping[int, VolumeReport], cluster: Cluster) -> bool:
    """There is nothing wrong with it.  Said of nearly all volumes, so that no `Case` is needed."""
    if not len(reports) == len(record.replicas) == record.copies:
        return False
    for node, report in reports.items():
        if node not in record.replicas or node not in cluster.sound or report.trouble:
            return False
        if record.sealed and report.epoch:
            return False
    if record.sealed and not have_the_same([*reports.values()]):
        return False
    return not cluster.broken(record.replicas)


class Case:
    """A volume with a record, and each of its copies in one of the lists."""

    def __init__(
        self,
        record: VolumeRecord,
        reports: Mapping[int, VolumeReport],
        cluster: Cluster,
        config: HealingConfig,
        age: Age,
        suspect: int = 0,
    ) -> None:
        """`suspect`: a node that lacks slices which others have, whatever it reports; 0: none."""
        self.suspect = suspect
        self.record = record
        self.reports = reports
        self.cluster = cluster
        self.config = config
        self.good: list[int] = []
        self.leaving: list[int] = []
        """Good, but on a node that is draining."""
        self.unsure: list[int] = []
        """On a node that comes and goes."""
        self.damaged: list[int] = []
        self.given_up: list[int] = []
        """Damaged for too long, or where nothing can repair them."""
        self.away: list[int] = []
        """Silent; or it has not said yet what it has."""
        self.lost: list[int] = []
        """The node is there and does not have it."""
        self.dead: list[int] = []
        for node in record.replicas:
            self._list_of(node, age).append(node)
        self.live = [*self.good, *self.leaving, *self.unsure]
        self.strays = [
            node
            for node in reports
            if node not in record.replicas
            and cluster.standing(node).is_heard
            and node in cluster.complete
        ]
        self.ill_strays = [node for node in self.strays if reports[node].trouble]
        """Not to be had as a replica, unless somebody repairs it."""
        self._give_up(age)
        self.kept = [*self.good, *self.damaged, *self.away]
        """They stay, and count as copies."""
        self.open = [node for node in self.live if reports[node].epoch]
        is_one = not suspect and have_the_same([reports[node] for node in self.live])
        self.agrees = not self.open and is_one
        self.differ_ms = 0.0
        if record.sealed and not self.open and not is_one:
            self.differ_ms = age("differs", 0)
        self.stray_ms = min((age("stray", node) for node in self.strays), default=0.0)
        self.open_ms = 0.0
        if record.sealed and self.open:
            self.open_ms = age("open", 0)
        self.why_seal = "" if record.sealed else self._why_seal(age)

    @property
    def short(self) -> int:
        """Copies that are to be made, now."""
        return max(0, self.record.copies - len(self.kept))

    @property
    def heard(self) -> tuple[int, ...]:
        """Replicas that can be told something."""
        return tuple(node for node in self.record.replicas if self.cluster.standing(node).is_heard)

    @property
    def bytes(self) -> int:
        """Of one copy."""
        holders = self.live or [*self.damaged, *self.given_up] or self.strays
        return max((self.reports[one].living_bytes for one in holders), default=0)

    @property
    def broken(self) -> str:
        return self.cluster.broken(tuple(sorted(self.kept)))

    def may_go(self, more: int = 0) -> Iterator[int]:
        """Replicas that the record need not have once there are `more` good copies than now, the
        most useless ones first.
        """
        if not self.live:
            return
        good = len(self.good) + more
        enough = good >= self.record.copies
        if enough or more:
            yield from self.lost
        if self.agrees and (enough or (more and good >= max(COPIES_MIN, self.cluster.hosts))):
            yield from self.leaving
        if enough or more:
            yield from self.dead
        if self.agrees and enough:
            yield from (*self.given_up, *(() if more else self.damaged), *self.unsure)

    def causes(self) -> set[Cause]:
        found: set[Cause] = set()
        copies = self.record.copies
        if not (self.live or self.damaged or self.given_up):
            found.add(Cause.MISSING)
        if len(self.live) == 1 and copies > 1:
            found.add(Cause.LAST)
        if len(self.kept) + len(self.leaving) < copies:
            found.add(Cause.SHORT)
        elif self.away and len(self.good) + len(self.leaving) < copies:
            found.add(Cause.WAITING)
        if self.damaged or self.given_up:
            found.add(Cause.DAMAGED)
        if self.differ_ms >= self.config.differ_ms:
            found.add(Cause.DIFFERING)
        if any(node in self.cluster.draining for node in self.record.replicas):
            found.add(Cause.DRAINING)
        if not self.short and self.broken:
            found.add(Cause.MISPLACED)
        if len(self.good) > copies:
            found.add(Cause.OVER)
        if self.strays and self.stray_ms >= self.config.settle_ms:
            found.add(Cause.STRAY)
        return found

    def urgency(self, causes: Iterable[Cause]) -> int:
        if len(self.live) < self.record.copies:
            return len(self.live)
        return min((URGENCY.get(cause, LEAST_URGENT) for cause in causes), default=LEAST_URGENT)

    def steps(self) -> Iterator[Step]:
        """What could help, the best first."""
        if not self.record.sealed:
            if self.why_seal:
                yield Step.SEAL
            return
        if self.open:  # some have not been told: nothing may change before
            if self.open_ms >= self.config.settle_ms:
                yield Step.SEAL
            return
        damaged = [*self.damaged, *self.given_up]
        if damaged and not self.live:
            yield Step.REPAIR
        if self.short and (self.live or damaged):
            yield Step.COPY
        if (damaged or (self.short and self.ill_strays)) and self.live:
            yield Step.REPAIR
        if self.strays and not (self.live or damaged or self.away):
            yield Step.RESCUE
        if self.differ_ms >= self.config.differ_ms:
            yield Step.RECONCILE
        if next(self.may_go(), None) or (self.agrees and len(self.good) > self.record.copies):
            yield Step.SHRINK
        if self.agrees and self.is_whole and self.broken:
            yield Step.MOVE
        is_surplus = self.strays and self.stray_ms >= self.config.settle_ms
        if is_surplus and self.agrees and self.is_whole:
            yield Step.REMOVE

    @property
    def is_whole(self) -> bool:
        """All replicas of the record are there and well, and they are enough."""
        count = len(self.record.replicas)
        return count == len(self.good) + len(self.leaving) and len(self.good) >= self.record.copies

    def _list_of(self, node: int, age: Age) -> list[int]:
        cluster = self.cluster
        standing = cluster.standing(node)
        if standing is Standing.DEAD:
            return self.dead
        if standing is Standing.SILENT or node not in cluster.complete:
            return self.away
        report = self.reports.get(node)
        if report is None:
            return self.lost if age("lost", node) >= self.config.settle_ms else self.away
        if report.trouble:
            return self.damaged
        if standing is Standing.UNSTEADY:
            return self.unsure
        return self.leaving if node in cluster.draining else self.good

    def _give_up(self, age: Age) -> None:
        """Of damaged copies those that are not to be waited for."""
        for node in tuple(self.damaged):
            others = [*self.live, *self.strays, *(one for one in self.damaged if one != node)]
            is_old = age("damaged", node) >= self.config.repair_ms
            if is_old or not others or not self._stays(node):
                self.given_up.append(node)
        self.damaged = [node for node in self.damaged if node not in self.given_up]

    def _stays(self, node: int) -> bool:
        alive = self.cluster.standing(node) is Standing.ALIVE
        return alive and node not in self.cluster.draining

    def _why_seal(self, age: Age) -> str:
        for nodes, what in (
            (self.lost, "does not have it"),
            (self.dead, "is dead"),
            (self.damaged, "has a damaged copy"),
            (self.given_up, "has a damaged copy"),
            (self.unsure, "comes and goes"),
            (self.leaving, "is draining"),
        ):
            if nodes:
                return f"node {nodes[0]} {what}"
        if self.suspect:
            return f"node {self.suspect} lacks slices that are in use"
        missing = self.record.copies - len(self.record.replicas)
        better = self.broken or (
            f"{missing} copies are missing" if missing > 0 and self._has_place() else ""
        )
        if not better or age("better", 0) < self.config.open_short_ms:
            return ""
        return better

    def _has_place(self) -> bool:
        """There is a host that has no copy, and is not avoided."""
        locations = self.cluster.locations
        taken = {host_of(node, locations.get(node, "")) for node in self.record.replicas}
        return any(
            one.usable and not one.slow and host_of(one.node, one.location) not in taken
            for one in self.cluster.candidates
        )


def have_the_same(reports: Sequence[VolumeReport]) -> bool:
    """As far as the nodes have told."""
    if len(reports) < 2:
        return True
    first, digest = reports[0], 0
    for report in reports:
        if report.needles != first.needles or report.living_bytes != first.living_bytes:
            return False
        if digest and report.digest and report.digest != digest:
            return False
        digest = digest or report.digest
    return True
