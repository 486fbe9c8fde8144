"""The healer: what is to be done so that every volume has the copies it should have.  No I/O.

Volumes are looked at a few thousand at a time, in the order of their numbers, again and again.
Those with something wrong are remembered, by urgency, and looked at again before anything is done.
What is found is never more than a guess at what the nodes have: see `diagnosis` for what makes sure
that no guess gives up a copy that is needed.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from mountfs.meta.diagnosis import (
    LEAST_URGENT,
    MOVES_BYTES,
    Case,
    Cause,
    Cluster,
    Member,
    is_well,
)
from mountfs.meta.fleet import Fleet
from mountfs.meta.healing_config import HealingConfig
from mountfs.meta.healing_tasks import Adopt, Reconcile, Remove, Task
from mountfs.meta.health import Health, Rate, most_common
from mountfs.meta.ops.volumes import VolumeRecord
from mountfs.meta.placement import Lot
from mountfs.meta.treatment import Loads, treat
from mountfs.types import FIRST_REPLICATED, VolumeId

Scan = Callable[[VolumeId, int], Sequence[VolumeRecord]]
"""(after, limit): up to `limit` records of volumes behind `after`, by number (`ListVolumes`)."""

ADOPT_URGENCY = 1
"""A volume without a record has one copy."""
SKIPPED_MAX = 10
"""For each volume that may be tried, so many that have to wait are passed over."""


class _Finding:
    """A volume that is not as it should be, or may not be."""

    __slots__ = ("bytes", "causes", "queue", "round", "stuck")

    def __init__(self) -> None:
        self.causes: frozenset[Cause] = frozenset()
        self.bytes = 0
        """To be copied."""
        self.queue: tuple[bool, int] | None = None
        """(whether bytes are to be moved, urgency); None: nothing can be done now."""
        self.stuck = ""
        self.round = 0
        """When it was looked at last."""


class _Pause:
    """A volume that is left alone for a while."""

    __slots__ = ("delay", "failure", "task", "until")

    def __init__(self, task: tuple[object, ...], until: float, delay: float, failure: str) -> None:
        self.task = task
        self.until = until
        self.delay = delay
        self.failure = failure


class Healer:
    """For as long as this node leads.  Times are milliseconds of the clock that `fleet` is told."""

    def __init__(
        self, fleet: Fleet, scan: Scan, lot: Lot, config: HealingConfig | None = None
    ) -> None:
        self.config = config or HealingConfig()
        """May be replaced at any time."""
        self._fleet = fleet
        self._scan = scan
        self._lot = lot
        self._rate = Rate()
        self.clear()

    def clear(self) -> None:
        """We do not lead any more."""
        self._after = VolumeId(0)
        self._round = 0
        self._numbers: list[VolumeId] = []
        """All that were reported when the round began."""
        self._counted = 0
        self._volumes = 0
        self._findings: dict[VolumeId, _Finding] = {}
        self._queues: dict[tuple[bool, int], dict[VolumeId, None]] = {}
        self._since: dict[VolumeId, dict[tuple[str, int], float]] = {}
        """When what is not as it should be was seen first."""
        self._pauses: dict[VolumeId, _Pause] = {}
        self._copied: dict[VolumeId, int] = {}
        """Of what is under way."""
        self._suspects: dict[VolumeId, int] = {}
        """Volumes of which a node was seen to lack something, whatever it reports."""
        self._running: tuple[Task, ...] = ()
        self._held_up = ""
        self._cluster: Cluster | None = None
        """As it was looked at last."""

    def plan(
        self,
        members: Collection[Member],
        running: Iterable[Task],
        next_volume: VolumeId,
        now_ms: float,
        *,
        held_up: str = "",
    ) -> list[Task]:
        """What is to be begun now, the most urgent first: about once a second.

        `members` are the nodes that keep slices, `running` the tasks that are under way, and
        `next_volume` the number that the metadata gives out next: what has a greater one is not
        ours.  `held_up` says why nothing may be done, such as safe mode.
        """
        self._running = tuple(running)
        self._held_up = held_up
        self._rate.is_working(now_ms, any(task.moves_bytes for task in self._running))
        cluster = self._cluster = Cluster(self._fleet, members, now_ms, self._cluster)
        self._look(cluster, next_volume, now_ms)
        if held_up:
            return []
        loads = Loads(self._running, self.config.copies_per_node_max)
        busy = {task.volume for task in self._running}
        found = [
            *self._choose(False, cluster, loads, busy, next_volume, now_ms),
            *self._choose(True, cluster, loads, busy, next_volume, now_ms),
        ]
        return [task for _, task in sorted(found, key=lambda one: one[0])]

    def suspect(self, volume: VolumeId, node: int) -> None:
        """The node was seen to lack slices of the volume that are in use: it is to get them from
        the others, even if all report the same.
        """
        self._suspects[volume] = node

    def copied(self, volume: VolumeId, count: int) -> None:
        """A task under way has moved so many bytes more."""
        self._rate.add(count)
        self._copied[volume] = self._copied.get(volume, 0) + count

    def ended(self, task: Task, now_ms: float, failure: str = "") -> None:
        """A task has been carried out; or it has failed, and `failure` says why.  What fails, or
        does not help, is tried again after longer and longer times.
        """
        self._copied.pop(task.volume, None)
        if isinstance(task, Reconcile) and not failure:
            self._suspects.pop(task.volume, None)
        if task.volume not in self._findings:
            return
        same = (type(task), task.nodes)
        before = self._pauses.get(task.volume)
        delay = float(self.config.retry_ms if failure else self.config.rest_ms)
        if before is not None and before.task == same:
            delay = min(max(before.delay * 2, delay), self.config.retry_max_ms)
        self._pauses[task.volume] = _Pause(same, now_ms + delay, delay, failure)

    def health(self) -> Health:
        """As far as it was looked."""
        causes: Counter[str] = Counter()
        stuck: Counter[str] = Counter()
        missing = []
        to_copy = 0
        for number, finding in self._findings.items():
            causes.update(cause.value for cause in finding.causes)
            to_copy += finding.bytes
            pause = self._pauses.get(number)
            reason = finding.stuck or (pause.failure if pause else "")
            if reason:
                stuck[reason] += 1
            if Cause.MISSING in finding.causes:
                missing.append(number)
        to_copy = max(0, to_copy - sum(self._copied.values()))
        rate = self._rate.per_second
        left = to_copy / rate if rate else None
        most = self.config.names_max
        return Health(
            looked=self._round > 0,
            volumes=self._volumes,
            causes=dict(causes),
            unreadable=tuple(sorted(missing)[:most]),
            bytes_to_copy=to_copy,
            bytes_per_second=rate,
            seconds_left=0.0 if not to_copy else left,
            under_way=tuple(_sentence(task) for task in self._running[:most]),
            stuck=most_common(stuck, most),
            held_up=self._held_up,
        )

    # Looking

    def _look(self, cluster: Cluster, next_volume: VolumeId, now: float) -> None:
        """The next few in the order of their numbers."""
        if not self._after:
            self._numbers = sorted(self._fleet.volumes())
        limit = self.config.looked_max
        records = self._scan(self._after, limit)
        is_last = len(records) < limit
        start = bisect_right(self._numbers, self._after)
        stop = len(self._numbers)
        if not is_last:
            stop = bisect_right(self._numbers, records[-1].number)
        recorded = {record.number for record in records}
        for record in records:
            self._examine(record, cluster, now)
        for number in self._numbers[start:stop]:
            if number not in recorded:
                self._examine_unrecorded(number, cluster, next_volume, now)
        self._counted += len(records)
        self._after = VolumeId(0) if is_last else records[-1].number
        if is_last:
            self._end_round()

    def _end_round(self) -> None:
        gone = [number for number, finding in self._findings.items() if finding.round < self._round]
        for number in gone:
            self._forget(number)
        self._volumes, self._counted = self._counted, 0
        self._round += 1

    def _examine(self, record: VolumeRecord, cluster: Cluster, now: float) -> Case | None:
        """Returns the case, if there is anything wrong; and keeps what was found."""
        number = record.number
        reports = self._fleet.reported(number)
        suspect = self._suspects.get(number, 0)
        if not suspect and is_well(record, reports, cluster):
            self._forget(number)
            return None
        ages = _Ages(self._since.get(number), now)
        case = Case(record, reports, cluster, self.config, ages.of, suspect)
        causes = frozenset(case.causes())
        first = next(case.steps(), None)
        if not causes and first is None and not ages.seen:
            self._forget(number)
            return None
        self._since[number] = ages.seen
        queue = None if first is None else (first in MOVES_BYTES, case.urgency(causes))
        short = 0 if Cause.MISSING in causes else case.short
        self._keep(number, causes, queue, case.bytes * short)
        return case

    def _examine_unrecorded(
        self, number: VolumeId, cluster: Cluster, next_volume: VolumeId, now: float
    ) -> Task | None:
        """Returns what is to be done about it."""
        holders = [node for node in self._fleet.reported(number) if cluster.standing(node).is_heard]
        if not holders:
            return None
        ages = _Ages(self._since.get(number), now)
        age = ages.of("unrecorded", 0)
        self._since[number] = ages.seen
        if number < FIRST_REPLICATED:
            self._keep(number, frozenset(), (False, ADOPT_URGENCY), 0)
            reports = self._fleet.reported(number)
            most = max(holders, key=lambda one: (reports[one].needles, -one))
            return Adopt(
                volume=number,
                why=f"node {most} has made it by itself",
                node=most,
                copies=self.config.adopt_copies,
            )
        if number >= next_volume:
            self._keep(number, frozenset({Cause.UNKNOWN}), None, 0)
            return None
        is_old = age >= self.config.forgotten_ms
        queue = (False, LEAST_URGENT) if is_old else None
        self._keep(number, frozenset({Cause.STRAY}), queue, 0)
        if not is_old:
            return None
        return Remove(volume=number, why="the metadata has forgotten it", strays=tuple(holders))

    def _keep(
        self,
        number: VolumeId,
        causes: frozenset[Cause],
        queue: tuple[bool, int] | None,
        count: int,
    ) -> None:
        finding = self._findings.get(number)
        if finding is None:
            finding = self._findings[number] = _Finding()
        finding.causes, finding.bytes, finding.round = causes, count, self._round
        if queue is None:
            finding.stuck = ""
        if finding.queue != queue:
            if finding.queue is not None:
                del self._queues[finding.queue][number]
            if queue is not None:
                self._queues.setdefault(queue, {})[number] = None
            finding.queue = queue

    def _forget(self, number: VolumeId) -> None:
        """It is as it should be, or nobody has it any more."""
        self._suspects.pop(number, None)
        finding = self._findings.pop(number, None)
        if finding is None:
            return
        if finding.queue is not None:
            del self._queues[finding.queue][number]
        self._pauses.pop(number, None)
        self._since.pop(number, None)

    # Choosing

    def _choose(
        self,
        moves_bytes: bool,
        cluster: Cluster,
        loads: Loads,
        busy: set[VolumeId],
        next_volume: VolumeId,
        now: float,
    ) -> Iterator[tuple[int, Task]]:
        tried = 0
        for number, urgency in self._most_urgent(moves_bytes, busy, now):
            if self._is_enough(moves_bytes, loads) or tried >= self.config.tried_max:
                return
            tried += 1
            task = self._try(number, cluster, loads, next_volume, now)
            if task is None or self._is_enough(task.moves_bytes, loads):
                continue
            loads.add(task)
            busy.add(number)
            yield urgency, task

    def _is_enough(self, moves_bytes: bool, loads: Loads) -> bool:
        if moves_bytes:
            return loads.copies >= self.config.copies_max
        return loads.orders >= self.config.orders_max

    def _most_urgent(
        self, moves_bytes: bool, busy: set[VolumeId], now: float
    ) -> list[tuple[VolumeId, int]]:
        """Those that are not paused.  Whoever was tried goes to the end of its queue."""
        found: list[tuple[VolumeId, int]] = []
        skipped = 0
        for kind, urgency in sorted(self._queues):
            if kind != moves_bytes:
                continue
            for number in self._queues[kind, urgency]:
                pause = self._pauses.get(number)
                if number in busy or (pause is not None and now < pause.until):
                    skipped += 1
                else:
                    found.append((number, urgency))
                if len(found) >= self.config.tried_max:
                    return found
                if skipped >= self.config.tried_max * SKIPPED_MAX:
                    break
        return found

    def _try(
        self,
        number: VolumeId,
        cluster: Cluster,
        loads: Loads,
        next_volume: VolumeId,
        now: float,
    ) -> Task | None:
        """Looks again, and says what can be done now."""
        record = self._record(number)
        if record is None:
            return self._examine_unrecorded(number, cluster, next_volume, now)
        case = self._examine(record, cluster, now)
        if case is None:
            return None
        finding = self._findings[number]
        found = treat(case, finding.causes, loads, self._lot)
        if not isinstance(found, str):
            finding.stuck = ""
            return found
        finding.stuck = found
        if finding.queue is not None:
            queue = self._queues[finding.queue]
            del queue[number]
            queue[number] = None
        return None

    def _record(self, number: VolumeId) -> VolumeRecord | None:
        found = self._scan(VolumeId(number - 1), 1)
        return found[0] if found and found[0].number == number else None


class _Ages:
    """For how long each thing that is wrong with a volume has been so.  What is not asked for is
    so no more.
    """

    __slots__ = ("_before", "_now", "seen")

    def __init__(self, before: dict[tuple[str, int], float] | None, now: float) -> None:
        self._before = before or {}
        self._now = now
        self.seen: dict[tuple[str, int], float] = {}

    def of(self, what: str, node: int) -> float:
        since = self._before.get((what, node), self._now)
        self.seen[what, node] = since
        return self._now - since


def _sentence(task: Task) -> str:
    words = type(task).__name__.removesuffix("Volume").lower()
    nodes = ", ".join(str(node) for node in task.nodes)
    return f"volume {task.volume}: {words} (nodes {nodes}): {task.why}"
