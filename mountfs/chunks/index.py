"""Where each living needle is: a table in a key-value store, with the latest changes in memory.

The table may always be thrown away: the volumes say the same, only slower.  So that it never says
more than they do after a crash, a change is written to it only once the needle or tombstone that it
stands for is on disk, together with a checkpoint: the offset up to which the volume is accounted
for.  On opening, only what lies behind the checkpoint is scanned.

    "n" volume(u32) slice(u64)  ->  offset(u64) payload length(u32)
    "v" volume(u32)             ->  generation(u32) checkpoint(u64) living bytes(u64) needles(u64)
    "d" volume(u32)             ->  the row "v" that it belongs to, digest(u64)
    "o" volume(u32)             ->  epoch(u32)

The digest is of the names of the living needles (`with_name`).  One that does not belong to its row
"v" was left by a version that did not know of digests: it is made anew from the table.

The last kind is not in the volumes: a volume that has such a row may be opened again, in this epoch
or a later one.  Without it a volume that others name is sealed, so losing the table is safe.

Keys are big-endian, values little-endian.  `get` may be called at any time from any thread;
everything else under the lock of the disk store, unless it says otherwise.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from mountfs.chunks.needle import needle_bytes
from mountfs.kv.base import Changes, Store
from mountfs.meta.reports import with_name
from mountfs.types import FILE_BYTES_MAX, SLICE_BYTES_MAX, SliceId, VolumeId

_NEEDLE_KEY = struct.Struct(">cIQ")
_VOLUME_KEY = struct.Struct(">cI")
_PLACE = struct.Struct("<QI")
_STATE = struct.Struct("<IQQQ")
_DIGEST = struct.Struct("<Q")
_EPOCH = struct.Struct("<I")

_OFFSET_MAX: Final = FILE_BYTES_MAX - 2 * SLICE_BYTES_MAX
_DROP_BATCH: Final = 10_000
"""Keys deleted in one batch when a volume goes."""


class Place(NamedTuple):
    offset: int
    length: int
    """Payload bytes."""

    @property
    def is_possible(self) -> bool:
        """Whether any file could have a needle there.  The table is not believed: a damaged row
        must not make the system calls overflow.
        """
        return 0 < self.length <= SLICE_BYTES_MAX and self.offset <= _OFFSET_MAX


@dataclass(frozen=True, slots=True)
class VolumeState:
    """What the table says about a volume."""

    generation: int
    checkpoint: int
    """Everything before this offset is in the table."""
    living_bytes: int
    needles: int
    digest: int = 0
    """Of their names."""


class Growth(NamedTuple):
    """What there is now more of a volume that lives; less, where negative."""

    bytes: int
    needles: int
    digest: int
    """Of the names that came or went."""


_NOTHING: Final = Growth(0, 0, 0)


class _Change:
    """What happened to one slice since the table was written."""

    __slots__ = ("bytes", "digest", "first", "last", "needles", "place")

    def __init__(self, place: Place | None, at: int, growth: Growth) -> None:
        self.place = place
        """None: deleted."""
        self.first = at
        """Offset of the first record that is not in the table.  No checkpoint may be above it."""
        self.last = at
        """Offset of the last one.  The change may be written when the file is durable beyond it."""
        self.bytes, self.needles, self.digest = growth

    def follow(self, earlier: "_Change") -> None:
        """Stand for an earlier change of the same slice, too."""
        self.first = min(self.first, earlier.first)
        self.last = max(self.last, earlier.last)
        self.bytes += earlier.bytes
        self.needles += earlier.needles
        self.digest ^= earlier.digest


_Key = tuple[VolumeId, SliceId]
_Batch = dict[_Key, _Change]


class NeedleIndex:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._pending: _Batch = {}
        self._writing: _Batch = {}
        """On its way into the table; looked at after `_pending`."""
        self._next: dict[VolumeId, VolumeState] = {}
        """What `_states` will be once that is done."""
        self._states: dict[VolumeId, VolumeState] = {}
        for key, row in list(store.scan(b"v", b"w")):
            volume = VolumeId(_VOLUME_KEY.unpack(key)[1])
            generation, checkpoint, living_bytes, needles = _STATE.unpack(row)
            digest = self._digest(volume, row)
            self._states[volume] = VolumeState(
                generation, checkpoint, living_bytes, needles, digest
            )

    @property
    def pending(self) -> int:
        """How many changes are in memory only."""
        return len(self._pending)

    def states(self) -> dict[VolumeId, VolumeState]:
        return dict(self._states)

    def get(self, volume: VolumeId, slice_id: SliceId) -> Place | None:
        key = (volume, slice_id)
        # In this order: a change goes from pending to writing to the table, never back unseen.
        change = self._pending.get(key) or self._writing.get(key)
        if change is not None:
            return change.place
        value = self._store.get(_NEEDLE_KEY.pack(b"n", volume, slice_id))
        return Place(*_PLACE.unpack(value)) if value is not None else None

    def put(self, volume: VolumeId, slice_id: SliceId, place: Place) -> Growth:
        """A needle came.  No needle more lives when it replaces another of the same name."""
        old = self.get(volume, slice_id)
        if old is None:
            growth = Growth(needle_bytes(place.length), 1, with_name(0, slice_id))
        else:
            growth = Growth(needle_bytes(place.length) - needle_bytes(old.length), 0, 0)
        self._add((volume, slice_id), _Change(place, place.offset, growth))
        return growth

    def remove(self, volume: VolumeId, slice_id: SliceId, at: int) -> Growth:
        """A needle went, by the tombstone at `at`."""
        old = self.get(volume, slice_id)
        if old is None:
            return _NOTHING
        growth = Growth(-needle_bytes(old.length), -1, with_name(0, slice_id))
        self._add((volume, slice_id), _Change(None, at, growth))
        return growth

    def begin(self, volume: VolumeId, generation: int, end: int) -> None:
        """There is a new volume, empty up to `end`: were its file to go, it would be missed."""
        state = VolumeState(generation, end, 0, 0)
        self._store.write(_rows(volume, state), sync=False)
        self._states[volume] = state

    def epochs(self) -> dict[VolumeId, int]:
        """The volumes that may be opened again, and the last epoch of each."""
        return {
            VolumeId(_VOLUME_KEY.unpack(key)[1]): _EPOCH.unpack(value)[0]
            for key, value in self._store.scan(b"o", b"p")
        }

    def keep_epoch(self, volume: VolumeId, epoch: int) -> None:
        """Durably: a volume may be opened again, in this epoch or a later one; 0: it is sealed.
        Needs no lock.
        """
        value = _EPOCH.pack(epoch) if epoch else None
        self._store.write({_VOLUME_KEY.pack(b"o", volume): value}, sync=True)

    def lost(self, volume: VolumeId, durable: int) -> int:
        """How many living needles of a volume begin at or behind `durable`."""
        return sum(
            1
            for (owner, _), change in self._pending.items()
            if owner == volume and change.place is not None and change.place.offset >= durable
        )

    def slices(self, volume: VolumeId) -> list[tuple[SliceId, Place]]:
        """The living needles of a volume, in the order of the file.  Needs no lock, but the table
        must not be written meanwhile.
        """
        found = dict(self.table(volume))
        for batch in (self._writing.copy(), self._pending.copy()):
            for (owner, slice_id), change in batch.items():
                if owner == volume and change.place is not None:
                    found[slice_id] = change.place
                elif owner == volume:
                    found.pop(slice_id, None)
        return sorted(found.items(), key=lambda item: item[1])

    def listing(
        self, volume: VolumeId, after: SliceId
    ) -> tuple[Iterator[tuple[SliceId, Place]], dict[SliceId, Place | None]]:
        """What there is of a volume behind slice `after`: rows by slice, as of now, and what is to
        be put over them (None: deleted).  Under the lock; `merged` needs none.
        """
        over = {
            slice_id: change.place
            for batch in (self._writing, self._pending)
            for (owner, slice_id), change in batch.items()
            if owner == volume and slice_id > after
        }
        return self.table(volume, after), over

    def begin_write(self, durable: dict[VolumeId, tuple[int, int]]) -> Changes:
        """What can go into the table now; give it to `write` outside of the lock, then call
        `end_write`.  `durable`: for each volume its generation and how far it is on disk.
        """
        assert not self._writing, "one write at a time"
        checkpoints = {volume: offset for volume, (_, offset) in durable.items()}
        kept: _Batch = {}
        for key, change in self._pending.items():
            limit = durable.get(key[0])
            if limit is not None and change.last < limit[1]:
                self._writing[key] = change
            else:
                kept[key] = change
        for (volume, _), change in kept.items():
            if volume in checkpoints:
                checkpoints[volume] = min(checkpoints[volume], change.first)
        self._pending = kept
        changes: dict[bytes, bytes | None] = {}
        growth: dict[VolumeId, Growth] = {}
        for (volume, slice_id), change in self._writing.items():
            value = _PLACE.pack(*change.place) if change.place is not None else None
            changes[_NEEDLE_KEY.pack(b"n", volume, slice_id)] = value
            size, needles, digest = growth.get(volume, _NOTHING)
            growth[volume] = Growth(
                size + change.bytes, needles + change.needles, digest ^ change.digest
            )
        self._next = dict(self._states)
        for volume, (generation, _) in durable.items():
            size, needles, digest = growth.get(volume, _NOTHING)
            old = self._states.get(volume, VolumeState(generation, 0, 0, 0))
            new = VolumeState(
                generation,
                max(old.checkpoint, checkpoints[volume]),
                old.living_bytes + size,
                old.needles + needles,
                old.digest ^ digest,
            )
            if new != self._states.get(volume):
                self._next[volume] = new
                changes.update(_rows(volume, new))
        return changes

    def write(self, changes: Changes) -> None:
        """Durably.  Needs no lock.  Raises what the store raises; then nothing has changed.

        A loss of power may take pages from the middle of what is not synced: rows would be missing
        from a table that says it has all up to its checkpoint, and nobody would scan for them.
        """
        if changes:
            self._store.write(changes, sync=True)

    def end_write(self, *, done: bool) -> None:
        """After `write`.  Not `done`: what was to be written stays in memory."""
        if done:
            self._states = self._next
        else:
            for key, earlier in self._writing.items():
                self._add(key, earlier, older=True)
        self._writing = {}

    def replace(
        self,
        volume: VolumeId,
        generation: int,
        places: Iterable[tuple[SliceId, Place]],
        stale: Iterable[SliceId],
    ) -> None:
        """A volume was compacted: it has these living needles, in a new file.  Goes into the table
        with the next write, all at once, since all of it is durable.  `stale`: what the table has.
        """
        assert not self._writing, "not while the table is written"
        pending = self._others(volume)
        for slice_id in stale:
            pending[volume, slice_id] = _Change(None, 0, _NOTHING)
        for slice_id, place in places:
            growth = Growth(needle_bytes(place.length), 1, with_name(0, slice_id))
            pending[volume, slice_id] = _Change(place, place.offset, growth)
        self._pending = pending
        self._states[volume] = VolumeState(generation, 0, 0, 0)

    def forget(self, volume: VolumeId) -> None:
        """Drop what is in memory of a volume."""
        self._pending = self._others(volume)
        self._states.pop(volume, None)

    def drop(self, volume: VolumeId) -> None:
        """Drop what the table has of a volume, durably; `forget` it, too.  Needs no lock, but the
        table must not be written meanwhile.
        """
        # The state goes first: interrupted here, the volume is scanned.
        batch: dict[bytes, bytes | None] = {_VOLUME_KEY.pack(b"v", volume): None}
        batch[_VOLUME_KEY.pack(b"d", volume)] = None
        batch[_VOLUME_KEY.pack(b"o", volume)] = None
        for slice_id, _ in self.table(volume):
            batch[_NEEDLE_KEY.pack(b"n", volume, slice_id)] = None
            if len(batch) == _DROP_BATCH:
                self._store.write(batch, sync=False)
                batch = {}
        self._store.write(batch, sync=True)

    def table(self, volume: VolumeId, after: int = 0) -> Iterator[tuple[SliceId, Place]]:
        """What was written of a volume behind slice `after`, by slice, as of now."""
        start = _NEEDLE_KEY.pack(b"n", volume, after)
        rows = self._store.scan(start + b"\0", start[:5] + b"\xff" * 9)
        return (
            (SliceId(_NEEDLE_KEY.unpack(key)[2]), Place(*_PLACE.unpack(value)))
            for key, value in rows
        )

    def _digest(self, volume: VolumeId, state: bytes) -> int:
        """Of what the table has of a volume with this row "v"."""
        row = self._store.get(_VOLUME_KEY.pack(b"d", volume))
        if row is not None and len(row) == len(state) + _DIGEST.size and row.startswith(state):
            return int(_DIGEST.unpack_from(row, len(state))[0])
        digest = 0
        for slice_id, _ in self.table(volume):
            digest = with_name(digest, slice_id)
        return digest

    def _others(self, volume: VolumeId) -> _Batch:
        """The changes in memory but for those of one volume."""
        return {key: change for key, change in self._pending.items() if key[0] != volume}

    def _add(self, key: _Key, change: _Change, *, older: bool = False) -> None:
        other = self._pending.get(key)
        if other is None:
            self._pending[key] = change
        elif older:
            other.follow(change)
        else:
            change.follow(other)
            self._pending[key] = change


def merged(
    rows: Iterable[tuple[SliceId, Place]], over: dict[SliceId, Place | None]
) -> Iterator[tuple[SliceId, Place]]:
    """Rows by slice, with what is over them.

    >>> rows = [(SliceId(2), Place(0, 5)), (SliceId(7), Place(8, 5))]
    >>> [slice_id for slice_id, _ in merged(rows, {SliceId(7): None, SliceId(3): Place(16, 1)})]
    [2, 3]
    """
    coming = sorted(over)
    at = 0
    for slice_id, place in rows:
        while at < len(coming) and coming[at] <= slice_id:
            newer = over[coming[at]]
            if newer is not None:
                yield coming[at], newer
            at += 1
        if slice_id not in over:
            yield slice_id, place
    for slice_id in coming[at:]:
        newer = over[slice_id]
        if newer is not None:
            yield slice_id, newer


def _rows(volume: VolumeId, state: VolumeState) -> dict[bytes, bytes]:
    row = _STATE.pack(state.generation, state.checkpoint, state.living_bytes, state.needles)
    return {
        _VOLUME_KEY.pack(b"v", volume): row,
        _VOLUME_KEY.pack(b"d", volume): row + _DIGEST.pack(state.digest),
    }
