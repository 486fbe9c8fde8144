"""The side that listens: strangers, bad peers, bounds, draining."""

import contextlib
import logging
import random
import socket
from pathlib import Path

import msgspec
import pytest
import trio

from mountfs.errors import Fault, FsError
from mountfs.types import MIB
from mountfs.wire.config import Limits
from mountfs.wire.connection import Disconnected
from mountfs.wire.frames import HEADER, Kind, decode_fault, encode, encode_ask
from mountfs.wire.service import Peer, Service, listen_unix
from mountfs.wire.stream import connect
from tests.wire.conftest import (
    BIG,
    CLIENT,
    ECHO,
    END_S,
    QUICK,
    SERVER,
    SLOW_BIG,
    WAIT,
    Answers,
    read_all,
    read_frame,
    served,
    until,
)

HELLO = b"".join(
    encode(
        Kind.HELLO,
        0,
        msgspec.structs.replace(
            CLIENT, frame_bytes_max=MIB, calls_max=10, calls_bytes_max=MIB
        ).encode(),
    )
)


# --- strangers ---


async def test_http_gets_an_answer_in_http(answers: Answers) -> None:
    async with served(answers) as here, await here.raw() as stream:
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n")
        answer = await read_all(stream)
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"This port speaks the mountfs protocol, not HTTP." in answer


@pytest.mark.parametrize(
    ("said", "fault", "says"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", Fault.DENIED, "speaks TLS, and TLS is off"),
        (b"SSH-2.0-OpenSSH\r\n", Fault.UNSUPPORTED, "does not speak the mountfs protocol"),
        (bytes(64), Fault.UNSUPPORTED, "does not speak the mountfs protocol"),
        (HELLO.replace(b"mountfs\n", b"another\n"), Fault.UNSUPPORTED, "does not speak"),
        (HEADER.pack(5, Kind.HELLO, 0) + b"short", Fault.DEVICE, "hello is damaged"),
        (HELLO * 2, Fault.DEVICE, "says hello twice"),
    ],
)
async def test_a_stranger_is_told_why_and_cut_off(
    answers: Answers, said: bytes, fault: Fault, says: str
) -> None:
    async with served(answers, limits=QUICK) as here, await here.raw() as stream:
        await stream.send_all(said)
        kind, number, body = await read_frame(stream)
        assert (kind, number) == (Kind.FAULT, 0)
        error = decode_fault(body)
        assert says in error.detail
        assert error.fault is fault
        assert await read_all(stream) == b""
        assert await (await here.connect()).call(ECHO, b"others") == b"others"


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (HEADER.pack(1 << 31, Kind.CALL, 1), "announces 2147483648 bytes"),
        (b"".join(encode(Kind.REPLY, 1)), "REPLY, which is not its to send"),
    ],
)
async def test_a_client_that_breaks_the_rules_is_told_why_and_cut_off(
    answers: Answers, said: bytes, says: str
) -> None:
    async with served(answers, limits=QUICK) as here, await here.raw() as stream:
        await stream.send_all(HELLO)
        assert (await read_frame(stream))[0] == Kind.HELLO
        await stream.send_all(said)
        kind, number, body = await read_frame(stream)
        assert (kind, number) == (Kind.FAULT, 0)
        assert says in decode_fault(body).detail
        assert await read_all(stream) == b""
        assert await (await here.connect()).call(ECHO, b"others") == b"others"


async def test_a_silent_stranger_is_cut_off(answers: Answers) -> None:
    async with served(answers, limits=QUICK) as here, await here.raw() as stream:
        await stream.send_all(HELLO[:10])
        _, _, body = await read_frame(stream)
        assert decode_fault(body).detail == "no hello within 0.2 s"
        assert await read_all(stream) == b""


@pytest.mark.parametrize(
    ("hello", "says"),
    [
        ({"cluster": b"x" * 16}, "another cluster: node 1 belongs to"),
        ({"role": "chunk"}, "another service: node 1 serves 'meta'"),
        ({"version_min": 7, "version_max": 8}, "no common protocol: node 1 speaks version 1"),
    ],
)
async def test_a_client_that_does_not_fit_gets_the_sentence(
    answers: Answers, hello: dict[str, object], says: str
) -> None:
    async with served(answers) as here:
        with pytest.raises(FsError, match=f"127.0.0.1:{here.port}: {says}"):
            await here.connect(msgspec.structs.replace(CLIENT, **hello))
        assert not here.service.peers


async def test_a_client_that_is_not_admitted_gets_the_sentence(answers: Answers) -> None:
    def admit(peer: Peer) -> None:
        raise FsError(Fault.DENIED, f"{peer.peer.name} was removed from the cluster")

    async with served(answers, admit=admit) as here:
        with pytest.raises(FsError, match="mount 7 was removed from the cluster") as caught:
            await here.connect()
        assert caught.value.fault is Fault.DENIED


async def test_the_handler_can_keep_what_it_knows_of_a_client(answers: Answers) -> None:
    def admit(peer: Peer) -> None:
        peer.state = peer.peer.name

    async with served(answers, admit=admit) as here:
        await here.connect()
        await until(lambda: len(here.service.peers) == 1)
        assert here.peer.state == "mount 7"


# --- bounds ---


async def test_one_client_too_many_is_turned_away(answers: Answers) -> None:
    async with served(answers, limits=Limits(connections_max=2)) as here:
        first = await here.connect()
        await here.connect()
        with pytest.raises(FsError, match="node 1 has 2 connections") as caught:
            await here.connect()
        assert caught.value.fault is Fault.BUSY
        first.close()
        await until(lambda: len(here.service.peers) == 1)
        assert await (await here.connect()).call(ECHO, b"x") == b"x"


async def test_a_client_that_reads_nothing_is_cut_off(answers: Answers) -> None:
    limits = Limits(stall_ms=150, out_bytes_max=MIB)
    async with served(answers, limits=limits) as here, await here.raw() as stream:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        await stream.send_all(HELLO)
        calls = b"".join(
            b"".join(encode_ask(Kind.CALL, number, ECHO, bytes(50_000))) for number in range(1, 200)
        )
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(calls)
        await until(lambda: not here.service.peers)
        # Once its answers waited, its requests were not read any more.
        assert answers.began < 150


@pytest.mark.parametrize("method", [BIG, SLOW_BIG])
async def test_what_waits_for_a_slow_reader_is_bounded(answers: Answers, method: int) -> None:
    """Answers that were made in tasks wait there."""
    limits = Limits(out_bytes_max=MIB)
    async with served(answers, limits=limits) as here:
        client = await here.connect()
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, here.peer._core.out_bytes)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            async with trio.open_nursery() as callers:
                for _ in range(50):
                    callers.start_soon(client.call, method, (MIB).to_bytes(4, "little"))
            nursery.cancel_scope.cancel()
        assert MIB < most < 4 * MIB


# --- draining ---


async def test_draining_answers_what_is_under_way_and_says_where_to_go(answers: Answers) -> None:
    async with served(answers) as here, trio.open_nursery() as nursery:
        client = await here.connect()
        idle = await here.connect()
        nursery.start_soon(client.call, WAIT)
        await until(lambda: answers.waiting == 1)
        drained = trio.Event()

        async def drain() -> None:
            await here.service.drain("restart of node 1", "node 2")
            drained.set()

        nursery.start_soon(drain)
        await idle.closed.wait()
        await until(lambda: client.leaving is not None)
        assert client.leaving is not None
        assert (client.leaving.reason, client.leaving.where) == ("restart of node 1", "node 2")
        with pytest.raises(Disconnected, match="takes no new calls") as caught:
            await client.call(ECHO)
        assert not caught.value.sent
        with pytest.raises(Disconnected):
            await here.connect()
        assert not drained.is_set()
        answers.go.set()
        await drained.wait()
        await client.closed.wait()


async def test_no_call_is_lost_while_a_service_drains(answers: Answers) -> None:
    """Each is answered, or known not to have been sent."""
    async with served(answers) as here:
        client = await here.connect()
        answered = refused = 0

        async def caller() -> None:
            nonlocal answered, refused
            try:
                while True:
                    await client.call(ECHO, b"x")
                    answered += 1
            except Disconnected as error:
                assert not error.sent
                refused += 1

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(caller)
            await until(lambda: answered > 200)
            await here.service.drain("restart")
        assert refused == 20
        assert answers.began == answered


# --- Unix sockets ---


async def test_a_unix_socket(answers: Answers, tmp_path: Path, nursery: trio.Nursery) -> None:
    path = str(tmp_path / "socket")
    service = Service(answers, SERVER)
    nursery.start_soon(service.serve, [listen_unix(path)])
    client = await connect(nursery, path, CLIENT)
    assert await client.call(ECHO, b"near") == b"near"
    with pytest.raises(FsError, match="cannot listen at") as caught:
        listen_unix(path)
    assert caught.value.fault is Fault.BUSY
    assert (await trio.Path(path).stat()).st_mode & 0o777 == 0o600


async def test_a_socket_that_nobody_holds_any_more_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    await listen_unix(path).aclose()


async def test_a_file_is_not_taken_for_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("keep")
    with pytest.raises(FsError):
        listen_unix(path)
    assert path.read_text() == "keep"


# --- anything at all ---


def nonsense(rng: random.Random) -> bytes:
    """Frames of any kind, and now and then bytes of no kind."""
    parts = []
    for _ in range(rng.randrange(1, 12)):
        body = rng.randbytes(rng.choice((0, 1, 3, 20, 3_000, 70_000)))
        kind = rng.choice((*Kind, Kind.CALL, Kind.CALL, 0, 200))
        number = rng.choice((0, 1, 2, rng.randrange(100), (1 << 64) - 1))
        match rng.randrange(10):
            case 0:
                parts.append(rng.randbytes(rng.randrange(40)))
            case 1:
                parts.append(HEADER.pack(rng.randrange(1 << 32), kind, number))
            case 2 | 3 | 4:
                parts += encode_ask(Kind.CALL, number, rng.randrange(1, 10), body)
            case _:
                parts += encode(kind, number, body)
    return b"".join(parts)


@pytest.mark.parametrize("seed", range(40))
async def test_nonsense_neither_ends_the_service_nor_leaves_anything(
    answers: Answers, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    rng = random.Random(seed)
    async with served(answers, limits=Limits(hello_ms=300, linger_ms=200)) as here:
        bystander = await here.connect()
        await bystander.call(ECHO)  # its tasks have begun
        tasks = trio.lowlevel.current_statistics().tasks_living

        async def stranger(said: bytes) -> None:
            async with await here.raw() as stream:
                with contextlib.suppress(trio.BrokenResourceError):
                    while said:
                        size = rng.randrange(1, len(said) + 1)
                        await stream.send_all(said[:size])
                        said = said[size:]
                    if rng.randrange(2):
                        await stream.send_eof()

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                hello = HELLO if rng.randrange(4) else b""
                nursery.start_soon(stranger, hello + nonsense(rng))
        assert await bystander.call(ECHO, b"well") == b"well"
        with trio.fail_after(END_S / 2):
            await until(lambda: trio.lowlevel.current_statistics().tasks_living == tasks)
        assert here.service.peers == {here.peer}
        assert here.service._connections == 1
    assert "internal" not in caplog.text
    assert all("bug in answering" in record.message for record in caplog.records)
