"""Chunkservers in this process, and a leader that gives out their volumes: real disks, and no
network but calls.
"""

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import trio

from mountfs.chunks.config import ChunkConfig, HedgeConfig
from mountfs.chunks.disk_identity import Owner
from mountfs.chunks.disks import Disks
from mountfs.chunks.hedge import Hedges
from mountfs.chunks.open_volumes import OpenVolumes
from mountfs.chunks.protocol import Allot, Method, Open, Return, Seal
from mountfs.chunks.remote import RemoteChunks
from mountfs.chunks.service import ChunkService
from mountfs.chunks.volume_map import VolumeMap
from mountfs.errors import Fault, FsError
from mountfs.kv.base import Store
from mountfs.kv.memory import MemoryStore
from mountfs.meta.ops.volumes import VolumeRecord
from mountfs.meta.reports import Report
from mountfs.types import FIRST_REPLICATED, KIB, MIB, SliceId, VolumeId
from mountfs.wire.connection import Disconnected

CLUSTER = bytes(range(16))
CONFIG = ChunkConfig(volume_bytes=8 * MIB, preallocate_bytes=256 * KIB, reserve_bytes=0)

Before = Callable[[Method], Awaitable[None]]
After = Callable[[Method, bytes], bytes]


async def at_once(method: Method) -> None:
    """Nothing is in the way of a call."""


def inline_threads(monkeypatch: Any) -> None:
    """What is given to threads is done at once: a clock that jumps must not jump meanwhile."""

    async def run(work: Callable[..., Any], *args: Any, **_: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return work(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run)


class Node:
    """A chunkserver, and the link to it."""

    def __init__(
        self, number: int, path: Path, link: Callable[[int], Awaitable["Node"]], config: ChunkConfig
    ) -> None:
        path.mkdir(parents=True)
        self.number = number
        self.path = path
        self._link = link
        self._config = config
        self._indexes: dict[Path, MemoryStore] = {}
        self.down = False
        self.calls: list[Method] = []
        self.under_way: list[Method] = []
        self.cancelled: list[Method] = []
        """Calls that nobody waits for any more."""
        self.before: Before = at_once
        """May wait, or raise, before a call is carried out; `after` may change an answer, or raise
        instead.
        """
        self.after: After = lambda method, answer: answer
        self.incarnation = 0
        self.sequence = 0
        self._open()

    def _open(self) -> None:
        owner = Owner(b"home" * 4, self.number, CLUSTER)
        self.disks = Disks([self.path], owner, config=self._config, open_index=self._index)
        self.service = ChunkService(self.disks, lambda peer: None, self._link)
        self.incarnation += 1

    def _index(self, path: Path) -> tuple[Store, str]:
        store = self._indexes.setdefault(path, MemoryStore())
        store.crash(keep=1 << 30)
        return store, ""

    def restart(self) -> None:
        self.disks.close()
        self._open()

    async def call(self, method: int, parts: Any = b"") -> bytes:
        found = Method(method)
        self.calls.append(found)
        self.under_way.append(found)
        try:
            await trio.lowlevel.checkpoint()
            if self.down:
                raise Disconnected("nobody is there", sent=False)
            await self.before(found)
            body = parts if isinstance(parts, bytes) else b"".join(map(bytes, parts))
            answer = await self.service.handle("node", method, bytearray(body))
            if self.down:
                raise Disconnected("it has just died", sent=True)
            whole = answer if isinstance(answer, bytes) else b"".join(map(bytes, answer))
            return self.after(found, whole)
        except trio.Cancelled:
            self.cancelled.append(found)
            raise
        finally:
            self.under_way.remove(found)

    # -- what a test wants to go wrong

    def hang(self, *methods: Method) -> None:
        async def before(method: Method) -> None:
            if method in methods:
                await trio.sleep_forever()

        self.before = before

    def slow(self, method: Method, seconds: float) -> None:
        async def before(asked: Method) -> None:
            if asked is method:
                await trio.sleep(seconds)

        self.before = before

    def refuse(self, method: Method, fault: Fault, times: int = 1 << 30) -> None:
        left = times

        async def before(asked: Method) -> None:
            nonlocal left
            if asked is method and left:
                left -= 1
                raise FsError(fault, "as the test wants it")

        self.before = before

    def answer(self, method: Method, answer: bytes) -> None:
        self.after = lambda asked, right: answer if asked is method else right

    def lose_answers(self, method: Method, times: int = 1 << 30) -> None:
        """It is done, and nobody hears of it."""
        left = times

        def after(asked: Method, answer: bytes) -> bytes:
            nonlocal left
            if asked is method and left:
                left -= 1
                raise Disconnected("the connection broke", sent=True)
            return answer

        self.after = after

    def well(self) -> None:
        self.down = False
        self.before = at_once
        self.after = lambda method, answer: answer

    # -- what it has

    def names(self, volume: VolumeId) -> list[SliceId]:
        disk = self.disks.disk_of(volume)
        return [] if disk is None else [one for one, _ in disk.store.listing(volume, 0, 1 << 20)]

    def content(self, volume: VolumeId, slice_id: SliceId) -> bytes | None:
        """All of a slice; None: it is not here, or not whole."""
        disk = self.disks.disk_of(volume)
        if disk is None:
            return None
        length = dict(disk.store.listing(volume, slice_id - 1, 1)).get(slice_id)
        if length is None:
            return None
        try:
            return bytes(disk.store.read(volume, slice_id, 0, length))
        except FsError:
            return None

    def damage(self, volume: VolumeId, slice_id: SliceId) -> None:
        """A bit of it flips on the disk."""
        disk = self.disks.disk_of(volume)
        assert disk is not None
        found = disk.store.place(volume, slice_id)
        assert found is not None
        path, place = found
        with open(path, "r+b") as file:
            file.seek(place.offset + 53)
            byte = file.read(1)[0]
            file.seek(place.offset + 53)
            file.write(bytes([byte ^ 4]))

    def lose(self, volume: VolumeId, *slices: int) -> None:
        """As if they had never been here."""
        disk = self.disks.disk_of(volume)
        assert disk is not None
        disk.store.delete({volume: [SliceId(one) for one in slices]})

    def report(self) -> Report:
        """To the leader."""
        found = self.disks.report(whole=True)
        self.sequence += 1
        return Report(
            node=self.number,
            incarnation=self.incarnation,
            disks=found.disks,
            volumes=found.volumes,
            sequence=self.sequence,
        )


class Nodes:
    def __init__(
        self, path: Path, numbers: Iterable[int], config: ChunkConfig | None = None
    ) -> None:
        self.all: dict[int, Node] = {}
        for number in numbers:
            place = path / f"chunks{number}"
            self.all[number] = Node(number, place, self.link, config or CONFIG)

    def __getitem__(self, number: int) -> Node:
        return self.all[number]

    async def link(self, number: int) -> Node:
        await trio.lowlevel.checkpoint()
        if number not in self.all:
            raise FsError(Fault.UNAVAILABLE, f"nobody says where node {number} is")
        return self.all[number]

    def close(self) -> None:
        for node in self.all.values():
            node.disks.close()

    @property
    def under_way(self) -> list[Method]:
        return [method for node in self.all.values() for method in node.under_way]

    def calls(self, method: Method) -> dict[int, int]:
        return {number: node.calls.count(method) for number, node in self.all.items()}


class Leader:
    """Gives out volumes as the leader of a cluster does, without a log."""

    def __init__(self, nodes: Nodes, copies: int = 2) -> None:
        self.nodes = nodes
        self.copies = copies
        self.records: dict[VolumeId, VolumeRecord] = {}
        self.asked: list[Allot] = []
        self.returned: list[Return] = []
        self.questions: list[tuple[VolumeId, ...]] = []
        self.refusal: FsError | None = None
        self.before: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint

    async def allot(self, asked: Allot) -> tuple[VolumeRecord, ...]:
        self.asked.append(asked)
        await self.before()
        if self.refusal is not None:
            raise self.refusal
        for number, epoch in asked.failed:
            record = self.records[number]
            if (record.owner, record.epoch) == (asked.session, epoch):
                self._change(number, sealed=True, owner=0)
                await self._each(record, Method.SEAL, Seal(1, number))
        return tuple([await self._one(asked) for _ in range(asked.count)])

    async def _one(self, asked: Allot) -> VolumeRecord:
        copies = asked.copies or self.copies
        there = [number for number, node in self.nodes.all.items() if not node.down]
        best = [number for number in there if number not in asked.avoid]
        usable = best if len(best) >= min(copies, 2) else there
        turn = len(self.records) % len(usable)
        replicas = tuple(sorted((usable[turn:] + usable[:turn])[:copies]))
        for record in self.records.values():
            if not record.owner and not record.sealed and record.replicas == replicas:
                self._change(record.number, owner=asked.session, epoch=record.epoch + 1)
                return await self._opened(record.number)
        number = VolumeId(FIRST_REPLICATED + len(self.records))
        self.records[number] = VolumeRecord(number, replicas, copies, 1, asked.session)
        return await self._opened(number)

    async def _opened(self, number: VolumeId) -> VolumeRecord:
        record = self.records[number]
        await self._each(record, Method.OPEN, Open(1, number, record.epoch))
        return record

    async def _each(self, record: VolumeRecord, method: Method, order: Any) -> None:
        body = msgspec.msgpack.encode(order)
        for node in record.replicas:
            if not self.nodes[node].down:
                await self.nodes[node].service.handle("node", method, bytearray(body))

    async def give_back(self, asked: Return) -> None:
        await trio.lowlevel.checkpoint()
        if self.refusal is not None:
            raise self.refusal
        self.returned.append(asked)
        for number, epoch in asked.volumes:
            if self.records[number].epoch == epoch:
                self._change(number, owner=0)

    async def where(self, numbers: tuple[VolumeId, ...]) -> tuple[VolumeRecord, ...]:
        self.questions.append(numbers)
        await self.before()
        return tuple(self.records[one] for one in numbers if one in self.records)

    def move(self, number: VolumeId, *replicas: int) -> None:
        """A sealed volume is elsewhere now."""
        self._change(number, replicas=replicas, sealed=True, owner=0)

    def _change(self, number: VolumeId, **how: Any) -> None:
        self.records[number] = msgspec.structs.replace(self.records[number], **how)

    # -- who asks it

    def open_volumes(self, session: int = 7) -> OpenVolumes:
        return OpenVolumes(lambda: session, self.allot, self.give_back)

    def client(
        self, soft_s: float | None = None, session: int = 7, hedging: HedgeConfig | None = None
    ) -> RemoteChunks:
        return RemoteChunks(
            lambda: sorted(self.nodes.all),
            self.nodes.link,
            VolumeMap(self.where),
            self.open_volumes(session),
            hedges=Hedges(hedging or HedgeConfig()),
            soft_s=soft_s,
        )
