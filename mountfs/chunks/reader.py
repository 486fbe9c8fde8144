"""Reading needles, with headers and checksums of the latest ones in memory.

Then a read of 4 KiB takes one preadv of the 32 KiB around it, and verifies these.  Raises FsError
CORRUPT with file, offset and slice, and OSError.
"""

import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from mountfs.buffers import Buffers
from mountfs.chunks import needle, rewrite
from mountfs.chunks.file import VolumeFile
from mountfs.chunks.index import Place
from mountfs.chunks.needle import HEADER_BYTES, Kind
from mountfs.chunks.rewrite import DamagedNeedle
from mountfs.errors import Fault, FsError
from mountfs.types import CHECKSUM_BYTES, KIB, SliceId, VolumeId
from mountfs.wire.frames import Stretch


class Head(NamedTuple):
    """What reading a needle takes, besides its payload."""

    salt: int
    """Of the file."""
    payload: int
    """Offset in the file."""
    length: int
    sums: Sequence[int]

    @property
    def table(self) -> bytes:
        """The checksums as they are in the file."""
        return struct.pack(f"<{len(self.sums)}I", *self.sums)


class Places(Protocol):
    """Where needles are: a `NeedleIndex`, or what it has said."""

    def get(self, volume: VolumeId, slice_id: SliceId) -> Place | None: ...


LARGE_BYTES = 128 * KIB
"""A read from this size on goes into a buffer that was used before."""


PROBE_BYTES = 256 * KIB
"""If bytes so far from each other are in memory, those between them are, or nearly always."""


class NeedleReader:
    def __init__(
        self, index: Places, lock: threading.Lock, heads_max: int, buffers: Buffers
    ) -> None:
        self._index = index
        self._buffers = buffers
        self._lock = lock
        self._heads: OrderedDict[tuple[VolumeId, SliceId], Head] = OrderedDict()
        self._heads_max = heads_max

    def read(
        self, file: VolumeFile, slice_id: SliceId, start: int, stop: int, flags: int
    ) -> memoryview | None:
        """Bytes `start` to `stop` of a slice that is in this file; None when it would block (only
        with RWF_NOWAIT in `flags`).
        """
        head = self.head(file, slice_id, flags)
        if head is None:
            return None
        if stop > head.length:
            raise _absent(file, slice_id, f"has {head.length} bytes, {stop} were asked for")
        first = start // CHECKSUM_BYTES
        low = first * CHECKSUM_BYTES
        high = min(-(-stop // CHECKSUM_BYTES) * CHECKSUM_BYTES, head.length)
        data = self._room(high - low)
        filled = file.fill(data, head.payload + low, flags)
        if filled is None:
            self._buffers.put(data.obj)
            return None
        bad = needle.first_bad(data, head.sums, first) if filled else first
        if bad is not None:
            detail = "checksum does not match" if filled else "the file is cut off"
            raise _corrupt(file, slice_id, head.payload + bad * CHECKSUM_BYTES, detail)
        return data[start - low : stop - low]

    def stretch(
        self, file: VolumeFile, slice_id: SliceId, start: int, stop: int
    ) -> tuple[int, Stretch] | None:
        """Where these bytes are in the file, and the crc32c that they should have, by the sums of
        the needle.  None: they are not whole pieces, or the disk has to be waited for.
        """
        head = self.head(file, slice_id, os.RWF_NOWAIT)
        if head is None:
            return None
        if stop > head.length:
            raise _absent(file, slice_id, f"has {head.length} bytes, {stop} were asked for")
        if start % CHECKSUM_BYTES or (stop % CHECKSUM_BYTES and stop != head.length):
            return None
        at = head.payload + start
        for probe in (*range(at, head.payload + stop, PROBE_BYTES), head.payload + stop - 1):
            if not file.fill(bytearray(1), probe, os.RWF_NOWAIT):
                return None  # also if the file ends before: reading it says so
        sums = head.sums[start // CHECKSUM_BYTES : -(-stop // CHECKSUM_BYTES)]
        return needle.joined(sums, stop - start), Stretch(file, file.fd, at, stop - start)

    def _room(self, size: int) -> memoryview:
        if LARGE_BYTES <= size <= self._buffers.size_bytes:
            return memoryview(self._buffers.get())[:size]
        return memoryview(bytearray(size))

    def fetch(self, file: VolumeFile, slice_id: SliceId, start: int, stop: int) -> None:
        """Have the disk begin with what a `read` of these bytes would wait for first."""
        key = (file.superblock.volume, slice_id)
        head = self._heads.get(key)
        if head is not None and head.salt == file.superblock.salt:
            low = start // CHECKSUM_BYTES * CHECKSUM_BYTES
            high = min(-(-stop // CHECKSUM_BYTES) * CHECKSUM_BYTES, head.length)
            file.will_need(head.payload + low, head.payload + high)
            return
        place = self._index.get(*key)
        if place is not None and place.is_possible:
            begin = place.offset + HEADER_BYTES + needle.table_bytes(place.length)
            file.will_need(place.offset, begin)
            file.will_need(begin + start // CHECKSUM_BYTES * CHECKSUM_BYTES, begin + stop)

    def head(self, file: VolumeFile, slice_id: SliceId, flags: int) -> Head | None:
        """Header and checksums of a needle; None when it would block."""
        superblock = file.superblock
        key = (superblock.volume, slice_id)
        head = self._heads.get(key)
        if head is not None and head.salt == superblock.salt:
            if len(self._heads) > self._heads_max // 2:
                self._touch(key)
            return head
        place = self._index.get(*key)
        if place is None:
            with self._lock:  # no change of the index is under way then
                place = self._index.get(*key)
        if place is None:
            raise _absent(file, slice_id, "is not in the volume")
        if not place.is_possible:
            raise _corrupt(file, slice_id, place.offset, "its row in the index is damaged")
        data = bytearray(HEADER_BYTES + needle.table_bytes(place.length))
        filled = file.fill(data, place.offset, flags)
        if filled is None:
            return None
        header = needle.decode(data, 0, place.offset, superblock.salt) if filled else None
        good = header is not None and (header.slice_id, header.length, header.kind) == (
            slice_id,
            place.length,
            Kind.DATA,
        )
        if header is None or not good:
            raise _corrupt(file, slice_id, place.offset, "its header is damaged")
        sums = needle.unpack_table(memoryview(data)[HEADER_BYTES:], header)
        if sums is None:
            raise _corrupt(file, slice_id, place.offset, "its checksums are damaged")
        head = Head(superblock.salt, header.payload, header.length, sums)
        self._heads[key] = head
        while len(self._heads) > self._heads_max:
            self._heads.popitem(last=False)
        return head

    def _touch(self, key: tuple[VolumeId, SliceId]) -> None:
        try:
            self._heads.move_to_end(key)
        except KeyError:  # another thread has just evicted it
            return

    def forget(self, volume: VolumeId, slice_id: SliceId) -> None:
        self._heads.pop((volume, slice_id), None)

    def __len__(self) -> int:
        return len(self._heads)


def _corrupt(file: VolumeFile, slice_id: SliceId, offset: int, detail: str) -> FsError:
    return DamagedNeedle(rewrite.damage_of(file, slice_id, offset, detail))


def _absent(file: VolumeFile, slice_id: SliceId, detail: str) -> FsError:
    """Bytes that were never here, as far as is known."""
    return FsError(Fault.CORRUPT, f"{file.path}: slice {slice_id:#x}: {detail}")
