"""Volumes and needles, byte for byte as docs/formats.md has them.

A change here is a change of the format.
"""

import pytest

from mountfs.chunks import needle
from mountfs.chunks.index import NeedleIndex, Place
from mountfs.chunks.needle import HEADER_BYTES, Kind, decode, encode
from mountfs.chunks.volume import (
    SUPERBLOCK_BYTES,
    BadSuperblock,
    OtherVersion,
    Superblock,
    decode_superblock,
)
from mountfs.kv.memory import MemoryStore
from mountfs.types import SliceId, VolumeId

SALT = 0x01020304
HOME = bytes(range(16))
SUPERBLOCK = Superblock(VolumeId(7), 2, SALT, 8192, HOME)
SUPERBLOCK_GOLDEN = bytes.fromhex(
    "6d6673766f6c0d0a"  # magic "mfsvol\r\n"
    "02000000"  # version
    "07000000"  # volume
    "02000000"  # generation
    "04030201"  # salt
    "0020000000000000"  # durable
    "000102030405060708090a0b0c0d0e0f"  # home
    "f7cc661d"  # crc32c of all before
)
NEEDLE_GOLDEN = bytes.fromhex(
    "6e646c0a"  # magic "ndl\n"
    "04030201"  # salt
    "0010000000000000"  # offset
    "0010000000000000"  # durable
    "2a00000000000000"  # slice
    "05000000"  # length
    "01000000"  # kind: data
    "81d1a8f3"  # crc32c of the table
    "a31c0332"  # crc32c of all before
    "4cbb719a"  # table: crc32c of "hello"
    "68656c6c6f"  # payload "hello"
    "00000000000000"  # up to a multiple of 8
)
TOMBSTONE_GOLDEN = bytes.fromhex(
    "6e646c0a"
    "04030201"
    "4010000000000000"  # offset
    "0010000000000000"  # durable
    "2a00000000000000"  # slice
    "00000000"
    "02000000"  # kind: tombstone
    "00000000"
    "5da12b39"
)
VOID_GOLDEN = bytes.fromhex(
    "6e646c0a"
    "04030201"
    "7010000000000000"  # offset
    "0000000000000000"
    "0000000000000000"  # no slice
    "00010000"  # length: so many bytes behind the header to skip
    "03000000"  # kind: void
    "00000000"
    "1e28b064"
)


def needle_of(payload: bytes, offset: int, slice_id: int, durable: int) -> bytes:
    length, table, _ = needle.checksums([payload])
    head = encode(SALT, offset, durable, SliceId(slice_id), length, table)
    return head + payload + needle.padding(length)


def test_a_superblock_is_these_bytes_twice():
    page = SUPERBLOCK.encode()
    assert len(page) == SUPERBLOCK_BYTES == 4096
    assert page[:52] == page[2048:2100] == SUPERBLOCK_GOLDEN
    assert page[52:2048] == page[2100:] == bytes(1996)
    assert decode_superblock(page) == SUPERBLOCK


def test_a_needle_is_these_bytes():
    assert needle_of(b"hello", 4096, 42, 4096) == NEEDLE_GOLDEN
    header = decode(NEEDLE_GOLDEN, 0, 4096, SALT)
    assert header is not None
    assert (header.offset, header.durable, header.slice_id) == (4096, 4096, 42)
    assert (header.length, header.kind) == (5, Kind.DATA)
    assert (header.payload, header.stop) == (4096 + 52, 4096 + 64)


def test_a_tombstone_is_these_bytes():
    assert encode(SALT, 4160, 4096, SliceId(42), 0, b"", Kind.TOMBSTONE) == TOMBSTONE_GOLDEN
    header = decode(TOMBSTONE_GOLDEN, 0, 4160, SALT)
    assert header is not None
    assert (header.kind, header.slice_id, header.stop) == (Kind.TOMBSTONE, 42, 4160 + 48)


def test_a_void_is_these_bytes():
    assert encode(SALT, 4208, 0, SliceId(0), 256, b"", Kind.VOID) == VOID_GOLDEN
    header = decode(VOID_GOLDEN, 0, 4208, SALT)
    assert header is not None
    assert (header.kind, header.stop) == (Kind.VOID, 4208 + 48 + 256)


def test_each_32_kib_of_payload_has_its_checksum():
    length, table, _ = needle.checksums([b"a" * 32768, b"b" * 32768, b"c"])
    assert length == 65537
    assert len(table) == 12
    assert table[:4] == needle.checksums([b"a" * 32768])[1]
    assert table[8:] == needle.checksums([b"c"])[1]


def test_any_bit_of_a_header_that_flips_is_noticed():
    for bit in range(8 * HEADER_BYTES):
        damaged = bytearray(NEEDLE_GOLDEN)
        damaged[bit // 8] ^= 1 << bit % 8
        assert decode(damaged, 0, 4096, SALT) is None


def test_a_header_elsewhere_or_of_another_file_is_not_a_header():
    assert decode(NEEDLE_GOLDEN, 0, 4104, SALT) is None
    assert decode(NEEDLE_GOLDEN, 0, 4096, SALT + 1) is None


def test_one_good_copy_of_the_superblock_is_enough():
    page = bytearray(SUPERBLOCK.encode())
    page[:512] = bytes(512)
    assert decode_superblock(bytes(page)) == SUPERBLOCK
    page[2048 + 20] ^= 1
    with pytest.raises(BadSuperblock):
        decode_superblock(bytes(page))


def test_another_version_is_told_from_damage(monkeypatch):
    monkeypatch.setattr("mountfs.chunks.volume.VERSION", 3)
    newer = SUPERBLOCK.encode()
    monkeypatch.undo()
    with pytest.raises(OtherVersion, match="volume format 3"):
        decode_superblock(newer)


def test_the_index_is_these_rows():
    store = MemoryStore()
    index = NeedleIndex(store)
    index.put(VolumeId(7), SliceId(42), Place(4096, 5))
    index.write(index.begin_write({VolumeId(7): (2, 4160)}))
    index.end_write(done=True)
    assert dict(store.scan(b"", b"\xff")) == {
        b"n" + bytes.fromhex("00000007 000000000000002a"): bytes.fromhex(
            "0010000000000000 05000000"
        ),
        b"v" + bytes.fromhex("00000007"): bytes.fromhex(
            "02000000"  # generation
            "4010000000000000"  # checkpoint
            "4000000000000000"  # living bytes
            "0100000000000000"  # needles
        ),
        b"d" + bytes.fromhex("00000007"): bytes.fromhex(
            "02000000 4010000000000000 4000000000000000 0100000000000000"  # the row "v"
            "725b38e26ef819f5"  # digest
        ),
    }
