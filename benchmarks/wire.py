"""What a call costs: `python -m benchmarks.wire`.

One server process and one client process on loopback.  Beside it, in the same run, a bare echo
over a Trio socket, which frames nothing, matches nothing and cannot be cancelled; and the same
calls over `rpc/`, which is gRPC, without TLS.
"""

import argparse
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import trio

from mountfs.inline import leave
from mountfs.rpc import client as rpc_client
from mountfs.rpc import config as rpc_config
from mountfs.rpc import server as rpc_server
from mountfs.types import MIB
from mountfs.wire.connection import Body
from mountfs.wire.frames import Hello, Parts
from mountfs.wire.service import Peer, Service
from mountfs.wire.stream import Client, connect

HELLO: Final = Hello(cluster=bytes(16), role="benchmark", name="benchmark")
BODY: Final = bytes(100)
BLOCK: Final = bytes(4 * MIB)
CALLERS: Final = 64
CPU, ECHO, ECHO_IN_TASK, TAKE, GIVE, RPC_ADDRESS = range(6)
RPC: Final = "benchmark"
"""The service, and the cluster."""
RPC_CONFIG: Final = rpc_config.Config(calls_max=2 * CALLERS)
RPC_DEADLINE_S: Final = 60.0
Call = Callable[[], Awaitable[object]]


class Row(NamedTuple):
    name: str
    calls_per_s: float
    client_us: float
    server_us: float


async def serve(sockets: list[socket.socket], pem: str) -> None:
    plain, sealed, bare = sockets

    async def answer(peer: Peer, method: int, body: Body) -> Parts:
        if method == CPU:
            return str(time.process_time()).encode()
        if method == ECHO_IN_TASK:
            await leave()
            return body
        if method == TAKE:
            return b""
        if method == RPC_ADDRESS:
            return rpc.address.encode()
        return BLOCK if method == GIVE else body

    async with (
        rpc_server.open_server("127.0.0.1:0", RPC, config=RPC_CONFIG) as rpc,
        trio.open_nursery() as nursery,
    ):
        rpc.register(RPC, "Echo", _echo_call)
        rpc.register_sink(RPC, "Take", _take_pieces)
        rpc.register_source(RPC, "Give", _give_pieces)
        nursery.start_soon(Service(answer, HELLO).serve, [_listener(plain)])
        if pem:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pem)
            service = Service(answer, HELLO, ssl_context=lambda: context)
            nursery.start_soon(service.serve, [_listener(sealed)])
        await trio.serve_listeners(_echo, [_listener(bare)])


def _listener(sock: socket.socket) -> trio.SocketListener:
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


async def _echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def _echo_call(body: bytes, call: rpc_server.Call) -> bytes:
    return body


async def _take_pieces(pieces: AsyncIterator[bytes], call: rpc_server.Call) -> bytes:
    return b"%d" % sum([len(piece) async for piece in pieces])


def _give_pieces(body: bytes, call: rpc_server.Call) -> AsyncGenerator[bytes, None]:
    return _pieces()


async def _pieces() -> AsyncGenerator[bytes, None]:
    for start in range(0, len(BLOCK), MIB):
        yield BLOCK[start : start + MIB]


class Meter:
    def __init__(self, control: Client, seconds: float) -> None:
        self._control = control
        self._seconds = seconds

    async def _server_cpu_s(self) -> float:
        return float(bytes(await self._control.call(CPU)))

    async def row(self, name: str, *calls: Call) -> Row:
        """Make each of `calls` again and again, all at the same time."""
        for call in calls:
            await call()
        made = 0

        async def caller(call: Call, end: float) -> None:
            nonlocal made
            while time.perf_counter() < end:
                await call()
                made += 1

        server_s, client_s = await self._server_cpu_s(), time.process_time()
        begun = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for call in calls:
                nursery.start_soon(caller, call, begun + self._seconds)
        took, client_s = time.perf_counter() - begun, time.process_time() - client_s
        server_s = await self._server_cpu_s() - server_s
        return Row(name, made / took, client_s / made * 1e6, server_s / made * 1e6)


async def measure(ports: list[int], pem: str, seconds: float) -> list[Row]:
    async with trio.open_nursery() as nursery:
        control = await connect(nursery, ("127.0.0.1", ports[0]), HELLO)
        meter = Meter(control, seconds)
        rows = await _bare(meter, ports[2])
        async with rpc_client.open_client(RPC) as rpc:
            rows += await _rpc(meter, rpc, bytes(await control.call(RPC_ADDRESS)).decode())
        rows += await _wire(meter, control, "")
        if pem:
            context = ssl.create_default_context(cafile=pem)
            sealed = await connect(
                nursery,
                ("127.0.0.1", ports[1]),
                HELLO,
                ssl_context=context,
                server_hostname="127.0.0.1",
            )
            rows += await _wire(meter, sealed, ", TLS")
        nursery.cancel_scope.cancel()
    return rows


async def _bare(meter: Meter, port: int) -> list[Row]:
    streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(CALLERS)]

    def echo_over(stream: trio.SocketStream) -> Call:
        async def call() -> None:
            await stream.send_all(BODY)
            await stream.receive_some(1_000)

        return call

    rows = [
        await meter.row("bare echo, 1 caller", echo_over(streams[0])),
        await meter.row(f"bare echo, {CALLERS} callers and sockets", *map(echo_over, streams)),
    ]
    for stream in streams:
        await stream.aclose()
    return rows


async def _wire(meter: Meter, client: Client, how: str) -> list[Row]:
    def echo() -> Awaitable[object]:
        return client.call(ECHO, BODY)

    def echo_in_task() -> Awaitable[object]:
        return client.call(ECHO_IN_TASK, BODY)

    return [
        await meter.row(f"call, 1 caller{how}", echo),
        await meter.row(f"call, {CALLERS} callers{how}", *[echo] * CALLERS),
        await meter.row(f"call that waits, 1 caller{how}", echo_in_task),
        await meter.row(f"call that waits, {CALLERS} callers{how}", *[echo_in_task] * CALLERS),
        await meter.row(f"4 MiB there{how}", lambda: client.call(TAKE, BLOCK)),
        await meter.row(f"4 MiB back{how}", lambda: client.call(GIVE)),
    ]


async def _rpc(meter: Meter, client: rpc_client.Client, address: str) -> list[Row]:
    def echo() -> Awaitable[object]:
        return client.call(address, RPC, "Echo", BODY, deadline_s=RPC_DEADLINE_S)

    def there() -> Awaitable[object]:
        return client.send_stream(address, RPC, "Take", _pieces(), deadline_s=RPC_DEADLINE_S)

    async def back() -> None:
        async with client.stream(address, RPC, "Give", b"", deadline_s=RPC_DEADLINE_S) as pieces:
            async for _ in pieces:
                pass

    return [
        await meter.row("gRPC call, 1 caller", echo),
        await meter.row(f"gRPC call, {CALLERS} callers", *[echo] * CALLERS),
        await meter.row("gRPC, 4 MiB there in pieces of 1 MiB", there),
        await meter.row("gRPC, 4 MiB back in pieces of 1 MiB", back),
    ]


@contextmanager
def certificate() -> Iterator[str]:
    """A file with a certificate for this address; "" without openssl(1)."""
    if shutil.which("openssl") is None:
        yield ""
        return
    with tempfile.TemporaryDirectory() as directory:
        pem = Path(directory) / "both.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-days", "1", "-subj", "/CN=benchmark",
             "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", pem, "-out", f"{pem}.crt"],
            check=True, capture_output=True,
        )  # fmt: skip
        with pem.open("ab") as file:
            file.write(Path(f"{pem}.crt").read_bytes())
        yield str(pem)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wire", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row")
    seconds = parser.parse_args().seconds
    with certificate() as pem:
        sockets = [socket.create_server(("127.0.0.1", 0), backlog=CALLERS) for _ in range(3)]
        ports = [sock.getsockname()[1] for sock in sockets]
        sys.stdout.flush()  # else both processes would print what waits
        server = os.fork()
        if not server:
            try:
                trio.run(serve, sockets, pem)
            finally:
                os._exit(1)
        try:
            for sock in sockets:
                sock.close()
            rows = trio.run(measure, ports, pem, seconds)
        finally:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)
    print("| what | calls/s | µs a call | client CPU µs | server CPU µs |")
    print("|---|--:|--:|--:|--:|")
    for row in rows:
        print(
            f"| {row.name} | {row.calls_per_s:,.0f} | {1e6 / row.calls_per_s:,.1f} "
            f"| {row.client_us:,.1f} | {row.server_us:,.1f} |"
        )


if __name__ == "__main__":
    main()
