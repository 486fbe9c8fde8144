"""The metadata of one machine: a group of one, behind `propose` and `read`.

Its log is that of a Raft group with a single voter, byte for byte: a node can open the same home
and let others join.  But a voter that is alone has nobody to wait for.  A command is in the log,
which survives the process, before it has an effect, and that commits it; `sync` makes all that was
proposed before it survive a loss of power.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
import trio

from mountfs.errors import Fault, FsError
from mountfs.kv.base import Store
from mountfs.kv.journal import Journal
from mountfs.meta.command import Command, Query
from mountfs.meta.lock_waiting import PATIENCE_S, LockWaiting
from mountfs.meta.locks import Lock
from mountfs.meta.ops.lock import TakeLock
from mountfs.meta.ops.make_root import MakeRoot
from mountfs.meta.ops.session import EndSession, OpenSession, Sessions
from mountfs.meta.ops.slices import ReserveSlices
from mountfs.meta.protocol import LocksTold
from mountfs.meta.proven_time import ProvenTime
from mountfs.meta.replica import META_GROUP, Checkpoint, Replica, steady_ns
from mountfs.meta.state_machine import Entry, decode_entry, encode_entry, needs_time
from mountfs.raft.messages import (
    NOBODY,
    EntryKind,
    HardState,
    Membership,
    NodeId,
    SnapshotHead,
    Term,
)
from mountfs.raft.storage import GroupLog, Storage
from mountfs.types import MIB, SUPERUSER, Cred, Ino, LogIndex

R = TypeVar("R")

SLICES_SKIPPED = 1 << 20
"""At every start; more than can be written between two commits of the log."""
REPLAY_BYTES = 4 * MIB
"""Read from the log at once."""
FIRST_NODE = NodeId(1)
"""Who a new home is."""


class Meta(Protocol):
    """What `vfs` needs of the metadata, here or far away."""

    session: int

    def now(self) -> int:
        """The time, in nanoseconds since 1970; it does not go back, even if the clock does."""
        ...

    async def propose(self, command: Command[R]) -> R: ...

    async def read(self, query: Query[R]) -> R: ...


class LockingMeta(Meta, Protocol):
    """What a `Filesystem` needs besides: locks, which programs take and wait for."""

    async def take_lock(self, ino: Ino, lock: Lock, *, waits: bool) -> Lock | None:
        """As `propose` of TakeLock.  Whoever `waits` for it lets others go first who wait already,
        and whoever is cancelled still hears how it has ended, if that does not take long.
        """
        ...

    async def await_lock(self, ino: Ino, lock: Lock) -> None:
        """Until the lock may be tried for.  Raises DEADLOCK, NO_LOCKS, SESSION_ENDED.  Whoever is
        cancelled holds nothing for it.
        """
        ...

    async def session_now(self) -> int:
        """The session, once there is one: it has ended, perhaps, and another one is begun."""
        ...

    async def locks(self, ino: Ino) -> LocksTold:
        """Who holds locks on a file, and who waits for one.  Raises STALE."""
        ...


class LocalMeta:
    """`bytes_present` says in recovery whether the bytes that an entry refers to are there;
    `cut_path` takes the entries that had to be dropped; a filesystem that is new belongs to
    `owner`.

    Raises BAD_HOME where the home is one of several machines', or parts of it are missing.
    """

    def __init__(
        self,
        store: Store,
        journal: Journal,
        *,
        bytes_present: Callable[[Entry], bool],
        cut_path: Path,
        owner: Cred = SUPERUSER,
        node: NodeId = FIRST_NODE,
    ) -> None:
        self._journal = journal
        self._node = node
        self._cut_path = cut_path
        self._storage = Storage(journal)
        self._replica = Replica(store)
        self._machine = self._replica.machine
        self.session = 0
        self._lock_waiting = LockWaiting(lambda: self._machine, lambda: trio.current_time() * 1000)
        self._sequence = 0
        self._latest = 0
        """What `now` has said last."""
        self.replayed = 0
        """Entries that the last start took from the log."""
        self.cut = 0
        """Entries at the end of the log that were dropped: never synced, and their bytes did not
        reach the disk.
        """
        if META_GROUP not in self._storage.groups:
            self._begin()
        stored = self._storage.stored(META_GROUP)
        memberships = [stored.base.membership, *(one for _, one in stored.memberships)]
        self._membership = memberships[-1]
        self._refuse_if_not_alone()
        self._replay(bytes_present)
        proven = self._machine.tree.counters.protected_time
        self._clock = ProvenTime(node, time.time_ns(), steady_ns(), proven)
        """By which retention ends.  Nobody else is there to say that ours is wrong."""
        self._term = Term(self._log.hard.term + 1)
        """Of all entries from now on; a group of one elects itself at its start."""
        self._last_term = stored.terms[-1][1] if stored.terms else stored.base.term
        """Of the entry that was applied last, as long as there is none of this term."""
        self._begins = self._machine.applied
        self._stored = self._replica.stored_head or stored.base
        """Where the last checkpoint stands."""
        hard = HardState(self._term, self._node, LogIndex(self._begins))
        self._storage.save_hard(META_GROUP, hard)
        if not self._replica.is_formatted:
            if self._begins:
                raise FsError(
                    Fault.BAD_HOME,
                    "the metadata has a log but no root directory: its tables are missing; "
                    "restore the home from a backup",
                )
            self.propose_now(MakeRoot(owner.uid, owner.gid))

    @property
    def _log(self) -> GroupLog:
        return self._storage.groups[META_GROUP]

    def now(self) -> int:
        self._latest = max(self._replica.now(), self._latest)
        return self._latest

    async def propose(self, command: Command[R]) -> R:
        return self.propose_now(command)

    async def read(self, query: Query[R]) -> R:
        return query.read(self._machine.tree)

    async def take_lock(self, ino: Ino, lock: Lock, *, waits: bool) -> Lock | None:
        if waits and self._lock_waiting.any:
            turn = self._lock_waiting.turn_of_another(ino, lock)
            if turn is not None:
                return turn
        return self.propose_now(TakeLock(ino, lock, waits))

    async def await_lock(self, ino: Ino, lock: Lock) -> None:
        called = False
        while not called:  # whose turn it is may also change with time alone
            called = await self._lock_waiting.wait(ino, lock, PATIENCE_S)

    async def session_now(self) -> int:
        return self.session

    async def locks(self, ino: Ino) -> LocksTold:
        return self._lock_waiting.told(ino)

    def propose_now(self, command: Command[R]) -> R:
        """Order, log and apply a command.  Raises FsError when it is refused, or when the log
        cannot be written.
        """
        command.check()
        index = LogIndex(self._machine.applied + 1)
        now = self.now()
        self._sequence = sequence = self._sequence + 1
        timed = needs_time(self._machine.tree, command)
        proven = self.proven() if timed else 0
        data = encode_entry(self.session, sequence, sequence, now, command, proven)
        self._storage.append_command(META_GROUP, self._term, index, data)
        try:
            reply = self._machine.apply(
                index, self.session, sequence, sequence, now, command, proven
            )
        except FsError:
            if self._machine.applied != index:  # the store could not be read
                self._storage.cut(META_GROUP, LogIndex(index - 1))
            raise
        except BaseException:
            # A bug.  It must not be in the log, where it would strike again at every start.
            self._storage.cut(META_GROUP, LogIndex(index - 1))
            raise
        if self._lock_waiting.any:
            self._lock_waiting.applied(command, reply)
        return reply

    def open_session(self) -> tuple[int, ...]:
        """Start a session of our own.  Returns those of earlier mounts that nobody has ended."""
        left = self._machine.read(Sessions())
        self.session = self.propose_now(OpenSession())
        for number in left:
            self.propose_now(EndSession(number))
        # Slices that an earlier session wrote just before the machine died may be in the volumes
        # while the command that reserved their names is lost: those names are not given out again.
        self.propose_now(ReserveSlices(SLICES_SKIPPED))
        self._journal.sync()
        return left

    def end_session(self) -> None:
        """Nobody mounts this any more: the next one need not wait for it to fall silent."""
        self.propose_now(EndSession(self.session))
        self.session = 0

    @property
    def retention(self) -> bool:
        """Some file has retention, or had it once, or is to get it from its tree."""
        counters = self._machine.tree.counters
        return counters.retention or counters.default_retention

    @property
    def trash(self) -> bool:
        """Some tree keeps what is deleted, or did so once."""
        return self._machine.tree.counters.trash

    def proven(self) -> int:
        """The time that has passed for certain, in nanoseconds since 1970."""
        return self._clock.own(steady_ns())

    @property
    def applied(self) -> int:
        return self._machine.applied

    @property
    def synced(self) -> int:
        """Up to this entry at least all are known to be on disk."""
        journal = self._journal
        return self._machine.applied - (journal.last_index - journal.synced_index)

    @property
    def logged(self) -> int:
        """Where the log ends."""
        return self._journal.last_index

    def sync_log(self, logged: int | None = None) -> None:
        """Put all that was proposed on disk.  Blocks; for a worker thread.

        `logged`: where the log ended before the volumes were synced; None: they need no sync.  What
        was proposed after that may refer to bytes that are not on disk, so it must not be said of
        it that it was durable: in recovery nobody would look for its bytes.
        """
        self._journal.sync(logged)

    @property
    def checkpoint_due(self) -> bool:
        return self._replica.checkpoint_due

    @property
    def pending_rows(self) -> int:
        return self._replica.pending_rows

    @property
    def rows_read(self) -> tuple[int, int]:
        """Rows that commands and queries asked for by key, and those that were not in memory."""
        return self._replica.rows_read

    @property
    def owed_bytes(self) -> int:
        """Disk space that the next checkpoint takes: in LevelDB, first a log and then a table."""
        return 2 * self._replica.pending_bytes

    @property
    def log_bytes(self) -> int:
        return self._journal.size_bytes

    def begin_checkpoint(self) -> Checkpoint:
        applied = self._machine.applied
        term = self._term if applied > self._begins else self._last_term
        head = SnapshotHead(LogIndex(applied), term, self._membership)
        return self._replica.begin_checkpoint(head)

    def write_checkpoint(self, checkpoint: Checkpoint, logged: int) -> None:
        """Blocks; for a worker thread.  Volumes must have been synced since `begin_checkpoint`;
        `logged`: as for `sync_log`.
        """
        self._journal.sync(logged)
        self._replica.write_checkpoint(checkpoint)

    def end_checkpoint(self, checkpoint: Checkpoint) -> None:
        self._replica.end_checkpoint()
        # Should the store lose its newest batch (LevelDB drops what is damaged at the end of its
        # log), the one before and our log still have everything.
        self._storage.compact(META_GROUP, self._stored)
        self._stored = checkpoint.head

    def abandon_checkpoint(self) -> None:
        """It could not be written: what it held is pending again."""
        self._replica.abandon_checkpoint()

    def release_log(self) -> None:
        """Let go of what checkpoints have made unneeded, as soon as that is safe."""
        self._storage.release()

    def close(self) -> None:
        self._replica.close()
        self._journal.close()

    def _begin(self) -> None:
        """The log is empty: this is a new filesystem, or a damaged one."""
        if self._machine.applied:
            raise FsError(
                Fault.BAD_HOME,
                f"the metadata log is empty, but {self._machine.applied} commands were stored: its "
                "segments are missing; restore the home from a backup",
            )
        create_alone(self._storage, LogIndex(0))

    def _refuse_if_not_alone(self) -> None:
        membership = self._membership
        if membership == Membership((self._node,)):
            return
        if self._node not in membership.everyone:
            raise FsError(
                Fault.BAD_HOME,
                f"node {self._node} was removed from its cluster, so what is in this home is out "
                "of date: mount the cluster, or name another home",
            )
        nodes = ", ".join(map(str, sorted(membership.everyone)))
        raise FsError(
            Fault.BAD_HOME,
            f"this home is that of one machine of several (nodes {nodes}), which have to agree on "
            "what is in it: start it with  mountfs node --home HOME",
        )

    def _replay(self, bytes_present: Callable[[Entry], bool]) -> None:
        machine, log = self._machine, self._log
        check_place(log, machine.applied)
        index = LogIndex(machine.applied + 1)
        while index <= log.last_index:
            for found in log.read(index, LogIndex(log.last_index + 1), REPLAY_BYTES):
                index = LogIndex(found.index + 1)
                if found.kind is not EntryKind.COMMAND:
                    machine.skip(found.index)
                    continue
                entry = decode_entry(found.data)
                unsure = log.record_of(found.index) > self._journal.durable_before
                if unsure and not bytes_present(entry):
                    self._set_aside(found.index)
                    return
                self.replayed += 1
                try:
                    machine.apply(
                        found.index, entry.session, entry.sequence, entry.answered, entry.time,
                        entry.command, entry.proven,
                    )  # fmt: skip
                except FsError:
                    if machine.applied != found.index:
                        raise

    def _set_aside(self, index: LogIndex) -> None:
        """End the log before `index`, whose bytes are not there.

        They are synced before the log is, so nobody was promised this entry or a later one, unless
        the bytes were damaged since.  For that case the entries are kept in a file of their own.
        """
        log = self._log
        stop = LogIndex(log.last_index + 1)
        self.cut = stop - index
        records: list[bytes] = []
        while index + len(records) < stop:
            rest = LogIndex(index + len(records))
            records += [found.data for found in log.read(rest, stop, REPLAY_BYTES)]
        with open(self._cut_path, "ab") as file:
            file.write(msgspec.msgpack.encode((index, records)))
            file.flush()
            os.fsync(file.fileno())
        self._storage.cut(META_GROUP, LogIndex(index - 1))
        self._journal.sync()


def create_alone(storage: Storage, applied: LogIndex) -> None:
    """The group of a home that is on its own, durably, behind what was applied already."""
    term = Term(1 if applied else 0)
    head = SnapshotHead(applied, term, Membership((FIRST_NODE,)))
    storage.create(META_GROUP, head, HardState(term, NOBODY, applied))
    storage.journal.sync()


def check_place(log: GroupLog, applied: int) -> None:
    """The stored state must lie within the log.  Raises BAD_HOME."""
    if applied < log.base.index:
        raise FsError(
            Fault.BAD_HOME,
            f"the log begins behind command {log.base.index}, but only {applied} commands were "
            "stored: tables or segments are older than the rest; restore the home from a backup",
        )
    if applied > log.last_index:
        raise FsError(
            Fault.BAD_HOME,
            f"the log ends with command {log.last_index}, but {applied} commands were stored: "
            "segments are missing; restore the home from a backup",
        )
