"""A service on loopback, clients of it, and bytes by hand."""

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio

from mountfs.errors import Fault, FsError
from mountfs.inline import leave
from mountfs.wire.config import Limits
from mountfs.wire.connection import Body
from mountfs.wire.frames import HEADER, Hello, Parts
from mountfs.wire.service import Peer, Service
from mountfs.wire.stream import Client, Handler, connect

CLUSTER = bytes(range(16))
SERVER = Hello(cluster=CLUSTER, role="meta", name="node 1")
CLIENT = Hello(cluster=CLUSTER, role="meta", name="mount 7")
QUICK = Limits(hello_ms=200, connect_ms=5_000, linger_ms=500)
END_S = 10.0
"""Nothing in these tests takes as long, unless it hangs."""

ECHO, WAIT, FAIL, BUG, BIG, PUSH_BACK, SLOW_ECHO, SLOW_BIG = range(1, 9)


class Answers:
    """The handler of most tests, and what it has seen."""

    def __init__(self) -> None:
        self.began = 0
        self.cancelled = 0
        self.waiting = 0
        self.go = trio.Event()

    async def __call__(self, peer: Peer, method: int, body: Body) -> Parts:
        self.began += 1
        if method == ECHO:
            return body
        if method == SLOW_ECHO:
            await leave()
            await trio.lowlevel.checkpoint()
            return body
        if method == WAIT:
            await leave()
            return await self._wait(body)
        if method == FAIL:
            raise FsError(Fault.NO_SPACE, "the disk of node 1 is full")
        if method == BUG:
            raise ZeroDivisionError
        if method in (BIG, SLOW_BIG):
            if method == SLOW_BIG:
                await leave()
                await trio.lowlevel.checkpoint()
            return bytes(int.from_bytes(body, "little"))
        if method == PUSH_BACK:
            await leave()
            return [b"you said ", await peer.push(9, body)]
        raise FsError(Fault.NOT_IMPLEMENTED, f"method {method}")

    async def _wait(self, body: Body) -> Body:
        self.waiting += 1
        try:
            await self.go.wait()
            return body
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            self.waiting -= 1


class Served:
    def __init__(self, service: Service, port: int, nursery: trio.Nursery) -> None:
        self.service = service
        self.port = port
        self.nursery = nursery

    async def connect(self, hello: Hello = CLIENT, **how: Any) -> Client:
        return await connect(self.nursery, ("127.0.0.1", self.port), hello, **how)

    async def raw(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    @property
    def peer(self) -> Peer:
        (peer,) = self.service.peers
        return peer


@contextlib.asynccontextmanager
async def served(
    handler: Handler,
    hello: Hello = SERVER,
    *,
    limits: Limits | None = None,
    ssl_context: Callable[[], ssl.SSLContext] | None = None,
    admit: Callable[[Peer], None] = lambda peer: None,
) -> AsyncIterator[Served]:
    """When it is over, no task is left."""
    with trio.fail_after(END_S):
        async with trio.open_nursery() as nursery:
            service = Service(handler, hello, limits=limits, ssl_context=ssl_context, admit=admit)
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listeners[0].socket.getsockname()[1]
            await nursery.start(
                lambda task_status: service.serve(listeners, task_status=task_status)
            )
            yield Served(service, port, nursery)
            nursery.cancel_scope.cancel()


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110, it is about what others have no event for
        await trio.sleep(0.001)


async def read_frame(stream: trio.SocketStream) -> tuple[int, int, bytes]:
    """Kind, number and body."""
    length, kind, number = HEADER.unpack(await read_exactly(stream, HEADER.size))
    return kind, number, await read_exactly(stream, length)


async def read_exactly(stream: trio.SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        assert more, f"the end after {data!r}"
        data += more
    return data


async def read_all(stream: trio.SocketStream) -> bytes:
    data = b""
    with contextlib.suppress(trio.BrokenResourceError):
        async for more in stream:
            data += more
    return data


@pytest.fixture
def answers() -> Answers:
    return Answers()
