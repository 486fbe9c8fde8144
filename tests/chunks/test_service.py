"""A chunkserver as others see it: writes, reads, and the orders of a leader."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.lowlevel
from crc32c import crc32c

from mountfs.chunks import copying
from mountfs.chunks import service as service_module
from mountfs.chunks.config import ChunkConfig
from mountfs.chunks.consent import Consent
from mountfs.chunks.disk_identity import Owner
from mountfs.chunks.disks import Disks
from mountfs.chunks.protocol import (
    READ,
    READ_HEAD,
    SPACE,
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
from mountfs.chunks.service import ChunkService
from mountfs.chunks.throttle import Throttle
from mountfs.errors import Fault, FsError
from mountfs.kv.base import Store
from mountfs.kv.memory import MemoryStore
from mountfs.meta.ops.consent import MustKeep, Needed
from mountfs.meta.reports import ASYNC, VolumeReport
from mountfs.types import FIRST_REPLICATED, KIB, MIB, SLICE_BYTES_MAX, SliceId, VolumeId
from mountfs.wire.connection import Disconnected

END_S = 30.0
V, W = VolumeId(FIRST_REPLICATED), VolumeId(FIRST_REPLICATED + 1)
ONE = SliceId(1)

Change = Callable[[Method, bytes], bytes]


def payload(slice_id: int) -> bytes:
    return b"%d " % slice_id * (slice_id % 700 + 1)


class Server:
    """A chunkserver, and the link to it."""

    def __init__(self, number: int, path: Path, others: "dict[int, Server]") -> None:
        path.mkdir()
        self.number = number
        self.path = path
        self.others = others
        self.down = False
        self.indexes: dict[Path, MemoryStore] = {}
        self.calls: list[Method] = []
        self.answered: Change = lambda method, answer: answer
        """May change an answer, or raise instead."""
        self.term = 1
        self.open()

    def open(self) -> None:
        config = ChunkConfig(volume_bytes=8 * MIB, preallocate_bytes=256 * KIB, reserve_bytes=0)
        owner = Owner(b"home" * 4, self.number, b"cluster!" * 2)
        self.disks = Disks([self.path], owner, config=config, open_index=self.index)
        self.service = ChunkService(self.disks, self.may_order, self.link)

    def index(self, path: Path) -> tuple[Store, str]:
        store = self.indexes.setdefault(path, MemoryStore())
        store.crash(keep=1 << 30)
        return store, ""

    def reopen(self) -> None:
        """As after a crash."""
        self.open()

    def may_order(self, peer: Any) -> None:
        if peer == "client":
            raise FsError(Fault.DENIED, "only nodes may order")

    async def link(self, number: int) -> "Server":
        await trio.lowlevel.checkpoint()
        return self.others[number]

    async def call(self, method: int, parts: Any = b"") -> bytes:
        await trio.lowlevel.checkpoint()
        found = Method(method)
        self.calls.append(found)
        if self.down:
            raise Disconnected("nobody is there", sent=False)
        body = parts if isinstance(parts, bytes) else b"".join(bytes(part) for part in parts)
        with trio.fail_after(END_S):
            answer = await self.service.handle("node", method, bytearray(body))
        whole = answer if isinstance(answer, bytes) else b"".join(bytes(part) for part in answer)
        return self.answered(found, whole)

    # -- what is asked of it

    async def order(self, order: Any) -> bytes:
        method = Method[type(order).__name__.upper()]
        return await self.call(method, msgspec.msgpack.encode(order))

    async def open_volume(self, volume: VolumeId = V, epoch: int = 1) -> None:
        assert await self.order(Open(self.term, volume, epoch)) == b""

    async def write(
        self, *slices: int, volume: VolumeId = V, epoch: int = 1, data: bytes | None = None
    ) -> None:
        for one in slices:
            bytes_ = payload(one) if data is None else data
            head = WRITE_HEAD.pack(one, crc32c(bytes_), volume, epoch)
            assert await self.call(Method.WRITE, [head, bytes_]) == b""

    async def read(self, slice_id: int, volume: VolumeId = V) -> bytes:
        wanted = READ.pack(volume, slice_id, 0, len(payload(slice_id)))
        answer = await self.call(Method.READ, wanted)
        assert READ_HEAD.unpack_from(answer)[0] == crc32c(answer[READ_HEAD.size :])
        return answer[READ_HEAD.size :]

    async def seal(self, volume: VolumeId = V) -> VolumeReport:
        answer = await self.order(Seal(self.term, volume))
        return msgspec.msgpack.decode(answer, type=VolumeReport)

    async def names(self, volume: VolumeId = V, after: int = 0, limit: int = 10_000) -> list[int]:
        answer = await self.order(List(volume, SliceId(after), limit))
        return [one for one, _ in msgspec.msgpack.decode(answer)]

    async def copy(
        self, source: int, *, after: int = 0, most: int = 1 << 40, slices: tuple[int, ...] = ()
    ) -> Copied:
        named = tuple(map(SliceId, slices))
        order = Copy(self.term, V, source, SliceId(after), most, named)
        return msgspec.msgpack.decode(await self.order(order), type=Copied)

    def flip(self, slice_id: int, volume: VolumeId = V) -> None:
        found = self.disks.disks[0].store.place(volume, SliceId(slice_id))
        assert found is not None
        path, place = found
        with open(path, "r+b") as file:
            file.seek(place.offset + 53)
            byte = file.read(1)[0]
            file.seek(place.offset + 53)
            file.write(bytes([byte ^ 4]))


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[dict[int, Server]]:
    found: dict[int, Server] = {}
    for number in (1, 2, 3):
        found[number] = Server(number, tmp_path / str(number), found)
    yield found
    for server in found.values():
        server.disks.close()


@pytest.fixture
def server(servers: dict[int, Server]) -> Server:
    return servers[1]


async def fails(fault: Fault, work: Any, match: str = ".") -> None:
    with pytest.raises(FsError, match=match) as caught:
        await work
    assert caught.value.fault is fault, caught.value


# -- slices


async def test_what_is_written_can_be_read_in_parts(server: Server) -> None:
    await server.open_volume()
    data = bytes(range(256)) * 1_000
    await server.write(1, data=data)
    for start, stop in ((0, 1), (0, len(data)), (70_000, 70_001), (65_536, 131_072)):
        answer = await server.call(Method.READ, READ.pack(V, 1, start, stop))
        assert answer == READ_HEAD.pack(crc32c(data[start:stop])) + data[start:stop]


@pytest.mark.parametrize("size", [1, 4 * KIB, 1_000_000])
async def test_what_is_answered_is_on_disk(
    server: Server, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    synced: list[int] = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(fd) or real(fd))
    await server.open_volume()
    synced.clear()
    await server.write(1, data=bytes(size))
    assert len(synced) == 1


async def test_what_is_taken_early_is_on_disk_soon(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = trio.Event()
    real = os.fdatasync
    token = trio.lowlevel.current_trio_token()

    def sync(fd: int) -> None:
        real(fd)
        token.run_sync_soon(synced.set)

    server.service = ChunkService(server.disks, server.may_order, server.link, durability=ASYNC)
    await server.open_volume()
    monkeypatch.setattr(os, "fdatasync", sync)
    monkeypatch.setattr(service_module, "SYNC_S", 0.01)
    await server.write(1)
    assert server.disks.disks[0].store.unsynced
    assert await server.read(1) == payload(1)
    with trio.fail_after(END_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.service.sync_behind)
            await synced.wait()
            while server.disks.disks[0].store.unsynced:  # noqa: ASYNC110  nobody tells
                await trio.sleep(0.005)
            nursery.cancel_scope.cancel()


async def test_many_writes_share_the_trips_to_the_disk(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.open_volume()
    synced: list[int] = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(fd) or real(fd))
    async with trio.open_nursery() as nursery:
        for one in range(1, 41):
            nursery.start_soon(server.write, one)
    assert len(synced) < 20
    assert await server.names() == list(range(1, 41))


async def test_a_write_needs_a_volume_that_is_open_in_its_epoch(server: Server) -> None:
    await fails(Fault.VOLUME_CLOSED, server.write(1), "not here")
    await server.open_volume(epoch=2)
    for epoch in (1, 3):
        await fails(Fault.VOLUME_CLOSED, server.write(1, epoch=epoch), "epoch 2, not in")
    await server.write(1, epoch=2)
    server.reopen()
    await fails(Fault.VOLUME_CLOSED, server.write(2, epoch=2), "not open")
    await server.open_volume(epoch=3)
    await server.write(2, epoch=3)
    assert await server.names() == [1, 2]


async def test_a_write_that_comes_again_is_there_once(server: Server) -> None:
    await server.open_volume()
    for _ in range(3):
        await server.write(1)
    await fails(Fault.CORRUPT, server.write(1, data=b"other"), "other bytes")
    assert (await server.seal()).needles == 1
    assert await server.read(1) == payload(1)


async def test_bytes_that_were_damaged_on_their_way_are_refused(server: Server) -> None:
    await server.open_volume()
    body = WRITE_HEAD.pack(1, 0, V, 1) + b"hello"
    await fails(Fault.CORRUPT, server.call(Method.WRITE, body), "on its way")
    assert await server.names() == []


async def test_more_writes_than_the_bound_are_refused_and_the_others_done(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "WRITES_MAX", 3)
    await server.open_volume()
    go = threading.Event()
    real = os.fdatasync

    def slow(fd: int) -> None:
        assert go.wait(END_S)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", slow)
    refused: list[FsError] = []

    async def write(one: int) -> None:
        try:
            await server.write(one)
        except FsError as error:
            refused.append(error)
            go.set()

    async with trio.open_nursery() as nursery:
        for one in range(1, 5):
            nursery.start_soon(write, one)
    assert [error.fault for error in refused] == [Fault.UNAVAILABLE]
    assert len(await server.names()) == 3
    await server.write(9)


async def test_a_damaged_slice_is_told_of_until_it_is_repaired(server: Server) -> None:
    await server.open_volume()
    await server.write(1, 2)
    server.flip(2)
    await fails(Fault.CORRUPT, server.read(2), "slice 0x2")
    assert await server.read(1) == payload(1)
    (report,) = server.disks.report(whole=True).volumes
    assert "slice 0x2" in report.trouble and "offset" in report.trouble
    await server.order(Delete(1, {V: [SliceId(2)]}))
    (report,) = server.disks.report(whole=False).volumes
    assert report.trouble == ""


async def test_what_was_never_here_is_no_damage(server: Server) -> None:
    await server.open_volume()
    await server.write(1)
    await fails(Fault.CORRUPT, server.read(2), "not in the volume")
    await fails(Fault.CORRUPT, server.call(Method.READ, READ.pack(V, 1, 0, 1_000)))
    await fails(Fault.CORRUPT, server.read(1, W), "not here")
    found = server.disks.report(whole=True)
    assert [(one.number, one.trouble) for one in found.volumes] == [(V, "")]
    assert server.disks.troubles() == {}


async def test_space_is_told(server: Server) -> None:
    total, free = SPACE.unpack(await server.call(Method.SPACE))
    assert 0 < free <= total


# -- orders


async def test_only_nodes_give_orders(server: Server) -> None:
    await server.open_volume()
    for order in (
        Open(1, V, 1),
        Seal(1, V),
        Copy(1, V, 2, SliceId(0), 1),
        Delete(1, {}),
        Drop(1, V),
    ):
        method = Method[type(order).__name__.upper()]
        body = msgspec.msgpack.encode(order)
        await fails(Fault.DENIED, server.service.handle("client", method, body))
    for method in (Method.ALLOT, Method.RETURN, 109):
        await fails(Fault.NOT_IMPLEMENTED, server.service.handle("node", method, b""))


BAD: list[tuple[Method, bytes]] = [
    (Method.WRITE, b""),
    (Method.WRITE, WRITE_HEAD.pack(1, 0, V, 1)),
    (Method.WRITE, WRITE_HEAD.pack(0, crc32c(b"x"), V, 1) + b"x"),
    (Method.WRITE, WRITE_HEAD.pack(1, crc32c(b"x"), V, 0) + b"x"),
    (Method.WRITE, WRITE_HEAD.pack(1, crc32c(b"x"), 0, 1) + b"x"),
    (Method.WRITE, WRITE_HEAD.pack(1, 0, V, 1) + bytes(SLICE_BYTES_MAX + 1)),
    (Method.READ, b""),
    (Method.READ, READ.pack(1, 1, 5, 5)),
    (Method.READ, READ.pack(1, 1, 6, 5)),
    (Method.READ, READ.pack(1, 1, 0, SLICE_BYTES_MAX + 1)),
    (Method.READ, READ.pack(1, 1, 0, 5) + b"x"),
    *((method, bad) for method in (Method.OPEN, Method.SEAL, Method.LIST, Method.COPY,
      Method.DELETE, Method.DROP) for bad in (b"", b"\xc1", b"\x80", b"\x91\x01")),
    (Method.OPEN, msgspec.msgpack.encode((1, V, 0))),
    (Method.OPEN, msgspec.msgpack.encode((1, 1 << 32, 1))),
    (Method.OPEN, msgspec.msgpack.encode((1, V, 1 << 32))),
    (Method.SEAL, msgspec.msgpack.encode((1, 0))),
    (Method.LIST, msgspec.msgpack.encode((V, 0, 0))),
    (Method.LIST, msgspec.msgpack.encode((V, 0, 10_001))),
    (Method.LIST, msgspec.msgpack.encode((V, -1, 5))),
    (Method.COPY, msgspec.msgpack.encode((1, V, 2, 0, 0))),
    (Method.COPY, msgspec.msgpack.encode((1, V, 2, -1, 5))),
    (Method.COPY, msgspec.msgpack.encode((1, V, 2, 0, 5, (0,)))),
    (Method.DELETE, msgspec.msgpack.encode((1, {V: [-5]}))),
]  # fmt: skip


@pytest.mark.parametrize(("method", "body"), BAD)
async def test_bad_requests_are_refused(server: Server, method: Method, body: bytes) -> None:
    await server.open_volume()
    await fails(Fault.INVALID, server.service.handle("node", method, bytearray(body)))


async def test_orders_about_what_is_not_here(server: Server) -> None:
    await server.order(Drop(1, V))
    await server.order(Delete(1, {V: [ONE], VolumeId(-1): [ONE]}))
    await fails(Fault.NOT_FOUND, server.names(), "not here")


async def test_orders_of_an_earlier_leader_are_refused_also_after_a_restart(
    server: Server,
) -> None:
    server.term = 5
    await server.open_volume()
    await server.write(1)
    for again in range(2):
        server.term = 4
        for order in (
            Open(4, W, 1),
            Seal(4, V),
            Copy(4, W, 2, SliceId(0), 1),
            Delete(4, {V: [ONE]}),
            Drop(4, V),
        ):
            await fails(Fault.NOT_LEADER, server.order(order), "term 5")
        assert await server.names() == [1]
        if not again:
            server.reopen()
    server.term = 5
    await server.open_volume(epoch=2)
    server.term = 6
    await server.open_volume(epoch=3)
    assert server.disks.read_term() == 6


async def test_a_term_that_cannot_be_kept_is_not_obeyed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.open_volume()
    await server.write(1)

    def full(term: int) -> None:
        raise FsError(Fault.DEVICE, "the term cannot be kept")

    monkeypatch.setattr(server.service.fence, "_keep", full)
    await fails(Fault.DEVICE, server.order(Drop(2, V)), "cannot be kept")
    await fails(Fault.NOT_LEADER, server.order(Drop(1, V)))  # but it was heard
    assert await server.names() == [1]


async def test_a_later_leader_waits_for_what_an_earlier_one_has_ordered(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a volume could go after the later one has seen it."""
    await server.open_volume()
    await server.write(1)
    inside, go = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()
    real = server.disks.drop

    def slow(volume: VolumeId) -> None:
        token.run_sync_soon(inside.set)
        assert go.wait(END_S)
        real(volume)

    monkeypatch.setattr(server.disks, "drop", slow)
    done: list[str] = []

    async def drop() -> None:
        await server.order(Drop(1, V))
        done.append("drop")

    async def seal() -> None:
        assert (await server.order(Seal(2, W))) is not None
        done.append("seal")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drop)
        await inside.wait()
        nursery.start_soon(seal)
        while server.service.fence.latest < 2:
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert done == []
        go.set()
    assert done == ["drop", "seal"]


async def test_sealing_counts_every_write_that_is_acknowledged(server: Server) -> None:
    await server.open_volume()
    acknowledged: list[int] = []
    refused: list[int] = []

    async def write(first: int) -> None:
        for one in range(first, first + 500):
            try:
                await server.write(one)
            except FsError as error:
                assert error.fault is Fault.VOLUME_CLOSED
                refused.append(one)
                return
            acknowledged.append(one)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(write, 1 + number * 500)
        while len(acknowledged) < 30:
            await trio.lowlevel.checkpoint()
        report = await server.seal()
        listed = await server.names()
    assert len(refused) == 8
    assert report.needles == len(listed) and set(acknowledged) <= set(listed)
    server.reopen()
    assert await server.names() == listed
    await fails(Fault.BUSY, server.open_volume(epoch=9), "sealed")


async def test_a_delayed_open_cannot_open_what_was_sealed(server: Server) -> None:
    assert (await server.seal()).needles == 0
    server.reopen()
    await fails(Fault.BUSY, server.open_volume(), "sealed")


async def test_a_listing_comes_in_pages(server: Server) -> None:
    await server.open_volume()
    await server.write(*range(40, 0, -1))
    assert await server.names(limit=15) == list(range(1, 16))
    assert await server.names(after=15, limit=100) == list(range(16, 41))


async def test_what_is_deleted_and_dropped_is_gone(server: Server) -> None:
    for volume in (V, W):
        await server.open_volume(volume)
        await server.write(1, 2, volume=volume)
    await server.order(Delete(1, {V: [ONE], W: [ONE, SliceId(2)]}))
    assert (await server.names(), await server.names(W)) == ([2], [])
    await server.order(Drop(1, V))
    await fails(Fault.NOT_FOUND, server.names())
    server.reopen()
    await fails(Fault.NOT_FOUND, server.names())
    assert await server.names(W) == []


async def test_what_the_metadata_needs_is_not_deleted_whoever_says_so(server: Server) -> None:
    asked: list[Any] = []
    answers: dict[type[Any], Any] = {Needed: (ONE,), MustKeep: "files refer to it"}

    async def read(query: Any) -> Any:
        await trio.lowlevel.checkpoint()
        asked.append(query)
        answer = answers[type(query)]
        if isinstance(answer, FsError):
            raise answer
        return answer

    server.service = ChunkService(
        server.disks, server.may_order, server.link, consent=Consent(server.number, read)
    )
    await server.open_volume()
    await server.write(1, 2, 3)
    await fails(Fault.NOT_PERMITTED, server.order(Delete(1, {V: [ONE, SliceId(2)]})))
    await fails(Fault.NOT_PERMITTED, server.order(Drop(1, V)))
    assert asked == [Needed(V, (ONE, SliceId(2))), MustKeep(V, server.number)]
    assert await server.names() == [1, 3]  # the other one went
    answers[Needed] = answers[MustKeep] = FsError(Fault.UNAVAILABLE, "nobody leads")
    for order in (Delete(1, {V: [ONE]}), Drop(1, V)):
        await fails(Fault.UNAVAILABLE, server.order(order))
    assert await server.names() == [1, 3]
    await fails(Fault.NOT_LEADER, server.order(Delete(0, {V: [ONE]})))
    assert len(asked) == 4  # nobody is asked for the sake of an old leader
    answers[Needed], answers[MustKeep] = (), ""
    await server.order(Delete(1, {V: [ONE]}))
    assert await server.names() == [3]
    await server.order(Drop(1, V))
    await fails(Fault.NOT_FOUND, server.names())


# -- copying


async def filled(server: Server, *slices: int) -> None:
    await server.open_volume()
    await server.write(*slices)
    await server.seal()


async def test_a_volume_is_copied(servers: dict[int, Server]) -> None:
    one, two = servers[1], servers[2]
    slices = list(range(1, 60))
    await filled(one, *slices)
    copied = await two.copy(1)
    assert copied == Copied(SliceId(59), 59, sum(len(payload(each)) for each in slices), True)
    two.reopen()
    assert await two.names() == slices
    for each in slices:
        assert await two.read(each) == payload(each)
    assert (await two.copy(1)).needles == 0
    await fails(Fault.BUSY, two.open_volume(epoch=5), "sealed")
    assert list(two.disks.disks[0].store.verify()) == []


async def test_only_what_is_not_here_is_read(servers: dict[int, Server]) -> None:
    one, two = servers[1], servers[2]
    await filled(one, *range(1, 21))
    await filled(two, *range(1, 21, 2))
    one.calls.clear()
    assert (await two.copy(1)).needles == 10
    assert one.calls.count(Method.READ) == 10
    assert await two.names() == list(range(1, 21))


@pytest.mark.parametrize("restarted", [False, True])
async def test_what_is_copied_into_is_sealed_from_then_on(
    servers: dict[int, Server], restarted: bool
) -> None:
    await filled(servers[1], 1)
    await servers[2].open_volume()
    if restarted:
        servers[2].reopen()
    assert (await servers[2].copy(1)).needles == 1
    await fails(Fault.VOLUME_CLOSED, servers[2].write(2))
    await fails(Fault.BUSY, servers[2].open_volume(epoch=9), "sealed")


@pytest.mark.parametrize("page", [3, 10_000])
async def test_copying_is_done_in_parts(
    servers: dict[int, Server], monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(copying, "PAGE", page)
    one, two = servers[1], servers[2]
    await filled(one, *range(100, 140))
    after, parts, needles = 0, 0, 0
    while True:
        copied = await two.copy(1, after=after, most=1_000)
        assert copied.after >= after
        assert copied.bytes <= 1_000 + copying.READS * 1_000
        after, parts, needles = copied.after, parts + 1, needles + copied.needles
        if copied.done:
            break
        assert parts < 100
    assert (after, needles) == (139, 40)
    assert parts > 3
    assert await two.names() == await one.names()


async def test_copying_that_was_interrupted_is_gone_on_with(servers: dict[int, Server]) -> None:
    one, two = servers[1], servers[2]
    await filled(one, *range(1, 41))
    left = 15

    def dies(method: Method, answer: bytes) -> bytes:
        nonlocal left
        left -= method is Method.READ
        if left < 0:
            raise Disconnected("it broke", sent=True)
        return answer

    one.answered = dies
    await fails(Fault.UNAVAILABLE, two.copy(1), "node 1")
    there = len(await two.names())
    assert 0 < there <= 15
    one.answered = lambda method, answer: answer
    one.calls.clear()
    two.reopen()  # what was not synced may or may not be there
    there = len(await two.names())
    assert (await two.copy(1)).done
    assert one.calls.count(Method.READ) == 40 - there
    assert await two.names() == list(range(1, 41))


async def test_copying_can_be_cancelled(servers: dict[int, Server]) -> None:
    one, two = servers[1], servers[2]
    await filled(one, *range(1, 41))
    two.service.throttle.rate = 1.0
    with trio.move_on_after(0.05) as scope:
        await two.copy(1)
    assert scope.cancelled_caught
    two.service.throttle.rate = 0
    assert (await two.copy(1)).done
    assert await two.names() == list(range(1, 41))


async def test_copying_waits_for_its_rate_which_can_be_changed(
    servers: dict[int, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "RATE_LOOK_S", 0.001)
    one, two = servers[1], servers[2]
    await filled(one, *range(650, 690))
    throttle = two.service.throttle
    throttle.rate = 1.0
    asked = 0
    real = throttle.take

    def take(size: int, now: float) -> float:
        nonlocal asked
        asked += 1
        return real(size, now)

    monkeypatch.setattr(throttle, "take", take)
    with trio.fail_after(END_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(two.copy, 1)
            while asked < 50:  # noqa: ASYNC110, nobody tells us
                await trio.sleep(0.001)
            assert await two.names() == [650]  # the others have to wait for hours
            throttle.rate = 0
    assert len(await two.names()) == 40


def test_the_rate_holds_on_the_average() -> None:
    bucket, now, taken = Throttle(1_000), 0.0, 0
    while now < 60:
        wait_s = bucket.take(700, now)
        taken += 0 if wait_s else 700
        now += wait_s
        if now > 30:
            bucket.rate = 2_000
    assert 85_000 < taken < 95_000


def test_what_was_saved_up_is_bounded() -> None:
    bucket = Throttle(100)
    assert bucket.take(100, 0.0) == 0
    assert bucket.take(100, 1_000.0) == 0
    assert bucket.take(1, 1_000.0) == 0  # a second's worth, and one that makes debts
    assert bucket.take(1, 1_000.0) == pytest.approx(0.01)


LIES: dict[str, tuple[Method, Callable[[bytes], bytes]]] = {
    "a flipped bit": (Method.READ, lambda answer: answer[:-1] + bytes([answer[-1] ^ 1])),
    "too short": (Method.READ, lambda answer: answer[:-1]),
    "too long": (Method.READ, lambda answer: answer + b"x"),
    "nothing": (Method.READ, lambda answer: b""),
    "other bytes": (Method.READ, lambda answer: READ_HEAD.pack(crc32c(b"xy")) + b"xy"),
    "no list": (Method.LIST, lambda answer: b"\xc1"),
    "not in order": (Method.LIST, lambda answer: msgspec.msgpack.encode([(3, 5), (2, 5)])),
    "twice": (Method.LIST, lambda answer: msgspec.msgpack.encode([(3, 5), (3, 5)])),
    "no slice": (Method.LIST, lambda answer: msgspec.msgpack.encode([(0, 5)])),
    "no bytes": (Method.LIST, lambda answer: msgspec.msgpack.encode([(3, 0)])),
    "too many bytes": (Method.LIST, lambda answer: msgspec.msgpack.encode([(3, 1 << 40)])),
    "too much": (Method.LIST, lambda answer: msgspec.msgpack.encode(
        [(one, 5) for one in range(1, 10_000)]
    )),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
async def test_a_source_that_lies_is_named_and_nothing_bad_is_stored(
    servers: dict[int, Server], lie: str
) -> None:
    one, two = servers[1], servers[2]
    await filled(one, *range(1, 11))
    method, change = LIES[lie]
    one.answered = lambda asked, answer: change(answer) if asked is method else answer
    await fails(Fault.CORRUPT, two.copy(1), "node 1")
    assert await two.names() == []
    one.answered = lambda asked, answer: answer
    assert (await two.copy(1)).needles == 10


async def test_a_slice_that_the_source_cannot_give_does_not_keep_back_the_others(
    servers: dict[int, Server],
) -> None:
    one, two = servers[1], servers[2]
    await filled(one, *range(1, 21))
    one.flip(5)
    await two.seal()
    for _ in range(40):  # however little is asked for at a time
        if len(await two.names()) >= 4:
            await fails(Fault.CORRUPT, two.copy(1, most=1), r"node 1: .*slice 0x5")
        else:
            assert not (await two.copy(1, most=1)).done
    assert await two.names() == [each for each in range(1, 21) if each != 5]
    assert "slice 0x5" in one.disks.report(whole=True).volumes[0].trouble


async def test_a_slice_of_another_length_here_is_an_error(servers: dict[int, Server]) -> None:
    one, two = servers[1], servers[2]
    await filled(one, 1, 2, 3)
    await two.open_volume()
    await two.write(2, data=b"other")
    await two.seal()
    await fails(Fault.CORRUPT, two.copy(1), "slice 0x2")
    assert await two.names() == [1, 2, 3]


async def test_damaged_slices_are_had_anew(servers: dict[int, Server]) -> None:
    one, two = servers[1], servers[2]
    for each in (one, two):
        await filled(each, *range(1, 11))
    for bad in (3, 7):
        two.flip(bad)
        await fails(Fault.CORRUPT, two.read(bad))
    assert (await two.copy(1)).needles == 0  # they are there, by their names
    copied = await two.copy(1, slices=(7, 3, 5))
    assert (copied.after, copied.needles, copied.done) == (7, 2, True)
    two.reopen()
    for each in range(1, 11):
        assert await two.read(each) == payload(each)
    assert two.disks.report(whole=True).volumes[0].trouble == ""
    await fails(Fault.CORRUPT, two.copy(1, slices=(3, 99)), "node 1.* no slice 0x63")


async def test_good_bytes_are_not_replaced_by_others(servers: dict[int, Server]) -> None:
    one, two = servers[1], servers[2]
    await filled(one, 1)
    await two.open_volume()
    await two.write(1, data=bytes(len(payload(1))))
    await two.seal()
    await fails(Fault.CORRUPT, two.copy(1, slices=(1,)), "other bytes")
    answer = await two.call(Method.READ, READ.pack(V, 1, 0, len(payload(1))))
    assert answer[READ_HEAD.size :] == bytes(len(payload(1)))


async def test_a_source_that_has_not_the_volume_or_is_not_there(
    servers: dict[int, Server],
) -> None:
    await fails(Fault.NOT_FOUND, servers[2].copy(1), "node 1")
    servers[1].down = True
    await fails(Fault.UNAVAILABLE, servers[2].copy(1), "node 1")


async def test_a_source_that_is_silent_is_given_up(
    servers: dict[int, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "CALL_S", 0.05)

    async def silent(method: int, parts: Any = b"") -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(servers[1], "call", silent)
    await fails(Fault.UNAVAILABLE, servers[2].copy(1), "node 1: no answer")


async def test_a_few_reads_are_in_flight_at_once(servers: dict[int, Server]) -> None:
    one, two = servers[1], servers[2]
    await filled(one, *range(1, 41))
    now = most = 0
    real = one.call

    async def counted(method: int, parts: Any = b"") -> bytes:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await trio.lowlevel.checkpoint()
        try:
            return await real(method, parts)
        finally:
            now -= 1

    one.call = counted  # type: ignore[method-assign]
    await two.copy(1)
    assert 1 < most <= copying.READS


async def test_more_copies_than_the_bound_are_refused(
    servers: dict[int, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "COPIES_MAX", 1)
    one, two = servers[1], servers[2]
    await filled(one, *range(1, 11))
    two.service.throttle.rate = 1.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(two.copy, 1)
        while Method.READ not in one.calls:
            await trio.lowlevel.checkpoint()
        await fails(Fault.UNAVAILABLE, two.copy(1), "COPY")
        two.service.throttle.rate = 0


async def test_a_full_disk_ends_a_copy(
    servers: dict[int, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = servers[1], servers[2]
    await filled(one, *range(1, 11))
    store = two.disks.disks[0].store
    await two.seal()
    monkeypatch.setattr(store, "_disk_space", lambda: (1 << 40, 0))
    await fails(Fault.NO_SPACE, two.copy(1), "full")
    monkeypatch.undo()
    assert (await two.copy(1)).needles == 10
