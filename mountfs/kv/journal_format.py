"""How a journal lies on disk, and what can be concluded from what is found there.  No I/O.

A log is a row of segments.  A segment begins with a page of its own, the header, and holds records
one behind the other.  A segment is used again and again; each use has its own random `salt`, which
every record carries, so that what an earlier use left behind is never taken for a record, and a
record can be searched for.

A record also carries `durable`: the highest index that its writer knew to be on disk.  That is what
tells the two reasons for an unreadable record apart.  After a power loss, pages that were not
synced are there or not in any combination, so whole records may follow a hole: the log ends at the
hole.  But a hole at or below a `durable` that some whole record states is damage, for those bytes
had been on disk.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from crc32c import crc32c

MAGIC: Final = b"mfsmlog\n"
VERSION: Final = 1
HEADER_BYTES: Final = 4096
"""Where the first record begins: no record shares a page with the header."""
RECORD_HEADER_BYTES: Final = 28

# magic, version, salt, sequence, segment_bytes, durable, home; then the crc32c of these
_HEADER = struct.Struct("<8sIIQQQ16s")
# salt, length, index, durable; before them the crc32c of these and the payload
_RECORD = struct.Struct("<IIQQ")
_CRC = struct.Struct("<I")

pack_record: Final = _RECORD.pack
pack_crc: Final = _CRC.pack


class BadHeader(Exception):
    """Not a segment header.  The text says what is wrong."""


class NewerVersion(BadHeader):
    """A header of a version that this program does not know."""


@dataclass(frozen=True)
class Header:
    sequence: int
    """Segments in the order of their sequence are the log; it is also in the file's name."""
    salt: int
    """Random, not 0: which use of the file the records belong to."""
    segment_bytes: int
    home: bytes
    """Identity of the filesystem, 16 bytes."""
    durable: int = 0
    """Highest index known to be on disk when the log was closed.  0: it was not closed."""

    def encode(self) -> bytes:
        """60 bytes, within the first sector of the file, so that the disk replaces it whole."""
        assert len(self.home) == 16, self.home
        assert self.salt, self
        packed = _HEADER.pack(
            MAGIC, VERSION, self.salt, self.sequence, self.segment_bytes, self.durable, self.home
        )
        return packed + pack_crc(crc32c(packed))


def decode_header(data: bytes) -> Header:
    size = _HEADER.size
    if len(data) < size + _CRC.size:
        raise BadHeader("too short for a header")
    magic, version, salt, sequence, segment_bytes, durable, home = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise BadHeader("not a log segment")
    if _CRC.unpack_from(data, size)[0] != crc32c(data[:size]):
        raise BadHeader("checksum of the header does not match")
    if version != VERSION:
        raise NewerVersion(f"log format {version}, this program knows {VERSION}")
    return Header(sequence, salt, segment_bytes, home, durable)


def encode_record(salt: int, index: int, durable: int, payload: bytes) -> bytes:
    assert durable < index, (durable, index)
    body = pack_record(salt, len(payload), index, durable) + payload
    return pack_crc(crc32c(body)) + body


@dataclass(slots=True)
class Record:
    """Where a whole record lies: its payload is `data[start:stop]`."""

    index: int
    durable: int
    start: int
    stop: int


def record_at(data: bytes, offset: int, salt: int) -> Record | None:
    """The whole record of this use that begins at `offset`, if there is one."""
    start = offset + RECORD_HEADER_BYTES
    if start > len(data):
        return None
    found, length, index, durable = _RECORD.unpack_from(data, offset + 4)
    stop = start + length
    if found != salt or stop > len(data):
        return None
    if crc32c(memoryview(data)[offset + 4 : stop]) != _CRC.unpack_from(data, offset)[0]:
        return None
    return Record(index, durable, start, stop)


def run(data: bytes, salt: int, offset: int = HEADER_BYTES) -> Iterator[Record]:
    """Whole records one behind the other, from `offset` on, their indices ascending by one."""
    expected = 0
    while (record := record_at(data, offset, salt)) is not None:
        if expected and record.index != expected:
            return
        yield record
        expected = record.index + 1
        offset = record.stop


def strays(data: bytes, salt: int, offset: int) -> Iterator[Record]:
    """Whole records of this use anywhere behind `offset`."""
    mark = pack_crc(salt)
    while (at := data.find(mark, offset + 4)) >= 0:
        record = record_at(data, at - 4, salt)
        if record is not None:
            yield record
        offset = at - 3 if record is None else record.stop


@dataclass(frozen=True)
class Survey:
    """What one segment holds."""

    first: int
    """Index of the first record of the run at its begin, 0 when there is none."""
    last: int
    end: int
    """Offset behind the run."""
    durable: int
    """Highest index that a whole record in the segment, or its header, says is on disk."""
    strayed: bool
    """Whole records follow behind an unreadable one."""
    begun: bool
    """What lies at `end` looks like a record that is not whole."""
    residue: bool
    """There is at least a piece of a record behind `end`.  It could become whole by what is written
    around it later, so nothing may be appended before it is gone."""


def survey(data: bytes, header: Header) -> Survey:
    first = last = 0
    end = HEADER_BYTES
    durable = header.durable
    for record in run(data, header.salt):
        first = first or record.index
        last, end, durable = record.index, record.stop, max(durable, record.durable)
    strayed = False
    for record in strays(data, header.salt, end):
        strayed, durable = True, max(durable, record.durable)
    mark = pack_crc(header.salt)
    begun = data[end + 4 : end + 8] == mark
    return Survey(first, last, end, durable, strayed, begun, residue=data.find(mark, end) >= 0)


@dataclass(frozen=True)
class Verdict:
    """Where the log ends: behind `last`, in segment number `segment` of those surveyed."""

    segment: int
    last: int
    """0: the log is empty."""
    durable: int
    """Highest index stated to be on disk.  More than `last`: what is missing is damage."""
    torn: bool
    """Whole records follow behind the end."""
    hole: tuple[int, int]
    """(segment number, offset) where record `last + 1` should be."""

    @property
    def damaged(self) -> bool:
        return self.durable > self.last


def judge(surveys: Sequence[Survey]) -> Verdict:
    """Put segments together, in the order of their sequence.

    When the very first record cannot be read its index is not known; then any `durable` but 0 means
    damage.  A writer keeps that true: it states 0 until something of a new log is on disk, and it
    lets go of a segment only when the first record of the next one is on disk.
    """
    segment = last = 0
    torn = False
    for number, found in enumerate(surveys):
        if not torn and found.first and (number == 0 or (last and found.first == last + 1)):
            segment, last, torn = number, found.last, found.strayed
        elif found.first or found.strayed:
            torn = True
    hole = (segment, surveys[segment].end)
    if last and not surveys[segment].begun and not surveys[segment].strayed:
        # Nothing of it is in the last segment: it was the first record of the next.
        behind = surveys[segment + 1 :]
        if behind and not behind[0].first and behind[0].strayed:
            hole = (segment + 1, HEADER_BYTES)
    return Verdict(segment, last, max(survey.durable for survey in surveys), torn, hole)
