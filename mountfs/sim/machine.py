"""What the log of a simulated group does: registers, or the metadata."""

from typing import Any, Protocol

from mountfs.kv.base import Changes
from mountfs.raft.messages import Entry, SnapshotHead
from mountfs.sim.store import Store
from mountfs.types import LogIndex


class Machine(Protocol):
    """Made from a store, which is what its checkpoints go to."""

    store: Store

    @property
    def applied(self) -> LogIndex: ...

    def apply(self, entry: Entry) -> object:
        """The answer to who proposed it; an FsError if it was refused.  Raises FsError if the store
        is damaged.
        """
        ...

    def read(self, query: Any) -> object:
        """Raises FsError: a refusal, or CORRUPT."""
        ...

    def begin_checkpoint(self, head: SnapshotHead) -> Changes: ...

    def end_checkpoint(self, written: bool) -> None: ...

    def rows(self) -> dict[bytes, bytes]:
        """The whole state after the last entry: the same on every server.  Raises CORRUPT."""
        ...
