"""What a message between two nodes costs: `python -m benchmarks.rpc`, from the checkout.

Two processes on this machine send messages to and fro: one at a time for latency, 16 under way for
throughput.  `peers` is what mountfs does (mountfs/rpc/peers.py); `aio` is what it might do instead,
grpc.aio in an asyncio thread; `tcp` is a plain Trio stream, to see what gRPC costs.  With --busy
both Trio loops compute half of the time, as a node under load does.

docs/decisions/2026-11-23-grpc-threads-or-asyncio.md has a run, and what was concluded.
"""

import argparse
import asyncio
import contextlib
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import trio

from mountfs.rpc.bridge import Soon
from mountfs.rpc.config import Config, options
from mountfs.rpc.peers import open_peers
from mountfs.rpc.server import open_server

import grpc  # isort: skip  after mountfs.rpc, which keeps it from writing to stderr

ROUNDS = ((200, 1, 3_000), (1_024, 16, 6_000), (65_536, 16, 2_000))
"""(bytes of a message, messages under way, messages)"""
LIMIT_S = 60
BUSY_S = 0.002
ASK_CPU = b"cpu"

Received = Callable[[list[bytes]], None]
Send = Callable[[bytes], None]


class Way:
    """One end of a connection: `address` is where it listens, `connect` finds the other end."""

    address: str
    connect: Callable[[str], AbstractAsyncContextManager[Send]]


# --- the ways -------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def peers(received: Received, number: int) -> AsyncIterator[Way]:
    way = Way()
    other = 3 - number
    async with (
        open_server("127.0.0.1:0", "bench") as server,
        open_peers(number, server, lambda _, bodies: received(bodies), lambda _: None) as between,
    ):

        @contextlib.asynccontextmanager
        async def connect(address: str) -> AsyncIterator[Send]:
            between.set_peers({other: address})
            with trio.fail_after(LIMIT_S):
                while between.problems:  # noqa: ASYNC110  nobody is told when there are none
                    await trio.sleep(0.01)
            yield lambda body: between.send(other, body)

        way.address, way.connect = server.address, connect
        yield way


@contextlib.asynccontextmanager
async def aio(received: Received, number: int) -> AsyncIterator[Way]:
    way = Way()
    soon = Soon()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    arrived: deque[bytes] = deque()
    waiting: deque[bytes] = deque()
    more = asyncio.Event()

    def drain() -> None:
        bodies = [arrived.popleft() for _ in range(len(arrived))]
        if bodies:
            received(bodies)

    async def take(requests: Any, context: Any) -> bytes:
        async for body in requests:
            arrived.append(body)
            soon(drain)
        return b""

    class Gate(grpc.GenericRpcHandler):
        def service(
            self, handler_call_details: grpc.HandlerCallDetails
        ) -> "grpc.RpcMethodHandler[bytes, bytes]":
            return grpc.stream_unary_rpc_method_handler(take)

    async def serve() -> int:
        server = grpc.aio.server(handlers=[Gate()], options=options(Config()))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        way.server = server  # type: ignore[attr-defined]  # lives as long
        return port

    async def pump(address: str) -> None:
        channel = grpc.aio.insecure_channel(address, options=options(Config()))
        call: Any = channel.stream_unary("/bench/Messages")()
        while True:
            await more.wait()
            more.clear()
            while waiting:
                await call.write(waiting.popleft())

    def on_loop(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop)

    @contextlib.asynccontextmanager
    async def connect(address: str) -> AsyncIterator[Send]:
        on_loop(pump(address))

        def send(body: bytes) -> None:
            waiting.append(body)
            loop.call_soon_threadsafe(more.set)

        yield send

    port = await trio.to_thread.run_sync(lambda: on_loop(serve()).result(LIMIT_S))
    way.address, way.connect = f"127.0.0.1:{port}", connect
    yield way
    loop.call_soon_threadsafe(loop.stop)


@contextlib.asynccontextmanager
async def tcp(received: Received, number: int) -> AsyncIterator[Way]:
    way = Way()

    async def take(stream: trio.SocketStream) -> None:
        data = bytearray()
        async for piece in stream:
            data += piece
            bodies = []
            while len(data) >= 4 and len(data) >= 4 + (size := struct.unpack_from(">I", data)[0]):
                bodies.append(bytes(data[4 : 4 + size]))
                del data[: 4 + size]
            if bodies:
                received(bodies)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, take, listeners)

        @contextlib.asynccontextmanager
        async def connect(address: str) -> AsyncIterator[Send]:
            host, port = address.split(":")
            stream = await trio.open_tcp_stream(host, int(port))
            put, get = trio.open_memory_channel[bytes](1_000)

            async def pump() -> None:
                async for body in get:
                    bodies = [body]
                    with contextlib.suppress(trio.WouldBlock):
                        while True:
                            bodies.append(get.receive_nowait())
                    await stream.send_all(
                        b"".join(struct.pack(">I", len(one)) + one for one in bodies)
                    )

            nursery.start_soon(pump)
            yield put.send_nowait

        way.address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        way.connect = connect
        yield way
        nursery.cancel_scope.cancel()


WAYS = {"peers": peers, "aio": aio, "tcp": tcp}


# --- the measurement ------------------------------------------------------------------------------


async def answer(name: str, busy: bool) -> None:
    """The other process: prints its address, reads ours, is ready, sends everything back."""
    send: Send

    def received(bodies: list[bytes]) -> None:
        for body in bodies:
            send(struct.pack(">d", time.process_time()) if body == ASK_CPU else body)

    async with WAYS[name](received, 2) as way, trio.open_nursery() as nursery:
        print(way.address, flush=True)
        address = await trio.to_thread.run_sync(sys.stdin.readline)
        async with way.connect(address.strip()) as send:
            print("ready", flush=True)
            if busy:
                nursery.start_soon(compute)
            await trio.to_thread.run_sync(sys.stdin.read)  # until we are no longer wanted
            nursery.cancel_scope.cancel()


async def compute() -> None:
    while True:
        until = time.perf_counter() + BUSY_S
        while time.perf_counter() < until:
            pass
        await trio.sleep(BUSY_S)


class Measured:
    def __init__(self) -> None:
        self.received: Received = lambda bodies: None
        self.send: Send = lambda body: None

    async def cpu_s(self) -> tuple[float, float]:
        """(here, there)"""
        came = trio.Event()
        answers: list[bytes] = []

        def received(bodies: list[bytes]) -> None:
            answers.extend(bodies)
            came.set()

        self.received = received
        self.send(ASK_CPU)
        with trio.fail_after(LIMIT_S):
            await came.wait()
        return time.process_time(), struct.unpack(">d", answers[0])[0]

    async def round(self, size: int, under_way: int, messages: int) -> str:
        body = bytes(size)
        sent: deque[float] = deque()
        took: list[float] = []
        left = messages
        over = trio.Event()

        def one() -> None:
            nonlocal left
            if left:
                left -= 1
                sent.append(time.perf_counter())
                self.send(body)

        def received(bodies: list[bytes]) -> None:
            now = time.perf_counter()
            took.extend(now - sent.popleft() for _ in bodies)
            for _ in bodies:
                one()
            if len(took) == messages:
                over.set()

        here, there = await self.cpu_s()
        self.received = received
        started = time.perf_counter()
        for _ in range(under_way):
            one()
        with trio.fail_after(LIMIT_S):
            await over.wait()
        seconds = time.perf_counter() - started
        here_after, there_after = await self.cpu_s()
        took.sort()
        return (
            f"{size:8,} {under_way:9} {1e6 * took[messages // 2]:8,.0f} "
            f"{1e6 * took[messages * 99 // 100]:8,.0f} {messages / seconds:10,.0f} "
            f"{1e6 * (here_after - here) / messages:9,.0f} "
            f"{1e6 * (there_after - there) / messages:9,.0f}"
        )


@contextlib.contextmanager
def other_process(name: str, busy: bool) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "benchmarks.rpc", "--answer", name, *["--busy"][: int(busy)]]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def measure(name: str, busy: bool) -> None:
    measured = Measured()
    with other_process(name, busy) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        async with (
            WAYS[name](lambda bodies: measured.received(bodies), 1) as way,
            trio.open_nursery() as nursery,
        ):
            process.stdin.write(f"{way.address}\n")
            process.stdin.flush()
            async with way.connect(address) as measured.send:
                await trio.to_thread.run_sync(process.stdout.readline)
                await measured.round(100, 1, 200)
                if busy:
                    nursery.start_soon(compute)
                for one in ROUNDS:
                    print(f"{name:6} {await measured.round(*one)}", flush=True)
                nursery.cancel_scope.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rpc", description=__doc__)
    parser.add_argument("ways", nargs="*", default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--busy", action="store_true", help="compute half of the time")
    parser.add_argument("--answer", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.answer:
        trio.run(answer, arguments.answer, arguments.busy)
        return
    print("way       bytes under way   p50 us   p99 us   messages/s  CPU us here, there")
    for name in arguments.ways:
        trio.run(measure, name, arguments.busy)


if __name__ == "__main__":
    main()
