"""A disk for a log: what is written survives a crash only once it is synced, and may tear."""

from collections.abc import Callable, Sequence

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
from mountfs.sim.world import MS, World
from mountfs.types import LogIndex


class Image:
    """What is on a disk: the log, the hard state, and the state machine at some index."""

    def __init__(self, membership: Membership, state: bytes) -> None:
        self.hard = HardState()
        self.base = SnapshotHead(LogIndex(0), Term(0), membership)
        self.entries: list[Entry] = []
        self.applied = LogIndex(0)
        self.state = state
        """The state machine after `applied`."""

    @property
    def last_index(self) -> LogIndex:
        return LogIndex(self.base.index + len(self.entries))

    def write(self, save: Save, snapshots: dict[LogIndex, bytes], entries_written: int) -> None:
        """Put a save on the disk, of its entries the first few."""
        if save.snapshot is not None:
            self.base, self.entries = save.snapshot, []
            self.applied, self.state = save.snapshot.index, snapshots[save.snapshot.index]
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

    def read(self, start: LogIndex, stop: LogIndex, bytes_max: int) -> Sequence[Entry]:
        base = self.base.index
        return self.entries[start - base - 1 : stop - base - 1]


class Disk:
    """One write after the other.  `written` is told when one is on disk, in their order."""

    def __init__(self, world: World, membership: Membership, state: bytes) -> None:
        self._world = world
        self.image = Image(membership, state)
        self.snapshots: dict[LogIndex, bytes] = {}
        """Those that were received, by their index."""
        self.sync_us = 2 * MS
        self._queue: list[tuple[Save, Callable[[], None]]] = []
        self._unsynced: list[Save] = []
        self._busy = False
        self._life = 0

    def save(self, save: Save | None, written: Callable[[], None]) -> None:
        """Queue a save; all that wait are synced at once (group commit)."""
        if save is None and not self._queue and not self._busy:
            written()
            return
        self._queue.append((save or _NOTHING, written))
        self._go_on()

    def _go_on(self) -> None:
        if self._busy or not self._queue:
            return
        batch, self._queue = self._queue, []
        self._busy = True
        life = self._life
        self._unsynced.extend(save for save, _ in batch)
        synced = any(save.synced for save, _ in batch)
        delay = int(self.sync_us * (0.5 + self._world.random.random())) if synced else 50
        self._world.after(delay, lambda: self._done(batch, life, synced))

    def _done(self, batch: list[tuple[Save, Callable[[], None]]], life: int, synced: bool) -> None:
        if life != self._life:
            return
        self._busy = False
        if synced:
            for save in self._unsynced:
                self.image.write(save, self.snapshots, len(save.entries))
            self._unsynced = []
        for _, written in batch:
            written()
        self._go_on()

    def read(self, start: LogIndex, stop: LogIndex, bytes_max: int) -> Sequence[Entry]:
        """Of what was written, synced or not."""
        seen = Image(self.image.base.membership, b"")
        seen.base, seen.entries = self.image.base, list(self.image.entries)
        for save in self._unsynced:
            seen.write(save, self.snapshots, len(save.entries))
        return seen.read(start, stop, bytes_max)

    def crash(self) -> None:
        """Of what was not synced, some is on the disk: a beginning, torn at any entry."""
        random = self._world.random
        pending = [*self._unsynced, *(save for save, _ in self._queue)]
        for save in pending[: random.randint(0, len(pending))]:
            whole = random.random() < 0.7
            count = len(save.entries) if whole else random.randint(0, len(save.entries))
            self.image.write(save if whole else _without_hard(save), self.snapshots, count)
            if not whole:
                break
        self._queue, self._unsynced, self._busy = [], [], False
        self._life += 1

    def checkpoint(self, applied: LogIndex, state: bytes) -> None:
        self.image.applied, self.image.state = applied, state

    def compact(self, head: SnapshotHead) -> None:
        """Drop entries up to `head`."""
        image = self.image
        assert head.index <= image.applied, (head.index, image.applied)
        del image.entries[: head.index - image.base.index]
        image.base = head


_NOTHING = Save(None, (), None, False, LogIndex(0), 0)


def _without_hard(save: Save) -> Save:
    return Save(None, save.entries, save.snapshot, save.synced, save.last_index, save.cuts)
