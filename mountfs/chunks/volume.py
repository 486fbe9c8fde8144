"""A volume: an append-only file of needles, and what can be concluded from what it holds.  No I/O.

A page of its own names the file (the superblock); needles follow one behind the other.  Nothing is
overwritten; deleting appends a tombstone, and space comes back when compaction writes the living
needles to a new generation of the file.

A needle is visible once the whole of it is in the file.  After a crash, what was not synced is
there or not in any combination.  So bad bytes at the end are cut off, bad bytes before a good
needle are made a void, both only above what is known to have been on disk: below that they are
damage, which is reported and left as it is.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from crc32c import crc32c

from mountfs.chunks import needle
from mountfs.chunks.needle import ALIGN, HEADER_BYTES, Header, Kind, aligned
from mountfs.types import KIB, MIB, SliceId, VolumeId

MAGIC: Final = b"mfsvol\r\n"
VERSION: Final = 2
SUPERBLOCK_BYTES: Final = 4096
"""Where the first needle begins."""
_COPY: Final = 2048
"""Offset of the second copy, in another sector."""

# magic, version, volume, generation, salt, durable, home; then the crc32c of these
_SUPERBLOCK = struct.Struct("<8sIIIIQ16s")
_CRC = struct.Struct("<I")

_WINDOW: Final = 4 * KIB
_SEARCH_WINDOW: Final = MIB

Read = Callable[[int, int], bytes]
"""(offset, length) -> the bytes there, fewer at the end of the file."""


class BadSuperblock(Exception):
    """Not the begin of a volume.  The text says what is wrong."""


class OtherVersion(BadSuperblock):
    """A volume of a version that this program does not know."""


@dataclass(frozen=True, slots=True)
class Superblock:
    volume: VolumeId
    generation: int
    """1, and one more with each compaction."""
    salt: int
    """Random, another one for each generation; every header has it."""
    durable: int
    """The file was on disk up to here before it got its name."""
    home: bytes
    """16 random bytes: which home the volume belongs to."""

    def encode(self) -> bytes:
        """SUPERBLOCK_BYTES bytes with two copies."""
        assert len(self.home) == 16, self.home
        packed = _SUPERBLOCK.pack(
            MAGIC, VERSION, self.volume, self.generation, self.salt, self.durable, self.home
        )
        packed += _CRC.pack(crc32c(packed))
        return packed.ljust(_COPY, b"\0") + packed.ljust(SUPERBLOCK_BYTES - _COPY, b"\0")


def decode_superblock(page: bytes) -> Superblock:
    """The superblock of a file that begins with `page`; one good copy is enough."""
    try:
        return _decode(page, 0)
    except OtherVersion:
        raise
    except BadSuperblock:
        return _decode(page, _COPY)


def _decode(page: bytes, at: int) -> Superblock:
    size = _SUPERBLOCK.size
    if len(page) < at + size + _CRC.size:
        raise BadSuperblock("too short for a volume")
    magic, version, volume, generation, salt, durable, home = _SUPERBLOCK.unpack_from(page, at)
    if magic != MAGIC:
        raise BadSuperblock("not a volume")
    if _CRC.unpack_from(page, at + size)[0] != crc32c(page[at : at + size]):
        raise BadSuperblock("checksum of the superblock does not match")
    if version != VERSION:
        raise OtherVersion(f"volume format {version}, this program knows {VERSION}")
    return Superblock(volume, generation, salt, durable, home)


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes that no header explains."""

    start: int
    stop: int


def walk(read: Read, start: int, stop: int, salt: int) -> Iterator[Header | Gap]:
    """What lies from `start` to `stop`, by headers only: ascending, without overlap, complete.

    The payload of the last needle may reach beyond `stop`.
    """
    window, base = b"", start
    offset = start
    while offset < stop:
        if offset + HEADER_BYTES > base + len(window):
            window, base = read(offset, min(_WINDOW, stop - offset)), offset
        header = needle.decode(window, offset - base, offset, salt)
        if header is not None:
            yield header
            offset = header.stop
        else:
            after = search(read, offset + ALIGN, stop, salt)
            yield Gap(offset, after)
            offset = after


def search(read: Read, start: int, stop: int, salt: int) -> int:
    """Offset of the first good header from `start` on; `stop` if there is none."""
    mark = needle.mark(salt)
    while start < stop:
        window = read(start, min(_SEARCH_WINDOW, stop - start))
        if len(window) < HEADER_BYTES:
            break
        at = window.find(mark)
        while at >= 0:
            if needle.decode(window, at, start + at, salt) is not None:
                return start + at
            at = window.find(mark, at + 1)
        # The last bytes again: a header may begin there.
        start += len(window) - HEADER_BYTES + 1
    return stop


def is_whole(read: Read, header: Header) -> bool:
    """Whether all of a needle is there: for data, whether the payload has its checksums."""
    if header.kind is Kind.TOMBSTONE:
        return True
    if header.kind is Kind.VOID:
        return len(read(header.stop - ALIGN, ALIGN)) == ALIGN
    behind = header.offset + HEADER_BYTES
    data = read(behind, header.stop - behind)
    table_bytes = header.payload - behind
    sums = needle.unpack_table(data[:table_bytes], header)
    if sums is None or len(data) < header.stop - behind:
        return False
    payload = memoryview(data)[table_bytes : table_bytes + header.length]
    return needle.first_bad(payload, sums) is None


@dataclass(frozen=True)
class Recovery:
    """What a file says from some offset on, and what has to be done to it before appending."""

    records: list[Header]
    """Needles and tombstones that count, in their order."""
    damage: list[Gap]
    """Was on disk once, and is not readable now.  Left as it is."""
    voids: list[Gap]
    """Torn by a crash, before something that is whole: to be marked by a VOID."""
    end: int
    """Where the next needle goes; what lies behind is to be cut off."""


def recover(read: Read, size: int, start: int, durable: int, salt: int) -> Recovery:
    """Judge a file of `size` bytes from `start` on, of which `durable` bytes were known to be on
    disk.

    Payloads below `durable` (the highest that any header states) are not read: whether they are
    still good is for a reader to find out, or for a verification.
    """
    found = list(walk(read, start, size, salt))
    durable = max([durable, *(item.durable for item in found if isinstance(item, Header))])
    records: list[Header] = []
    damage: list[Gap] = []
    voids: list[Gap] = []
    end = start
    if size < start:
        damage.append(Gap(size, start))
    for item in found:
        good = isinstance(item, Header) and (
            is_whole(read, item) if item.stop > durable or item.stop > size else True
        )
        if good and isinstance(item, Header):
            if item.kind is not Kind.VOID:
                records.append(item)
            end = item.stop
        elif item.start < durable:
            damage.append(Gap(item.start, min(item.stop, max(size, durable))))
        elif voids and voids[-1].stop == item.start:
            voids[-1] = Gap(voids[-1].start, item.stop)
        else:
            voids.append(Gap(item.start, item.stop))
    if end < durable and not (damage and damage[-1].stop >= durable):
        damage.append(Gap(max([end, *(gap.stop for gap in damage)]), durable))
    # What follows the last whole needle is cut off, but not what has been on disk.
    end = max([end, *(aligned(gap.stop) for gap in damage)])
    return Recovery(records, damage, [gap for gap in voids if gap.start < end], end)


@dataclass(frozen=True, slots=True)
class VolumeStats:
    volume: VolumeId
    generation: int
    total_bytes: int
    """Of the file, with its superblock."""
    living_bytes: int
    """Needles that are not deleted, with their headers and padding."""
    needles: int
    """How many of them."""
    sealed: bool
    """Takes no further needles for now."""
    failed: str = ""
    """Why it is read-only: what the disk or a damage said.  Empty: it is well."""
    epoch: int = 0
    """In which it takes slices from others; 0: in none."""
    reopens: bool = False
    """Others may have it opened again, so it is left as it is."""
    digest: int = 0
    """Of the names of the needles that are not deleted (`with_name`)."""

    @property
    def garbage_bytes(self) -> int:
        return max(self.total_bytes - SUPERBLOCK_BYTES - self.living_bytes, 0)

    @property
    def garbage_ratio(self) -> float:
        return self.garbage_bytes / max(self.total_bytes - SUPERBLOCK_BYTES, 1)


@dataclass(frozen=True, slots=True)
class Debt:
    """What compaction could give back."""

    total_bytes: int
    garbage_bytes: int
    volumes: tuple[VolumeId, ...]
    """Worth compacting, the best first."""


def debt(volumes: Iterable[VolumeStats], garbage_ratio: float, open_bytes_min: int) -> Debt:
    """Which volumes to compact: those with enough garbage, most garbage for the least copying
    first.

    One that is open for appending only with `open_bytes_min` of garbage: it fills up by itself.
    """
    known = list(volumes)
    worth = [
        stats
        for stats in known
        if not stats.failed
        and not stats.reopens
        and stats.garbage_bytes > 0
        and stats.garbage_ratio >= garbage_ratio
        and (stats.sealed or stats.garbage_bytes >= open_bytes_min)
    ]
    worth.sort(key=lambda stats: (-stats.garbage_ratio, stats.volume))
    return Debt(
        sum(stats.total_bytes for stats in known),
        sum(stats.garbage_bytes for stats in known),
        tuple(stats.volume for stats in worth),
    )


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that cannot be read as it was written."""

    path: str
    volume: VolumeId
    offset: int
    """In the file, in bytes."""
    slice_id: SliceId
    """0: it is not known which slices were there."""
    detail: str

    def __str__(self) -> str:
        name = f"slice {self.slice_id:#x}" if self.slice_id else "unknown slices"
        return f"{self.path}: {name} at offset {self.offset}: {self.detail}"
