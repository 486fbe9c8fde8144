"""However the stream is cut, the same frames come out; what is none is found out."""

import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountfs.errors import Fault, FsError
from mountfs.wire.frames import (
    HEADER,
    LARGE_BYTES,
    READ_BYTES,
    SMALL_BYTES,
    TEXT_BYTES_MAX,
    Decoder,
    Frame,
    Hello,
    Kind,
    decode_fault,
    decode_goodbye,
    decode_hello,
    encode,
    encode_fault,
    encode_goodbye,
    join_small,
)

OURS = Hello(cluster=bytes(16), role="meta", name="node 1", version_min=2, version_max=3)
HELLO = b"".join(encode(Kind.HELLO, 0))
BOUND = 4 * LARGE_BYTES


def decoder(bound: int = BOUND) -> Decoder:
    """One that has seen a hello."""
    new = Decoder(bound)
    assert feed(new, HELLO) == [Frame(Kind.HELLO, 0, b"")]
    return new


def feed(decoder: Decoder, data: bytes, cuts: list[int] | None = None) -> list[Frame]:
    """Give it `data` in pieces of the sizes `cuts`, again and again."""
    frames: list[Frame] = []
    position = turn = 0
    while position < len(data) and decoder.error is None:
        view = decoder.buffer()
        assert len(view) > 0
        size = min(len(view), len(data) - position, cuts[turn % len(cuts)] if cuts else len(view))
        view[:size] = data[position : position + size]
        frames += decoder.received(size)
        position += size
        turn += 1
    return [Frame(frame.kind, frame.number, bytes(frame.body)) for frame in frames]


SIZES = st.one_of(
    st.integers(0, 40),
    st.integers(SMALL_BYTES - 2, SMALL_BYTES + 2),
    st.integers(LARGE_BYTES - 2, LARGE_BYTES + 2),
    st.integers(READ_BYTES - 20, READ_BYTES),
)


@given(
    st.lists(st.tuples(st.integers(2, 10), st.integers(0, (1 << 64) - 1), SIZES), max_size=8),
    st.lists(st.integers(1, 2 * READ_BYTES), min_size=1, max_size=5),
)
def test_any_cut_gives_the_same_frames(shapes: list[tuple[int, int, int]], cuts: list[int]) -> None:
    frames = [
        Frame(kind, number, number.to_bytes(8, "little") * (size // 8) + bytes(size % 8))
        for kind, number, size in shapes
    ]
    stream = b"".join(b"".join(encode(*frame)) for frame in frames)
    reading = decoder(READ_BYTES)
    assert feed(reading, stream, cuts) == frames
    assert not reading.in_frame


def test_one_byte_after_the_other() -> None:
    stream = b"".join(encode(Kind.REPLY, 1, b"abc") + encode(Kind.PING, 0))
    assert feed(decoder(), stream, [1]) == [(Kind.REPLY, 1, b"abc"), (Kind.PING, 0, b"")]


def test_a_large_body_is_read_into_memory_of_its_own() -> None:
    reading = decoder()
    header = HEADER.pack(BOUND, Kind.REPLY, 1)
    feed(reading, header + b"begin")
    rest = reading.buffer()
    assert len(rest) == BOUND - 5
    (frame,) = reading.received(len(rest))
    assert isinstance(frame.body, memoryview)
    assert frame.body.obj is rest.obj


def test_a_frame_that_is_too_long_is_refused_before_it_has_come() -> None:
    reading = decoder(1_000)
    assert feed(reading, HEADER.pack(1_001, Kind.REPLY, 1)) == []
    assert reading.error is not None
    assert str(reading.error) == "the peer announces 1001 bytes, and may send 1000"


def test_what_comes_before_a_broken_frame_counts() -> None:
    reading = decoder(1_000)
    stream = b"".join(encode(Kind.REPLY, 1, b"fine")) + HEADER.pack(1_001, Kind.REPLY, 2)
    assert feed(reading, stream) == [(Kind.REPLY, 1, b"fine")]
    assert reading.error is not None


def test_the_stream_must_not_end_within_a_frame() -> None:
    reading = decoder()
    feed(reading, HEADER.pack(10, Kind.REPLY, 1)[:5])
    assert reading.in_frame


@pytest.mark.parametrize(
    ("begin", "says"),
    [
        (b"GET / HTTP/1.1\r\n", "speaks HTTP"),
        (b"HTTP/1.1 400 Bad Request\r\n", "is an HTTP server"),
        (bytes.fromhex("16030100f0"), "speaks TLS"),
        (bytes.fromhex("15030100020246"), "speaks TLS"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak the mountfs protocol"),
        (bytes(100), "does not speak the mountfs protocol"),
        (b"".join(encode(Kind.PING, 0)), "does not speak the mountfs protocol"),
    ],
)
@pytest.mark.parametrize("cuts", [[1], [1_000]])
def test_a_stranger_is_found_out(begin: bytes, says: str, cuts: list[int]) -> None:
    reading = Decoder(4_096)
    assert feed(reading, begin, cuts) == []
    assert reading.error is not None
    assert says in reading.error.detail


# --- what is sent ---


def test_a_large_part_is_not_copied() -> None:
    large = bytearray(SMALL_BYTES + 1)
    _, begin, rest = encode(Kind.REPLY, 1, [b"begin", large])
    assert begin == b"begin"
    assert isinstance(rest, memoryview)
    assert rest.obj is large


def test_parts_of_other_items_than_bytes_count_their_bytes() -> None:
    numbers = memoryview(array.array("Q", range(SMALL_BYTES)))
    header, body = encode(Kind.REPLY, 1, numbers)
    assert HEADER.unpack(header)[0] == len(body) == 8 * SMALL_BYTES


@given(st.lists(st.one_of(st.binary(max_size=30), st.just(bytes(SMALL_BYTES + 1)))))
def test_joining_keeps_the_bytes_and_does_not_copy_the_large(buffers: list[bytes]) -> None:
    joined = join_small(list(buffers))
    assert b"".join(joined) == b"".join(buffers)
    large = [buffer for buffer in buffers if len(buffer) > SMALL_BYTES]
    assert [id(buffer) for buffer in joined if len(buffer) > SMALL_BYTES] == list(map(id, large))
    assert len(joined) <= 2 * len(large) + 1


# --- hello, fault, goodbye ---


@pytest.mark.parametrize(("low", "high"), [(1, 1), (4, 9)])
def test_no_common_version_is_said_before_anything_else_is_read(low: int, high: int) -> None:
    theirs = Hello(cluster=bytes(16), role="", name="", version_min=low, version_max=high)
    with pytest.raises(
        FsError, match="no common protocol: node 1 speaks versions 2 to 3, its peer"
    ):
        decode_hello(theirs.encode()[:12], OURS)


@given(st.integers(0, 60), st.binary(max_size=4))
def test_a_damaged_hello_is_refused(kept: int, tail: bytes) -> None:
    theirs = Hello(cluster=bytes(16), role="meta", name="mount 7", version_min=3, version_max=3)
    whole = theirs.encode()
    if kept >= len(whole):
        return
    try:
        decode_hello(whole[:kept] + tail, OURS)
    except FsError:
        return
    assert len(tail) >= len(whole) - kept


def test_an_unknown_fault_keeps_its_name_in_the_text() -> None:
    error = decode_fault(b"\x06FROZEN" + b"until Monday")
    assert (error.fault, error.detail) == (Fault.DEVICE, "FROZEN: until Monday")


def test_a_name_that_is_cut_within_a_letter_can_be_read() -> None:
    theirs = Hello(cluster=bytes(16), role="meta", name="ü" * 200, version_min=3, version_max=3)
    assert decode_hello(theirs.encode(), OURS).name.startswith("ü" * 127)


@pytest.mark.parametrize("fault", list(Fault))
def test_every_fault_travels(fault: Fault) -> None:
    error = decode_fault(encode_fault(FsError(fault, "why, in wörds")))
    assert (error.fault, error.detail) == (fault, "why, in wörds")


def test_a_detail_that_is_too_long_is_cut() -> None:
    error = decode_fault(encode_fault(FsError(Fault.BUSY, "ü" * TEXT_BYTES_MAX)))
    assert error.fault is Fault.BUSY
    assert error.detail.startswith("ü" * 1_000)


@pytest.mark.parametrize("body", [b"", b"\x05abc"])
def test_a_damaged_fault_is_a_broken_peer(body: bytes) -> None:
    with pytest.raises(FsError, match="damaged fault"):
        decode_fault(body)


@pytest.mark.parametrize("body", [b"", b"\1", b"\5\0abc"])
def test_a_damaged_goodbye_is_a_broken_peer(body: bytes) -> None:
    with pytest.raises(FsError, match="damaged goodbye"):
        decode_goodbye(body)


@given(st.text(max_size=50), st.text(max_size=50))
def test_goodbyes_travel(reason: str, where: str) -> None:
    as_sent = reason.encode(errors="replace").decode(), where.encode(errors="replace").decode()
    assert decode_goodbye(encode_goodbye(reason, where)) == as_sent
