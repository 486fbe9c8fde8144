"""The plan for a chunk says the same with less."""

from itertools import pairwise
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from mountfs.meta.extents import visible
from mountfs.meta.records import Slice
from mountfs.types import KIB, MIB, SLICE_BYTES_MAX, SliceId, VolumeId
from mountfs.vfs import compaction
from mountfs.vfs.compaction import PIECES_MAX, plan

UNIT = 64 * KIB  # so that some slices are small and some are not
VOLUME, HERE = VolumeId(7), VolumeId(0)


def slice_(start, stop, name, *, volume=VOLUME, skip=0, length=None):
    size = stop - start
    return Slice(start, stop, SliceId(name), skip, volume, length or skip + size, 0)


@st.composite
def chunks(draw):
    """Slices, pieces and holes as commands put them into a chunk, oldest first."""
    slices = []
    for name in range(1, draw(st.integers(1, 14))):
        start = draw(st.integers(0, 200)) * UNIT
        kind = draw(st.sampled_from(["slice", "slice", "piece", "hole"]))
        if kind == "hole":
            stop = start + draw(st.integers(1, 100)) * UNIT
            slices.append(Slice(start, stop, SliceId(0), 0, HERE, 0, 0))
        elif kind == "piece":
            slices.append(slice_(start, start + UNIT, name, volume=HERE))
        else:
            units = draw(st.integers(1, SLICE_BYTES_MAX // UNIT))
            slices.append(slice_(start, start + units * UNIT, name))
    return slices


def bytes_of(pieces):
    return {at for one in pieces for at in range(one[0] // UNIT, one[1] // UNIT)}


@given(chunks())
def test_all_that_is_visible_is_kept_or_rewritten_once_and_nothing_else(slices):
    wanted = plan(slices)
    if wanted is None:
        return
    seen = [piece for piece in visible(slices) if not piece.is_hole]
    kept = [(piece.start, piece.stop) for piece in wanted.keep]
    parts = sorted([*kept, *wanted.rewrite])
    assert bytes_of(parts) == bytes_of((piece.start, piece.stop) for piece in seen)
    assert all(one[1] <= other[0] for one, other in pairwise(parts))
    assert all(piece in seen and piece.volume for piece in wanted.keep)
    assert all(0 < stop - start <= SLICE_BYTES_MAX for start, stop in wanted.rewrite)
    assert len(parts) <= len(seen)


@given(chunks())
def test_what_was_compacted_gets_no_worse_and_comes_to_rest(slices):
    for _ in range(3):
        wanted = plan(slices)
        if wanted is None:
            return
        rewritten = [
            slice_(start, stop, 100 + number) for number, (start, stop) in enumerate(wanted.rewrite)
        ]
        after = sorted([*wanted.keep, *rewritten], key=lambda piece: piece.start)
        assert visible(after) == after
        assert after != slices
        slices = after
    raise AssertionError(f"still something to do: {plan(slices)}")


def test_one_whole_slice_is_good_as_it_is():
    assert plan([slice_(0, MIB, 1)]) is None


def test_large_slices_behind_each_other_are_good_as_they_are():
    assert plan([slice_(at * MIB, (at + 1) * MIB, at + 1) for at in range(64)]) is None


def test_an_overwritten_slice_goes_and_one_that_is_mostly_seen_stays():
    covered, under, over = slice_(0, MIB, 1), slice_(0, 2 * MIB, 2), slice_(0, UNIT, 3)
    wanted = plan([covered, under, over])
    assert [piece.slice_id for piece in wanted.keep] == [3, 2]
    assert wanted.rewrite == ()


def test_a_slice_of_which_little_is_seen_is_written_anew():
    wanted = plan([slice_(0, 4 * MIB, 1), slice_(0, 3 * MIB, 2)])
    assert [piece.slice_id for piece in wanted.keep] == [2]
    assert wanted.rewrite == ((3 * MIB, 4 * MIB),)


def test_small_slices_that_lie_alone_are_not_written_again():
    apart = [slice_(at * MIB, at * MIB + UNIT, at + 1) for at in range(20)]
    wanted = plan([slice_(0, UNIT, 99), *apart])
    assert wanted.rewrite == ()
    assert wanted.keep == tuple(apart)


def test_holes_alone_leave_nothing():
    wanted = plan([slice_(0, MIB, 1), Slice(0, MIB, SliceId(0), 0, HERE, 0, 0)])
    assert wanted.keep == wanted.rewrite == ()


def test_many_pieces_move_to_a_volume_as_one_slice():
    size = 4 * KIB
    pieces = [slice_(at * size, (at + 1) * size, at + 1, volume=HERE) for at in range(PIECES_MAX)]
    with mock.patch.object(compaction, "_slices_expected", lambda seen: 1 << 30):
        assert plan(pieces) is None
    one_more = slice_(PIECES_MAX * size, (PIECES_MAX + 1) * size, 99, volume=HERE)
    wanted = plan([*pieces, one_more])
    assert wanted.keep == ()
    assert wanted.rewrite == ((0, (PIECES_MAX + 1) * size),)


def test_small_slices_are_joined_up_to_the_size_of_a_slice():
    small = [slice_(at * UNIT, (at + 1) * UNIT, at + 1) for at in range(100)]
    wanted = plan(small)
    assert wanted.rewrite == ((0, 4 * MIB), (4 * MIB, 100 * UNIT))
