"""One copy of the metadata: a state machine, what it has changed since the last checkpoint, and the
store that the checkpoint goes to.

Whoever owns the log (a group of one, or a server of a larger group) applies its entries here in
order, and writes a checkpoint when one is due, so that the log can be let go of.
"""

import time

import msgspec

from mountfs.kv.base import Store, View
from mountfs.kv.overlay import Overlay, Rows
from mountfs.meta import keys
from mountfs.meta.account_rows import make_account_rows
from mountfs.meta.state_machine import StateMachine
from mountfs.meta.used_rows import make_used_rows
from mountfs.raft.log_record import GroupId
from mountfs.raft.messages import SnapshotHead
from mountfs.types import ROOT

META_GROUP = GroupId(1)
"""The group that has the metadata."""

CHECKPOINT_ROWS = 24_000
CHECKPOINT_BYTES = 12 << 20
"""When so much has gathered in memory, a checkpoint is due."""


def steady_ns() -> int:
    """Nanoseconds of a clock that nobody can set, and that goes on while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Checkpoint:
    """The state as of `head`, on its way to the store."""

    def __init__(self, head: SnapshotHead, rows: Rows) -> None:
        self.head = head
        self.rows = rows


class Replica:
    def __init__(self, store: Store) -> None:
        make_used_rows(store)
        make_account_rows(store)
        self._store = store
        self._rows = Overlay(store)
        self.machine = StateMachine(self._rows)

    @property
    def applied(self) -> int:
        return self.machine.applied

    def now(self) -> int:
        """The time, in nanoseconds since 1970, but never before that of an earlier command."""
        return max(time.time_ns(), self.machine.tree.counters.last_time)

    @property
    def is_formatted(self) -> bool:
        """It has a root directory."""
        return self._rows.get(keys.inode(ROOT)) is not None

    @property
    def stored_head(self) -> SnapshotHead | None:
        """Where the stored state stands in the log; None before the first checkpoint."""
        row = self._store.get(keys.HEAD)
        return None if row is None else msgspec.msgpack.decode(row, type=SnapshotHead)

    # -- checkpoints

    @property
    def checkpoint_due(self) -> bool:
        return self._rows.pending_rows > CHECKPOINT_ROWS or (
            self._rows.pending_bytes > CHECKPOINT_BYTES
        )

    @property
    def pending_rows(self) -> int:
        return self._rows.pending_rows

    @property
    def pending_bytes(self) -> int:
        return self._rows.pending_bytes

    @property
    def rows_read(self) -> tuple[int, int]:
        """Rows that commands and queries asked for by key, and those that were not in memory."""
        return self._rows.gets, self._rows.store_gets

    def begin_checkpoint(self, head: SnapshotHead) -> Checkpoint:
        """`head`: of the entry that was applied last."""
        assert head.index == self.applied, (head, self.applied)
        rows = self.machine.freeze()
        rows[keys.HEAD] = msgspec.msgpack.encode(head)
        return Checkpoint(head, rows)

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Blocks; for a worker thread.  What is in it must be in the log, durably."""
        self._store.write(checkpoint.rows, sync=True)

    def end_checkpoint(self) -> None:
        self._rows.forget_frozen()

    def abandon_checkpoint(self) -> None:
        """It could not be written: what it held is pending again."""
        self._rows.unfreeze()

    def view(self) -> View:
        """What is stored, as of now."""
        return self._store.view()

    def close(self) -> None:
        self._store.close()
