"""A log on a disk that keeps what it is given, for tests of one core; a `LogReader`."""

from collections.abc import Sequence

from mountfs.raft.core import Save
from mountfs.raft.messages import Entry, HardState, Membership, SnapshotHead, Term
from mountfs.sim import disk
from mountfs.types import LogIndex


class Image(disk.Image):
    def __init__(self, membership: Membership) -> None:
        super().__init__(SnapshotHead(LogIndex(0), Term(0), membership), HardState())
        self.applied = LogIndex(0)
        """How far the state machine on the disk is."""

    def write(self, save: Save, entries_written: int) -> None:
        super().write(save, entries_written)
        if save.snapshot is not None:
            self.applied = save.snapshot.index

    def read(self, start: LogIndex, stop: LogIndex, bytes_max: int) -> Sequence[Entry]:
        base = self.base.index
        return self.entries[start - base - 1 : stop - base - 1]
