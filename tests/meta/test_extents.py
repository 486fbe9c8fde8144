"""What is seen of slices, byte by byte."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mountfs.meta.extents import put, visible, within, without
from mountfs.meta.records import Slice

BYTES = 24
ENDS = st.lists(st.integers(0, BYTES), min_size=2, max_size=2, unique=True).map(sorted).map(tuple)
WRITES = st.lists(st.tuples(ENDS, st.booleans()), max_size=12)


def slices(writes):
    """Slice number n holds the bytes that n's write put down, after n bytes of something else."""
    return [
        Slice(start, stop, 0 if hole else number, 0 if hole else number, 7, BYTES * 2, 0)
        for number, ((start, stop), hole) in enumerate(writes, 1)
    ]


def painted(pieces):
    """For every byte: which slice, and where in it."""
    canvas = [None] * BYTES
    for piece in pieces:
        for byte in range(piece.start, piece.stop):
            canvas[byte] = (piece.slice_id, piece.skip + byte - piece.start)
    return [
        seen if seen is None or seen[0] else (0, 0)  # one byte of a hole is as good as another
        for seen in canvas
    ]


def disjoint(pieces):
    return all(one.stop <= other.start for one, other in pairwise(pieces))


@given(WRITES)
def test_the_newest_slice_is_seen(writes):
    seen = visible(slices(writes))
    assert painted(seen) == painted(slices(writes))
    assert disjoint(seen)
    assert all(piece.start < piece.stop for piece in seen)


@given(WRITES, ENDS)
def test_covering_is_one_more_write(writes, ends):
    new = Slice(*ends, 99, 3, 7, BYTES * 2, 0)
    seen = visible(slices(writes))
    put(seen, new)
    assert painted(seen) == painted([*slices(writes), new])
    assert disjoint(seen)


@given(WRITES, ENDS)
def test_inside_and_outside_of_a_range_are_all_there_is(writes, ends):
    seen = visible(slices(writes))
    inside, outside = within(seen, *ends), without(seen, *ends)
    assert painted([*inside, *outside]) == painted(seen)
    assert all(ends[0] <= piece.start and piece.stop <= ends[1] for piece in inside)
    assert all(piece.stop <= ends[0] or piece.start >= ends[1] for piece in outside)
