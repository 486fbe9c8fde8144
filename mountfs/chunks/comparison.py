"""What a node has of a volume, held against what the metadata says is in use.  No I/O.

Both are lists in the order of slice names, looked at page by page.
"""

from collections.abc import Sequence
from typing import NamedTuple

from mountfs.types import SliceId

Listed = tuple[SliceId, int]
"""(slice, bytes)"""
Used = tuple[SliceId, int, int]
"""(slice, bytes, crc32c)"""

LAST = SliceId((1 << 64) - 1)


class Compared(NamedTuple):
    """Of the slices up to `upto`."""

    upto: SliceId
    """Go on behind it; LAST: that was all."""
    orphans: tuple[SliceId, ...]
    """There, and in use by nobody, for ever."""
    missing: tuple[SliceId, ...]
    """In use, and not there."""
    wrong: tuple[SliceId, ...]
    """There with another length: not what was written."""


def compare(
    listed: Sequence[Listed], used: Sequence[Used], limit: int, closed: SliceId
) -> Compared:
    """Compare two pages of at most `limit` entries, which begin behind the same slice.  Names below
    `closed` that are not in use will never be; those that are were written before `listed` was
    made.  Of the others nothing is said: they may be on their way.
    """
    upto = LAST
    for page in (listed, used):
        if len(page) >= limit:
            upto = min(upto, page[-1][0])
    there = {slice_id: size for slice_id, size in listed if slice_id <= upto}
    orphans = dict.fromkeys(slice_id for slice_id in there if slice_id < closed)
    missing: list[SliceId] = []
    wrong: list[SliceId] = []
    for slice_id, size, _ in used:
        if slice_id > upto or slice_id >= closed:
            break
        orphans.pop(slice_id, None)
        if slice_id not in there:
            missing.append(slice_id)
        elif there[slice_id] != size:
            wrong.append(slice_id)
    return Compared(upto, tuple(orphans), tuple(missing), tuple(wrong))


def is_ordered(listed: Sequence[Listed], after: SliceId) -> bool:
    """Whether it is an answer to a question for what comes behind a slice."""
    for slice_id, _ in listed:
        if slice_id <= after:
            return False
        after = slice_id
    return True
