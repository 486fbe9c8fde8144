"""The time that has passed for certain, by which retention ends.  No I/O, no clock.

A wrong clock frees nothing.  One that is set back does not, for what was proven stays so.  One that
is set forward does not, as long as it is one machine's: a majority of those that vote has to say
that it is so late.  And on each machine the clock counts as it stood when the process started, and
from then on what a clock tells that nobody can set.
"""

from collections.abc import Collection, Iterable
from typing import Final

from mountfs.meta.records import NS

FRESH_NS: Final = 300 * NS
"""So long what another machine has told of its clock is good: clocks drift, and processes start
anew.
"""

Groups = tuple[Collection[int], ...]
"""Who votes: one set of nodes, or while members change two."""


class ProvenTime:
    """`wall`: what the clock says at the start; `steady`: what a clock says at the same moment that
    only goes on; `proven`: what was proven before.  All times are in nanoseconds.
    """

    def __init__(self, own: int, wall: int, steady: int, proven: int) -> None:
        self._own = own
        self._offset = max(wall, proven) - steady
        """From the steady clock to the time."""
        self._heard: dict[int, tuple[int, int]] = {}
        """Other nodes' (offset from our steady clock, when we heard of it)."""
        self._groups: Groups | None = None
        self._good_until = 0
        self._proven_offset: int | None = None

    def own(self, steady: int) -> int:
        """What this node tells others: not what its clock says now, which somebody may have set."""
        return steady + self._offset

    def hear(self, node: int, told: int, steady: int) -> None:
        """Another node has told its time; `steady`: when that came in.  What it took on the way
        makes it early, which is safe.
        """
        self._heard[node] = (told - steady, steady)
        self._groups = None

    def wants(self, nodes: Collection[int], steady: int, after: int) -> list[int]:
        """Those that were heard of more than `after` ago, or never."""
        others = [node for node in nodes if node != self._own]
        return [node for node in others if steady - self._heard_at(node, steady, after) > after]

    def now(self, groups: Groups, steady: int) -> int:
        """0: a majority of `groups` is not known to say anything."""
        if groups is not self._groups or steady > self._good_until:
            self._decide(groups, steady)
        return 0 if self._proven_offset is None else steady + self._proven_offset

    def ahead(self, steady: int) -> dict[int, int]:
        """How far the clocks of other nodes are ahead of ours, or, below 0, behind."""
        return {
            node: offset - self._offset
            for node, (offset, heard) in self._heard.items()
            if steady - heard <= FRESH_NS
        }

    def _heard_at(self, node: int, steady: int, after: int) -> int:
        return self._heard[node][1] if node in self._heard else steady - after - 1

    def _decide(self, groups: Groups, steady: int) -> None:
        offsets = {self._own: self._offset}
        good_until = steady + FRESH_NS
        for node, (offset, heard) in self._heard.items():
            if steady - heard <= FRESH_NS:
                offsets[node] = offset
                good_until = min(good_until, heard + FRESH_NS)
        decided = [
            majority_says((offsets[node] for node in group if node in offsets), len(group))
            for group in groups
            if group
        ]
        found = [offset for offset in decided if offset is not None]
        self._proven_offset = min(found) if found and len(found) == len(decided) else None
        self._groups, self._good_until = groups, good_until


def majority_says(times: Iterable[int], voters: int) -> int | None:
    """The latest time of which a majority of `voters` says that it has come.  None: so few say
    anything.

    >>> majority_says([10, 11, 5000], 3), majority_says([10, 5000], 3), majority_says([10], 3)
    (11, 10, None)
    """
    said = sorted(times, reverse=True)
    majority = voters // 2 + 1
    return said[majority - 1] if len(said) >= majority else None
