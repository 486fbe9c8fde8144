"""Which nodes the records of volumes name, counted as the records change.  No I/O.

So it is known at any time how much is left on a node that is to be emptied, and nobody has to look
at all records for it.
"""

from collections import Counter
from collections.abc import Iterable

from mountfs.meta.ops.volumes import VolumeRecord
from mountfs.types import VolumeId


class Assigned:
    """For as long as this node leads: nothing of it is kept."""

    def __init__(self) -> None:
        self._replicas: dict[VolumeId, tuple[int, ...]] = {}
        self._same: dict[tuple[int, ...], tuple[int, ...]] = {}
        """Many volumes have the same replicas."""
        self._counts: Counter[int] = Counter()

    def clear(self) -> None:
        self._replicas.clear()
        self._same.clear()
        self._counts.clear()

    def take(self, records: Iterable[VolumeRecord]) -> None:
        """They are as these say now."""
        for record in records:
            before = self._replicas.get(record.number, ())
            if before == record.replicas:
                continue
            self._counts.subtract(before)
            self._counts.update(record.replicas)
            replicas = self._same.setdefault(record.replicas, record.replicas)
            self._replicas[record.number] = replicas

    def forget(self, volume: VolumeId) -> None:
        """There is no record any more."""
        self._counts.subtract(self._replicas.pop(volume, ()))

    def count(self, node: int) -> int:
        """How many records name it."""
        return self._counts[node]

    def __contains__(self, volume: object) -> bool:
        return volume in self._replicas

    def check(self) -> None:
        """The counts are what they would be if they were made now."""
        counted = Counter(node for replicas in self._replicas.values() for node in replicas)
        assert +self._counts == counted, (self._counts, counted)
