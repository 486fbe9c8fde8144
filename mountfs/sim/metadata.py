"""The real metadata as what a simulated log does."""

from collections.abc import Callable, Sequence
from typing import Any

from mountfs.errors import FsError
from mountfs.kv.base import Changes
from mountfs.meta import keys
from mountfs.meta.command import Command
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.make_root import MakeRoot
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.meta.ops.nodes import CHUNK, AddNode, MoveNode
from mountfs.meta.ops.trash import SetTrash
from mountfs.meta.records import ino_of
from mountfs.meta.replica import Checkpoint, Replica
from mountfs.meta.state_machine import Entry as Asked
from mountfs.meta.state_machine import decode_entry
from mountfs.meta.trash import Setting
from mountfs.raft.messages import Entry, EntryKind, Membership, NodeId, SnapshotHead, Term
from mountfs.sim.store import Store
from mountfs.types import ROOT, SUPERUSER, Ino, LogIndex

Look = Callable[[Entry, Asked, object, bool], None]
"""Told of each command: its entry, what it was, its reply, and whether it was carried out (and not
only answered again, or refused because its session had ended).
"""


OnChanges = Callable[[Asked, set[Ino], dict[bytes, bytes | None]], None]
"""Told of each command what it has seen and changed, before it is answered."""


class Metadata:
    """A `Machine`."""

    def __init__(self, store: Store, look: Look, on_changes: OnChanges | None = None) -> None:
        self.store = store
        self.replica = Replica(store)
        self._look = look
        self._on_changes = on_changes
        self._checkpoint: Checkpoint | None = None

    @property
    def applied(self) -> LogIndex:
        return LogIndex(self.replica.applied)

    def apply(self, entry: Entry) -> object:
        machine = self.replica.machine
        if entry.kind is not EntryKind.COMMAND:
            machine.skip(entry.index)
            return None
        asked = decode_entry(entry.data)
        reply: object
        tree = machine.tree
        if self._on_changes is not None:
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
        if self._on_changes is not None and seen is not None:
            self._on_changes(asked, seen, tree.committed)
        self._look(entry, asked, reply, machine.tree.stamp.index == entry.index)
        return reply

    def read(self, query: Any) -> object:
        return query.read(self.replica.machine.tree)

    def begin_checkpoint(self, head: SnapshotHead) -> Changes:
        return self.replica.begin_checkpoint(head).rows

    def end_checkpoint(self, written: bool) -> None:
        if written:
            self.replica.end_checkpoint()
        else:
            self.replica.abandon_checkpoint()

    def rows(self) -> dict[bytes, bytes]:
        machine = self.replica.machine
        found = dict(machine.tree.everything())
        found.pop(keys.HEAD, None)
        found.update({key: row for key, row in machine.loose_rows().items() if row is not None})
        return found


class Formatted:
    """A filesystem with a few directories and files, as all servers begin with it."""

    def __init__(
        self,
        voters: Sequence[NodeId],
        directories: int,
        files: int,
        locations: Sequence[str] = (),
    ) -> None:
        """`locations`: where nodes are that keep slices, and have no metadata."""
        self._index = 0
        self.store = Store()
        self._replica = Replica(self.store)
        self._do(MakeRoot(0, 0))
        for node in voters:
            self._do(MoveNode(node, *names_of(node)) if node == 1 else AddNode(*names_of(node)))
        self.keepers: dict[int, str] = {}
        """The nodes that keep slices, and where they are."""
        for number, location in enumerate(locations, 1):
            name = f"c{number}"
            added = self._do(
                AddNode(name, f"{name}:1", f"{name}:2", f"disk {name}", (CHUNK,), location)
            )
            self.keepers[added.number] = location
        self.directories: list[Ino] = []
        self.files: list[Ino] = []
        for number in range(directories):
            made = self._do(Mkdir(ROOT, b"d%d" % number, 0o755, 0, SUPERUSER))
            self.directories.append(ino_of(made))
        kept = ino_of(self._do(Mkdir(ROOT, b"kept", 0o755, 0, SUPERUSER)))
        for number in range(files):
            made = self._do(Make(kept, b"f%d" % number, 0o100644, 0, 0, True, SUPERUSER))
            self.files.append(ino_of(made[0]))
        self.wild = ino_of(self._do(Mkdir(ROOT, b"wild", 0o755, 0, SUPERUSER)))
        self._do(SetTrash(self.wild, Setting(1), SUPERUSER))
        self.head = SnapshotHead(LogIndex(self._index), Term(1), Membership(tuple(voters)))
        self.store.write(self._replica.begin_checkpoint(self.head).rows, sync=True)

    def _do(self, command: Command[Any]) -> Any:
        self._index += 1
        return self._replica.machine.apply(self._index, 0, 0, 0, self._index, command)


def names_of(node: int) -> tuple[str, str, str, str, tuple[str, ...]]:
    """What a node says of itself: name, two addresses, disk, roles."""
    return f"n{node}", f"n{node}:1", f"n{node}:2", f"disk{node}", ("meta",)
