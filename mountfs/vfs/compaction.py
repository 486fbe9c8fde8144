"""Which slices of a chunk to write anew: a pure function of how they lie over one another."""

from collections.abc import Sequence
from operator import attrgetter

import msgspec

from mountfs.meta.extents import visible
from mountfs.meta.records import Slice
from mountfs.types import KIB, SLICE_BYTES_MAX

_START = attrgetter("start")
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
    groups: list[list[Slice]] = []
    for piece in seen:
        if piece.is_hole:
            continue
        if piece.volume and piece.stop - piece.start >= SMALL_BYTES and _mostly_used(piece):
            keep.append(piece)
        elif (
            groups
            and groups[-1][-1].stop == piece.start
            and piece.stop - groups[-1][0].start <= SLICE_BYTES_MAX
        ):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    # A whole slice that has nothing to join would be written again as it is.
    keep += [group[0] for group in groups if len(group) == 1 and _is_whole(group[0])]
    rewrite = [
        (group[0].start, group[-1].stop)
        for group in groups
        if len(group) > 1 or not _is_whole(group[0])
    ]
    if not rewrite and len(keep) == len(slices):
        return None
    return Plan(tuple(sorted(keep, key=_START)), tuple(rewrite))


def _mostly_used(piece: Slice) -> bool:
    return (piece.stop - piece.start) * 2 >= piece.length


def _is_whole(piece: Slice) -> bool:
    return bool(piece.volume) and piece.stop - piece.start == piece.length


def _slices_expected(seen: Sequence[Slice]) -> int:
    total = sum(piece.stop - piece.start for piece in seen)
    return 4 + 2 * (total // SMALL_BYTES)
