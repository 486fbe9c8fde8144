"""Which bytes of a chunk are seen, given the slices written to it: pure functions on lists of
`Slice`.
"""

from collections.abc import Iterable
from operator import attrgetter

from mountfs.meta.records import Slice

_START = attrgetter("start")


def visible(slices: Iterable[Slice]) -> list[Slice]:
    """What remains of `slices`, oldest first, once later ones cover earlier ones.  Ascending,
    without overlap.

    >>> a, b = Slice(0, 8, 1, 0, 1, 8, 0), Slice(2, 4, 2, 0, 1, 2, 0)
    >>> [(s.start, s.stop, s.slice_id, s.skip) for s in visible([a, b])]
    [(0, 2, 1, 0), (2, 4, 2, 0), (4, 8, 1, 4)]
    """
    seen: list[Slice] = []
    for new in slices:
        if seen and seen[-1].stop > new.start:
            seen = cover(seen, new)
        else:  # appending, nearly always
            seen.append(new)
    return seen


def cover(seen: list[Slice], new: Slice) -> list[Slice]:
    """`seen` (ascending, disjoint) with `new` on top."""
    kept = without(seen, new.start, new.stop)
    kept.append(new)
    kept.sort(key=_START)
    return kept


def without(seen: list[Slice], start: int, stop: int) -> list[Slice]:
    """The parts of `seen` outside of `start:stop`."""
    kept: list[Slice] = []
    for old in seen:
        if old.stop <= start or old.start >= stop:
            kept.append(old)
            continue
        if old.start < start:
            kept.append(old.cut(old.start, start))
        if old.stop > stop:
            kept.append(old.cut(stop, old.stop))
    return kept


def within(seen: Iterable[Slice], start: int, stop: int) -> list[Slice]:
    """The parts of `seen` inside of `start:stop`."""
    return [
        old.cut(max(old.start, start), min(old.stop, stop))
        for old in seen
        if old.start < stop and old.stop > start
    ]
