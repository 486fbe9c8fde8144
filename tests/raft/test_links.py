"""Connections between nodes: kept up, moved, bounded, and told once when they are lost."""

import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
import trio

from mountfs.errors import Fault, FsError
from mountfs.raft import links as links_module
from mountfs.raft.envelope import VERSION, open_, seal
from mountfs.raft.links import MESSAGES, Links
from mountfs.raft.log_record import GroupId
from mountfs.raft.messages import Append, Entry, EntryKind, Heartbeat, NodeId, Term, Vote
from mountfs.types import KIB, MIB, LogIndex
from mountfs.wire.config import Limits
from mountfs.wire.connection import Body
from mountfs.wire.frames import Hello, Parts
from mountfs.wire.service import Peer, Service

END_S = 20.0
CLUSTER = bytes(range(16))
ONE, TWO, THREE = NodeId(1), NodeId(2), NodeId(3)


def hello(number: int, cluster: bytes = CLUSTER) -> Hello:
    return Hello(cluster=cluster, role="meta", name=f"n{number}")


class Node:
    """Links, and a door behind which they are taken."""

    def __init__(self, number: int) -> None:
        self.links = Links(NodeId(number), hello(number))
        self.got: list[tuple[int, bytes]] = []
        self.lost: list[int] = []
        self.port = 0
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.links.received = lambda source, bodies: self.got.extend(
            (source, bytes(body)) for body in bodies
        )
        self.links.unreachable = self.lost.append

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    async def listen(
        self, port: int = 0, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async def handle(peer: Peer, method: int, body: Body) -> Parts:
            raise FsError(Fault.NOT_IMPLEMENTED)

        def admit(peer: Peer) -> None:
            def noted(method: int, body: Body) -> None:
                assert method == MESSAGES
                self.links.take(body)

            peer.noted = noted
            peer.noted_all = self.links.deliver

        self.scope, self.ended = trio.CancelScope(), trio.Event()
        service = Service(
            handle, hello(int(self.links._own)), limits=Limits(poll_us=0), admit=admit
        )
        try:
            with self.scope:
                listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
                self.port = listeners[0].socket.getsockname()[1]
                task_status.started()
                await service.serve(listeners)
        finally:
            self.ended.set()

    async def stop(self) -> None:
        self.scope.cancel()
        await self.ended.wait()


async def until(holds: Callable[[], object]) -> None:
    with trio.fail_after(END_S):
        while True:  # nobody tells us
            if holds():
                return
            await trio.sleep(0.005)


@contextlib.asynccontextmanager
async def nodes(*numbers: int) -> AsyncIterator[tuple[trio.Nursery, list[Node]]]:
    """All run and listen; who knows whom is the test's affair."""
    found = [Node(number) for number in numbers]
    async with trio.open_nursery() as nursery:
        for node in found:
            nursery.start_soon(node.links.run)
            await nursery.start(node.listen)
        yield nursery, found
        nursery.cancel_scope.cancel()


async def say(one: Node, target: int, body: bytes, to: Node) -> None:
    """Until it has arrived: what is sent before there is a connection is lost."""

    def arrived() -> bool:
        if (int(one.links._own), body) in to.got:
            return True
        one.links.send(NodeId(target), body)
        return False

    await until(arrived)


async def test_messages_come_in_order_from_whom_they_are() -> None:
    async with nodes(1, 2) as (_, (one, two)):
        one.links.set_peers({TWO: two.address})
        two.links.set_peers({ONE: one.address})
        await say(one, 2, b"first", two)
        two.got.clear()
        for number in range(200):
            one.links.send(TWO, b"%d" % number)
        await until(lambda: len(two.got) == 200)
        assert two.got == [(1, b"%d" % number) for number in range(200)]
        await say(two, 1, b"back", one)
        assert not one.links.problems and not one.lost


async def test_a_loss_is_told_once_and_the_connection_comes_back() -> None:
    async with nodes(1, 2) as (nursery, (one, two)):
        one.links.set_peers({TWO: two.address})
        await say(one, 2, b"a", two)
        port = two.port
        await two.stop()
        await until(lambda: one.lost)
        one.links.send(TWO, b"lost")  # says nothing
        await until(lambda: one.links.problems)
        await nursery.start(two.listen, port)
        await say(one, 2, b"b", two)
        assert one.lost == [2]
        assert not one.links.problems
        assert (1, b"lost") not in two.got


async def test_a_node_that_moves_is_found_at_its_new_place() -> None:
    async with nodes(1, 2) as (nursery, (one, two)):
        one.links.set_peers({TWO: two.address})
        await say(one, 2, b"a", two)
        before = two.port
        await two.stop()
        await nursery.start(two.listen)
        assert two.port != before
        one.links.set_peers({TWO: two.address})
        await say(one, 2, b"b", two)
        assert one.lost == [2]


async def test_the_same_places_again_change_nothing() -> None:
    async with nodes(1, 2) as (_, (one, two)):
        one.links.set_peers({TWO: two.address})
        await say(one, 2, b"a", two)
        one.links.set_peers({TWO: two.address, ONE: one.address})
        one.links.send(TWO, b"b")
        await until(lambda: (1, b"b") in two.got)
        assert not one.lost


async def test_who_is_no_peer_any_more_is_left_alone() -> None:
    async with nodes(1, 2) as (_, (one, two)):
        one.links.set_peers({TWO: two.address})
        await say(one, 2, b"a", two)
        one.links.set_peers({})
        await until(lambda: one.lost == [2])
        one.links.send(TWO, b"b")
        await trio.sleep(0.05)
        assert two.got == [(1, b"a")] * len(two.got)
        assert not one.links.problems


async def test_another_node_at_the_place_of_one_is_told_so_and_hears_nothing() -> None:
    async with nodes(1, 3) as (_, (one, three)):
        one.links.set_peers({TWO: three.address})  # where node 2 was once

        def tried() -> bool:
            one.links.send(TWO, b"not for you")
            return "this is node 3, not 2" in one.links.problems.get(2, "")

        await until(tried)
        assert not three.got


async def test_a_node_at_the_wrong_place_is_not_tried_without_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each connection comes about, and ends with the first message."""
    connected = 0
    connect = links_module.connect

    async def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal connected
        connected += 1
        return await connect(*arguments, **named)

    monkeypatch.setattr(links_module, "connect", counted)
    async with nodes(1, 3) as (_, (one, three)):
        one.links.set_peers({TWO: three.address})
        with trio.move_on_after(1.5):
            while True:
                one.links.send(TWO, b"x")
                await trio.sleep(0.001)
        assert 2 <= connected <= 12  # and not fifty


async def test_a_node_of_another_cluster_is_refused() -> None:
    async with nodes(1, 2) as (nursery, (_, two)):
        stranger = Links(THREE, hello(3, bytes(16)[:-1] + b"\1"))
        nursery.start_soon(stranger.run)
        stranger.set_peers({TWO: two.address})
        await until(lambda: "cluster" in stranger.problems.get(2, ""))
        stranger.send(TWO, b"x")
        assert not two.got


async def test_what_a_peer_does_not_read_is_bounded() -> None:
    async with trio.open_nursery() as nursery:
        one = Node(1)
        nursery.start_soon(one.links.run)
        stuck = Node(2)
        gone_on = trio.Event()

        def stand_still(source: NodeId, bodies: list[bytes | memoryview]) -> None:
            stuck.got.append((source, b""))

        stuck.links.received = stand_still
        await nursery.start(stuck.listen)
        one.links.set_peers({TWO: stuck.address})
        await until(lambda: not one.links.problems)
        big = bytes(MIB)
        for _ in range(200):  # nobody reads meanwhile: there is no checkpoint
            one.links.send(TWO, big)
        assert one.links.dropped > 100
        await until(lambda: stuck.got)
        gone_on.set()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("body", [b"", b"short", bytes(15)])
async def test_what_is_too_short_is_no_envelope(body: bytes) -> None:
    with pytest.raises(FsError) as caught:
        Links(ONE, hello(1)).take(body)
    assert caught.value.fault is Fault.INVALID


async def test_what_comes_together_is_delivered_together() -> None:
    async with nodes(1, 2) as (_, (one, two)):
        one.links.set_peers({TWO: two.address})
        await say(one, 2, b"first", two)
        got: list[list[bytes]] = []
        two.links.received = lambda source, bodies: got.append([bytes(body) for body in bodies])
        sent = [b"%d" % number for number in range(200)]
        for body in sent:  # nobody reads meanwhile: there is no checkpoint
            one.links.send(TWO, body)
        await until(lambda: sum(map(len, got)) >= 200)
        bodies = [body for together in got for body in together]
        assert bodies[-200:] == sent
        assert len(got) < 20


@contextlib.asynccontextmanager
async def a_slow_way_to(port: int, bytes_per_s: int) -> AsyncIterator[tuple[str, int]]:
    async def carry(near: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream("127.0.0.1", port)
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(pump, near, far)
            nursery.start_soon(pump, far, near)

    async def pump(source: trio.SocketStream, target: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async for data in source:
                await trio.sleep(len(data) / bytes_per_s)
                await target.send_all(data)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        # It is the way that is slow, not a machine that takes all of it in at once.
        listeners[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KIB)
        nursery.start_soon(trio.serve_listeners, carry, listeners)
        yield "127.0.0.1", listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def test_a_slow_way_is_no_dead_node() -> None:
    """What is under way takes longer than silence may last."""
    total, bytes_per_s = 16 * MIB, 4 * MIB
    assert total / bytes_per_s > links_module.LIMITS.dead_ms / 1000
    async with nodes(1, 2) as (_, (one, two)), a_slow_way_to(two.port, bytes_per_s) as way:
        one.links.set_peers({TWO: way})
        await say(one, 2, b"first", two)
        for _ in range(16):
            one.links.send(TWO, bytes(MIB))
        await until(lambda: one.lost or sum(len(body) == MIB for _, body in two.got) == 16)
        assert not one.lost


# -- envelopes

BEAT = Heartbeat(ONE, TWO, Term(3), LogIndex(4), 5)
ENTRY = Entry(LogIndex(5), Term(3), EntryKind.COMMAND, b"x" * 100)


def test_what_is_sealed_opens_again() -> None:
    messages = [
        (GroupId(1), BEAT),
        (GroupId(70_000), Vote(ONE, TWO, Term(4), LogIndex(9), Term(3), True)),
        (GroupId(1), Append(ONE, TWO, Term(3), LogIndex(4), Term(3), (ENTRY,), LogIndex(4))),
    ]
    assert open_(seal(messages)) == messages
    assert open_(memoryview(seal(messages))) == messages
    assert open_(seal([])) == []


@pytest.mark.parametrize("version", [0, VERSION + 1, 1 << 40])
def test_another_version_is_refused(version: int) -> None:
    body = msgspec.msgpack.encode((version, [(GroupId(1), BEAT)]))
    with pytest.raises(FsError, match=f"version {version}") as caught:
        open_(body)
    assert caught.value.fault is Fault.INVALID


def test_another_version_is_named_though_its_messages_make_no_sense_here() -> None:
    body = msgspec.msgpack.encode((2, {"other": "things"}))
    with pytest.raises(FsError, match="version 2"):
        open_(body)


def test_rubbish_is_refused() -> None:
    whole = seal([(GroupId(1), BEAT)])
    rubbish = [b"", b"\xc1", b"GET / HTTP/1.1\r\n\r\n", whole + b"x", b"\x92\x01\x91\x92\x01\x90"]
    rubbish += [whole[:size] for size in range(len(whole))]
    for body in rubbish:
        with pytest.raises(FsError) as caught:
            open_(body)
        assert caught.value.fault is Fault.INVALID
