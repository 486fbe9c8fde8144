"""A store in memory whose rows can be damaged: that is noticed when one of them is read."""

from collections.abc import Iterator
from random import Random

from mountfs.errors import Fault, FsError
from mountfs.kv.base import Changes
from mountfs.kv.memory import MemoryStore, MemoryView


class Store(MemoryStore):
    def __init__(self, rows: Changes | None = None) -> None:
        super().__init__()
        self._damaged: set[bytes] = set()
        if rows:
            self.write(rows, sync=True)

    def copy(self) -> "Store":
        return Store(dict(self.scan(b"", b"\xff" * 16)))

    def get(self, key: bytes) -> bytes | None:
        if key in self._damaged:
            raise _damaged(key)
        return super().get(key)

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        for key in self._damaged:
            if start <= key < stop:
                raise _damaged(key)
        return super().scan(start, stop)

    def view(self) -> MemoryView:
        for key in self._damaged:
            raise _damaged(key)
        return super().view()

    def write(self, changes: Changes, *, sync: bool) -> None:
        super().write(changes, sync=sync)
        self._damaged.difference_update(changes)

    def damage(self, random: Random) -> bytes | None:
        """Flip a bit in one row; which one, if there is any."""
        if not self._keys:
            return None
        key = random.choice(self._keys)
        self._damaged.add(key)
        return key


def _damaged(key: bytes) -> FsError:
    return FsError(Fault.CORRUPT, f"the row {key.hex()} of the store is damaged")
