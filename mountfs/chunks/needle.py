"""A needle: one slice as it lies in a volume.  No I/O.

Header (48 bytes), one crc32c for each 32 KiB of payload, payload, zeros up to a multiple of 8.  A
small read needs the header once and then only the 32 KiB around it.

A header counts only where it was written: it holds its own offset and the salt of its file.  Bytes
of a volume that somebody stores as the contents of a file (a backup of this very home, say) are
therefore never taken for needles, even where headers have to be searched for.

`durable` is the offset up to which the file was known to be on disk when the header was written.
It tells the two reasons for unreadable bytes apart: above it a crash may have eaten them, in any
order; below it they were on disk, and something has damaged them.
"""

import enum
import struct
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from crc32c import crc32c

from mountfs.types import CHECKSUM_BYTES, SLICE_BYTES_MAX, SliceId

Buffer = bytes | bytearray | memoryview

MAGIC: Final = b"ndl\n"
HEADER_BYTES: Final = 48
ALIGN: Final = 8
"""Needles begin at multiples of this.  Not more: payloads are read through the page cache, which
does not care, and small needles are the many ones.
"""

# magic, salt, offset, durable, slice, payload length, kind, crc32c of the table; then the crc32c
# of these
_HEADER = struct.Struct("<4sIQQQIII")
_CRC = struct.Struct("<I")
assert _HEADER.size + _CRC.size == HEADER_BYTES


class Kind(enum.IntEnum):
    DATA = 1
    TOMBSTONE = 2
    """The slice is deleted.  No payload."""
    VOID = 3
    """Nothing: skip the payload, whatever it is.  Left by an append that failed, or put over what
    a crash has torn.
    """


_KINDS: Final = {int(kind): kind for kind in Kind}


@dataclass(frozen=True, slots=True)
class Header:
    offset: int
    """Of the needle in its file; a multiple of ALIGN."""
    durable: int
    """At most `offset`."""
    slice_id: SliceId
    length: int
    """Payload bytes."""
    kind: Kind
    table_crc: int

    @property
    def start(self) -> int:
        return self.offset

    @property
    def stop(self) -> int:
        """Where the next needle begins."""
        return self.offset + needle_bytes(self.length, self.kind)

    @property
    def payload(self) -> int:
        """Where the payload begins, in the file."""
        return self.offset + HEADER_BYTES + table_bytes(self.length, self.kind)


def table_bytes(length: int, kind: Kind = Kind.DATA) -> int:
    """What the checksums of a payload take."""
    return -(-length // CHECKSUM_BYTES) * 4 if kind is Kind.DATA else 0


def needle_bytes(length: int, kind: Kind = Kind.DATA) -> int:
    """What a needle takes in its file, with header, checksums and padding."""
    return aligned(HEADER_BYTES + table_bytes(length, kind) + length)


def aligned(offset: int) -> int:
    return -(-offset // ALIGN) * ALIGN


def encode(
    salt: int,
    offset: int,
    durable: int,
    slice_id: SliceId,
    length: int,
    table: bytes,
    kind: Kind = Kind.DATA,
) -> bytes:
    """Header and checksum table; the payload and `padding` come behind them."""
    assert offset % ALIGN == 0, offset
    assert durable <= offset, (durable, offset)
    assert len(table) == table_bytes(length, kind), (length, kind)
    header = _HEADER.pack(MAGIC, salt, offset, durable, slice_id, length, kind, crc32c(table))
    return header + _CRC.pack(crc32c(header)) + table


def padding(length: int) -> bytes:
    """What follows a payload."""
    return bytes(needle_bytes(length) - HEADER_BYTES - table_bytes(length) - length)


def decode(data: Buffer, at: int, offset: int, salt: int) -> Header | None:
    """The header at `data[at:]`, if a good one is there that was written at `offset` of the file
    with this salt.
    """
    if at + HEADER_BYTES > len(data):
        return None
    magic, found, own, durable, slice_id, length, kind, table_crc = _HEADER.unpack_from(data, at)
    if magic != MAGIC or found != salt or own != offset or kind not in _KINDS:
        return None
    crc = _CRC.unpack_from(data, at + _HEADER.size)[0]
    if crc32c(memoryview(data)[at : at + _HEADER.size]) != crc:
        return None
    if kind == Kind.DATA and not 0 < length <= SLICE_BYTES_MAX:
        return None
    return Header(offset, durable, SliceId(slice_id), length, _KINDS[kind], table_crc)


def mark(salt: int) -> bytes:
    """What every header of a file begins with."""
    return MAGIC + _CRC.pack(salt)


class Checksums(NamedTuple):
    """What is to be known of a payload to store it."""

    length: int
    table: bytes
    crc: int
    """crc32c of all of it."""


def checksums(parts: Sequence[Buffer]) -> Checksums:
    """Of a payload given in parts, which are looked at once."""
    sums: list[int] = []
    crc, room, length = 0, CHECKSUM_BYTES, 0
    for part in parts:
        size = len(part)
        length += size
        if size < room:
            crc = crc32c(part, crc)
            room -= size
            continue
        view, at = memoryview(part), 0
        while size - at >= room:
            sums.append(crc32c(view[at : at + room], crc))
            at += room
            crc, room = 0, CHECKSUM_BYTES
        if at < size:
            crc = crc32c(view[at:])
            room -= size - at
    if room < CHECKSUM_BYTES:
        sums.append(crc)
    return Checksums(length, struct.pack(f"<{len(sums)}I", *sums), joined(sums, length))


def joined(sums: Sequence[int], length: int) -> int:
    """crc32c of a payload from those of its pieces.

    crc(a + b) = shifted(crc(a), len(b)) ^ crc(b), where shifting by a length is linear over the
    bits: four look-ups, one for each byte, say it for the length of a whole piece.
    """
    if not sums:
        return 0
    zero, one, two, three = _SHIFT
    crc = sums[0]
    for piece in sums[1 : length // CHECKSUM_BYTES]:
        crc = (
            zero[crc & 0xFF] ^ one[crc >> 8 & 0xFF] ^ two[crc >> 16 & 0xFF] ^ three[crc >> 24]
        ) ^ piece
    if len(sums) > 1 and length % CHECKSUM_BYTES:
        crc = _shifted(crc, bytes(length % CHECKSUM_BYTES)) ^ sums[-1]
    return crc


def _shifted(crc: int, zeros: bytes) -> int:
    return crc32c(zeros, crc) ^ crc32c(zeros)


def _shift_tables() -> tuple[tuple[int, ...], ...]:
    zeros = bytes(CHECKSUM_BYTES)
    bits = [_shifted(1 << bit, zeros) for bit in range(32)]
    tables = []
    for first in range(0, 32, 8):
        table = [0] * 256
        for byte in range(1, 256):
            low = byte & -byte
            table[byte] = table[byte ^ low] ^ bits[first + low.bit_length() - 1]
        tables.append(tuple(table))
    return tuple(tables)


_SHIFT: Final = _shift_tables()


def unpack_table(table: Buffer, header: Header) -> Sequence[int] | None:
    """The checksums of a needle's pieces, if the table is good."""
    if len(table) != table_bytes(header.length, header.kind) or crc32c(table) != header.table_crc:
        return None
    sums = array("I", bytes(table))  # four bytes a number; a tuple takes nine times that
    if sys.byteorder == "big":
        sums.byteswap()
    return sums


def first_bad(data: memoryview, sums: Sequence[int], piece: int = 0) -> int | None:
    """Number of the first piece that does not match; `data` begins with piece number `piece`."""
    for at in range(0, len(data), CHECKSUM_BYTES):
        if crc32c(data[at : at + CHECKSUM_BYTES]) != sums[piece]:
            return piece
        piece += 1
    return None
