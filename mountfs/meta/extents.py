"""Which bytes of a chunk are seen, given the slices written to it: pure functions on lists of
`Slice`.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from operator import attrgetter

from mountfs.meta.records import Slice

_START = attrgetter("start")
_STOP = attrgetter("stop")


def visible(slices: Iterable[Slice]) -> list[Slice]:
    """What remains of `slices`, oldest first, once later ones cover earlier ones.  Ascending,
    without overlap.

    >>> a, b = Slice(0, 8, 1, 0, 1, 8, 0), Slice(2, 4, 2, 0, 1, 2, 0)
    >>> [(s.start, s.stop, s.slice_id, s.skip) for s in visible([a, b])]
    [(0, 2, 1, 0), (2, 4, 2, 0), (4, 8, 1, 4)]
    """
    seen: list[Slice] = []
    for new in slices:
        put(seen, new)
    return seen


def put(seen: list[Slice], new: Slice) -> None:
    """Lay `new` on top of `seen` (ascending, disjoint), in place."""
    if seen and seen[-1].stop > new.start:
        seen.insert(_clear(seen, new.start, new.stop), new)
    else:  # appending, nearly always
        seen.append(new)


def without(seen: list[Slice], start: int, stop: int) -> list[Slice]:
    """The parts of `seen` outside of `start:stop`."""
    kept = list(seen)
    _clear(kept, start, stop)
    return kept


def _clear(seen: list[Slice], start: int, stop: int) -> int:
    """Take `start:stop` out of `seen`.  Returns where what comes there belongs."""
    first = bisect_right(seen, start, key=_STOP)
    last = bisect_left(seen, stop, first, key=_START)
    if first == last:
        return first
    before, behind = seen[first], seen[last - 1]
    kept = [before.cut(before.start, start)] if before.start < start else []
    place = first + len(kept)
    if behind.stop > stop:
        kept.append(behind.cut(stop, behind.stop))
    seen[first:last] = kept
    return place


def within(seen: Iterable[Slice], start: int, stop: int) -> list[Slice]:
    """The parts of `seen` inside of `start:stop`."""
    return [
        old.cut(max(old.start, start), min(old.stop, stop))
        for old in seen
        if old.start < stop and old.stop > start
    ]
