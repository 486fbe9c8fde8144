"""A `Store` in memory whose disk can fail: what the tests and the simulation put under the
metadata.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator

from mountfs.errors import Fault, FsError
from mountfs.kv.base import Changes


class MemoryStore:
    """Keeps what a crash would have to undo, so that `crash()` can forget what was not synced."""

    def __init__(self) -> None:
        self._rows: dict[bytes, bytes] = {}
        self._keys: list[bytes] = []
        """Sorted, the same as those of `_rows`."""
        self._undo: list[dict[bytes, bytes | None]] = []
        """For each batch since the last sync, oldest first, what its keys had before."""
        self._fault: Fault | None = None
        self._closed = False

    def get(self, key: bytes) -> bytes | None:
        assert not self._closed
        return self._rows.get(key)

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with `start <= key < stop` in ascending order, as of the moment of the call."""
        assert not self._closed
        keys = self._keys[bisect_left(self._keys, start) : bisect_left(self._keys, stop)]
        return iter([(key, self._rows[key]) for key in keys])

    def write(self, changes: Changes, *, sync: bool) -> None:
        """All of `changes` or none; with `sync`, no crash undoes this or an earlier batch."""
        assert not self._closed
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise FsError(fault, "told to fail")
        self._undo.append(self._apply(changes))
        if sync:
            self._undo.clear()

    def view(self) -> "MemoryView":
        return MemoryView(dict(self._rows))

    def close(self) -> None:
        self._closed = True

    @property
    def unsynced_batches(self) -> int:
        """How many of the last batches a crash may undo."""
        return len(self._undo)

    def crash(self, keep: int = 0) -> None:
        """Forget the batches that were not synced, but for the first `keep` of them; then open
        again.
        """
        while len(self._undo) > keep:
            self._apply(self._undo.pop())
        self._undo.clear()
        self._fault = None
        self._closed = False

    def fail_next(self, fault: Fault) -> None:
        """The next write raises `fault` and changes nothing."""
        self._fault = fault

    def _apply(self, changes: Changes) -> dict[bytes, bytes | None]:
        """Make the changes, and return those that take them back."""
        before = {key: self._rows.get(key) for key in changes}
        for key, value in changes.items():
            if value is not None:
                if before[key] is None:
                    insort(self._keys, key)
                self._rows[key] = bytes(value)
            elif before[key] is not None:
                del self._keys[bisect_left(self._keys, key)]
                del self._rows[key]
        return before


class MemoryView:
    def __init__(self, rows: dict[bytes, bytes]) -> None:
        self._rows = sorted(rows.items())

    def rows(self, after: bytes, bytes_max: int) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        size = 0
        for key, value in self._rows[bisect_left(self._rows, (after + b"\0",)) :]:
            found.append((key, value))
            size += len(key) + len(value)
            if size >= bytes_max:
                break
        return found

    def close(self) -> None:
        self._rows = []
