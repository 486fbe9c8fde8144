"""The disk of a server: its log, and the store of its state machine.

What is written survives a crash only once it is synced, and may tear.  Bits may flip, which is
noticed when they are read; there may be no room.
"""

from collections.abc import Callable, Sequence
from random import Random

from mountfs.errors import Fault, FsError
from mountfs.kv.base import Changes
from mountfs.raft.core import Save
from mountfs.raft.log import StoredLog
from mountfs.raft.messages import (
    Entry,
    EntryKind,
    HardState,
    Membership,
    SnapshotHead,
    Term,
    decode_membership,
)
from mountfs.sim.store import Store
from mountfs.sim.world import MS, World
from mountfs.types import LogIndex


class Image:
    """A log as it lies somewhere: on the disk, or as a process sees it that writes to it."""

    def __init__(self, base: SnapshotHead, hard: HardState) -> None:
        self.hard = hard
        self.base = base
        self.entries: list[Entry] = []

    @property
    def last_index(self) -> LogIndex:
        return LogIndex(self.base.index + len(self.entries))

    def copy(self) -> "Image":
        found = Image(self.base, self.hard)
        found.entries = list(self.entries)
        return found

    def write(self, save: Save, entries_written: int) -> None:
        """Take in a save, of its entries the first few."""
        if save.snapshot is not None:
            self.base, self.entries = save.snapshot, []
        for entry in save.entries[:entries_written]:
            assert self.base.index < entry.index <= self.last_index + 1, (entry.index, self.base)
            del self.entries[entry.index - self.base.index - 1 :]
            self.entries.append(entry)
        if save.hard is not None:
            self.hard = save.hard

    def stored(self) -> StoredLog:
        terms: list[tuple[LogIndex, Term]] = []
        memberships: list[tuple[LogIndex, Membership]] = []
        for entry in self.entries:
            if not terms or terms[-1][1] != entry.term:
                terms.append((entry.index, entry.term))
            if entry.kind is EntryKind.MEMBERSHIP:
                memberships.append((entry.index, decode_membership(entry.data)))
        return StoredLog(self.base, self.last_index, tuple(terms), tuple(memberships))

    def compact(self, head: SnapshotHead) -> None:
        """Drop entries up to `head`."""
        if head.index > self.base.index:
            del self.entries[: head.index - self.base.index]
            self.base = head


class Disk:
    """One write after the other.  `written` is told when one is on disk, in their order."""

    def __init__(self, world: World, base: SnapshotHead, hard: HardState, store: Store) -> None:
        self._world = world
        self.log = Image(base, hard)
        """What a loss of power leaves."""
        self.seen = self.log.copy()
        """What the process sees: all that it has written."""
        self.store = store
        self.arrived: dict[LogIndex, Store] = {}
        """Snapshots that were received, by their index."""
        self.sync_us = 2 * MS
        self.full = False
        self._damaged: set[LogIndex] = set()
        """Entries with bits that have flipped."""
        self._queue: list[tuple[Save, Callable[[], None]]] = []
        self._unsynced: list[Save] = []
        self._busy = False
        self._checkpoint: Changes | None = None
        """On its way to the store."""
        self._torn: tuple[Changes, bool] | None = None
        """What a crash has left of a checkpoint, and whether that is all of it."""
        self._life = 0

    # -- the log

    def save(self, save: Save | None, written: Callable[[], None]) -> None:
        """Queue a save; all that wait are synced at once (group commit).  Raises NO_SPACE."""
        if save is None:
            if not self._queue and not self._busy:
                written()
                return
            save = _NOTHING
        elif self.full:
            raise FsError(Fault.NO_SPACE, "no room for the log")
        self.seen.write(save, len(save.entries))
        self._queue.append((save, written))
        self._go_on()

    def _go_on(self) -> None:
        if self._busy or not self._queue:
            return
        batch, self._queue = self._queue, []
        self._busy = True
        life = self._life
        self._unsynced.extend(save for save, _ in batch)
        synced = any(save.synced for save, _ in batch)
        self._world.after(self._takes() if synced else 50, lambda: self._done(batch, life, synced))

    def _takes(self) -> int:
        return int(self.sync_us * (0.5 + self._world.random.random()))

    def _done(self, batch: list[tuple[Save, Callable[[], None]]], life: int, synced: bool) -> None:
        if life != self._life:
            return
        self._busy = False
        if synced:
            for save in self._unsynced:
                self._write(save, len(save.entries))
            self._unsynced = []
        for _, written in batch:
            written()
        self._go_on()

    def _write(self, save: Save, count: int) -> None:
        self.log.write(save, count)
        if save.snapshot is not None:
            self.store = self.arrived[save.snapshot.index]
            self._damaged.clear()
        for entry in save.entries[:count]:
            self._damaged.discard(entry.index)

    def read(self, start: LogIndex, stop: LogIndex, bytes_max: int) -> Sequence[Entry]:
        """Of what was written, synced or not.  Raises CORRUPT."""
        if self._damaged:
            self._verify(start, stop)
        base = self.seen.base.index
        return self.seen.entries[start - base - 1 : stop - base - 1]

    def _verify(self, start: int, stop: int) -> None:
        for index in self._damaged:
            if start <= index < stop:
                raise FsError(Fault.CORRUPT, f"entry {index} of the log is damaged")

    def compact(self, head: SnapshotHead) -> None:
        """Let go of entries that the store has."""
        self.seen.compact(head)
        self.log.compact(head)

    # -- the store

    def checkpoint(self, changes: Changes, done: Callable[[bool], None]) -> None:
        """Write to the store, all or nothing; `done` is told whether it could be written."""
        assert self._checkpoint is None
        if self.full:
            done(False)
            return
        self._checkpoint = changes
        life, store = self._life, self.store

        def written() -> None:
            if life != self._life:
                return
            self._checkpoint = None
            store.write(changes, sync=True)
            done(True)

        self._world.after(self._takes(), written)

    def open(self) -> None:
        """Read it at the start.  Raises CORRUPT."""
        self._verify(self.log.base.index + 1, self.log.last_index + 1)
        if self._torn is not None:
            changes, whole = self._torn
            self._torn = None
            if whole:
                self.store.write(changes, sync=True)

    # -- what befalls it

    def crash(self) -> None:
        """Of what was not synced, some is on the disk: a beginning, torn at any entry."""
        random = self._world.random
        pending = [*self._unsynced, *(save for save, _ in self._queue)]
        for save in pending[: random.randint(0, len(pending))]:
            whole = random.random() < 0.7
            count = len(save.entries) if whole else random.randint(0, len(save.entries))
            self._write(save if whole else _without_hard(save), count)
            if not whole:
                break
        if self._checkpoint is not None:
            rows = list(self._checkpoint.items())
            left = rows[: random.choice((len(rows), random.randint(0, len(rows))))]
            self._torn = (dict(left), len(left) == len(rows))
        self._queue, self._unsynced, self._busy, self._checkpoint = [], [], False, None
        self.seen = self.log.copy()
        self._life += 1

    def rot(self, random: Random) -> str:
        """Flip a bit somewhere.  Returns where, in words."""
        entries = self.log.entries
        if entries and random.random() < 0.6:
            index = random.choice(entries).index
            self._damaged.add(index)
            return f"in entry {index} of the log"
        key = self.store.damage(random)
        return f"in the row {key.hex()} of the store" if key is not None else "where nothing is"


_NOTHING = Save(None, (), None, False, LogIndex(0), 0)


def _without_hard(save: Save) -> Save:
    return Save(None, save.entries, save.snapshot, save.synced, save.last_index, save.cuts)
