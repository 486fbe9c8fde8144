"""A client of etcd that costs as little as ours: puts over HTTP/2 on a Trio socket, by hand.

grpcio would take more of the two CPUs for itself than the whole of our client does, and what the
generator takes is missing to the servers.  All puts have the same headers, so that these are a
constant; of an answer only its end and its message matter.  Flow control is not looked at: what is
under way at a time is far below the smallest window.
"""

import struct
from typing import Final

import trio
import trio.lowlevel

_FRAME: Final = struct.Struct(">BHBBI")  # length (24 bits in two), type, flags, stream
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
WINDOW_MAX: Final = (1 << 31) - 1
PUT: Final = b"/etcdserverpb.KV/Put"


class Refused(Exception):
    """A put that etcd did not do, or a connection that it ended."""


class Etcd:
    """One connection.  Any number of tasks may put at the same time."""

    def __init__(self, stream: trio.SocketStream, authority: str) -> None:
        self._stream = stream
        self._headers = _headers(authority)
        self._next = 1
        self._waiting: dict[int, _Put] = {}
        self._failure: str | None = None

    async def put(self, key: bytes, value: bytes) -> None:
        """Returns when the put is committed.  Raises Refused."""
        if self._failure is not None:
            raise Refused(self._failure)
        number, self._next = self._next, self._next + 2
        message = put_message(key, value)
        body = struct.pack(">BI", 0, len(message)) + message
        one = self._waiting[number] = _Put(trio.lowlevel.current_task())
        await self._send(
            _frame(HEADERS, END_HEADERS, number, self._headers)
            + _frame(DATA, END_STREAM, number, body)
        )
        if not one.over:
            one.parked = True

            def abandoned(_: object) -> trio.lowlevel.Abort:
                self._waiting.pop(number, None)
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abandoned)
        if not one.answered:
            raise Refused(self._failure or "etcd refused a put")

    async def run(self) -> None:
        """Take the answers, until cancelled."""
        received = bytearray()
        try:
            while data := await self._stream.receive_some(65_536):
                received += data
                at = 0
                while len(received) - at >= 9:
                    high, low, kind, flags, number = _FRAME.unpack_from(received, at)
                    stop = at + 9 + (high << 16 | low)
                    if len(received) < stop:
                        break
                    await self._frame(kind, flags, number, received[at + 9 : stop])
                    at = stop
                del received[:at]
            self._failure = self._failure or "etcd closed the connection"
        finally:
            for number in list(self._waiting):
                self._over(number)

    async def _frame(self, kind: int, flags: int, number: int, body: bytearray) -> None:
        if kind == DATA and body:
            self._waiting[number].answered = True
        elif kind == SETTINGS and not flags & ACK:
            await self._send(_frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            await self._send(_frame(PING, ACK, 0, bytes(body)))
        elif kind == GOAWAY:
            self._failure = f"etcd goes away: {bytes(body[8:]).decode(errors='replace')}"
        if kind == RESET or (kind in (DATA, HEADERS) and flags & END_STREAM):
            self._over(number)

    def _over(self, number: int) -> None:
        one = self._waiting.pop(number, None)
        if one is not None:
            one.over = True
            if one.parked:
                trio.lowlevel.reschedule(one.task)

    async def _send(self, data: bytes) -> None:
        # A few hundred bytes: nearly always the kernel takes all of them at once.
        sent = await self._stream.socket.send(data)
        assert sent == len(data), "the socket is full of puts that nobody reads"


class _Put:
    __slots__ = ("answered", "over", "parked", "task")

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self.task = task
        self.answered = self.over = self.parked = False


async def connect(nursery: trio.Nursery, host: str, port: int) -> Etcd:
    stream = await trio.open_tcp_stream(host, port)
    client = Etcd(stream, f"{host}:{port}")
    await client._send(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + _frame(SETTINGS, 0, 0, struct.pack(">HIHI", 1, 0, 4, WINDOW_MAX))
        + _frame(WINDOW, 0, 0, struct.pack(">I", WINDOW_MAX - 65_535))
    )
    nursery.start_soon(client.run)
    return client


def _frame(kind: int, flags: int, number: int, body: bytes) -> bytes:
    return _FRAME.pack(len(body) >> 16, len(body) & 0xFFFF, kind, flags, number) + body


def put_message(key: bytes, value: bytes) -> bytes:
    """A PutRequest, as protobuf."""
    return _bytes_field(1, key) + _bytes_field(2, value)


def _bytes_field(number: int, value: bytes) -> bytes:
    assert len(value) < 128, "the length is one byte here"
    return bytes((number << 3 | 2, len(value))) + value


def _headers(authority: str) -> bytes:
    """HPACK without its table: what is indexed is in the static one, the rest is spelled out."""

    def literal(name: bytes, value: bytes) -> bytes:
        return name + bytes((len(value),)) + value

    return b"".join(
        [
            b"\x83\x86",  # :method POST, :scheme http
            literal(b"\x04", PUT),  # :path
            literal(b"\x01", authority.encode()),  # :authority
            literal(b"\x0f\x10", b"application/grpc"),  # content-type
            literal(b"\x00\x02te", b"trailers"),
        ]
    )
