"""The work on whole files: recovering one, copying what lives in one, checking one.  Blocks."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from mountfs.chunks import needle
from mountfs.chunks.file import VolumeFile
from mountfs.chunks.index import Place
from mountfs.chunks.needle import HEADER_BYTES, Header, Kind
from mountfs.chunks.volume import SUPERBLOCK_BYTES, Damage, Gap, Recovery, recover, walk
from mountfs.errors import Fault, FsError
from mountfs.types import CHECKSUM_BYTES, MIB, SliceId

_COPY_BYTES = 4 * MIB
"""Small needles are copied many at a time."""


class DamagedNeedle(FsError):
    """CORRUPT: a needle that is there cannot be read as it was written."""

    def __init__(self, damage: Damage, what: str = "") -> None:
        super().__init__(Fault.CORRUPT, f"{what}{damage}")
        self.damage = damage


class Unreadable(Exception):
    """The disk cannot read a file.  The text is what it said."""


def recover_file(file: VolumeFile, start: int, durable: int) -> Recovery:
    """Find out what a file holds from `start` on, and leave it ready for appending: on disk, the
    torn tail cut off, torn bytes before something whole marked as void.

    Raises Unreadable, and then nothing has changed; and OSError when it cannot be written.
    """
    # What a killed process wrote may be in the page cache only, and what a disk refused to take may
    # still look good there.  So it goes to the disk first, and is then read from there.
    file.settle()
    salt = file.superblock.salt
    try:
        found = recover(file.read, file.size, start, durable, salt)
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error
    file.cut(found.end)  # also gives back disk space that was taken and not used
    for gap in found.voids:
        if gap.stop - gap.start >= HEADER_BYTES:
            file.write([void(salt, gap)], gap.start)
    file.settle()
    return found


def void(salt: int, gap: Gap) -> bytes:
    """The header that makes readers skip a gap."""
    length = gap.stop - gap.start - HEADER_BYTES
    return needle.encode(salt, gap.start, 0, SliceId(0), length, b"", Kind.VOID)


def tombstones(salt: int, offset: int, durable: int, slices: Iterable[SliceId]) -> bytes:
    """One tombstone behind the other, the first at `offset`."""
    return b"".join(
        needle.encode(
            salt, offset + number * HEADER_BYTES, durable, slice_id, 0, b"", Kind.TOMBSTONE
        )
        for number, slice_id in enumerate(slices)
    )


@dataclass(frozen=True, slots=True)
class _Bad:
    offset: int
    detail: str


def _load(file: VolumeFile, slice_id: SliceId, place: Place) -> tuple[Header, bytes] | _Bad:
    """A needle with everything in it, if every byte is good."""
    if not place.is_possible:
        return _Bad(place.offset, "its row in the index is damaged")
    data = file.read(place.offset, needle.needle_bytes(place.length))
    header = needle.decode(data, 0, place.offset, file.superblock.salt)
    if header is None or header.slice_id != slice_id or header.length != place.length:
        return _Bad(place.offset, "its header is damaged")
    payload = header.payload - header.offset
    sums = needle.unpack_table(data[HEADER_BYTES:payload], header)
    if sums is None:
        return _Bad(place.offset + HEADER_BYTES, "its checksums are damaged")
    piece = None
    if len(data) >= payload + header.length:
        piece = needle.first_bad(memoryview(data)[payload : payload + header.length], sums)
    else:
        piece = max(len(data) - payload, 0) // CHECKSUM_BYTES
    if piece is not None:
        return _Bad(header.payload + piece * CHECKSUM_BYTES, "checksum does not match")
    return header, data


def copy_living(
    source: VolumeFile, target: VolumeFile, living: Iterable[tuple[SliceId, Place]]
) -> tuple[list[tuple[SliceId, Place]], int]:
    """Write needles of one file into another, from its begin on.  Returns their new places and
    where the next needle goes.

    Raises CORRUPT, so that damage is neither copied nor dropped, and OSError.
    """
    places: list[tuple[SliceId, Place]] = []
    parts: list[bytes | memoryview] = []
    start = end = SUPERBLOCK_BYTES
    for slice_id, place in living:
        try:
            found = _load(source, slice_id, place)
        except OSError as error:  # not to be mistaken for one of the target
            found = _Bad(place.offset, f"cannot be read: {error.strerror}")
        if isinstance(found, _Bad):
            damage = damage_of(source, slice_id, found.offset, found.detail)
            raise DamagedNeedle(damage, "cannot compact ")
        header, data = found
        payload = header.payload - header.offset
        table = data[HEADER_BYTES:payload]
        salt = target.superblock.salt
        parts.append(needle.encode(salt, end, 0, slice_id, header.length, table))
        parts.append(memoryview(data)[payload:])
        places.append((slice_id, Place(end, header.length)))
        end += len(data)
        if end - start >= _COPY_BYTES:
            target.write(parts, start)
            parts, start = [], end
    target.write(parts, start)
    return places, end


def gaps(file: VolumeFile, stop: int) -> Iterator[Gap]:
    """What cannot be explained before `stop`."""
    for item in walk(file.read, SUPERBLOCK_BYTES, stop, file.superblock.salt):
        if isinstance(item, Gap):
            yield item


def check(file: VolumeFile, slice_id: SliceId, place: Place) -> Damage | None:
    """Read a needle and verify all of it."""
    try:
        found = _load(file, slice_id, place)
    except OSError as error:
        return damage_of(file, slice_id, place.offset, f"cannot be read: {error.strerror}")
    if isinstance(found, _Bad):
        return damage_of(file, slice_id, found.offset, found.detail)
    return None


def damage_of(file: VolumeFile, slice_id: SliceId, offset: int, detail: str) -> Damage:
    return Damage(str(file.path), file.superblock.volume, offset, slice_id, detail)


def gap_damage(file: VolumeFile, gap: Gap) -> Damage:
    detail = f"{gap.stop - gap.start} bytes cannot be read as needles"
    return damage_of(file, SliceId(0), gap.start, detail)


Progress = Callable[[int, int], None]
"""(bytes done, bytes in all)"""
