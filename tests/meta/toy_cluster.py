"""A cluster made of dictionaries, for the healer: its tasks are carried out, and some of them fail.

Volumes hold numbers for slices.  What the toy checks at each step is what nobody may break, told
once more and in another way than in the code under test.
"""

import random
from collections import Counter
from collections.abc import Sequence

import msgspec

from mountfs.meta.diagnosis import Member
from mountfs.meta.fleet import Fleet, FleetConfig, Standing
from mountfs.meta.healing import Healer
from mountfs.meta.healing_config import HealingConfig
from mountfs.meta.healing_tasks import (
    Adopt,
    CopyVolume,
    Reconcile,
    Remove,
    Repair,
    Rescue,
    Seal,
    Shrink,
    Task,
)
from mountfs.meta.ops.volumes import VolumeRecord
from mountfs.meta.placement import broken_rule, place
from mountfs.meta.reports import DiskReport, Report, VolumeReport, with_name
from mountfs.types import FIRST_REPLICATED, MIB, SliceId, VolumeId

SLICE_BYTES = MIB
DISK_BYTES = 10_000 * MIB
FLEET = FleetConfig(silent_ms=3_000, grace_ms=30_000, steady_ms=10_000)
HEALING = HealingConfig(
    copies_max=6, copies_per_node_max=2, orders_max=6, looked_max=7, tried_max=20,
    settle_ms=4_000, differ_ms=6_000, open_short_ms=10_000, repair_ms=40_000,
    forgotten_ms=20_000, rest_ms=2_000, retry_ms=2_000, retry_max_ms=16_000,
)  # fmt: skip


class Copy:
    """Of a volume, on a node."""

    def __init__(self, epoch: int = 0) -> None:
        self.slices: set[int] = set()
        self.damaged: set[int] = set()
        self.epoch = epoch

    def report(self, number: VolumeId) -> VolumeReport:
        size = len(self.slices) * SLICE_BYTES
        trouble = f"{len(self.damaged)} slices are damaged" if self.damaged else ""
        digest = 0
        for name in self.slices:
            digest = with_name(digest, SliceId(name))
        return VolumeReport(number, size, size, len(self.slices), self.epoch, trouble, digest)

    @property
    def whole(self) -> set[int]:
        return self.slices - self.damaged


class Node:
    def __init__(self, number: int, location: str) -> None:
        self.number = number
        self.location = location
        self.up = True
        self.draining = False
        self.incarnation = 1
        self.sequence = 0
        self.wants_whole = True
        self.told: dict[VolumeId, VolumeReport] = {}
        self.copies: dict[VolumeId, Copy] = {}

    def report(self) -> Report:
        self.sequence += 1
        now = {number: copy.report(number) for number, copy in self.copies.items()}
        whole = self.wants_whole
        changed = [one for key, one in now.items() if whole or self.told.get(key) != one]
        gone = () if whole else tuple(self.told.keys() - now.keys())
        self.told = now
        used = sum(one.total_bytes for one in now.values())
        disk = DiskReport("/disk", "", DISK_BYTES, DISK_BYTES - used, len(now))
        return Report(
            self.number, self.incarnation, (disk,), tuple(changed), gone, whole, self.sequence
        )

    def start(self) -> None:
        self.up = True
        self.incarnation += 1
        self.wants_whole = True
        for copy in self.copies.values():
            copy.epoch = 0


class Toy:
    def __init__(self, seed: int, locations: Sequence[str]) -> None:
        self.lot = random.Random(seed)
        self.nodes = {n: Node(n, location) for n, location in enumerate(locations, 1)}
        self.records: dict[VolumeId, VolumeRecord] = {}
        self.used: dict[VolumeId, set[int]] = {}
        """Slices that files refer to."""
        self.next_volume = FIRST_REPLICATED
        self.next_slice = 1
        self.now = 0.0
        self.running: dict[Task, float] = {}
        """When each is done."""
        self.failing = 0.0
        """The share of tasks that fail."""
        self.safe_mode = ""
        self.done: Counter[str] = Counter()
        self.fleet = Fleet(FLEET)
        self.fleet.began_to_lead(0)
        self.healer = Healer(self.fleet, self.scan, self.lot, HEALING)

    def scan(self, after: VolumeId, limit: int) -> list[VolumeRecord]:
        behind = sorted(number for number in self.records if number > after)
        return [self.records[number] for number in behind[:limit]]

    @property
    def members(self) -> list[Member]:
        return [Member(one.number, one.location, one.draining) for one in self.nodes.values()]

    # What users do

    def allot(self, copies: int, slices: int = 3) -> VolumeRecord:
        candidates = [
            self.fleet.candidate(one.number, one.location, one.draining, self.now)
            for one in self.nodes.values()
        ]
        replicas = place(candidates, copies, self.lot)
        number = VolumeId(self.next_volume)
        self.next_volume += 1
        record = self.records[number] = VolumeRecord(number, replicas, copies, 1, owner=1)
        self.used[number] = set()
        for node in replicas:
            if self.nodes[node].up:
                self.nodes[node].copies[number] = Copy(1)
        for _ in range(slices):
            self.write(number)
        return record

    def write(self, number: VolumeId) -> None:
        """To all replicas, or the slice is not used."""
        record = self.records[number]
        name, self.next_slice = self.next_slice, self.next_slice + 1
        is_whole = True
        for node in record.replicas:
            copy = self.nodes[node].copies.get(number)
            if self.nodes[node].up and copy and copy.epoch == record.epoch:
                copy.slices.add(name)
            else:
                is_whole = False
        if is_whole:
            assert not record.sealed, "somebody still takes slices for a sealed volume"
            self.used[number].add(name)

    def seal(self, number: VolumeId, reach: bool = True) -> None:
        record = self.records[number]
        self.records[number] = msgspec.structs.replace(record, sealed=True, owner=0)
        for node in record.replicas:
            if reach and self.nodes[node].up and number in self.nodes[node].copies:
                self.nodes[node].copies[number].epoch = 0

    def forget(self, number: VolumeId) -> None:
        del self.records[number]
        self.used[number] = set()

    def put(
        self, *replicas: int, copies: int = 2, sealed: bool = True, slices: Sequence[int] = (1, 2)
    ) -> VolumeId:
        """A volume as it should be."""
        number = VolumeId(self.next_volume)
        self.next_volume += 1
        self.records[number] = VolumeRecord(number, replicas, copies, 1, sealed=sealed)
        self.used[number] = set(slices)
        for node in replicas:
            self.give(node, number, slices, epoch=int(not sealed))
        return number

    def give(
        self, node: int, number: VolumeId, slices: Sequence[int] = (1, 2), epoch: int = 0
    ) -> None:
        copy = self.nodes[node].copies[number] = Copy(epoch)
        copy.slices = set(slices)

    # What the leader does

    def lead_anew(self) -> None:
        """Another leader, who knows nothing; what was under way may be half done."""
        for task in list(self.running):
            self._carry_out(task, half=True)
        self.running.clear()
        self.fleet.clear()
        self.healer.clear()
        self.fleet.began_to_lead(self.now)

    def hear(self) -> None:
        """A second passes, and all who are up report."""
        self.now += 1_000
        for node in self.nodes.values():
            if node.up:
                node.wants_whole = self.fleet.hear(node.report(), self.now).wants_whole

    def look(self, seconds: int, running: Sequence[Task] = ()) -> list[Task]:
        """The first tasks within that time; nothing is done about them."""
        for _ in range(seconds):
            self.hear()
            next_volume = VolumeId(self.next_volume)
            tasks = self.healer.plan(
                self.members, running, next_volume, self.now, held_up=self.safe_mode
            )
            if tasks:
                self._check_plan(tasks)
                return tasks
        return []

    def tick(self) -> list[Task]:
        """A second, in which a plan is made, and the tasks that are done by now have an effect."""
        self.hear()
        for task, at in list(self.running.items()):
            if at <= self.now:
                del self.running[task]
                fails = self.lot.random() < self.failing
                is_done = self._carry_out(task, half=fails)
                self.done[type(task).__name__] += is_done
                self.healer.ended(task, self.now, "" if is_done else "it has failed")
        next_volume = VolumeId(self.next_volume)
        tasks = self.healer.plan(
            self.members, self.running, next_volume, self.now, held_up=self.safe_mode
        )
        self._check_plan(tasks)
        for task in tasks:
            self.running[task] = self.now + self.lot.randrange(1, 5) * 1_000
        self._check_limits()
        return tasks

    def run(self, seconds: int) -> list[Task]:
        return [task for _ in range(seconds) for task in self.tick()]

    # What nobody may break

    def _check_plan(self, tasks: Sequence[Task]) -> None:
        assert not (tasks and self.safe_mode), "nothing is done in safe mode"
        volumes = [task.volume for task in (*tasks, *self.running)]
        assert len(set(volumes)) == len(volumes), "one thing at a time for a volume"
        for task in tasks:
            if isinstance(task, Shrink):
                self._check_given_up(task.volume, task.node, 0)
            elif isinstance(task, CopyVolume) and task.replacing:
                self._check_given_up(task.volume, task.replacing, 1)
            elif isinstance(task, Remove) and task.volume in self.records:
                record = self.records[task.volume]
                assert not set(task.strays) & set(record.replicas)
                assert record.sealed
                assert task.replicas == record.replicas
                good = self._good(task.volume)
                heard = self._good(task.volume, draining=True)
                assert len(good) >= record.copies
                assert heard == set(record.replicas)
                assert len({self._content(task.volume, one) for one in heard}) == 1
            elif isinstance(task, Remove):
                assert not self.used[task.volume]

    def _check_given_up(self, number: VolumeId, node: int, more: int) -> None:
        record = self.records[number]
        assert record.sealed
        standing = self.fleet.standing(node, self.now)
        report = self.fleet.reported(number).get(node)
        if standing is Standing.DEAD or node not in self.nodes:
            return
        assert standing.is_heard, "a silent node may come back"
        if report is None:
            return  # it has lost it
        good = self._good(number) - {node}
        if self.nodes[node].draining and more:
            hosts = {
                one.location or str(one.number) for one in self.nodes.values() if not one.draining
            }
            assert len(good) + more >= min(record.copies, max(2, len(hosts)))
        else:
            assert len(good) + more >= record.copies
        if not report.trouble:
            among = [*good, node]
            assert len({self._content(number, one) for one in among}) == 1

    def _good(self, number: VolumeId, draining: bool = False) -> set[int]:
        return {
            node
            for node, report in self.fleet.reported(number).items()
            if node in self.records[number].replicas
            and self.fleet.standing(node, self.now) is Standing.ALIVE
            and self.fleet.is_complete(node)
            and not report.trouble
            and (draining or not self.nodes[node].draining)
        }

    def _content(self, number: VolumeId, node: int) -> int:
        return self.fleet.reported(number)[node].digest

    def _check_limits(self) -> None:
        moving = [task for task in self.running if task.moves_bytes]
        assert len(moving) <= HEALING.copies_max
        assert len(self.running) - len(moving) <= HEALING.orders_max
        of_node = Counter(node for task in moving for node in task.nodes)
        assert max(of_node.values(), default=0) <= HEALING.copies_per_node_max

    # What the tasks do

    def _carry_out(self, task: Task, half: bool) -> bool:
        """Returns whether all of it was done."""
        if not all(self.nodes[node].up for node in task.nodes if node in self.nodes):
            return False
        match task:
            case Seal():
                if task.volume not in self.records:
                    return False
                self.seal(task.volume, reach=not half)
                return not half
            case CopyVolume():
                copied = self._copy(task.volume, task.source, task.target, half)
                return copied and self._set_replicas(task.volume, task.before, task.replicas)
            case Shrink():
                return not half and self._set_replicas(task.volume, task.before, task.replicas)
            case Rescue():
                is_whole = not half and self._gather(task.volume, task.others, task.node)
                return is_whole and self._set_replicas(task.volume, task.before, task.replicas)
            case Remove():
                return not half and self._remove(task)
            case Reconcile():
                pairs = [(a, b) for a in task.among for b in task.among if a != b]
                return all([self._copy(task.volume, a, b, half) for a, b in pairs])
            case Repair():
                return self._repair(task, half)
            case Adopt():
                record = VolumeRecord(task.volume, (task.node,), task.copies, sealed=True)
                self.records.setdefault(task.volume, record)
                return True

    def _copy(self, number: VolumeId, source: int, target: int, half: bool) -> bool:
        have = self.nodes[source].copies.get(number)
        if have is None:
            return False
        copy = self.nodes[target].copies.setdefault(number, Copy())
        copy.epoch = 0
        missing = sorted(have.whole - copy.slices)
        copy.slices.update(missing[: len(missing) // 2] if half else missing)
        return not half

    def _repair(self, task: Repair, half: bool) -> bool:
        copy = self.nodes[task.node].copies.get(task.volume)
        if copy is None or half:
            return False
        for source in task.sources:
            node = self.nodes[source]
            if node.up and task.volume in node.copies:
                copy.damaged -= node.copies[task.volume].whole
        return not copy.damaged

    def _remove(self, task: Remove) -> bool:
        record = self.records.get(task.volume)
        if task.replicas != (record.replicas if record else ()):
            return False
        if not all(self._gather(task.volume, task.strays, node) for node in task.replicas):
            return False
        for node in task.strays:
            self.nodes[node].copies.pop(task.volume, None)
        return True

    def _gather(self, number: VolumeId, sources: Sequence[int], target: int) -> bool:
        """Whether a node has every slice in use, now that it has got what there was."""
        copy = self.nodes[target].copies.get(number)
        if not self.nodes[target].up or copy is None:
            return False
        for source in sources:
            whole = (
                self.nodes[source].copies.get(number, Copy()).whole if self.nodes[source].up else ()
            )
            found = self.used[number].intersection(whole)
            copy.slices |= found
            copy.damaged -= found
        return copy.whole >= self.used[number]

    def _set_replicas(
        self, number: VolumeId, before: tuple[int, ...], replicas: tuple[int, ...]
    ) -> bool:
        record = self.records.get(number)
        if record is None or not record.sealed or record.replicas != before:
            return False
        assert 0 < len(set(replicas)) == len(replicas)
        self.records[number] = msgspec.structs.replace(record, replicas=replicas)
        return True

    # How it should end

    def unfinished(self) -> list[str]:
        """What is not as it should be, in truth."""
        found = []
        locations = {one.number: one.location for one in self.nodes.values()}
        usable = [one.number for one in self.nodes.values() if one.up and not one.draining]
        hosts = {self.nodes[one].location or str(one) for one in usable}
        for number, record in self.records.items():
            wanted = min(record.copies, len(hosts))
            whole = [
                node
                for node in record.replicas
                if self.nodes[node].up
                and number in self.nodes[node].copies
                and self.nodes[node].copies[number].whole >= self.used[number]
                and not self.nodes[node].copies[number].damaged
            ]
            if len(whole) != len(record.replicas):
                found.append(f"{record}: only {whole} have it")
            if len(whole) != wanted:
                found.append(f"{record}: {wanted} copies are wanted")
            if any(self.nodes[node].draining for node in record.replicas):
                found.append(f"{record}: on a draining node")
            if words := broken_rule(record.replicas, locations, usable):
                found.append(f"{record}: {words}")
        for node in self.nodes.values():
            for number in node.copies if node.up else ():
                named = self.records.get(number)
                if named is None or (
                    node.number not in named.replicas and len(named.replicas) >= named.copies
                ):
                    found.append(f"node {node.number} still has volume {number}")
        return found

    def instances(self, number: VolumeId, name: int) -> int:
        """Nodes, up or down, that have a slice whole."""
        return sum(
            1
            for node in self.nodes.values()
            if number in node.copies and name in node.copies[number].whole
        )
