"""Slices on other nodes: nodes that are down, full, or answer rubbish."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from crc32c import crc32c

from mountfs.chunks import remote
from mountfs.chunks.client import LocalChunks
from mountfs.chunks.config import ChunkConfig
from mountfs.chunks.disk import DiskStore
from mountfs.chunks.protocol import (
    READ,
    WRITE_HEAD,
    Method,
    first_volume_of,
    node_of,
)
from mountfs.chunks.remote import RemoteChunks
from mountfs.chunks.service import ChunkService
from mountfs.errors import Fault, FsError
from mountfs.kv.memory import MemoryStore
from mountfs.types import KIB, MIB, SLICE_BYTES_MAX, SliceId, VolumeId
from mountfs.wire.connection import Disconnected

END_S = 20.0
ONE = SliceId(1)


class Node:
    """A chunkserver, and the link to it."""

    def __init__(self, number: int, path: Path) -> None:
        path.mkdir()
        self.number = number
        self.path = path
        self.index = MemoryStore()
        self.open()
        self.down = False
        self.full = False
        self.calls: list[Method] = []
        self.answered: Callable[[Method, bytes], bytes] = lambda method, answer: answer
        """May change an answer, or raise instead."""
        self.asked: Callable[[bytes], bytes] = lambda body: body

    def open(self) -> None:
        config = ChunkConfig(
            volume_bytes=8 * MIB,
            preallocate_bytes=256 * KIB,
            reserve_bytes=0,
            first_volume=first_volume_of(self.number),
        )
        self.disk = DiskStore(self.path, self.index, home=b"home" * 4, config=config)
        self.service = ChunkService(self.disk, LocalChunks(self.disk), self.may_delete)

    def may_delete(self, peer: Any) -> None:
        if peer == "client":
            raise FsError(Fault.DENIED, "only nodes may delete")

    async def call(self, method: int, parts: Any = b"") -> bytes:
        await trio.lowlevel.checkpoint()
        found = Method(method)
        self.calls.append(found)
        if self.down:
            raise Disconnected("nobody is there", sent=False)
        if self.full and found is Method.WRITE:
            raise FsError(Fault.NO_SPACE, "the disk is full")
        body = parts if isinstance(parts, bytes) else b"".join(bytes(part) for part in parts)
        answer = await self.service.handle("node", method, bytearray(self.asked(body)))
        whole = answer if isinstance(answer, bytes) else b"".join(bytes(part) for part in answer)
        return self.answered(found, whole)


class Nodes:
    def __init__(self, path: Path) -> None:
        self.all = {number: Node(number, path / str(number)) for number in (1, 2, 3)}

    def __getitem__(self, number: int) -> Node:
        return self.all[number]

    async def link(self, number: int) -> Node:
        await trio.lowlevel.checkpoint()
        return self.all[number]

    def client(self, soft_s: float | None = None) -> RemoteChunks:
        return RemoteChunks(lambda: sorted(self.all), self.link, soft_s=soft_s)


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setattr(remote, "RETRY_FIRST_S", 0.001)
    monkeypatch.setattr(remote, "RETRY_MAX_S", 0.01)
    found = Nodes(tmp_path)
    yield found
    for node in found.all.values():
        node.disk.close()


async def read(chunks: RemoteChunks, volume: VolumeId, slice_id: SliceId = ONE) -> bytes:
    with trio.fail_after(END_S):
        return bytes(await chunks.read(volume, slice_id, 0, 5))


async def test_what_is_written_can_be_read_in_parts(nodes: Nodes) -> None:
    chunks = nodes.client()
    data = bytes(range(256)) * 1_000
    stored = await chunks.write(ONE, [data[:1_000], memoryview(data)[1_000:]])
    assert stored.crc == crc32c(data)
    for start, stop in ((0, 1), (0, len(data)), (70_000, 70_001), (65_536, 131_072)):
        assert await chunks.read(stored.volume, ONE, start, stop) == data[start:stop]
    found = await chunks.read(stored.volume, ONE, 0, 5)
    found[:] = b"owned"  # the memory is the caller's own
    assert await read(chunks, stored.volume) == data[:5]


async def test_slices_of_one_writer_stay_together(nodes: Nodes) -> None:
    chunks = nodes.client()
    volumes = {(await chunks.write(SliceId(one), [b"x"])).volume for one in range(1, 20)}
    assert len({node_of(volume) for volume in volumes}) == 1


@pytest.mark.parametrize("how", ["down", "full"])
async def test_a_node_that_takes_nothing_is_passed_over(nodes: Nodes, how: str) -> None:
    chunks = nodes.client()
    first = node_of((await chunks.write(ONE, [b"hello"])).volume)
    setattr(nodes[first], how, True)
    stored = await chunks.write(SliceId(2), [b"hello"])
    assert node_of(stored.volume) != first
    assert await read(chunks, stored.volume, SliceId(2)) == b"hello"


async def test_all_full_is_told(nodes: Nodes) -> None:
    for node in nodes.all.values():
        node.full = True
    with trio.fail_after(END_S), pytest.raises(FsError) as caught:
        await nodes.client().write(ONE, [b"x"])
    assert caught.value.fault is Fault.NO_SPACE


async def test_who_finds_nobody_waits_until_somebody_is_there(nodes: Nodes) -> None:
    chunks = nodes.client()
    stored = await chunks.write(ONE, [b"hello"])
    for node in nodes.all.values():
        node.down = True
    async with trio.open_nursery() as nursery:
        done: list[Any] = []

        async def work() -> None:
            done.append(await read(chunks, stored.volume))
            done.append(await chunks.write(SliceId(2), [b"x"]))

        nursery.start_soon(work)
        await trio.sleep(0.05)
        assert not done and chunks.problem
        for node in nodes.all.values():
            node.down = False
        with trio.fail_after(END_S):
            while len(done) < 2:  # noqa: ASYNC110, nobody tells us
                await trio.sleep(0.001)
    assert not chunks.problem


async def test_a_soft_mount_gives_up(nodes: Nodes) -> None:
    chunks = nodes.client(soft_s=0.05)
    stored = await chunks.write(ONE, [b"hello"])
    for node in nodes.all.values():
        node.down = True
    for work in (
        lambda: chunks.write(SliceId(2), [b"x"]),
        lambda: chunks.read(stored.volume, ONE, 0, 5),
    ):
        with trio.fail_after(END_S), pytest.raises(FsError) as caught:
            await work()
        assert caught.value.fault is Fault.TIMED_OUT


@pytest.mark.parametrize("answer", [b"", b"\1\2\3", b"\0" * 4, b"\0" * 8, b"\0" * 5_000])
async def test_an_answer_that_makes_no_sense_is_damage(nodes: Nodes, answer: bytes) -> None:
    chunks = nodes.client()
    stored = await chunks.write(ONE, [b"hello"])
    for node in nodes.all.values():
        node.answered = lambda method, right: answer
    with pytest.raises(FsError) as caught:
        await read(chunks, stored.volume)
    assert caught.value.fault is Fault.CORRUPT
    await chunks.ask_for_room()  # and nothing is made of it


async def test_a_bit_that_flips_on_the_way_is_found(nodes: Nodes) -> None:
    chunks = nodes.client()
    stored = await chunks.write(ONE, [b"hello"])
    nodes[1].answered = lambda method, answer: answer[:-1] + bytes([answer[-1] ^ 4])
    with pytest.raises(FsError) as caught:
        await read(chunks, stored.volume)
    assert caught.value.fault is Fault.CORRUPT
    nodes[1].answered = lambda method, answer: answer
    nodes[1].asked = lambda body: body[:-1] + bytes([body[-1] ^ 4])
    stored = await chunks.write(SliceId(2), [b"hello"])
    assert node_of(stored.volume) != 1
    assert await read(chunks, stored.volume, SliceId(2)) == b"hello"


@pytest.mark.parametrize("answer", [b"", b"\1\2\3", b"\0" * 9])
async def test_a_node_that_does_not_say_where_a_slice_is_has_not_taken_it(
    nodes: Nodes, answer: bytes
) -> None:
    chunks = nodes.client()
    nodes[1].answered = lambda method, right: answer
    stored = await chunks.write(ONE, [b"hello"])
    assert node_of(stored.volume) == 2
    assert await read(chunks, stored.volume) == b"hello"


async def test_a_slice_that_is_written_twice_is_there_once(nodes: Nodes) -> None:
    """The answer to the first attempt was lost, on all nodes; so was that to the second."""
    chunks = nodes.client()
    lost = 0

    def lose(method: Method, answer: bytes) -> bytes:
        nonlocal lost
        lost += 1
        if lost <= 7:
            raise Disconnected("it broke", sent=True)
        return answer

    for node in nodes.all.values():
        node.answered = lose
    stored = await chunks.write(ONE, [b"hello"])
    node = nodes[node_of(stored.volume)]
    assert node.calls.count(Method.WRITE) >= 2
    assert await read(chunks, stored.volume) == b"hello"
    node.disk.close()
    node.open()
    assert await read(chunks, stored.volume) == b"hello"
    await node.call(Method.DELETE, msgspec.msgpack.encode({stored.volume: [ONE]}))
    with pytest.raises(FsError) as caught:
        await read(chunks, stored.volume)
    assert caught.value.fault is Fault.CORRUPT
    node.disk.close()
    node.index = MemoryStore()  # it is made anew from what is in the volumes
    node.open()
    with pytest.raises(FsError) as caught:
        await read(chunks, stored.volume)
    assert caught.value.fault is Fault.CORRUPT


async def test_what_is_not_there_is_damage(nodes: Nodes) -> None:
    chunks = nodes.client()
    stored = await chunks.write(ONE, [b"hello"])
    for volume, slice_id in ((stored.volume, SliceId(9)), (VolumeId(stored.volume + 5), ONE)):
        with pytest.raises(FsError) as caught:
            await read(chunks, volume, slice_id)
        assert caught.value.fault is Fault.CORRUPT


async def test_room_is_that_of_all_who_answer(nodes: Nodes) -> None:
    chunks = nodes.client()
    assert chunks.has_room(1 << 50)  # nobody knows yet
    nodes[2].down = True
    await chunks.ask_for_room()
    total, free = chunks.space()
    one = nodes[1].disk.space()
    assert total == 2 * one[0] and 0 < free <= total
    assert not chunks.has_room(free + 1)
    for node in nodes.all.values():
        node.down = True
    await chunks.ask_for_room()
    assert chunks.space() == (total, free)  # as it was last


BAD: list[tuple[Method, bytes]] = [
    (Method.WRITE, b""),
    (Method.WRITE, WRITE_HEAD.pack(1, 0)),
    (Method.WRITE, WRITE_HEAD.pack(0, crc32c(b"x")) + b"x"),
    (Method.WRITE, WRITE_HEAD.pack(1, 0) + bytes(SLICE_BYTES_MAX + 1)),
    (Method.READ, b""),
    (Method.READ, READ.pack(1, 1, 5, 5)),
    (Method.READ, READ.pack(1, 1, 6, 5)),
    (Method.READ, READ.pack(1, 1, 0, SLICE_BYTES_MAX + 1)),
    (Method.READ, READ.pack(1, 1, 0, 5) + b"x"),
    (Method.DELETE, b""),
    (Method.DELETE, b"\xc1"),
    (Method.DELETE, msgspec.msgpack.encode([1, 2])),
]


@pytest.mark.parametrize(("method", "body"), BAD)
async def test_bad_requests_are_refused(nodes: Nodes, method: Method, body: bytes) -> None:
    with pytest.raises(FsError) as caught:
        await nodes[1].service.handle("node", method, bytearray(body))
    assert caught.value.fault is Fault.INVALID


async def test_strange_requests_are_refused(nodes: Nodes) -> None:
    node = nodes[1]
    doomed = msgspec.msgpack.encode({-1: [5], 1: [-5, 1 << 63]})
    await node.service.handle("node", Method.DELETE, bytearray(doomed))  # nothing is there
    for peer, method, body, fault in (
        ("client", Method.DELETE, doomed, Fault.DENIED),
        ("node", 104, b"", Fault.NOT_IMPLEMENTED),
        ("node", Method.WRITE, WRITE_HEAD.pack(1, 0) + b"x", Fault.CORRUPT),
    ):
        with pytest.raises(FsError) as caught:
            await node.service.handle(peer, method, bytearray(body))
        assert caught.value.fault is fault


async def test_what_is_answered_is_on_disk(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    node = nodes[1]
    synced = 0
    sync = node.disk.sync

    def counted() -> None:
        nonlocal synced
        sync()
        synced += 1

    monkeypatch.setattr(node.disk, "sync", counted)
    seen: list[int] = []
    node.answered = lambda method, answer: seen.append(synced) or answer  # type: ignore[func-returns-value]
    await nodes.client().write(ONE, [b"hello"])
    assert seen == [1]
