"""The state of one connection, on either side of it, without I/O.

In: bytes that came (`buffer`, `received`), what our side wants (`ask`, `answer`, `cancel`,
`goodbye`), and the time (`tick`).  Out: events, and bytes to send (`outgoing`, `sent`).

The rules, which both sides hold each other to:

- HELLO comes first, from the client and then from the server, and says what each takes.
- A client asks with CALL, a server with PUSH.  Whoever asks numbers its requests 1, 2, 3, ...
- Every request is answered exactly once, also a cancelled one; until then it counts against the
  bounds that the other side's HELLO has set.  So an answer to nothing is a broken peer, while a
  CANCEL for nothing has only crossed the answer.
- GOODBYE: let us part.  The other side says it too; a client that has said it asks nothing more,
  and when all is answered, either closes.  The server may push until then.
"""

import enum
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.wire.config import Limits
from mountfs.wire.frames import (
    ANY_CLUSTER,
    HEADER,
    HELLO_BYTES_MAX,
    HTTP_ANSWER,
    METHOD,
    METHOD_MAX,
    Decoder,
    Frame,
    Hello,
    Kind,
    Parts,
    Piece,
    Stretch,
    decode_fault,
    decode_goodbye,
    decode_hello,
    encode,
    encode_ask,
    encode_fault,
    encode_goodbye,
    join_small,
)

Body = bytes | memoryview

_CALL: Final = int(Kind.CALL)
_REPLY: Final = int(Kind.REPLY)
_PUSH: Final = int(Kind.PUSH)
_PUSH_ACK: Final = int(Kind.PUSH_ACK)
_NOTE: Final = int(Kind.NOTE)
_PING: Final = int(Kind.PING)
_PONG: Final = int(Kind.PONG)

_ACK_FINE: Final = b"\0"
_ACK_FAULT: Final = b"\1"


class Side(enum.Enum):
    CLIENT = 0
    SERVER = 1


class Disconnected(Exception):
    """The connection has ended.  Nobody knows whether the request was carried out, unless `sent` is
    False: then the peer has not seen it.
    """

    def __init__(self, why: str, *, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


# --- events ---


class Greeted(msgspec.Struct):
    """The peer has said hello, and it fits."""

    hello: Hello


class Asked(msgspec.Struct):
    """A request of the peer, to be answered exactly once with `answer` or `refuse`."""

    number: int
    method: int
    body: Body


class Noted(msgspec.Struct):
    """The peer has told us something, and wants no answer."""

    method: int
    body: Body


class Withdrawn(msgspec.Struct):
    """The peer has cancelled its request `number`.  It is answered all the same."""

    number: int


class Answered(msgspec.Struct):
    """To the request with this token; None: it was cancelled."""

    token: Any
    body: Body


class Refused(msgspec.Struct):
    token: Any
    error: FsError


class Leaving(msgspec.Struct):
    """The peer wants to part."""

    reason: str
    where: str


Event = Greeted | Asked | Noted | Withdrawn | Answered | Refused | Leaving


class Connection:
    def __init__(self, side: Side, hello: Hello, limits: Limits) -> None:
        self._side = side
        self._limits = limits
        self._hello = msgspec.structs.replace(
            hello,
            frame_bytes_max=limits.frame_bytes_max,
            calls_max=limits.calls_max,
            calls_bytes_max=limits.calls_bytes_max,
        )
        self._decoder = Decoder(HELLO_BYTES_MAX)
        self.peer: Hello | None = None
        """Its hello, once it has come and fits."""
        self.version = 0
        self.features = 0
        self._asks = Kind.CALL if side is Side.CLIENT else Kind.PUSH
        self._last_asked = 0
        self._asked: dict[int, tuple[Any, int]] = {}
        """What we have asked and is not answered: token and size by number."""
        self._asked_bytes = 0
        self._last_heard = 0
        self._taken: dict[int, int] = {}
        """What the peer has asked and we have not answered: size by number."""
        self._taken_bytes = 0
        self._out: list[Piece] = []
        self.out_bytes = 0
        """Waiting to be sent."""
        self.we_leave = False
        self.they_leave = False
        self._heard = True
        self._quiet_since_ms = 0.0
        self._tick_due_ms = 0.0

    # --- hello ---

    def greet(self) -> None:
        """A client says it at once, a server when it has accepted the client's."""
        assert self._side is Side.CLIENT or self.peer is not None
        self._queue(encode(Kind.HELLO, 0, self._hello.encode()))

    def _greeted(self, body: Body) -> Greeted:
        if self.peer is not None:
            raise FsError(Fault.DEVICE, "the peer says hello twice")
        theirs = decode_hello(body, self._hello)
        ours = self._hello
        if theirs.cluster != ours.cluster and not self._any_cluster(theirs):
            raise FsError(
                Fault.INVALID,
                f"another cluster: {ours.name} belongs to {ours.cluster.hex()}, "
                f"{theirs.name} to {theirs.cluster.hex()}",
            )
        if theirs.role != ours.role:
            server, client = (ours, theirs) if self._side is Side.SERVER else (theirs, ours)
            raise FsError(
                Fault.INVALID,
                f"another service: {server.name} serves {server.role!r}, "
                f"and {client.name} asks for {client.role!r}",
            )
        self.peer = theirs
        self.version = min(ours.version_max, theirs.version_max)
        self.features = ours.features & theirs.features
        self._decoder.body_bytes_max = self._limits.frame_bytes_max
        return Greeted(theirs)

    def _any_cluster(self, theirs: Hello) -> bool:
        """Only a client may leave it open."""
        client = self._hello if self._side is Side.CLIENT else theirs
        return client.cluster == ANY_CLUSTER

    # --- what we ask ---

    @property
    def asking(self) -> int:
        """Requests of ours that are not answered."""
        return len(self._asked)

    @property
    def answering(self) -> int:
        """Requests of the peer's that are not answered."""
        return len(self._taken)

    def may_ask(self, size: int) -> bool:
        """Whether the peer takes another request, with a body of so many bytes."""
        peer = self.peer
        assert peer is not None
        asked = len(self._asked)
        return asked == 0 or (
            asked < peer.calls_max
            and self._asked_bytes + size <= peer.calls_bytes_max
            and self.out_bytes <= self._limits.out_bytes_max
        )

    def ask(self, method: int, parts: Parts, token: object) -> int:
        """Send a request and return its number; the answer will come with `token`."""
        peer = self.peer
        assert peer is not None
        assert token is not None
        assert 0 <= method <= METHOD_MAX, method
        if self.we_leave and self._side is Side.CLIENT:
            raise Disconnected(f"{peer.name} takes no new calls", sent=False)
        number = self._last_asked + 1
        frame = encode_ask(self._asks, number, method, parts)
        size = sum(map(len, frame))
        if size - HEADER.size > peer.frame_bytes_max:
            raise FsError(
                Fault.TOO_BIG,
                f"a request of {size} bytes; {peer.name} takes {peer.frame_bytes_max}",
            )
        self._last_asked = number
        self._asked[number] = (token, size)
        self._asked_bytes += size
        self._out += frame
        self.out_bytes += size
        return number

    def note(self, method: int, parts: Parts) -> bool:
        """Send what wants no answer.  Returns whether there was room for it: the bound is what
        waits to be sent, for nothing says when it has been read.
        """
        peer = self.peer
        assert peer is not None
        assert 0 <= method <= METHOD_MAX, method
        if self.we_leave or self.out_bytes > self._limits.out_bytes_max:
            return False
        frame = encode_ask(_NOTE, 0, method, parts)
        size = sum(map(len, frame))
        if size - HEADER.size > peer.frame_bytes_max:
            return False
        self._out += frame
        self.out_bytes += size
        return True

    def cancel(self, number: int) -> None:
        """Nobody waits for the answer any more.  The memory of the request is its owner's again."""
        asked = self._asked.get(number)
        if asked is None:
            return
        self._asked[number] = (None, asked[1])
        self._own()
        self._queue(encode(Kind.CANCEL, number))

    def _take_back(self, number: int) -> Any:
        """A request of ours is answered: its token."""
        asked = self._asked.pop(number, None)
        if asked is None:
            raise FsError(Fault.DEVICE, f"the peer answers {number}, which nobody asked")
        token, size = asked
        self._asked_bytes -= size
        return token

    # --- what we answer ---

    def answer(self, number: int, parts: Parts) -> None:
        peer = self.peer
        assert peer is not None
        if self._side is Side.SERVER:
            frame = encode(_REPLY, number, parts)
        else:
            pieces = (parts,) if isinstance(parts, (bytes, bytearray, memoryview)) else parts
            frame = encode(_PUSH_ACK, number, (_ACK_FINE, *pieces))
        size = sum(map(len, frame))
        if size - HEADER.size > peer.frame_bytes_max:
            error = f"the answer has {size} bytes; {peer.name} takes {peer.frame_bytes_max}"
            self.refuse(number, FsError(Fault.TOO_BIG, error))
            return
        self._taken_bytes -= self._taken.pop(number)
        self._out += frame
        self.out_bytes += size

    def refuse(self, number: int, error: FsError) -> None:
        self._taken_bytes -= self._taken.pop(number)
        if self._side is Side.SERVER:
            self._queue(encode(Kind.FAULT, number, encode_fault(error)))
        else:
            self._queue(encode(_PUSH_ACK, number, _ACK_FAULT + encode_fault(error)))

    # --- parting ---

    def goodbye(self, reason: str, where: str = "") -> None:
        if not self.we_leave:
            self.we_leave = True
            self._queue(encode(Kind.GOODBYE, 0, encode_goodbye(reason, where)))

    @property
    def parted(self) -> bool:
        """Both have said goodbye, and everything is answered."""
        return (
            self.we_leave
            and self.they_leave
            and not self._asked
            and not self._taken
            and not self.out_bytes
        )

    def close(self, last_word: FsError | None) -> list[Any]:
        """The connection has ended: the tokens of what will not be answered.

        What is left to send is the last word, if there is one.
        """
        tokens = [token for token, _ in self._asked.values() if token is not None]
        self._asked.clear()
        if last_word is None:
            self._out.clear()
            self.out_bytes = 0
        else:
            self._own()
            fault = encode(Kind.FAULT, 0, encode_fault(last_word))
            self._queue([HTTP_ANSWER] if self._decoder.http else fault)
        return tokens

    # --- time ---

    def tick(self, now_ms: float) -> float:
        """To be called now, and then at the time that it returns.  Disconnected: the peer is dead.

        If we come much too late, it is we who have slept: the peer gets its time again.
        """
        limits = self._limits
        if self._heard or now_ms - self._tick_due_ms > limits.ping_ms:
            self._heard = False
            self._quiet_since_ms = now_ms
        quiet_ms = now_ms - self._quiet_since_ms
        if quiet_ms >= limits.dead_ms:
            raise Disconnected(f"nothing was heard for {quiet_ms / 1000:.1f} s", sent=True)
        if quiet_ms > 0:
            self._queue(encode(_PING, 0))
        self._tick_due_ms = min(now_ms + limits.ping_ms, self._quiet_since_ms + limits.dead_ms)
        return self._tick_due_ms

    def alive(self) -> None:
        """There is another sign that the peer lives than a frame, or we are not listening."""
        self._heard = True

    # --- bytes ---

    def buffer(self) -> memoryview:
        """Where to read to."""
        return self._decoder.buffer()

    def received(self, size: int) -> Iterator[Event]:
        """So much was read into `buffer`.  FsError: the peer does not keep to the protocol."""
        self._heard = True
        decoder = self._decoder
        for frame in decoder.received(size):
            event = self._event(frame)
            if event is not None:
                yield event
        if decoder.error is not None:
            raise decoder.error

    def ended(self) -> str:
        """The stream has ended: how, in words."""
        if self._decoder.in_frame:
            return "the peer has closed in the middle of a frame"
        if self.peer is None:
            return "the peer has closed without a hello"
        return "the peer has closed the connection"

    def outgoing(self) -> list[Piece]:
        """What is to be sent, in few pieces."""
        if len(self._out) > 1:
            self._out = join_small(self._out)
        return self._out

    def sent(self, size: int) -> None:
        """The first `size` bytes of `outgoing` are on their way."""
        self.out_bytes -= size
        if not self.out_bytes:
            self._out.clear()
            return
        whole = 0
        while size >= len(self._out[whole]):
            size -= len(self._out[whole])
            whole += 1
        del self._out[:whole]
        if size:
            first = self._out[0]
            rest = first.behind(size) if isinstance(first, Stretch) else memoryview(first)[size:]
            self._out[0] = rest

    def _own(self) -> None:
        """What waits to be sent must not change when its owner uses the memory again."""
        self._out = [
            part if isinstance(part, (bytes, Stretch)) else bytes(part) for part in self._out
        ]

    def _queue(self, frame: list[Piece]) -> None:
        self._out += frame
        self.out_bytes += sum(map(len, frame))

    # --- frames ---

    def _event(self, frame: Frame) -> Event | None:
        kind, number, body = frame
        server = self._side is Side.SERVER
        if self.peer is None:
            if kind == Kind.HELLO:
                return self._greeted(body)
            if kind == Kind.FAULT and not server:
                raise decode_fault(body)
            raise FsError(Fault.DEVICE, f"the peer sends {_name(kind)} before it says hello")
        if kind == (_CALL if server else _PUSH):
            return self._asked_by_peer(number, body)
        if server and kind == _NOTE:
            if len(body) < METHOD.size:
                raise FsError(Fault.DEVICE, "a note of the peer is too short")
            method, flags = METHOD.unpack_from(body)
            if flags:
                raise FsError(Fault.DEVICE, f"a note of the peer has flags {flags}")
            return Noted(method, body[METHOD.size :])
        if not server and kind == _REPLY:
            token = self._take_back(number)
            return Answered(token, body)
        if kind == Kind.FAULT:
            if number == 0:
                raise Disconnected(f"{self.peer.name} says: {decode_fault(body)}", sent=True)
            if not server:
                return Refused(self._take_back(number), decode_fault(body))
        if server and kind == _PUSH_ACK:
            return self._acknowledged(number, body)
        if kind == Kind.CANCEL:
            return Withdrawn(number) if number in self._taken else None
        if kind == _PING:
            if self.out_bytes <= self._limits.out_bytes_max:  # else there is news from us anyway
                self._queue(encode(_PONG, number))
            return None
        if kind == _PONG:
            return None
        if kind == Kind.GOODBYE:
            reason, where = decode_goodbye(body)
            self.they_leave = True
            self.goodbye("")
            return Leaving(reason, where)
        if kind == Kind.HELLO:
            return self._greeted(body)
        raise FsError(Fault.DEVICE, f"the peer sends {_name(kind)}, which is not its to send")

    def _asked_by_peer(self, number: int, body: Body) -> Asked:
        size = len(body) + HEADER.size
        if self.they_leave and self._side is Side.SERVER:
            raise FsError(Fault.DEVICE, "the peer calls after it has said goodbye")
        if number <= self._last_heard:
            raise FsError(
                Fault.DEVICE, f"the peer numbers a request {number} after {self._last_heard}"
            )
        if len(body) < METHOD.size:
            raise FsError(Fault.DEVICE, "the peer sent a request without a method")
        if self._taken:
            if len(self._taken) >= self._limits.calls_max:
                raise FsError(
                    Fault.DEVICE, f"the peer asks more than {self._limits.calls_max} at a time"
                )
            if self._taken_bytes + size > self._limits.calls_bytes_max + _ROUNDING:
                raise FsError(
                    Fault.DEVICE,
                    f"the peer's requests have more than {self._limits.calls_bytes_max} bytes",
                )
        self._last_heard = number
        self._taken[number] = size
        self._taken_bytes += size
        method, _ = METHOD.unpack_from(body)
        return Asked(number, method, body[METHOD.size :])

    def _acknowledged(self, number: int, body: Body) -> Event:
        token = self._take_back(number)
        if body[:1] == _ACK_FINE:
            return Answered(token, body[1:])
        return Refused(token, decode_fault(body[1:]))


_ROUNDING: Final = 64
"""A client may count without the header of the request that it is about to send."""


def _name(kind: int) -> str:
    try:
        return Kind(kind).name
    except ValueError:
        return f"a frame of the unknown kind {kind}"
