"""Which slices of a chunk to write anew: a pure function of how they lie over one another."""

from collections.abc import Sequence

import msgspec

from mountfs.meta.extents import visible
from mountfs.meta.records import Slice
from mountfs.types import KIB, SLICE_BYTES_MAX

SMALL_BYTES = 256 * KIB
"""Slices below this size are joined with their neighbours."""
PIECES_MAX = 16
"""A chunk may keep so many pieces in the metadata."""


class Plan(msgspec.Struct, frozen=True):
    """What is to become of the rows of a chunk."""

    keep: tuple[Slice, ...]
    """Visible, and good as they are."""
    rewrite: tuple[tuple[int, int], ...]
    """Ranges (start, stop) of the chunk to read and to write as one slice each."""


def plan(slices: Sequence[Slice]) -> Plan | None:
    """How to say the same with less, or None where that is not worth it."""
    seen = visible(slices)
    covered = len(seen) < len(slices) or any(
        piece.stop - piece.start < piece.length for piece in seen if not piece.is_hole
    )
    pieces = sum(not piece.volume and not piece.is_hole for piece in seen)
    holes = sum(piece.is_hole for piece in seen)
    if not covered and not holes and pieces <= PIECES_MAX and len(seen) <= _slices_expected(seen):
        return None
    keep: list[Slice] = []
    rewrite: list[tuple[int, int]] = []
    for piece in seen:
        if piece.is_hole:
            continue
        if piece.volume and piece.stop - piece.start >= SMALL_BYTES and _mostly_used(piece):
            keep.append(piece)
        elif (
            rewrite
            and rewrite[-1][1] == piece.start
            and (piece.stop - rewrite[-1][0] <= SLICE_BYTES_MAX)
        ):
            rewrite[-1] = (rewrite[-1][0], piece.stop)
        else:
            rewrite.append((piece.start, piece.stop))
    return Plan(tuple(keep), tuple(rewrite))


def _mostly_used(piece: Slice) -> bool:
    return (piece.stop - piece.start) * 2 >= piece.length


def _slices_expected(seen: Sequence[Slice]) -> int:
    total = sum(piece.stop - piece.start for piece in seen)
    return 4 + 2 * (total // SMALL_BYTES)
