"""Calls over a real connection: answers, faults, cancelling, pushes, and its end."""

import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest
import trio

from mountfs.errors import Fault, FsError
from mountfs.inline import WAITING, attempt, finish, leave, pause
from mountfs.types import MIB
from mountfs.wire.config import Limits
from mountfs.wire.connection import Body, Disconnected
from mountfs.wire.frames import HEADER, Kind, Parts, encode, encode_ask
from mountfs.wire.service import Peer
from mountfs.wire.stream import Client, Handler, connect
from tests.wire.conftest import (
    BIG,
    BUG,
    CLIENT,
    ECHO,
    END_S,
    FAIL,
    PUSH_BACK,
    SERVER,
    SLOW_ECHO,
    WAIT,
    Answers,
    read_exactly,
    read_frame,
    served,
    until,
)


async def test_a_call_is_answered(answers: Answers) -> None:
    async with served(answers) as here:
        client = await here.connect()
        assert await client.call(ECHO, b"hello") == b"hello"
        assert await client.call(ECHO) == b""
        assert await client.call(SLOW_ECHO, [b"in ", memoryview(b"parts")]) == b"in parts"
        assert (client.peer.name, here.peer.peer.name) == ("node 1", "mount 7")


@pytest.mark.parametrize("method", [ECHO, SLOW_ECHO])
async def test_many_calls_at_once(answers: Answers, method: int) -> None:
    async with served(answers) as here:
        client = await here.connect()

        async def caller(name: int) -> None:
            for turn in range(20):
                body = f"{name} {turn} ".encode() * (name * turn)
                assert await client.call(method, body) == body

        async with trio.open_nursery() as nursery:
            for name in range(64):
                nursery.start_soon(caller, name)


async def test_large_bodies_between_small_ones(answers: Answers) -> None:
    async with served(answers) as here:
        client = await here.connect()

        async def caller(size: int) -> None:
            body = bytes(range(256)) * (size // 256)
            for _ in range(3):
                assert await client.call(ECHO, [body[:100], body[100:]]) == body

        async with trio.open_nursery() as nursery:
            for size in (256, 16_384, 65_536, 262_144, MIB, 4 * MIB, 16 * MIB, 512):
                nursery.start_soon(caller, size)


async def test_a_fault_is_raised_at_the_caller(answers: Answers) -> None:
    async with served(answers) as here:
        client = await here.connect()
        with pytest.raises(FsError) as caught:
            await client.call(FAIL)
        assert caught.value.fault is Fault.NO_SPACE
        assert caught.value.detail == "the disk of node 1 is full"
        assert await client.call(ECHO, b"goes on") == b"goes on"


async def test_a_bug_of_the_handler_is_logged_and_is_not_the_end(
    answers: Answers, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(answers) as here:
        client = await here.connect()
        with pytest.raises(FsError) as caught:
            await client.call(BUG)
        assert caught.value.fault is Fault.DEVICE
        assert "ZeroDivisionError" in caplog.text
        assert await client.call(ECHO, b"goes on") == b"goes on"


async def test_a_call_from_a_stepped_coroutine_leaves_before_it_touches_trio(
    answers: Answers,
) -> None:
    async with served(answers) as here:
        client = await here.connect()
        coroutine = client.call(ECHO, b"from a door")
        assert attempt(coroutine) is WAITING
        assert here.service.peers == {here.peer}
        assert await finish(coroutine) == b"from a door"


async def test_handlers_that_pause_share_what_follows() -> None:
    shared: list[int] = []
    trips = 0

    async def handler(peer: Peer, method: int, body: Body) -> Parts:
        nonlocal trips
        shared.append(method)
        await pause()
        if shared:
            shared.clear()
            trips += 1
        return body

    async with served(handler) as here:
        client = await here.connect()
        async with trio.open_nursery() as nursery:
            for name in range(30):
                nursery.start_soon(client.call, name, b"x")
    assert 1 <= trips < 10


# --- cancelling ---


async def test_cancelling_a_call_cancels_the_handler(answers: Answers) -> None:
    async with served(answers) as here:
        client = await here.connect()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.call, WAIT)
                await until(lambda: answers.waiting == 1)
                scope.cancel()
        with trio.fail_after(2):  # not only with the next ping
            await until(lambda: answers.cancelled == 1)
        assert await client.call(ECHO, b"usable") == b"usable"
        assert client._core.asking == here.peer._core.answering == 0


async def test_cancelling_many_calls_leaves_the_others(answers: Answers) -> None:
    async with served(answers) as here:
        client = await here.connect()
        results: list[Body] = []

        async def caller(name: int) -> None:
            with trio.move_on_after(0.02 if name % 2 else END_S):
                results.append(await client.call(WAIT, b"%d" % name))

        async with trio.open_nursery() as nursery:
            for name in range(40):
                nursery.start_soon(caller, name)
            await until(lambda: answers.cancelled == 20)
            answers.go.set()
        assert sorted(map(int, results)) == list(range(0, 40, 2))


async def test_a_call_in_a_cancelled_scope_sends_nothing(answers: Answers) -> None:
    async with served(answers) as here:
        client = await here.connect()
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.call(ECHO)
        assert scope.cancelled_caught
        await client.call(ECHO)
        assert answers.began == 1


async def test_answers_and_cancelling_at_once(answers: Answers) -> None:
    """Deadlines that end just when the answers come."""
    async with served(answers) as here:
        client = await here.connect()
        answered = 0

        async def caller(name: int) -> None:
            nonlocal answered
            for turn in range(30):
                with trio.move_on_after(name * turn % 17 / 2_000):
                    assert await client.call(SLOW_ECHO, b"%d" % name) == b"%d" % name
                    answered += 1

        async with trio.open_nursery() as nursery:
            for name in range(30):
                nursery.start_soon(caller, name)
        assert 0 < answered < 900
        await client.call(ECHO)
        await until(lambda: client._core.asking == here.peer._core.answering == 0)


# --- pushes ---


async def test_a_push_is_answered(answers: Answers) -> None:
    async def on_push(client: Client, method: int, body: Body) -> Parts:
        return [b"recalled ", body]

    async with served(answers) as here:
        client = await here.connect(on_push=on_push)
        assert await here.peer.push(9, b"inode 5") == b"recalled inode 5"
        assert await client.call(PUSH_BACK, b"7") == b"you said recalled 7"


async def test_a_push_handler_may_call_back(answers: Answers) -> None:
    async def on_push(client: Client, method: int, body: Body) -> Parts:
        return await client.call(ECHO, body)

    async with served(answers) as here:
        client = await here.connect(on_push=on_push)
        assert await client.call(PUSH_BACK, b"around") == b"you said around"


async def test_a_push_that_is_refused(answers: Answers) -> None:
    async def on_push(client: Client, method: int, body: Body) -> Parts:
        raise FsError(Fault.BUSY, "the file is open")

    async with served(answers) as here:
        await here.connect(on_push=on_push)
        with pytest.raises(FsError, match="the file is open"):
            await here.peer.push(9)


async def test_a_client_that_takes_no_pushes_says_so(answers: Answers) -> None:
    async with served(answers) as here:
        await here.connect()
        with pytest.raises(FsError, match="takes no pushes"):
            await here.peer.push(9)


async def test_the_deadline_of_a_push_cancels_it_at_the_client(answers: Answers) -> None:
    cancelled = trio.Event()

    async def on_push(client: Client, method: int, body: Body) -> Parts:
        await leave()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with served(answers) as here:
        client = await here.connect(on_push=on_push)
        with trio.move_on_after(0.02) as scope:
            await here.peer.push(9)
        assert scope.cancelled_caught
        await cancelled.wait()
        assert await client.call(ECHO, b"usable") == b"usable"


# --- the end ---


BY_HAND = msgspec.structs.replace(
    SERVER, frame_bytes_max=32 * MIB, calls_max=100, calls_bytes_max=64 * MIB
)


@contextlib.asynccontextmanager
async def greeted_by_hand(
    limits: Limits | None = None, then: bytes = b"", on_push: Handler | None = None
) -> AsyncIterator[tuple[Client, trio.SocketStream]]:
    """A client, and the other end of its connection: a server that does what the test does."""
    with trio.fail_after(END_S):
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            async with listener:
                address = listener.socket.getsockname()
                clients: list[Client] = []

                async def begin() -> None:
                    clients.append(
                        await connect(
                            nursery,
                            ("127.0.0.1", address[1]),
                            CLIENT,
                            limits=limits,
                            on_push=on_push,
                        )
                    )

                nursery.start_soon(begin)
                stream = await listener.accept()
            async with stream:
                kind, _, _ = await read_frame(stream)
                assert kind == Kind.HELLO
                await stream.send_all(b"".join(encode(Kind.HELLO, 0, BY_HAND.encode())) + then)
                await until(lambda: bool(clients))
                yield clients[0], stream
            nursery.cancel_scope.cancel()


async def test_a_push_that_comes_together_with_the_hello() -> None:
    async def on_push(client: Client, method: int, body: Body) -> Parts:
        return b"seen"

    push = b"".join(encode_ask(Kind.PUSH, 1, 9, b""))
    async with greeted_by_hand(then=push, on_push=on_push) as (_, stream):
        assert await read_frame(stream) == (Kind.PUSH_ACK, 1, b"\0seen")


async def test_all_calls_fail_at_once_when_the_peer_goes() -> None:
    async with greeted_by_hand() as (client, stream):
        failed: list[Disconnected] = []

        async def caller() -> None:
            with pytest.raises(Disconnected) as caught:
                await client.call(WAIT)
            failed.append(caught.value)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(caller)
            await read_exactly(stream, 20 * 16)
            await stream.aclose()
        assert len(failed) == 20
        assert all(error.sent for error in failed)
        with pytest.raises(Disconnected) as caught:
            await client.call(ECHO)
        assert not caught.value.sent
        assert "the peer has closed the connection" in str(caught.value)


async def test_the_end_in_the_middle_of_a_frame() -> None:
    async with greeted_by_hand() as (client, stream), trio.open_nursery() as nursery:

        async def caller() -> None:
            with pytest.raises(Disconnected, match="in the middle of a frame"):
                await client.call(ECHO)

        nursery.start_soon(caller)
        await read_frame(stream)
        await stream.send_all(HEADER.pack(10, Kind.REPLY, 1) + b"half")
        await stream.aclose()


async def test_a_server_that_sends_nonsense_is_told_and_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with greeted_by_hand() as (client, stream):
        await stream.send_all(b"".join(encode(Kind.REPLY, 77)))
        kind, number, body = await read_frame(stream)
        assert (kind, number) == (Kind.FAULT, 0)
        assert b"answers 77, which nobody asked" in body
        await client.closed.wait()
        assert client.why is not None
        assert "nobody asked" in client.why


async def test_a_dead_server_counts_as_gone() -> None:
    async with greeted_by_hand(Limits(ping_ms=30, dead_ms=120)) as (client, _):
        with pytest.raises(Disconnected, match=r"nothing was heard for 0\.1 s"):
            await client.call(ECHO)


async def test_a_server_that_answers_pings_is_alive() -> None:
    async with greeted_by_hand(Limits(ping_ms=40, dead_ms=2_000)) as (client, stream):
        for _ in range(3):
            assert (await read_frame(stream))[0] == Kind.PING
            await stream.send_all(b"".join(encode(Kind.PONG, 0)))
        assert client.why is None


async def test_a_server_that_does_not_read_is_left() -> None:
    limits = Limits(stall_ms=100, out_bytes_max=MIB, ping_ms=5_000, dead_ms=9_000)
    async with greeted_by_hand(limits) as (client, _), trio.open_nursery() as nursery:
        failed: list[bool] = []

        async def caller() -> None:
            with pytest.raises(Disconnected, match=r"has read nothing for 0\.1 s") as caught:
                await client.call(ECHO, bytes(MIB))
            failed.append(caught.value.sent)

        for _ in range(40):
            nursery.start_soon(caller)
        await client.closed.wait()
        await until(lambda: len(failed) == 40)
        # What there was no room for was never sent.
        assert 0 < failed.count(True) < 40


async def test_closing_fails_what_is_under_way(answers: Answers) -> None:
    async with served(answers) as here, trio.open_nursery() as nursery:
        client = await here.connect()

        async def caller() -> None:
            with pytest.raises(Disconnected, match="closed by this side") as caught:
                await client.call(WAIT)
            assert caught.value.sent

        nursery.start_soon(caller)
        await until(lambda: answers.waiting == 1)
        client.close()
        # The server takes back what nobody waits for.
        await until(lambda: answers.cancelled == 1)
        await until(lambda: not here.service.peers)


async def test_a_client_that_parts_gets_its_answers_first(answers: Answers) -> None:
    async with served(answers) as here, trio.open_nursery() as nursery:
        client = await here.connect()
        results: list[Body] = []

        async def caller() -> None:
            results.append(await client.call(WAIT, b"answer"))

        nursery.start_soon(caller)
        await until(lambda: answers.waiting == 1)
        nursery.start_soon(client.aclose)
        await trio.sleep(0.01)
        assert client.why is None
        answers.go.set()
        await client.closed.wait()
        await until(lambda: results == [b"answer"] and not here.service.peers)


# --- bounds ---


async def test_calls_wait_when_the_server_takes_no_more(answers: Answers) -> None:
    async with served(answers, limits=Limits(calls_max=3)) as here:
        client = await here.connect()
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(client.call, WAIT)
            await until(lambda: answers.waiting == 3)
            await trio.sleep(0.01)
            assert answers.began == 3
            answers.go.set()
        assert answers.began == 10


async def test_both_sides_have_more_to_say_than_either_takes(answers: Answers) -> None:
    limits = Limits(out_bytes_max=MIB // 4)
    async with served(answers, limits=limits) as here:
        client = await here.connect(limits=limits)
        async with trio.open_nursery() as nursery:
            for method in (ECHO, SLOW_ECHO) * 20:
                nursery.start_soon(client.call, method, bytes(MIB))


async def test_a_call_that_waits_for_room_can_be_cancelled(answers: Answers) -> None:
    async with served(answers, limits=Limits(calls_max=1)) as here:
        client = await here.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.call, WAIT)
            await until(lambda: answers.waiting == 1)
            with trio.move_on_after(0.01) as scope:
                await client.call(ECHO)
            assert scope.cancelled_caught
            answers.go.set()
        assert await client.call(ECHO, b"x") == b"x"
        assert answers.began == 2


async def test_calls_that_wait_for_room_fail_with_the_connection(answers: Answers) -> None:
    async with served(answers, limits=Limits(calls_max=1)) as here:
        client = await here.connect()
        sent: list[bool] = []

        async def caller() -> None:
            with pytest.raises(Disconnected) as caught:
                await client.call(WAIT)
            sent.append(caught.value.sent)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(caller)
            await until(lambda: answers.waiting == 1)
            client.close()
        assert sorted(sent) == [False, False, True]


async def test_a_request_that_is_too_large_does_no_harm(answers: Answers) -> None:
    async with served(answers, limits=Limits(frame_bytes_max=5_000)) as here:
        client = await here.connect()
        with pytest.raises(FsError) as caught:
            await client.call(ECHO, bytes(6_000))
        assert caught.value.fault is Fault.TOO_BIG
        assert await client.call(ECHO, b"goes on") == b"goes on"


async def test_an_answer_that_is_too_large_does_no_harm(answers: Answers) -> None:
    async with served(answers) as here:
        client = await here.connect(limits=Limits(frame_bytes_max=5_000))
        with pytest.raises(FsError) as caught:
            await client.call(BIG, (6_000).to_bytes(4, "little"))
        assert caught.value.fault is Fault.TOO_BIG
        assert await client.call(ECHO, b"goes on") == b"goes on"


# --- connecting ---


async def test_nobody_is_there(nursery: trio.Nursery) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    with pytest.raises(Disconnected, match=f"127.0.0.1:{port}: ") as caught:
        await connect(nursery, ("127.0.0.1", port), CLIENT)
    assert not caught.value.sent


async def test_somebody_is_there_and_says_nothing(nursery: trio.Nursery) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        with pytest.raises(Disconnected, match=r"no answer within 0\.05 s"):
            await connect(nursery, ("127.0.0.1", port), CLIENT, limits=Limits(connect_ms=50))


async def test_a_web_server_is_there(nursery: trio.Nursery) -> None:
    async def web(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    nursery.start_soon(trio.serve_listeners, web, listeners)
    with pytest.raises(FsError, match="the peer is an HTTP server, not mountfs"):
        await connect(nursery, ("127.0.0.1", port), CLIENT)
