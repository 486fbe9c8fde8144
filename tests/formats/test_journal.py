"""The metadata log, byte for byte as docs/formats.md has it.

A change here is a change of the format.
"""

from collections.abc import Iterator

import pytest

from mountfs.kv.journal_format import (
    HEADER_BYTES,
    BadHeader,
    Header,
    NewerVersion,
    decode_header,
    encode_record,
    judge,
    record_at,
    survey,
)

HOME = bytes(range(16))
HEADER = Header(sequence=7, salt=0x01020304, segment_bytes=32 << 20, home=HOME, durable=41)
HEADER_GOLDEN = bytes.fromhex(
    "6d66736d6c6f670a"  # magic "mfsmlog\n"
    "01000000"  # version
    "04030201"  # salt
    "0700000000000000"  # sequence
    "0000000200000000"  # segment_bytes
    "2900000000000000"  # durable
    "000102030405060708090a0b0c0d0e0f"  # home
    "1a91ea50"  # crc32c of all before
)
RECORD_GOLDEN = bytes.fromhex(
    "146f25c2"  # crc32c of all behind
    "04030201"  # salt
    "05000000"  # length
    "2a00000000000000"  # index
    "2900000000000000"  # durable
    "68656c6c6f"  # payload "hello"
)


def segment(*records: bytes) -> bytes:
    data = HEADER_GOLDEN.ljust(HEADER_BYTES, b"\0") + b"".join(records)
    return data.ljust(HEADER_BYTES * 3, b"\0")


def test_a_header_is_these_bytes():
    assert HEADER.encode() == HEADER_GOLDEN
    assert decode_header(HEADER_GOLDEN) == HEADER


def test_a_record_is_these_bytes():
    assert encode_record(HEADER.salt, 42, 41, b"hello") == RECORD_GOLDEN
    found = record_at(RECORD_GOLDEN, 0, HEADER.salt)
    assert found is not None
    assert (found.index, found.durable) == (42, 41)
    assert RECORD_GOLDEN[found.start : found.stop] == b"hello"


def test_a_segment_is_a_page_of_header_and_then_records():
    seen = survey(segment(RECORD_GOLDEN), HEADER)
    assert (seen.first, seen.last, seen.end) == (42, 42, 4096 + len(RECORD_GOLDEN))


def with_each_bit_flipped(data: bytes) -> Iterator[bytes]:
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bytes(damaged)


def test_any_bit_of_the_header_that_flips_is_noticed():
    for damaged in with_each_bit_flipped(HEADER_GOLDEN):
        with pytest.raises(BadHeader):
            decode_header(damaged)


def test_any_bit_of_a_record_that_flips_is_noticed():
    for damaged in with_each_bit_flipped(RECORD_GOLDEN):
        assert record_at(damaged, 0, HEADER.salt) is None


def test_a_newer_version_is_told_from_damage(monkeypatch):
    monkeypatch.setattr("mountfs.kv.journal_format.VERSION", 2)
    newer = HEADER.encode()
    monkeypatch.undo()
    with pytest.raises(NewerVersion, match="log format 2"):
        decode_header(newer)


def test_a_record_of_an_earlier_use_is_not_a_record():
    assert record_at(RECORD_GOLDEN, 0, HEADER.salt + 1) is None


def records(*parts: tuple[int, int] | None) -> bytes:
    """Records (index, durable) one behind the other; None is one that cannot be read."""
    return b"".join(
        bytes(40) if part is None else encode_record(HEADER.salt, *part, b"x" * 12)
        for part in parts
    )


def judged(*segments: bytes):
    unmarked = Header(HEADER.sequence, HEADER.salt, HEADER.segment_bytes, HOME)
    return judge([survey(segment(part), unmarked) for part in segments])


def test_a_hole_above_all_that_was_durable_is_the_end():
    verdict = judged(records((1, 0), (2, 1), None, (4, 2)))
    assert (verdict.last, verdict.torn, verdict.damaged) == (2, True, False)
    assert verdict.hole == (0, HEADER_BYTES + 2 * 40)


def test_a_hole_in_what_was_durable_is_damage():
    verdict = judged(records((1, 0), (2, 1), None, (4, 3)))
    assert verdict.damaged
    assert (verdict.hole, verdict.last) == ((0, HEADER_BYTES + 2 * 40), 2)


def test_a_hole_is_found_by_what_a_later_segment_states():
    assert judged(records((1, 0), (2, 0)), records((4, 3))).damaged
    assert judged(records((1, 0), None), records((3, 0), (4, 2)), b"").damaged
    verdict = judged(records((1, 0), (2, 0)), records((4, 2)))
    assert (verdict.segment, verdict.last, verdict.torn, verdict.damaged) == (0, 2, True, False)


def test_a_hole_at_the_begin_of_a_segment_is_looked_for_there():
    verdict = judged(records((1, 0), (2, 0)), records(None, (4, 3)))
    assert verdict.damaged
    assert (verdict.segment, verdict.hole) == (0, (1, HEADER_BYTES))


def test_a_log_whose_first_record_is_lost_ends_before_it_or_is_damaged():
    lost = judged(records(None, (122, 0)))
    assert (lost.last, lost.torn, lost.damaged) == (0, True, False)
    assert judged(records(None, (122, 121))).damaged
    lost = judged(b"", records(None, (130, 0)))
    assert (lost.segment, lost.last, lost.torn, lost.damaged) == (0, 0, True, False)
    lost = judged(b"", records((130, 0)))
    assert (lost.segment, lost.last, lost.torn, lost.damaged) == (0, 0, True, False)
    assert judged(b"", records((130, 121))).damaged


def test_segments_in_order_are_one_log():
    verdict = judged(records((5, 0), (6, 5)), records((7, 6)), b"", b"")
    assert (verdict.segment, verdict.last, verdict.torn, verdict.damaged) == (1, 7, False, False)
