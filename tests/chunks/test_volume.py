"""What is concluded from the bytes of a volume: after a crash, and after damage."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountfs.chunks import needle, rewrite, volume
from mountfs.chunks.needle import Header, Kind
from mountfs.chunks.volume import Gap, Recovery, VolumeStats, debt, recover, search, walk
from mountfs.types import SliceId, VolumeId

SALT = 0xFEED
BEGIN = volume.SUPERBLOCK_BYTES


def build(*lengths: int, durable: int = 0) -> tuple[bytes, list[int]]:
    """A file with needles of these payload lengths (slices 1, 2, ...), and where they begin and
    the last one ends.  Length 0: a tombstone for the first.
    """
    data, bounds = bytes(BEGIN), [BEGIN]
    for number, length in enumerate(lengths, 1):
        at = len(data)
        if length == 0:
            data += rewrite.tombstones(SALT, at, durable, [SliceId(1)])
        else:
            payload = bytes([number]) * length
            _, table, _ = needle.checksums([payload])
            data += needle.encode(SALT, at, durable, SliceId(number), length, table)
            data += payload + needle.padding(length)
        bounds.append(len(data))
    return data, bounds


def reader(data: bytes) -> volume.Read:
    return lambda offset, length: bytes(data[offset : offset + length])


def recovered(data: bytes, durable: int = BEGIN) -> Recovery:
    return recover(reader(data), len(data), BEGIN, durable, SALT)


def slices(recovery: Recovery) -> list[int]:
    return [header.slice_id for header in recovery.records if header.kind is Kind.DATA]


LENGTHS = (100, 5000, 0, 1, 70_000, 8)
DATA, BOUNDS = build(*LENGTHS)


def test_a_whole_file_is_walked_needle_by_needle():
    items = list(walk(reader(DATA), BEGIN, len(DATA), SALT))
    assert [item.start for item in items] == BOUNDS[:-1]
    assert [item.stop for item in items] == BOUNDS[1:]
    found = recovered(DATA)
    assert slices(found) == [1, 2, 4, 5, 6]
    assert (found.damage, found.voids, found.end) == ([], [], len(DATA))


@given(st.integers(BEGIN, len(DATA)))
def test_a_torn_tail_reads_as_the_end(size):
    found = recovered(DATA[:size])
    whole = [bound for bound in BOUNDS[1:] if bound <= size]
    assert len(found.records) == len(whole)
    assert found.end == (whole[-1] if whole else BEGIN)
    assert (found.damage, found.voids) == ([], [])


@given(st.integers(BEGIN, len(DATA)), st.integers(0, 100_000))
def test_a_tail_of_zeros_reads_as_the_end(size, zeros):
    found = recovered(DATA[:size] + bytes(zeros))
    # Zeros may be just what was there: then the needle is whole.
    rest = DATA[size : size + zeros]
    whole = [b for b in BOUNDS[1:] if b <= size or (b <= size + zeros and not any(DATA[size:b]))]
    assert len(found.records) == len(whole), rest[:8]
    assert found.end == (whole[-1] if whole else BEGIN)
    assert found.voids == []


def struck(byte: int) -> int:
    """Number of the needle that a byte belongs to."""
    return next(number for number, bound in enumerate(BOUNDS[1:]) if byte < bound)


def is_padding(byte: int) -> bool:
    number = struck(byte)
    length = LENGTHS[number]
    if not length:
        return False
    return byte >= BOUNDS[number] + 48 + needle.table_bytes(length) + length


@given(st.integers(BEGIN, len(DATA) - 1), st.integers(0, 7))
def test_a_flipped_bit_costs_one_needle_and_no_other(byte, bit):
    data = bytearray(DATA)
    data[byte] ^= 1 << bit
    found = recovered(bytes(data))
    bad = struck(byte)
    starts = [record.start for record in found.records]
    if is_padding(byte):
        assert starts == BOUNDS[:-1]
        return
    assert starts == [start for number, start in enumerate(BOUNDS[:-1]) if number != bad]
    assert found.damage == []  # nothing was known to be on disk
    if bad == len(LENGTHS) - 1:
        assert (found.voids, found.end) == ([], BOUNDS[bad])
    else:
        assert (found.voids, found.end) == ([Gap(BOUNDS[bad], BOUNDS[bad + 1])], len(data))


@given(st.data())
def test_below_what_was_on_disk_nothing_is_cut_or_voided(data):
    known = data.draw(st.sampled_from(BOUNDS))
    size = data.draw(st.integers(BEGIN, len(DATA)))
    file = bytearray(DATA[:size])
    if size > BEGIN:
        for byte in data.draw(st.lists(st.integers(BEGIN, size - 1), max_size=3)):
            file[byte] ^= 0x40
    found = recovered(bytes(file), durable=known)
    assert found.end >= known
    assert all(gap.start >= known for gap in found.voids)
    assert all(gap.start < known for gap in found.damage)
    headers = {item.start for item in walk(reader(file), BEGIN, size, SALT) if kept(item, size)}
    assert {start for start in headers if start < known} <= {r.start for r in found.records}


def kept(item: Header | Gap, size: int) -> bool:
    return isinstance(item, Header) and item.stop <= size


def test_a_bad_header_below_a_stated_durable_is_damage():
    data, bounds = build(100, 200, 300)
    more = bytearray(data)
    at = len(more)
    _, table, _ = needle.checksums([b"x"])
    more += needle.encode(SALT, at, bounds[3], SliceId(9), 1, table) + b"x" + needle.padding(1)
    more[bounds[1] + 20] ^= 1
    found = recovered(bytes(more))
    assert slices(found) == [1, 3, 9]
    assert found.damage == [Gap(bounds[1], bounds[2])]
    assert (found.voids, found.end) == ([], len(more))


def test_a_missing_end_that_was_on_disk_is_damage():
    data, bounds = build(100, 200)
    found = recovered(data[: bounds[1]], durable=bounds[2])
    assert found.damage == [Gap(bounds[1], bounds[2])]
    assert found.end == bounds[2]
    found = recover(reader(data[: bounds[1]]), bounds[1], bounds[2], bounds[2], SALT)
    assert found.damage == [Gap(bounds[1], bounds[2])]


def test_a_void_makes_a_gap_readable():
    data = bytearray(DATA)
    data[BOUNDS[1]] ^= 1
    gap = recovered(bytes(data)).voids[0]
    data[gap.start : gap.start + 48] = rewrite.void(SALT, gap)
    found = recovered(bytes(data), durable=len(data))
    assert slices(found) == [1, 4, 5, 6]
    assert (found.damage, found.voids, found.end) == ([], [], len(data))


def test_needles_within_a_payload_are_not_found():
    inner = DATA  # a volume stored in itself, at another place
    data, _ = build(10)
    at = len(data)
    _, table, _ = needle.checksums([inner])
    data += needle.encode(SALT, at, 0, SliceId(2), len(inner), table) + inner
    data += needle.padding(len(inner))
    damaged = bytearray(data)
    damaged[at] ^= 1  # now headers are searched for in the payload
    assert search(reader(damaged), at + 8, len(damaged), SALT) == len(damaged)
    assert slices(recovered(bytes(damaged))) == [1]


@pytest.mark.parametrize("shift", [*range(0, 97, 8), 1 << 20, (1 << 20) - 40, (1 << 20) - 48])
def test_a_header_is_found_wherever_a_window_ends(shift):
    start = BEGIN
    at = start + shift
    data = bytes(at) + rewrite.tombstones(SALT, at, 0, [SliceId(1)])
    assert search(reader(data), start, len(data), SALT) == at


def stats(number: int, total: int, living: int, **more: object) -> VolumeStats:
    given = {"needles": 1, "sealed": True, **more}
    return VolumeStats(VolumeId(number), 1, BEGIN + total, living, **given)  # type: ignore[arg-type]


def test_volumes_with_most_garbage_come_first_and_failed_ones_never():
    known = [
        stats(1, 100, 60),
        stats(2, 100, 40),
        stats(3, 100, 0),
        stats(4, 100, 10, failed="damaged"),
        stats(5, 100, 20, sealed=False),
        stats(6, 5000, 20, sealed=False),
        stats(7, 0, 0),
    ]
    found = debt(known, 0.5, open_bytes_min=1000)
    assert found.volumes == (3, 6, 2)
    assert found.garbage_bytes == 40 + 60 + 100 + 90 + 80 + 4980
