"""Frames, byte for byte as docs/formats-wire.md has them.

A change here is a change of the protocol.
"""

import pytest

from mountfs.errors import Fault, FsError
from mountfs.wire.frames import (
    Hello,
    Kind,
    decode_fault,
    decode_goodbye,
    decode_hello,
    encode,
    encode_ask,
    encode_fault,
    encode_goodbye,
)

HELLO = Hello(
    cluster=bytes(range(16)),
    role="meta",
    name="n1",
    features=5,
    version_min=1,
    version_max=2,
    frame_bytes_max=0x0140_0000,
    calls_max=256,
    calls_bytes_max=0x0400_0000,
)
HELLO_GOLDEN = bytes.fromhex(
    "6d6f756e7466730a"  # magic "mountfs\n"
    "0100 0200"  # versions
    "000102030405060708090a0b0c0d0e0f"  # cluster
    "0500000000000000"  # features
    "00004001"  # frame_bytes_max
    "00010000"  # calls_max
    "0000000400000000"  # calls_bytes_max
    "04 6d657461"  # role
    "02 6e31"  # name
)
FAULT = FsError(Fault.NOT_FOUND, "gone")
FAULT_GOLDEN = bytes.fromhex("09 4e4f545f464f554e44 676f6e65")
GOODBYE_GOLDEN = bytes.fromhex("0700 72657374617274 6e32")


def test_hello() -> None:
    assert HELLO.encode() == HELLO_GOLDEN
    assert decode_hello(HELLO_GOLDEN, HELLO) == HELLO
    assert decode_hello(HELLO_GOLDEN + b"of a newer version", HELLO) == HELLO


def test_fault() -> None:
    assert encode_fault(FAULT) == FAULT_GOLDEN
    assert decode_fault(FAULT_GOLDEN).args == FAULT.args


def test_goodbye() -> None:
    assert encode_goodbye("restart", "n2") == GOODBYE_GOLDEN
    assert decode_goodbye(GOODBYE_GOLDEN) == ("restart", "n2")


@pytest.mark.parametrize(
    ("kind", "number", "body", "golden"),
    [
        (Kind.HELLO, 0, b"", "00000000 01 0000000000000000"),
        (Kind.REPLY, 7, b"ab", "02000000 03 0700000000000000 6162"),
        (Kind.FAULT, 0x0102, b"", "00000000 04 0201000000000000"),
        (Kind.CANCEL, 7, b"", "00000000 05 0700000000000000"),
        (Kind.PUSH_ACK, 1, b"\0a", "02000000 07 0100000000000000 0061"),
        (Kind.PING, 0, b"", "00000000 08 0000000000000000"),
        (Kind.PONG, 0, b"", "00000000 09 0000000000000000"),
        (Kind.GOODBYE, 0, b"\0\0", "02000000 0a 0000000000000000 0000"),
    ],
)
def test_frames(kind: Kind, number: int, body: bytes, golden: str) -> None:
    assert b"".join(encode(kind, number, body)) == bytes.fromhex(golden)


@pytest.mark.parametrize(
    ("kind", "golden"),
    [
        (Kind.CALL, "05000000 02 0800000000000000 0403 00 6162"),
        (Kind.PUSH, "05000000 06 0800000000000000 0403 00 6162"),
    ],
)
def test_requests(kind: Kind, golden: str) -> None:
    assert b"".join(encode_ask(kind, 8, 0x0304, b"ab")) == bytes.fromhex(golden)
    assert b"".join(encode_ask(kind, 8, 0x0304, [b"a", memoryview(b"b")])) == bytes.fromhex(golden)
