"""The metadata as what a Raft group does: its server's copy on this node."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mountfs.errors import FsError
from mountfs.meta.asked import Asked
from mountfs.meta.command import Command
from mountfs.meta.replica import Checkpoint, Replica
from mountfs.meta.snapshot import OpenStore, Sink, Source, settle, take_place
from mountfs.meta.state_machine import decode_entry, encode_entry, needs_time
from mountfs.raft.messages import Entry, SnapshotHead
from mountfs.types import Ino, LogIndex

OnChanges = Callable[[Any, set[Ino], dict[bytes, bytes | None]], None]
"""(the command as it was asked, the inodes that it looked at, the rows that it changed)"""


class MetaMachine:
    """A `raft.driver.Machine` in `directory` (HOME/meta); `base`: where its log begins."""

    def __init__(self, directory: Path, base: SnapshotHead, open_store: OpenStore) -> None:
        self._directory = directory
        self._path = directory / "store"
        self._open_store = open_store
        settle(directory, self._path, base, open_store)
        self.replica = Replica(open_store(self._path))
        self.stored = self.replica.stored_head or base
        """Where the last checkpoint stands."""
        self._latest = 0
        self.on_applied: Callable[[Command[Any], object], None] = lambda command, reply: None
        """Told of each command that has been taken in."""
        self.on_installed: Callable[[], None] = lambda: None
        self.on_changes: OnChanges | None = None
        """Told before that of what each command has seen and changed, where somebody wants it."""
        self.proven: Callable[[], int] = lambda: 0
        """The time that has passed for certain, as far as the leader knows; 0: it does not."""

    @property
    def applied(self) -> LogIndex:
        return LogIndex(self.replica.applied)

    def ask(self, session: int, sequence: int, answered: int, command: Command[Any]) -> Asked:
        """What to propose for a command; the time is the leader's, which does not go back."""
        timed = needs_time(self.replica.machine.tree, command)
        proven = self.proven() if timed else 0
        return Asked(session, sequence, answered, self.now(), command, proven)

    def now(self) -> int:
        """In nanoseconds since 1970; it does not go back, even if the clock does."""
        self._latest = max(self._latest, self.replica.now())
        return self._latest

    @staticmethod
    def encoded(asked: Asked) -> bytes:
        return encode_entry(
            asked.session, asked.sequence, asked.answered, asked.time, asked.command, asked.proven
        )

    def apply(self, entry: Entry, subject: Any) -> object:
        """The reply, or the FsError with which the command was refused.  Raises FsError when the
        copy is damaged.
        """
        asked: Any = subject if subject is not None else decode_entry(entry.data)
        machine = self.replica.machine
        tree = machine.tree
        reply: object
        if self.on_changes is not None:
            tree.seen, tree.committed = set(), {}
        try:
            reply = machine.apply(
                entry.index, asked.session, asked.sequence, asked.answered, asked.time,
                asked.command, asked.proven,
            )  # fmt: skip
        except FsError as error:
            if machine.applied != entry.index:
                raise  # it was not refused: it could not be taken in
            reply = error
        finally:
            seen, tree.seen = tree.seen, None
        if self.on_changes is not None and seen is not None:
            self.on_changes(asked, seen, tree.committed)
        self.on_applied(asked.command, reply)
        return reply

    def skip(self, index: LogIndex) -> None:
        self.replica.machine.skip(index)

    # -- checkpoints

    def begin_checkpoint(self, head: SnapshotHead) -> Checkpoint:
        return self.replica.begin_checkpoint(head)

    def end_checkpoint(self, checkpoint: Checkpoint) -> None:
        self.replica.end_checkpoint()
        self.stored = checkpoint.head

    # -- snapshots

    def source(self) -> Source:
        """A copy of the last checkpoint, which must be the newest thing in the store."""
        return Source(self.stored, self.replica.view())

    def sink(self, head: SnapshotHead) -> Sink:
        return Sink(self._directory, head, self._open_store)

    def install(self, head: SnapshotHead) -> None:
        """Blocks."""
        self.replica.close()
        take_place(self._directory, self._path)
        self.replica = Replica(self._open_store(self._path))
        assert self.replica.applied == head.index, (self.replica.applied, head)
        self.stored = head
        self.on_installed()

    def close(self) -> None:
        self.replica.close()
