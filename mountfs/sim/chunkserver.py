"""A chunkserver of the simulation: what `chunks/service.py` promises, with volumes in memory.

What is written survives a crash once it is synced; bits may flip, a disk may be full, and may come
back without some volumes or as it once was.
"""

from collections.abc import Callable
from functools import reduce
from random import Random
from typing import Any, TypeVar

import msgspec
from crc32c import crc32c

from mountfs.chunks.protocol import (
    LIST_MAX,
    READ,
    READ_HEAD,
    WRITE_HEAD,
    Copied,
    Copy,
    Delete,
    Drop,
    List,
    Method,
    Open,
    Seal,
)
from mountfs.chunks.telling import Telling
from mountfs.errors import Fault, FsError
from mountfs.meta.reports import DiskReport, ReportReply, VolumeReport, with_name
from mountfs.sim.ledger import Ledger
from mountfs.sim.tasks import Tasks
from mountfs.sim.times import Times
from mountfs.sim.wires import Wires
from mountfs.sim.world import MS, World
from mountfs.types import SliceId, VolumeId

T = TypeVar("T")
Answer = Callable[[Any], None]

HEADER_BYTES = 64
"""About, of a needle."""
DISK_BYTES = 1 << 40


class Volume:
    """A copy of one."""

    def __init__(self, number: VolumeId) -> None:
        self.number = number
        self.kept: dict[SliceId, bytes] = {}
        """What a loss of power leaves."""
        self.fresh: dict[SliceId, bytes] = {}
        """Written, and not synced."""
        self.rotten: set[SliceId] = set()
        """Of those that are kept, the ones with bits that have flipped."""
        self.bad: dict[SliceId, str] = {}
        """Of these, the ones of which that is known."""
        self.copied: set[SliceId] = set()
        """Of those that are kept, the ones that did not come from who wrote them."""
        self.epoch = 0
        """In which it takes slices; 0: in none."""
        self.last_epoch = 0
        """Of one that may be opened again; 0: never."""

    def get(self, slice_id: SliceId) -> bytes | None:
        found = self.kept.get(slice_id)
        return self.fresh.get(slice_id) if found is None else found

    def put(self, slice_id: SliceId, data: bytes) -> None:
        """On disk."""
        self.kept[slice_id] = data
        self.rotten.discard(slice_id)
        self.bad.pop(slice_id, None)

    def remove(self, slice_id: SliceId) -> None:
        for place in (self.kept, self.fresh, self.bad):
            place.pop(slice_id, None)
        self.rotten.discard(slice_id)
        self.copied.discard(slice_id)

    def sync(self) -> None:
        self.kept.update(self.fresh)
        self.fresh.clear()

    def has_whole(self, slice_id: SliceId) -> bool:
        """On disk, and as it was written."""
        return slice_id in self.kept and slice_id not in self.rotten

    def listing(self) -> list[tuple[SliceId, int]]:
        both = {**self.kept, **self.fresh}
        return [(one, len(both[one])) for one in sorted(both)]

    def report(self) -> VolumeReport:
        sizes = [len(data) for place in (self.kept, self.fresh) for data in place.values()]
        size = sum(sizes) + HEADER_BYTES * len(sizes)
        trouble = next(iter(self.bad.values()), "")
        digest = reduce(with_name, {**self.kept, **self.fresh}, 0)
        return VolumeReport(self.number, size, size, len(sizes), self.epoch, trouble, digest)

    def image(self) -> "Volume":
        """As it lies on the disk."""
        found = Volume(self.number)
        found.kept, found.rotten = dict(self.kept), set(self.rotten)
        found.copied = set(self.kept)
        found.last_epoch = self.last_epoch
        return found


class ChunkServer:
    def __init__(
        self, world: World, wires: Wires, ledger: Ledger, node: int, location: str, times: Times
    ) -> None:
        self._world = world
        self._wires = wires
        self._ledger = ledger
        self._times = times
        self.node = node
        self.location = location
        self.name = f"c{node}"
        self.up = False
        self.life = 0
        self.stopped_until = 0
        """As if the process had got SIGSTOP."""
        self.volumes: dict[VolumeId, Volume] = {}
        self.latest = 0
        """The latest term of a leader that it has heard of."""
        self.sync_us = 2 * MS
        self.read_us = MS // 2
        self.full = False
        self.slices_max = 40
        """A volume with so many is full."""
        self.tasks = Tasks(world, self._when_running)
        self._obeyed_at = 0
        """When the last order is done."""
        self._leader = 0

    # -- coming and going

    def boot(self) -> None:
        assert not self.up
        self.up = True
        self.life += 1
        self._obeyed_at = 0
        self._world.note(f"{self.name} boots with {len(self.volumes)} volumes")
        self.tasks = Tasks(self._world, self._when_running)
        self.tasks.start(self._report_for_ever())
        self.tasks.start(self._scrub_for_ever())

    def crash(self) -> None:
        """Of what was not synced, a beginning is on the disk."""
        assert self.up
        self.up = False
        self.stopped_until = 0
        self._world.note(f"{self.name} crashes")
        self.tasks.end()
        for volume in self.volumes.values():
            fresh = list(volume.fresh.items())
            count = self._world.random.randint(0, len(fresh)) if fresh else 0
            volume.kept.update(fresh[:count])
            volume.fresh.clear()
            volume.bad.clear()
            volume.epoch = 0

    def pause(self, until: int) -> None:
        self.stopped_until = until

    def _when_running(self, happens: Callable[[], None]) -> None:
        life = self.life

        def later() -> None:
            if self.up and self.life == life:
                self._when_running(happens)

        if self._world.now < self.stopped_until:
            self._world.after(self.stopped_until - self._world.now, later)
        elif self.up:
            happens()

    # -- what befalls its disk

    def image(self) -> dict[VolumeId, Volume]:
        return {number: volume.image() for number, volume in self.volumes.items()}

    def rot(self, volume: VolumeId, slice_id: SliceId) -> None:
        self.volumes[volume].rotten.add(slice_id)

    # -- what others ask

    def handle(self, method: Method, body: bytes, answer: Answer) -> None:
        """`answer` gets bytes or an FsError; a crash forgets it."""

        def run() -> None:
            try:
                self._handle(method, body, answer)
            except FsError as error:
                answer(error)

        self._when_running(run)

    def _handle(self, method: Method, body: bytes, answer: Answer) -> None:
        match method:
            case Method.WRITE:
                self._write(body, answer)
            case Method.READ:
                self._after(self.read_us, lambda: self._read(body), answer)
            case Method.LIST:
                asked = _decode(body, List)
                self._after(self.read_us, lambda: self._list(asked), answer)
            case Method.OPEN:
                opened = _decode(body, Open)
                self._obey(opened.term, lambda: self._open(opened), answer)
            case Method.SEAL:
                sealed = _decode(body, Seal)
                self._obey(sealed.term, lambda: self._seal(sealed), answer)
            case Method.DELETE:
                doomed = _decode(body, Delete)
                self._obey(doomed.term, lambda: self._delete(doomed), answer)
            case Method.DROP:
                dropped = _decode(body, Drop)
                self._obey(dropped.term, lambda: self._drop(dropped), answer)
            case Method.COPY:
                order = _decode(body, Copy)
                self._hear(order.term)
                self._copy(order, answer)
            case _:
                raise AssertionError(method)

    def _after(self, us: int, act: Callable[[], bytes], answer: Answer) -> None:
        life = self.life

        def run() -> None:
            try:
                answer(act())
            except FsError as error:
                answer(error)

        def later() -> None:
            if self.up and self.life == life:
                self._when_running(run)

        self._world.after(us, later)

    def _takes(self) -> int:
        return int(self.sync_us * (0.5 + self._world.random.random()))

    def _hear(self, term: int) -> None:
        """Raises NOT_LEADER for an order of an earlier term."""
        if term < self.latest:
            raise FsError(Fault.NOT_LEADER, f"a leader of term {self.latest} was heard")
        self.latest = term

    def _obey(self, term: int, act: Callable[[], bytes], answer: Answer) -> None:
        """One order after the other."""
        self._hear(term)
        now = self._world.now
        self._obeyed_at = max(now + self._takes(), self._obeyed_at + 1)
        self._after(self._obeyed_at - now, act, answer)

    # -- slices

    def _write(self, body: bytes, answer: Answer) -> None:
        slice_id, crc, number, epoch = WRITE_HEAD.unpack_from(body)
        data = body[WRITE_HEAD.size :]
        assert crc32c(data) == crc, slice_id
        volume = self._open_in(VolumeId(number), epoch)
        self._ledger.takes(self, volume.number, epoch)
        known = volume.get(slice_id)
        if known is not None and slice_id not in volume.bad:
            if known != data:
                raise FsError(Fault.CORRUPT, f"slice {slice_id:#x} has other bytes here")
        else:
            if len(volume.kept) + len(volume.fresh) >= self.slices_max:
                raise FsError(Fault.VOLUME_CLOSED, f"volume {number} is full")
            if self.full:
                raise FsError(Fault.NO_SPACE, f"{self.name}: the disk is full")
            volume.fresh[slice_id] = data

        def synced() -> bytes:
            if slice_id in volume.fresh:
                volume.put(slice_id, volume.fresh.pop(slice_id))
            return b""

        self._after(self._takes(), synced, answer)

    def _open_in(self, number: VolumeId, epoch: int) -> Volume:
        volume = self.volumes.get(number)
        if volume is None or not volume.epoch or volume.epoch != epoch:
            raise FsError(Fault.VOLUME_CLOSED, f"volume {number} is not open in epoch {epoch}")
        return volume

    def _read(self, body: bytes) -> bytes:
        number, slice_id, start, stop = READ.unpack(body)
        volume = self.volumes.get(number)
        data = volume.get(slice_id) if volume is not None else None
        if volume is None or data is None or stop > len(data):
            raise FsError(Fault.CORRUPT, f"{self.name}: slice {slice_id:#x} is not here")
        data = self._verified(volume, slice_id, data)
        part = data[start:stop]
        return READ_HEAD.pack(crc32c(part)) + part

    def _verified(self, volume: Volume, slice_id: SliceId, data: bytes) -> bytes:
        """Raises CORRUPT, and then it is known."""
        if slice_id in volume.rotten:
            volume.bad[slice_id] = f"slice {slice_id:#x} is damaged"
            raise FsError(Fault.CORRUPT, f"{self.name}: slice {slice_id:#x} is damaged")
        return data

    def _list(self, asked: List) -> bytes:
        volume = self.volumes.get(asked.volume)
        if volume is None:
            raise FsError(Fault.NOT_FOUND, f"{self.name}: volume {asked.volume} is not here")
        found = volume.listing()
        if asked.damaged:
            found = [one for one in found if one[0] in volume.bad]
        found = [one for one in found if one[0] > asked.after]
        return msgspec.msgpack.encode(found[: asked.limit])

    # -- volumes

    def _open(self, order: Open) -> bytes:
        volume = self.volumes.get(order.volume)
        if volume is None:
            if self.full:
                raise FsError(Fault.NO_SPACE, f"{self.name}: the disk is full")
            volume = self.volumes[order.volume] = Volume(order.volume)
        elif not volume.last_epoch or volume.last_epoch > order.epoch or volume.bad:
            raise FsError(Fault.BUSY, f"{self.name}: volume {order.volume} is not to be opened")
        volume.epoch = volume.last_epoch = order.epoch
        self._ledger.opened(self, order.volume, order.epoch)
        return b""

    def _seal(self, order: Seal) -> bytes:
        volume = self.volumes.setdefault(order.volume, Volume(order.volume))
        volume.epoch = volume.last_epoch = 0
        volume.sync()
        self._ledger.opened(self, order.volume, 0)
        return msgspec.msgpack.encode(volume.report())

    def _delete(self, order: Delete) -> bytes:
        for number, slices in order.slices.items():
            volume = self.volumes.get(number)
            if volume is None:
                continue
            for slice_id in slices:
                if volume.get(slice_id) is not None:
                    volume.remove(slice_id)
                    self._ledger.deleted(self.name, number, slice_id)
        return b""

    def _drop(self, order: Drop) -> bytes:
        if order.volume in self.volumes:
            del self.volumes[order.volume]
            self._ledger.dropped(self.name, order.volume)
        return b""

    # -- copies

    def _copy(self, order: Copy, answer: Answer) -> None:
        result = self.tasks.ask(self._copied(order))

        async def reply() -> None:
            try:
                answer(await result)
            except FsError as error:
                answer(error)

        self.tasks.start(reply())

    async def _copied(self, order: Copy) -> bytes:
        """What is not here, slice by slice, verified."""
        volume = self.volumes.get(order.volume)
        if volume is None:
            if self.full:
                raise FsError(Fault.NO_SPACE, f"{self.name}: the disk is full")
            volume = self.volumes[order.volume] = Volume(order.volume)
        if volume.last_epoch:
            raise FsError(Fault.BUSY, f"{self.name}: volume {order.volume} is not sealed")
        listed = await self._listed(order)
        failure: FsError | None = None
        needles = size = 0
        for slice_id, length in listed:
            if order.slices:
                if slice_id not in order.slices:
                    continue
            elif (known := volume.get(slice_id)) is not None:
                if len(known) != length:
                    failure = failure or FsError(Fault.CORRUPT, f"{slice_id:#x} has two lengths")
                continue
            try:
                data = await self._fetched(order, slice_id, length)
            except FsError as error:
                if error.fault not in (Fault.CORRUPT, Fault.DEVICE, Fault.NOT_FOUND):
                    raise
                failure = failure or error
                continue
            self._store(order.volume, slice_id, data)
            needles += 1
            size += length
        missing = set(order.slices) - {slice_id for slice_id, _ in listed}
        if missing:
            failure = failure or FsError(Fault.CORRUPT, f"node {order.source} has no {missing}")
        await self.tasks.sleep(self._takes())
        if failure is not None:
            raise failure
        last = listed[-1][0] if listed else order.after
        return msgspec.msgpack.encode(Copied(last, needles, size, True))

    async def _listed(self, order: Copy) -> list[tuple[SliceId, int]]:
        asked = msgspec.msgpack.encode(List(order.volume, SliceId(0), LIST_MAX))
        us = self._times.attempt_us
        answer = await self._wires.call(self.name, order.source, Method.LIST, asked, us)
        return msgspec.msgpack.decode(answer, type=list[tuple[SliceId, int]])

    async def _fetched(self, order: Copy, slice_id: SliceId, length: int) -> bytes:
        asked = READ.pack(order.volume, slice_id, 0, length)
        us = self._times.attempt_us
        answer = await self._wires.call(self.name, order.source, Method.READ, asked, us)
        return answer[READ_HEAD.size :]

    def _store(self, number: VolumeId, slice_id: SliceId, data: bytes) -> None:
        """Beside what is there; in place of what is damaged."""
        volume = self.volumes.get(number)
        if volume is None:
            raise FsError(Fault.NOT_FOUND, f"{self.name}: volume {number} is gone")
        if volume.last_epoch:
            raise FsError(Fault.BUSY, f"{self.name}: volume {number} is not sealed")
        known = volume.get(slice_id)
        if known is not None and slice_id not in volume.rotten:
            if known != data:
                raise FsError(Fault.CORRUPT, f"slice {slice_id:#x} has other bytes here")
            volume.bad.pop(slice_id, None)
            return
        if self.full:
            raise FsError(Fault.NO_SPACE, f"{self.name}: the disk is full")
        volume.put(slice_id, data)
        volume.copied.add(slice_id)

    # -- what it does by itself

    async def _report_for_ever(self) -> None:
        telling = Telling(self.node, self._world.random.getrandbits(40))
        while True:
            if await self._report(telling):
                await self._report(telling)
            await self.tasks.sleep(self._times.report_us)

    async def _report(self, telling: Telling) -> bool:
        """Whether the leader wants more."""
        nodes = sorted(self._wires.metas)
        if self._leader not in nodes:
            self._leader = self._world.random.choice(nodes)
        free = 0 if self.full else DISK_BYTES // 2
        disk = DiskReport("/disk", "ssd", DISK_BYTES, free, len(self.volumes))
        volumes = [volume.report() for _, volume in sorted(self.volumes.items())]
        report = telling.next(f"node {self._leader}", (disk,), volumes)
        answer = self._wires.tell(self.name, self._leader, report, self._times.report_us)
        try:
            reply: ReportReply = await answer
        except FsError:
            telling.failed()
            self._leader = 0
            return False
        telling.answered(reply)
        return reply.wants_whole and not report.whole

    async def _scrub_for_ever(self) -> None:
        """Read all that there is, a volume at a time."""
        while True:
            for number in sorted(self.volumes):
                await self.tasks.sleep(self._times.scrub_us)
                volume = self.volumes.get(number)
                for slice_id in sorted(volume.rotten) if volume is not None else ():
                    assert volume is not None
                    volume.bad[slice_id] = f"slice {slice_id:#x} is damaged"
            await self.tasks.sleep(self._times.scrub_us)

    # -- for faults

    def random_slice(self, random: Random) -> tuple[VolumeId, SliceId] | None:
        places = [
            (number, slice_id)
            for number, volume in sorted(self.volumes.items())
            for slice_id in sorted(volume.kept)
            if slice_id not in volume.rotten
        ]
        return random.choice(places) if places else None


def _decode(body: bytes, kind: type[T]) -> T:
    return msgspec.msgpack.decode(body, type=kind)
