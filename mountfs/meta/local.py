"""The metadata of one machine: a log, a state machine, a store, behind `propose` and `read`.

The contract is the one that a replicated metaserver will have.  A command is ordered and in the log
before it has an effect; `sync` makes all that was proposed before it durable; the log is replayed
from the last checkpoint on; a command that is proposed twice under the same session and sequence
acts once.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.kv.base import Store
from mountfs.kv.journal import Journal
from mountfs.kv.overlay import Overlay, Rows
from mountfs.meta import keys
from mountfs.meta.command import Command, Query
from mountfs.meta.ops.session import EndSession, OpenSession, Sessions
from mountfs.meta.ops.slices import ReserveSlices
from mountfs.meta.state_machine import Entry, StateMachine, decode_entry, encode_entry
from mountfs.types import ROOT, SUPERUSER, Cred

R = TypeVar("R")

SLICES_SKIPPED = 1 << 20
"""At every start; more than can be written between two commits of the log."""
CHECKPOINT_ROWS = 24_000
CHECKPOINT_BYTES = 12 << 20
"""When so much has gathered in memory, a checkpoint is due."""


class Meta(Protocol):
    """What `vfs` needs of the metadata, here or far away."""

    session: int

    def now(self) -> int:
        """The time, in nanoseconds since 1970; it does not go back, even if the clock does."""
        ...

    async def propose(self, command: Command[R]) -> R: ...

    async def read(self, query: Query[R]) -> R: ...


class LocalMeta:
    """`bytes_present` says in recovery whether the bytes that an entry refers to are there;
    `cut_path` takes the entries that had to be dropped; a filesystem that is new belongs to
    `owner`.
    """

    def __init__(
        self,
        store: Store,
        log: Journal,
        *,
        bytes_present: Callable[[Entry], bool],
        cut_path: Path,
        owner: Cred = SUPERUSER,
    ) -> None:
        self._store = store
        self._log = log
        self._cut_path = cut_path
        self._machine = StateMachine(Overlay(store))
        self._rows = self._machine._rows
        self.session = 0
        self._sequence = 0
        self._latest = 0
        """What `now` has said last."""
        self.replayed = 0
        """Entries that the last start took from the log."""
        self.cut = 0
        """Entries at the end of the log that were dropped: never synced, and their bytes did not
        reach the disk.
        """
        if log.last_index == 0:
            self._begin(owner)
        elif self._rows.get(keys.inode(ROOT)) is None:
            raise FsError(
                Fault.BAD_HOME,
                "the metadata has a log but no root directory: its tables are missing; restore the "
                "home from a backup",
            )
        self._replay(bytes_present)

    def now(self) -> int:
        self._latest = max(time.time_ns(), self._latest, self._machine.tree.counters.last_time)
        return self._latest

    async def propose(self, command: Command[R]) -> R:
        return self.propose_now(command)

    async def read(self, query: Query[R]) -> R:
        return query.read(self._machine.tree)

    def propose_now(self, command: Command[R]) -> R:
        """Order, log and apply a command.  Raises FsError when it is refused, or when the log
        cannot be written.
        """
        command.check()
        index = self._machine.applied + 1
        now = self.now()
        self._sequence = sequence = self._sequence + 1
        self._log.append(index, encode_entry(self.session, sequence, sequence, now, command))
        try:
            return self._machine.apply(index, self.session, sequence, sequence, now, command)
        except FsError:
            raise
        except BaseException:
            # A bug.  It must not be in the log, where it would strike again at every start.
            self._log.cut(index - 1)
            raise

    def open_session(self) -> tuple[int, ...]:
        """Start a session of our own.  Returns those of earlier mounts that nobody has ended."""
        left = self._machine.read(Sessions())
        self.session = self.propose_now(OpenSession())
        for number in left:
            self.propose_now(EndSession(number))
        # Slices that an earlier session wrote just before the machine died may be in the volumes
        # while the command that reserved their names is lost: those names are not given out again.
        self.propose_now(ReserveSlices(SLICES_SKIPPED))
        self._log.sync()
        return left

    @property
    def applied(self) -> int:
        return self._machine.applied

    @property
    def synced(self) -> int:
        """Index of the last entry that is known to be on disk."""
        return self._log.synced_index

    def sync_log(self) -> None:
        """Put all that was proposed on disk.  Blocks; for a worker thread."""
        self._log.sync()

    @property
    def checkpoint_due(self) -> bool:
        return self._rows.pending_rows > CHECKPOINT_ROWS or (
            self._rows.pending_bytes > CHECKPOINT_BYTES
        )

    @property
    def pending_rows(self) -> int:
        return self._rows.pending_rows

    @property
    def rows_read(self) -> tuple[int, int]:
        """Rows that commands and queries asked for by key, and those that were not in memory."""
        return self._rows.gets, self._rows.store_gets

    @property
    def owed_bytes(self) -> int:
        """Disk space that the next checkpoint takes: in LevelDB, first a log and then a table."""
        return 2 * self._rows.pending_bytes

    @property
    def log_bytes(self) -> int:
        return self._log.size_bytes

    def begin_checkpoint(self) -> "Checkpoint":
        return Checkpoint(self._machine.applied, self._machine.freeze())

    def write_checkpoint(self, checkpoint: "Checkpoint") -> None:
        """Blocks; for a worker thread.  Volumes must have been synced since `begin_checkpoint`."""
        self._log.sync()
        self._store.write(checkpoint.rows, sync=True)

    def end_checkpoint(self, checkpoint: "Checkpoint") -> None:
        self._rows.forget_frozen()
        self._log.release(checkpoint.applied)

    def abandon_checkpoint(self) -> None:
        """It could not be written: what it held is pending again."""
        self._rows.unfreeze()

    def close(self) -> None:
        self._store.close()
        self._log.close()

    def _begin(self, owner: Cred) -> None:
        """The log is empty: this is a new filesystem, or a damaged one."""
        if self._machine.applied:
            raise FsError(
                Fault.BAD_HOME,
                f"the metadata log is empty, but {self._machine.applied} commands were stored: its "
                "segments are missing; restore the home from a backup",
            )
        # The root is no command of the log, so it must be in the store before the first one is.
        self._machine.format(time.time_ns(), owner)
        self._store.write(self._machine.freeze(), sync=True)
        self._rows.forget_frozen()

    def _replay(self, bytes_present: Callable[[Entry], bool]) -> None:
        machine = self._machine
        for index, record in self._log.replay(machine.applied):
            entry = decode_entry(record)
            if index > self._log.durable_before and not bytes_present(entry):
                self._set_aside(index)
                return
            self.replayed += 1
            with suppress(FsError):  # it was refused then, too
                machine.apply(
                    index, entry.session, entry.sequence, entry.answered, entry.time, entry.command
                )

    def _set_aside(self, index: int) -> None:
        """End the log before `index`, whose bytes are not there.

        They are synced before the log is, so nobody was promised this entry or a later one, unless
        the bytes were damaged since.  For that case the entries are kept in a file of their own.
        """
        self.cut = self._log.last_index - index + 1
        records = [record for _, record in self._log.replay(index - 1)]
        with open(self._cut_path, "ab") as file:
            file.write(msgspec.msgpack.encode((index, records)))
            file.flush()
            os.fsync(file.fileno())
        self._log.cut(index - 1)


class Checkpoint:
    """The state as of `applied`, on its way to the store."""

    def __init__(self, applied: int, rows: Rows) -> None:
        self.applied = applied
        self.rows = rows
