"""What has been applied but not yet written to the store: a map in memory on top of a `Store`.

Commands change the overlay; now and then a checkpoint writes what gathered to the store as one
batch and forgets it.  A key that changed a hundred times in between is written once, and one that
came and went not at all. The log remembers what the overlay would lose.

All keys of one scan share their first eight bytes (the inode they belong to): the overlay is
grouped by them.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import islice

from mountfs.kv.base import Changes, Store

Rows = dict[bytes, bytes | None]

GROUP_BYTES = 8
_NOTHING: Rows = {}
_INSERTED_ONE_BY_ONE = 32
_BEHIND_ALL = b"\xff" * (GROUP_BYTES + 1)
_ROW_OVERHEAD_BYTES = 200  # two objects and a dict slot, measured; only used to bound memory


class Overlay:
    """Reads see the newest of: active changes, frozen changes, store."""

    def __init__(self, store: Store, *, cached_rows: int = 16_384) -> None:
        self._store = store
        self._active: dict[bytes, Rows] = {}
        self._frozen: dict[bytes, Rows] | None = None
        self._sorted: dict[bytes, list[bytes]] = {}
        """The keys of a group that was scanned, active and frozen, ascending."""
        self._added: dict[bytes, list[bytes]] = {}
        """Keys that came to such a group since."""
        self._cache: Rows = {}
        self._cached_rows = cached_rows
        self.gets = 0
        self.store_gets = 0
        """Keys that were asked for, and those of them that were not in memory."""
        self.pending_rows = 0
        """Rows that the next checkpoint has to write."""
        self.pending_bytes = 0

    def get(self, key: bytes) -> bytes | None:
        self.gets += 1
        group = key[:GROUP_BYTES]
        rows = self._active.get(group)
        if rows is not None and key in rows:
            return rows[key]
        if self._frozen is not None:
            rows = self._frozen.get(group)
            if rows is not None and key in rows:
                return rows[key]
        cache = self._cache
        if key in cache:
            return cache[key]
        self.store_gets += 1
        value = self._store.get(key)
        if len(cache) >= self._cached_rows:
            self._evict()
        cache[key] = value
        return value

    def scan(
        self, start: bytes, stop: bytes, *, limit: int | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with `start <= key < stop`, ascending, as of now; the first `limit` of them."""
        group = start[:GROUP_BYTES]
        assert stop[:GROUP_BYTES] == group or stop == _next(group), (start, stop)
        over = self._changes_between(group, start, stop, limit)
        base = self._store.scan(start, stop)
        pairs = merge(over, base) if over else base
        return pairs if limit is None else islice(pairs, limit)

    def everything(self) -> Iterator[tuple[bytes, bytes]]:
        """All pairs, ascending, as of now; for checks, which look at all there is."""
        pending: Rows = {}
        for rows in [*(self._frozen or {}).values(), *self._active.values()]:
            pending.update(rows)
        return merge(sorted(pending.items()), self._store.scan(b"", _BEHIND_ALL))

    def apply(self, changes: Changes) -> None:
        active = self._active
        cache = self._cache
        for key, value in changes.items():
            group = key[:GROUP_BYTES]
            rows = active.get(group)
            if rows is None:
                rows = active[group] = {}
            if key not in rows:
                self.pending_rows += 1
                self.pending_bytes += _ROW_OVERHEAD_BYTES
                if group in self._sorted:
                    self._added.setdefault(group, []).append(key)
                cache.pop(key, None)
            elif (old := rows[key]) is not None:
                self.pending_bytes -= len(old)
            if value is not None:
                self.pending_bytes += len(value)
            rows[key] = value

    def freeze(self) -> Rows:
        """Set the gathered changes aside for a checkpoint.  Reads still see them."""
        assert self._frozen is None, "one checkpoint at a time"
        self._frozen, self._active = self._active, {}
        self.pending_rows = 0
        self.pending_bytes = 0
        return {key: value for rows in self._frozen.values() for key, value in rows.items()}

    def forget_frozen(self) -> None:
        """The frozen changes are in the store now."""
        assert self._frozen is not None
        self._frozen = None
        self._forget_order()  # it has their keys, too

    def unfreeze(self) -> None:
        """The checkpoint failed: the frozen changes are pending again."""
        assert self._frozen is not None
        newer, self._active, self._frozen = self._active, self._frozen, None
        self._forget_order()
        self.pending_rows = sum(len(rows) for rows in self._active.values())
        self.pending_bytes = sum(
            _ROW_OVERHEAD_BYTES + len(value or b"")
            for rows in self._active.values()
            for value in rows.values()
        )
        for rows in newer.values():
            self.apply(rows)

    def _forget_order(self) -> None:
        self._sorted.clear()
        self._added.clear()

    def _changes_between(
        self, group: bytes, start: bytes, stop: bytes, limit: int | None
    ) -> list[tuple[bytes, bytes | None]]:
        active = self._active.get(group, _NOTHING)
        frozen = self._frozen.get(group, _NOTHING) if self._frozen else _NOTHING
        if not active and not frozen:
            return []
        keys = self._sorted_keys(group, active, frozen)
        wanted = keys[bisect_left(keys, start) : bisect_left(keys, stop)]
        if limit is None or len(wanted) <= limit:
            return [(key, active[key] if key in active else frozen[key]) for key in wanted]
        over: list[tuple[bytes, bytes | None]] = []
        for key in wanted:
            value = active[key] if key in active else frozen[key]
            over.append((key, value))
            limit -= value is not None
            if limit == 0:
                break
        return over

    def _sorted_keys(self, group: bytes, active: Rows, frozen: Rows) -> list[bytes]:
        keys = self._sorted.get(group)
        if keys is None:
            keys = self._sorted[group] = sorted(active.keys() | frozen.keys())
        elif added := self._added.pop(group, None):
            if len(added) <= _INSERTED_ONE_BY_ONE:
                for key in added:
                    at = bisect_left(keys, key)
                    if at == len(keys) or keys[at] != key:
                        keys.insert(at, key)
            else:
                keys[:] = sorted({*keys, *added})
        return keys

    def _evict(self) -> None:
        for key in list(islice(self._cache, self._cached_rows // 4)):
            del self._cache[key]


def merge(
    over: Iterable[tuple[bytes, bytes | None]], base: Iterator[tuple[bytes, bytes]]
) -> Iterator[tuple[bytes, bytes]]:
    """Two ascending sequences as one; `over` wins, and its None hides."""
    row = next(base, None)
    for key, value in over:
        while row is not None and row[0] < key:
            yield row
            row = next(base, None)
        if row is not None and row[0] == key:
            row = next(base, None)
        if value is not None:
            yield key, value
    if row is not None:
        yield row
        yield from base


def _next(group: bytes) -> bytes:
    return (int.from_bytes(group, "big") + 1).to_bytes(GROUP_BYTES, "big")
