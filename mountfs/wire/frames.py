"""The bytes on the wire: frames, and the bodies that belong to the protocol itself.

A frame is a header of 13 bytes (`HEADER`: length of the body, kind, number) and a body.  A large
body is neither copied on its way out (it is sent from where it is) nor, from where the socket put
it, on its way in.  docs/formats-wire.md has the tables.
"""

import enum
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.types import KIB

Buffer = bytes | bytearray | memoryview


class Stretch:
    """A part of a file, to be sent from there.  Only where `Link.sends_files`."""

    __slots__ = ("at", "fd", "owner", "size")

    def __init__(self, owner: object, fd: int, at: int, size: int) -> None:
        """`owner` keeps `fd` open for as long as somebody has it."""
        self.owner = owner
        self.fd = fd
        self.at = at
        self.size = size

    def __len__(self) -> int:
        return self.size

    def behind(self, size: int) -> "Stretch":
        """What is left when so many bytes are on their way."""
        return Stretch(self.owner, self.fd, self.at + size, self.size - size)


Piece = Buffer | Stretch
Parts = Buffer | Sequence[Piece]
"""A body, in one piece or several.  Those larger than `SMALL_BYTES` are not copied: nobody may
change them until they are sent.
"""

HEADER: Final = struct.Struct("<IBQ")
ASK: Final = struct.Struct("<IBQHB")
"""Header of a CALL or PUSH, with what begins its body: the method, and flags (none yet: 0)."""
METHOD: Final = struct.Struct("<HB")
METHOD_MAX: Final = 0xFFFF

SMALL_BYTES: Final = 16 * KIB
"""Up to this size copying costs less than keeping pieces apart."""
READ_BYTES: Final = 256 * KIB
"""Room for what is read at once."""
LARGE_BYTES: Final = 64 * KIB
"""A larger body is read into memory of its own."""


class Kind(enum.IntEnum):
    HELLO = 1
    CALL = 2
    REPLY = 3
    FAULT = 4
    CANCEL = 5
    PUSH = 6
    PUSH_ACK = 7
    PING = 8
    PONG = 9
    GOODBYE = 10
    NOTE = 11


class Frame(NamedTuple):
    kind: int
    number: int
    body: bytes | memoryview


def encode(kind: int, number: int, parts: Parts = b"") -> list[Piece]:
    """A frame as buffers to send one after the other."""
    if type(parts) is bytes and len(parts) <= SMALL_BYTES:
        return [HEADER.pack(len(parts), kind, number) + parts]
    pieces, size = _pieces(parts)
    return [HEADER.pack(size, kind, number), *pieces]


def encode_ask(kind: int, number: int, method: int, parts: Parts) -> list[Piece]:
    """A CALL, a PUSH or a NOTE."""
    if type(parts) is bytes and len(parts) <= SMALL_BYTES:
        return [ASK.pack(len(parts) + METHOD.size, kind, number, method, 0) + parts]
    pieces, size = _pieces(parts)
    return [ASK.pack(size + METHOD.size, kind, number, method, 0), *pieces]


def _pieces(parts: Parts) -> tuple[list[Piece], int]:
    if isinstance(parts, (bytes, bytearray, memoryview)):
        parts = (parts,)
    pieces: list[Piece] = []
    size = 0
    for part in parts:
        if isinstance(part, Stretch):
            pieces.append(part)
            size += len(part)
            continue
        view = memoryview(part)
        size += view.nbytes
        if view.nbytes <= SMALL_BYTES:
            pieces.append(bytes(view))
        else:
            pieces.append(view if view.itemsize == 1 and view.ndim == 1 else view.cast("B"))
    return pieces, size


def join_small(buffers: list[Piece]) -> list[Piece]:
    """The same bytes in fewer buffers: runs of small ones become one."""
    joined: list[Piece] = []
    run: list[Buffer] = []
    for buffer in buffers:
        if not isinstance(buffer, Stretch) and len(buffer) <= SMALL_BYTES:
            run.append(buffer)
            continue
        if run:
            joined.append(b"".join(run))
            run = []
        joined.append(buffer)
    if run:
        joined.append(b"".join(run))
    return joined


class Decoder:
    """Frames from a stream of bytes, however it is cut.

    Read into `buffer()`, and say with `received` how much that was.  After `error` nothing more
    comes: the peer does not keep to the format.
    """

    def __init__(self, body_bytes_max: int) -> None:
        self.body_bytes_max = body_bytes_max
        self.error: FsError | None = None
        self.http = False
        """What began like HTTP."""
        self._memory = bytearray(READ_BYTES)
        self._view = memoryview(self._memory)
        self._start = 0
        self._stop = 0
        """What is read and not yet decoded: `_view[_start:_stop]`."""
        self._begun = False
        """The first header is read, and it is no stranger's."""
        self._large: memoryview | None = None
        """The body that is being read into memory of its own, and its header."""
        self._large_stop = 0
        self._large_kind = 0
        self._large_number = 0

    @property
    def in_frame(self) -> bool:
        """The stream must not end here."""
        return self._large is not None or self._start != self._stop

    def buffer(self) -> memoryview:
        if self._large is not None:
            return self._large[self._large_stop :]
        return self._view[self._stop :]

    def received(self, size: int) -> list[Frame]:
        """The frames that are whole now."""
        frames: list[Frame] = []
        if self._large is not None:
            self._large_stop += size
            if self._large_stop == len(self._large):
                frames.append(Frame(self._large_kind, self._large_number, self._large))
                self._large = None
            return frames
        start = self._start
        stop = self._stop + size
        memory = self._memory
        if not self._begun and stop >= 4:
            self.error = self._begin(bytes(memory[:stop]))
            if self.error is not None:
                return frames
        unpack = HEADER.unpack_from
        while stop - start >= 13:
            length, kind, number = unpack(memory, start)
            if length > self.body_bytes_max:
                self.error = FsError(
                    Fault.DEVICE,
                    f"the peer announces {length} bytes, and may send {self.body_bytes_max}",
                )
                break
            end = start + 13 + length
            if end <= stop:
                frames.append(Frame(kind, number, bytes(self._view[start + 13 : end])))
                start = end
                continue
            if length > LARGE_BYTES:
                self._begin_large(length, kind, number, start + 13, stop)
                start = stop
            break
        if start == stop:
            start = stop = 0
        elif start:
            # At most a frame of LARGE_BYTES: room for it is always behind it.
            memory[: stop - start] = memory[start:stop]
            start, stop = 0, stop - start
        self._start, self._stop = start, stop
        assert self._stop < READ_BYTES, self._stop
        return frames

    def _begin_large(self, length: int, kind: int, number: int, start: int, stop: int) -> None:
        self._large = memoryview(bytearray(length))
        self._large_stop = stop - start
        self._large[: self._large_stop] = self._view[start:stop]
        self._large_kind = kind
        self._large_number = number

    def _begin(self, begin: bytes) -> FsError | None:
        """A stranger is found out by the first bytes; it may never send as many as we expect."""
        error = stranger(begin)
        self.http = begin[:4] in HTTP_WORDS
        if error is None and len(begin) >= HEADER.size:
            length, kind, _ = HEADER.unpack_from(begin)
            if length > self.body_bytes_max or kind not in (Kind.HELLO, Kind.FAULT):
                return FsError(Fault.UNSUPPORTED, NOT_OURS)
            self._begun = True
        return error


# --- what strangers say ---

HTTP_WORDS: Final = (
    b"GET ", b"POST", b"PUT ", b"HEAD", b"OPTI", b"DELE", b"PRI ", b"PATC", b"CONN",
)  # fmt: skip
HTTP_ANSWER: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"This port speaks the mountfs protocol, not HTTP.\n"
)
NOT_OURS: Final = "the peer does not speak the mountfs protocol"
_TLS_RECORDS: Final = (b"\x15\x03", b"\x16\x03")


def stranger(begin: bytes) -> FsError | None:
    """What a stream that begins so is, if it is none of ours.  At least four bytes are needed."""
    if begin[:4] in HTTP_WORDS:
        return FsError(Fault.UNSUPPORTED, "the peer speaks HTTP, not the mountfs protocol")
    if begin[:4] == b"HTTP":
        return FsError(Fault.UNSUPPORTED, "the peer is an HTTP server, not mountfs")
    if begin[:2] in _TLS_RECORDS:
        return FsError(Fault.DENIED, "the peer speaks TLS, and TLS is off on this side")
    return None


# --- bodies ---

MAGIC: Final = b"mountfs\n"
VERSION: Final = 1
"""Of this protocol."""
ANY_CLUSTER: Final = bytes(16)
HELLO_BYTES_MAX: Final = 4 * KIB
_HELLO_HEAD: Final = struct.Struct("<8sHH")
_HELLO_REST: Final = struct.Struct("<16sQIIQ")
TEXT_BYTES_MAX: Final = 2 * KIB
"""Of a sentence for people: the rest is cut off."""


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """Who speaks, and what it takes.  Both sides say it first."""

    cluster: bytes
    """16 bytes.  `ANY_CLUSTER`, from a client: whichever it is."""
    role: str
    """The service that is asked for, and the one that is here."""
    name: str
    """Who speaks, for logs and sentences."""
    features: int = 0
    """A bit for each; in force are those that both have."""
    version_min: int = VERSION
    version_max: int = VERSION
    frame_bytes_max: int = 0
    calls_max: int = 0
    calls_bytes_max: int = 0

    def encode(self) -> bytes:
        assert len(self.cluster) == 16, self
        return b"".join(
            (
                _HELLO_HEAD.pack(MAGIC, self.version_min, self.version_max),
                _HELLO_REST.pack(
                    self.cluster,
                    self.features,
                    self.frame_bytes_max,
                    self.calls_max,
                    self.calls_bytes_max,
                ),
                _short(self.role),
                _short(self.name),
            )
        )


def decode_hello(body: bytes | memoryview, ours: Hello) -> Hello:
    """Only the head is the same in all versions: it is judged before the rest is looked at."""
    try:
        magic, low, high = _HELLO_HEAD.unpack_from(body)
        if magic != MAGIC:
            raise FsError(Fault.UNSUPPORTED, NOT_OURS)
        if low > ours.version_max or high < ours.version_min:
            raise FsError(
                Fault.UNSUPPORTED,
                f"no common protocol: {ours.name} speaks "
                f"{_range(ours.version_min, ours.version_max)}, its peer {_range(low, high)}; "
                "upgrade the older one",
            )
        fields = _HELLO_REST.unpack_from(body, _HELLO_HEAD.size)
        role, position = _take_short(body, _HELLO_HEAD.size + _HELLO_REST.size)
        name, _ = _take_short(body, position)  # what follows is of a newer version
    except (struct.error, IndexError) as error:
        raise FsError(Fault.DEVICE, "the peer's hello is damaged") from error
    cluster, features, frame_bytes_max, calls_max, calls_bytes_max = fields
    return Hello(
        cluster=cluster,
        role=role,
        name=name,
        features=features,
        version_min=low,
        version_max=high,
        frame_bytes_max=frame_bytes_max,
        calls_max=calls_max,
        calls_bytes_max=calls_bytes_max,
    )


def _range(low: int, high: int) -> str:
    return f"version {low}" if low == high else f"versions {low} to {high}"


def encode_fault(error: FsError) -> bytes:
    return _short(error.fault.name) + error.detail.encode(errors="replace")[:TEXT_BYTES_MAX]


def decode_fault(body: bytes | memoryview) -> FsError:
    """A fault that this version does not know becomes DEVICE, and keeps its name in the text."""
    try:
        name, position = _take_short(body, 0)
    except IndexError as error:
        raise FsError(Fault.DEVICE, "the peer sent a damaged fault") from error
    detail = bytes(body[position:]).decode(errors="replace")
    try:
        return FsError(Fault[name], detail)
    except KeyError:
        return FsError(Fault.DEVICE, f"{name}: {detail}" if detail else name)


def encode_goodbye(reason: str, where: str) -> bytes:
    text = reason.encode(errors="replace")[:TEXT_BYTES_MAX]
    return len(text).to_bytes(2, "little") + text + where.encode(errors="replace")[:TEXT_BYTES_MAX]


def decode_goodbye(body: bytes | memoryview) -> tuple[str, str]:
    """Reason, and where to go instead, which may be empty."""
    stop = 2 + int.from_bytes(body[:2], "little")
    if len(body) < max(2, stop):
        raise FsError(Fault.DEVICE, "the peer sent a damaged goodbye")
    reason = bytes(body[2:stop]).decode(errors="replace")
    return reason, bytes(body[stop:]).decode(errors="replace")


def _short(text: str) -> bytes:
    data = text.encode(errors="replace")[:255]
    return bytes((len(data),)) + data


def _take_short(body: bytes | memoryview, position: int) -> tuple[str, int]:
    stop = position + 1 + body[position]
    if stop > len(body):
        raise IndexError
    return bytes(body[position + 1 : stop]).decode(errors="replace"), stop
