"""The codec of needles."""

import random

from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from mountfs.chunks import needle
from mountfs.chunks.needle import Kind
from mountfs.types import CHECKSUM_BYTES, SLICE_BYTES_MAX, SliceId

U64 = st.integers(0, 2**64 - 1)


@given(
    salt=st.integers(0, 2**32 - 1),
    offset=st.integers(0, 2**60).map(needle.aligned),
    back=st.integers(0, 2**60),
    slice_id=U64,
    length=st.integers(1, SLICE_BYTES_MAX),
    shift=st.integers(0, 20),
)
def test_what_is_encoded_is_decoded(salt, offset, back, slice_id, length, shift):
    durable = max(offset - back, 0)
    table = bytes(needle.table_bytes(length))
    data = bytes(shift) + needle.encode(salt, offset, durable, SliceId(slice_id), length, table)
    header = needle.decode(data, shift, offset, salt)
    assert header is not None
    assert (header.offset, header.durable) == (offset, durable)
    assert (header.slice_id, header.length, header.kind) == (slice_id, length, Kind.DATA)
    sums = needle.unpack_table(table, header)
    assert sums is not None
    assert list(sums) == [0] * (len(table) // 4)
    assert header.stop == header.payload + length + len(needle.padding(length))
    assert header.stop % needle.ALIGN == 0


@given(st.binary(max_size=200), st.integers(0, 150))
def test_noise_is_not_a_header(data, at):
    assert needle.decode(data, at, 4096, 1) is None


NOISE = random.Random(1).randbytes(200_000)


SIZES = [0, 1, 7, 4096, CHECKSUM_BYTES - 1, CHECKSUM_BYTES, CHECKSUM_BYTES + 1, 200_000]


@given(st.lists(st.sampled_from(SIZES), max_size=6))
def test_checksums_do_not_depend_on_how_a_payload_is_cut(sizes):
    parts = [NOISE[-size:] if size else b"" for size in sizes]
    whole = b"".join(parts)
    assert needle.checksums(parts) == needle.checksums([whole])
    assert needle.checksums(parts).crc == crc32c(whole)


@given(st.integers(1, 200_000), st.data())
def test_a_flipped_bit_is_found_in_its_piece(size, data):
    payload = bytearray(size)
    _, table, _ = needle.checksums([payload])
    sums = memoryview(table).cast("I")
    at = data.draw(st.integers(0, size - 1))
    payload[at] ^= 1 << data.draw(st.integers(0, 7))
    piece = at // CHECKSUM_BYTES
    assert needle.first_bad(memoryview(payload), sums) == piece
    rest = memoryview(payload)[(piece + 1) * CHECKSUM_BYTES :]
    assert needle.first_bad(rest, sums, piece + 1) is None
