"""What travels between two nodes: messages of any groups, many at once."""

from collections.abc import Sequence

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.raft.log_record import GroupId
from mountfs.raft.messages import AnyMessage, Message

VERSION = 1


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    version: int
    messages: list[tuple[GroupId, AnyMessage]]


class _Outside(msgspec.Struct, frozen=True, array_like=True):
    version: int


_outside = msgspec.msgpack.Decoder(_Outside)
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Envelope)


def seal(messages: Sequence[tuple[GroupId, Message]]) -> bytes:
    return _encoder.encode((VERSION, messages))


def open_(body: bytes | memoryview) -> list[tuple[GroupId, AnyMessage]]:
    """Raises INVALID for what is none."""
    try:
        envelope = _decoder.decode(body)
    except msgspec.MsgspecError as error:
        _require_version(body)
        raise FsError(Fault.INVALID, f"not a message between nodes: {error}") from None
    if envelope.version != VERSION:
        _require_version(body)
    return envelope.messages


def _require_version(body: bytes | memoryview) -> None:
    """Raises INVALID for another than ours: what follows it is as that version has it."""
    try:
        version = _outside.decode(body).version
    except msgspec.MsgspecError:
        return
    if version != VERSION:
        raise FsError(
            Fault.INVALID,
            f"a message between nodes of version {version}; this node speaks {VERSION}",
        )
