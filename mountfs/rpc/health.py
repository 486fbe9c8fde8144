"""The standard health service (grpc.health.v1), which load balancers and probes know to ask.

Its two messages have one field each: service, a string, of the request; status, an enum, of the
response.  In the encoding of Protocol Buffers that is a tag, which is 8 * number + wire type, and
the value.
"""

import enum

from mountfs.errors import Fault, FsError

SERVICE = "grpc.health.v1.Health"
CHECK = "Check"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Serving(enum.IntEnum):
    """The standard's words."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2


def decode_request(body: bytes) -> str:
    """The name of the service that is asked for; empty for the whole node.

    >>> decode_request(bytes([0x0A, 2]) + b"ab")
    'ab'
    """
    service = b""
    position = 0
    while position < len(body):
        tag, position = _varint(body, position)
        start, position = _value(body, position, tag & 7)
        if tag == 8 * 1 + _BYTES:
            service = body[start:position]
    if position > len(body):
        raise _malformed()
    try:
        return service.decode()
    except UnicodeDecodeError:
        raise _malformed() from None


def encode_response(status: Serving) -> bytes:
    """
    >>> encode_response(Serving.NOT_SERVING)
    b'\\x08\\x02'
    """
    if status is Serving.UNKNOWN:
        return b""  # zero is not written
    return bytes([8 * 1 + _VARINT, status])


def _value(body: bytes, position: int, wire_type: int) -> tuple[int, int]:
    """(start, stop) of a value."""
    if wire_type == _VARINT:
        return position, _varint(body, position)[1]
    if wire_type == _BYTES:
        length, start = _varint(body, position)
        return start, start + length
    if wire_type in (_FIXED64, _FIXED32):
        return position, position + (8 if wire_type == _FIXED64 else 4)
    raise _malformed()


def _varint(body: bytes, position: int) -> tuple[int, int]:
    """(value, position after it): seven bits a byte, the least significant first."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(body):
            break
        byte = body[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _malformed()


def _malformed() -> FsError:
    return FsError(Fault.INVALID, "the request is no HealthCheckRequest")
