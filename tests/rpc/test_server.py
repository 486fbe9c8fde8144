"""Calls to a server of ours, and what happens to them when something goes wrong."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

import grpc
import pytest
import trio
from rpc_rig import ADMIN, ANYWHERE, CLUSTER, CONFIG, smaller

from mountfs.errors import Fault, FsError
from mountfs.rpc.client import Client, open_client
from mountfs.rpc.health import Serving
from mountfs.rpc.server import Call, Server, open_server


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with open_server(ANYWHERE, CLUSTER) as server:
        yield server


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with open_client(CLUSTER) as client:
        yield client


async def ask(client: Client, server: Server, method: str, body: bytes = b"", **how) -> bytes:
    with trio.fail_after(10):
        return await client.call(server.address, ADMIN, method, body, **{"deadline_s": 5, **how})


async def echo(body: bytes, call: Call) -> bytes:
    return body


async def test_a_call_is_answered(server, client):
    server.register(ADMIN, "Echo", echo)
    assert await ask(client, server, "Echo", b"hello") == b"hello"
    assert await ask(client, server, "Echo", b"") == b""


@pytest.mark.parametrize(
    "size", [1, CONFIG.window_bytes, CONFIG.message_bytes_max - 1, CONFIG.message_bytes_max]
)
async def test_bodies_of_any_size_up_to_the_limit_pass_both_ways(server, client, size):
    server.register(ADMIN, "Echo", echo)
    body = bytes(size)
    assert await ask(client, server, "Echo", body) == body


async def test_calls_side_by_side_get_each_their_own_answer(server, client):
    server.register(ADMIN, "Echo", echo)
    answers = {}

    async def one(number: int) -> None:
        answers[number] = await ask(client, server, "Echo", b"%d" % number)

    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(one, number)
    assert answers == {number: b"%d" % number for number in range(30)}


async def test_without_tls_a_handler_knows_nobody(server, client):
    async def show(body: bytes, call: Call) -> bytes:
        return repr(call.identity).encode()

    server.register(ADMIN, "Show", show)
    assert await ask(client, server, "Show") == b"None"


@pytest.mark.parametrize("fault", Fault)
async def test_every_fault_reaches_the_caller_as_it_was(server, client, fault):
    async def fail(body: bytes, call: Call) -> bytes:
        raise FsError(fault, "naïve \udcff sentence")

    server.register(ADMIN, "Fail", fail)
    with pytest.raises(FsError) as caught:
        await ask(client, server, "Fail")
    assert (caught.value.fault, caught.value.detail) == (fault, "naïve \udcff sentence")


async def test_a_long_sentence_is_cut_and_not_lost(server, client):
    async def fail(body: bytes, call: Call) -> bytes:
        raise FsError(Fault.BUSY, "𐍈" * 5_000)

    server.register(ADMIN, "Fail", fail)
    with pytest.raises(FsError) as caught:
        await ask(client, server, "Fail")
    assert caught.value.fault is Fault.BUSY
    assert set(caught.value.detail) == {"𐍈"}


async def test_a_bug_in_a_handler_ends_the_server_and_the_caller_hears_of_it(client):
    async def fail(body: bytes, call: Call) -> bytes:
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError):
        async with open_server(ANYWHERE, CLUSTER) as server:
            server.register(ADMIN, "Fail", fail)
            with trio.CancelScope(shield=True), pytest.raises(FsError) as caught:
                await ask(client, server, "Fail")
            await trio.sleep(5)
    assert caught.value.fault in (Fault.DEVICE, Fault.NOT_LEADER)


async def test_an_unknown_method_is_unsupported(server, client):
    with pytest.raises(FsError) as caught:
        await ask(client, server, "Nothing")
    assert caught.value.fault is Fault.UNSUPPORTED


async def test_nobody_there_is_said_at_once(client):
    started = trio.current_time()
    with pytest.raises(FsError) as caught:
        await client.call("127.0.0.1:1", ADMIN, "Echo", b"", deadline_s=5)
    assert caught.value.fault is Fault.NOT_LEADER
    assert "127.0.0.1:1" in caught.value.detail
    assert trio.current_time() - started < 2


async def test_a_server_that_comes_back_is_found_again(client):
    async with open_server(ANYWHERE, CLUSTER) as server:
        server.register(ADMIN, "Echo", echo)
        assert await ask(client, server, "Echo", b"1") == b"1"
        address = server.address
    with pytest.raises(FsError):
        await ask(client, server, "Echo", b"2")
    async with open_server(address, CLUSTER) as server:
        server.register(ADMIN, "Echo", echo)
        with trio.fail_after(2):
            while True:
                try:
                    assert await ask(client, server, "Echo", b"3") == b"3"
                    break
                except FsError as error:
                    assert error.fault is Fault.NOT_LEADER
                    await trio.sleep(0.01)


async def test_the_deadline_ends_the_call_on_both_sides(server, client):
    ended = trio.Event()

    async def wait(body: bytes, call: Call) -> bytes:
        try:
            await trio.sleep(60)
        finally:
            ended.set()
        return b""

    server.register(ADMIN, "Wait", wait)
    with pytest.raises(FsError) as caught:
        await ask(client, server, "Wait", deadline_s=0.2)
    assert caught.value.fault is Fault.TIMED_OUT
    assert "0.2 s" in caught.value.detail
    with trio.fail_after(2):
        await ended.wait()


async def test_a_cancelled_caller_cancels_the_handler(server, client):
    begun, ended = trio.Event(), trio.Event()

    async def wait(body: bytes, call: Call) -> bytes:
        begun.set()
        try:
            await trio.sleep(60)
        finally:
            ended.set()
        return b""

    server.register(ADMIN, "Wait", wait)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, client, server, "Wait")
        with trio.fail_after(2):
            await begun.wait()
        nursery.cancel_scope.cancel()
    with trio.fail_after(2):
        await ended.wait()


async def test_a_request_that_is_too_large_is_refused_and_the_next_one_is_not(server, client):
    server.register(ADMIN, "Echo", echo)
    with pytest.raises(FsError) as caught:
        await ask(client, server, "Echo", bytes(CONFIG.message_bytes_max + 1))
    assert caught.value.fault is Fault.TOO_BIG
    assert await ask(client, server, "Echo", b"x") == b"x"


async def test_a_server_refuses_what_a_client_with_other_limits_sends(client):
    config = smaller(message_bytes_max=100_000, piece_bytes_max=100_000)
    async with open_server(ANYWHERE, CLUSTER, config=config) as server:
        server.register(ADMIN, "Echo", echo)
        with pytest.raises(FsError) as caught:
            await ask(client, server, "Echo", bytes(300_000))
        assert caught.value.fault is Fault.BUSY
        assert await ask(client, server, "Echo", b"x") == b"x"


async def test_an_answer_that_is_too_large_is_an_error_of_the_call_alone(server, client):
    async def much(body: bytes, call: Call) -> bytes:
        return bytes(CONFIG.message_bytes_max + 1)

    server.register(ADMIN, "Much", much)
    with pytest.raises(FsError) as caught:
        await ask(client, server, "Much")
    assert caught.value.fault is Fault.TOO_BIG


async def test_too_many_calls_at_once_are_refused(client):
    free = trio.Event()

    async def wait(body: bytes, call: Call) -> bytes:
        await free.wait()
        return b""

    async with open_server(ANYWHERE, CLUSTER, config=smaller(calls_max=3)) as server:
        server.register(ADMIN, "Wait", wait)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask, client, server, "Wait")
            await trio.sleep(0.2)
            with pytest.raises(FsError, match="too many calls") as caught:
                await ask(client, server, "Wait")
            assert caught.value.fault is Fault.BUSY
            free.set()
        assert await ask(client, server, "Wait") == b""  # there is room again


async def test_closing_does_not_wait_for_calls(client):
    async def wait(body: bytes, call: Call) -> bytes:
        await trio.sleep(60)
        return b""

    outcome = []

    async def one(server: Server) -> None:
        with pytest.raises(FsError) as caught:
            await ask(client, server, "Wait", deadline_s=30)
        outcome.append(caught.value.fault)

    async with trio.open_nursery() as nursery:
        async with open_server(ANYWHERE, CLUSTER) as server:
            server.register(ADMIN, "Wait", wait)
            nursery.start_soon(one, server)
            await trio.sleep(0.2)
            started = trio.current_time()
        assert trio.current_time() - started < 1
    assert outcome and outcome[0] in (Fault.NOT_LEADER, Fault.INTERRUPTED)


async def test_an_address_in_use_is_said():
    async with open_server(ANYWHERE, CLUSTER) as server:
        with pytest.raises(FsError, match=f"cannot listen at {server.address}"):
            async with open_server(server.address, CLUSTER):
                pass


# -- streams of pieces


async def numbers(count: int, size: int = 1) -> AsyncIterator[bytes]:
    for number in range(count):
        yield bytes([number % 256]) * size


async def test_a_handler_answers_with_pieces(server, client):
    async def count(body: bytes, call: Call):
        for number in range(int(body)):
            yield b"%d" % number

    server.register_source(ADMIN, "Count", count)
    with trio.fail_after(10):
        async with client.stream(server.address, ADMIN, "Count", b"20", deadline_s=5) as pieces:
            assert [piece async for piece in pieces] == [b"%d" % n for n in range(20)]
        async with client.stream(server.address, ADMIN, "Count", b"0", deadline_s=5) as pieces:
            assert [piece async for piece in pieces] == []


async def test_a_handler_that_fails_in_the_middle_is_heard_after_its_pieces(server, client):
    async def fail(body: bytes, call: Call):
        yield b"1"
        raise FsError(Fault.CORRUPT, "torn")

    server.register_source(ADMIN, "Fail", fail)
    got = []
    with trio.fail_after(10), pytest.raises(FsError, match="torn") as caught:
        async with client.stream(server.address, ADMIN, "Fail", b"", deadline_s=5) as pieces:
            async for piece in pieces:
                got.append(piece)
    assert caught.value.fault is Fault.CORRUPT
    assert got == [b"1"]


async def test_a_reader_that_stops_holds_the_handler_and_ends_it_when_it_leaves(server, client):
    given = 0
    ended = trio.Event()

    async def give(body: bytes, call: Call):
        nonlocal given
        try:
            while True:
                yield bytes(1 << 20)
                given += 1
        finally:
            ended.set()

    server.register_source(ADMIN, "Give", give)
    with trio.fail_after(20):
        async with client.stream(server.address, ADMIN, "Give", b"", deadline_s=15) as pieces:
            assert len(await anext(pieces)) == 1 << 20
            await trio.sleep(0.5)
            before = given
            await trio.sleep(0.5)
            assert given == before < 40
        await ended.wait()


async def test_pieces_are_sent_and_answered(server, client):
    async def total(pieces: AsyncIterator[bytes], call: Call) -> bytes:
        return b"%d" % sum([len(piece) async for piece in pieces])

    server.register_sink(ADMIN, "Total", total)
    with trio.fail_after(10):
        answer = await client.send_stream(
            server.address, ADMIN, "Total", numbers(30, 1 << 20), deadline_s=9
        )
    assert answer == b"%d" % (30 << 20)


async def test_a_handler_that_stops_reading_holds_the_sender(server, client):
    sent = 0
    free = trio.Event()

    async def wait(pieces: AsyncIterator[bytes], call: Call) -> bytes:
        first = await anext(pieces)
        await free.wait()
        return b"%d" % (len(first) + sum([len(piece) async for piece in pieces]))

    async def give() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            yield bytes(1 << 20)
            sent += 1

    answers = []

    async def send() -> None:
        answers.append(
            await client.send_stream(server.address, ADMIN, "Wait", give(), deadline_s=20)
        )

    server.register_sink(ADMIN, "Wait", wait)
    with trio.fail_after(25):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.sleep(0.5)
            before = sent
            await trio.sleep(0.5)
            assert sent == before < 40
            free.set()
    assert answers == [b"%d" % (100 << 20)]


async def test_an_answer_before_the_end_ends_the_sending(server, client):
    async def refuse(pieces: AsyncIterator[bytes], call: Call) -> bytes:
        await anext(pieces)
        raise FsError(Fault.NO_SPACE, "full")

    async def forever() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1000)
            await trio.sleep(0.01)

    server.register_sink(ADMIN, "Refuse", refuse)
    with trio.fail_after(5), pytest.raises(FsError, match="full") as caught:
        await client.send_stream(server.address, ADMIN, "Refuse", forever(), deadline_s=20)
    assert caught.value.fault is Fault.NO_SPACE


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_a_sender_that_stops_is_no_end_for_the_receiver(server, client, how):
    outcome = []
    ended = trio.Event()

    async def take(pieces: AsyncIterator[bytes], call: Call) -> bytes:
        try:
            outcome.append([piece async for piece in pieces])
        finally:
            ended.set()
        return b""

    async def broken() -> AsyncIterator[bytes]:
        yield b"1"
        await trio.sleep(0.05)
        if how == "fails":
            raise FsError(Fault.CORRUPT, "bad disk")
        await trio.sleep(60)

    server.register_sink(ADMIN, "Take", take)
    with trio.fail_after(10):
        with trio.move_on_after(0.3):
            with pytest.raises(FsError, match="bad disk"):
                await client.send_stream(server.address, ADMIN, "Take", broken(), deadline_s=20)
        await ended.wait()
    assert outcome == []


async def mebibytes() -> AsyncGenerator[bytes, None]:
    while True:
        yield bytes(1 << 20)


async def hold(client: Client, server: Server) -> None:
    """A stream to `Hold` that has no end of its own."""
    async with contextlib.aclosing(mebibytes()) as pieces:
        await client.send_stream(server.address, ADMIN, "Hold", pieces, deadline_s=60)


async def test_too_many_streams_at_once_are_refused(client):
    """Each holds two threads, and there is still one to say so."""
    places = 3
    taken, free = [], trio.Event()

    async def take_one(pieces: AsyncIterator[bytes], call: Call) -> bytes:
        taken.append(await anext(pieces))
        await free.wait()
        return b""

    async with open_server(ANYWHERE, CLUSTER, config=smaller(calls_max=places)) as server:
        server.register(ADMIN, "Echo", echo)
        server.register_sink(ADMIN, "Hold", take_one)
        async with trio.open_nursery() as nursery:
            for _ in range(places):
                nursery.start_soon(hold, client, server)
            with trio.fail_after(10):
                while len(taken) < places:  # noqa: ASYNC110  nobody tells us
                    await trio.sleep(0.01)
            for _ in range(2 * places):
                with pytest.raises(FsError, match="too many calls") as caught:
                    await ask(client, server, "Echo")
                assert caught.value.fault is Fault.BUSY
            free.set()


async def test_closing_does_not_wait_for_streams_of_which_much_is_left(client):
    async def take_one(pieces: AsyncIterator[bytes], call: Call) -> bytes:
        await anext(pieces)
        begun.set()
        await trio.sleep_forever()
        return b""

    async def send(server: Server) -> None:
        with pytest.raises(FsError) as caught:
            await hold(client, server)
        outcome.append(caught.value.fault)

    async def receive(server: Server) -> None:
        with pytest.raises(FsError) as caught:
            async with client.stream(server.address, ADMIN, "Give", b"", deadline_s=60) as pieces:
                await anext(pieces)
                await closed.wait()
                async for _ in pieces:
                    pass
        outcome.append(caught.value.fault)

    begun, closed, outcome = trio.Event(), trio.Event(), []
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            async with open_server(ANYWHERE, CLUSTER) as server:
                server.register_sink(ADMIN, "Hold", take_one)
                server.register_source(ADMIN, "Give", lambda body, call: mebibytes())
                nursery.start_soon(send, server)
                nursery.start_soon(receive, server)
                await begun.wait()
                await trio.sleep(0.2)
            closed.set()
    assert len(outcome) == 2
    assert set(outcome) <= {Fault.NOT_LEADER, Fault.INTERRUPTED}


async def test_the_deadline_of_a_stream_that_nobody_feeds(server, client):
    async def take(pieces: AsyncIterator[bytes], call: Call) -> bytes:
        return b"%d" % len([piece async for piece in pieces])

    async def stuck() -> AsyncIterator[bytes]:
        await trio.sleep(60)
        yield b""

    server.register_sink(ADMIN, "Take", take)
    with trio.fail_after(5), pytest.raises(FsError) as caught:
        await client.send_stream(server.address, ADMIN, "Take", stuck(), deadline_s=0.2)
    assert caught.value.fault is Fault.TIMED_OUT


# -- for outside tools


async def check_health(server: Server, body: bytes) -> tuple[grpc.StatusCode, bytes]:
    """As any gRPC client asks."""

    def ask() -> tuple[grpc.StatusCode, bytes]:
        with grpc.insecure_channel(server.address) as channel:
            try:
                check = channel.unary_unary("/grpc.health.v1.Health/Check")
                return grpc.StatusCode.OK, check(body, timeout=5)
            except grpc.RpcError as error:
                return error.code(), b""

    return await trio.to_thread.run_sync(ask)


async def test_health_is_answered_as_the_standard_says(server):
    server.register(ADMIN, "Echo", echo)
    assert await check_health(server, b"") == (grpc.StatusCode.OK, b"\x08\x01")
    assert await check_health(server, b"\x0a\x0dmountfs.Admin") == (grpc.StatusCode.OK, b"\x08\x01")
    server.serving = Serving.NOT_SERVING
    assert await check_health(server, b"") == (grpc.StatusCode.OK, b"\x08\x02")
    assert (await check_health(server, b"\x0a\x03xyz"))[0] is grpc.StatusCode.NOT_FOUND
    assert (await check_health(server, b"\x0a\x05x"))[0] is grpc.StatusCode.INVALID_ARGUMENT
