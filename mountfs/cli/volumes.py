"""Reading the volumes of a home for a check: every needle that lives, every byte of it.  Nothing is
written, so what a crash has torn is judged as the next mount would, and left.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from crc32c import crc32c

from mountfs.chunks import needle
from mountfs.chunks.index import Place
from mountfs.chunks.needle import HEADER_BYTES, Header, Kind
from mountfs.chunks.volume import (
    SUPERBLOCK_BYTES,
    BadSuperblock,
    Gap,
    Superblock,
    decode_superblock,
    recover,
)
from mountfs.types import CHECKSUM_BYTES, SliceId, VolumeId

Range = tuple[int, int]


@dataclass(frozen=True)
class Needle:
    slice_id: SliceId
    place: Place
    crc: int
    """Of the whole payload as it is now."""
    bad: tuple[Range, ...]
    """Ranges of the payload that are not what was written."""
    why: str
    """What is wrong with it; empty: nothing."""


@dataclass(frozen=True)
class VolumeFound:
    superblock: Superblock
    gaps: list[Gap]
    """Was on disk once, and cannot be read as needles now."""
    living: dict[SliceId, Place]
    end: int
    """Where the next needle would go."""


def volume_paths(directory: Path) -> dict[VolumeId, Path]:
    """The volumes in HOME/chunks/volumes."""
    if not directory.is_dir():
        return {}
    found = sorted(path for path in directory.glob("*.vol") if path.stem.isdecimal())
    return {VolumeId(int(path.stem)): path for path in found}


class VolumeReader:
    """A volume, open for reading only.  Raises BadSuperblock and OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size
        try:
            self.superblock = decode_superblock(self._read(0, SUPERBLOCK_BYTES))
            expected = int(path.stem)
            if self.superblock.volume != expected:
                raise BadSuperblock(f"it is volume {self.superblock.volume} by its superblock")
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        os.close(self._fd)

    def survey(self, durable: int) -> VolumeFound:
        """What lives in it, by the headers.  `durable`: so far it is known to have been on disk."""
        block = self.superblock
        durable = max(durable, block.durable)
        found = recover(self._read, self.size, SUPERBLOCK_BYTES, durable, block.salt)
        living: dict[SliceId, Place] = {}
        for header in found.records:
            if header.kind is Kind.DATA:
                living[header.slice_id] = Place(header.offset, header.length)
            else:
                living.pop(header.slice_id, None)
        return VolumeFound(block, found.damage, living, found.end)

    def needles(self, found: VolumeFound, progress: Callable[[int], None]) -> Iterator[Needle]:
        """Read all that lives, in the order of the file.  `progress` is told bytes as they are
        read.
        """
        for slice_id, place in sorted(found.living.items(), key=lambda item: item[1]):
            yield self._needle(slice_id, place)
            progress(needle.needle_bytes(place.length))

    def _needle(self, slice_id: SliceId, place: Place) -> Needle:
        whole = ((0, place.length),)
        try:
            data = self._read(place.offset, needle.needle_bytes(place.length))
        except OSError as error:
            return Needle(slice_id, place, 0, whole, f"the disk cannot read it: {error.strerror}")
        header = needle.decode(data, 0, place.offset, self.superblock.salt)
        if header is None:
            return Needle(slice_id, place, 0, whole, "its header is damaged")
        start = header.payload - header.offset
        payload = memoryview(data)[start : start + header.length]
        sums = needle.unpack_table(data[HEADER_BYTES:start], header)
        if sums is None:
            return Needle(slice_id, place, 0, whole, "its checksums are damaged")
        bad = tuple(bad_ranges(payload, sums, header))
        why = "a checksum does not match" if bad else ""
        return Needle(slice_id, place, crc32c(payload), bad, why)

    def _read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._fd, length, offset)
        while len(data) < length:
            more = os.pread(self._fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data


def bad_ranges(payload: memoryview, sums: Sequence[int], header: Header) -> Iterator[Range]:
    """The pieces of a payload that do not match their checksums, neighbours joined."""
    start = stop = 0
    for number, crc in enumerate(sums):
        low = number * CHECKSUM_BYTES
        high = min(low + CHECKSUM_BYTES, header.length)
        if len(payload) >= high and crc32c(payload[low:high]) == crc:
            continue
        if stop != low or start == stop:
            if start < stop:
                yield start, stop
            start = low
        stop = high
    if start < stop:
        yield start, stop
