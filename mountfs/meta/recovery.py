"""The last resort: one machine goes on without the others, which are gone for good.

With a majority lost nobody can say any more what was acknowledged: this machine may lack the end of
it.  What it has becomes all there is.  The change is written into its log as a membership of itself
alone, in a new term, behind everything that it has; the others are forgotten as nodes, but for
those that keep slices only, which have nothing that could contradict it.

Works on the files of a node that is stopped.
"""

from pathlib import Path

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.kv.journal import Journal
from mountfs.kv.leveldb import LevelStore
from mountfs.meta.local import check_place
from mountfs.meta.machine import MetaMachine
from mountfs.meta.ops.nodes import NodeRecord, RemoveNode, all_nodes
from mountfs.meta.replica import META_GROUP
from mountfs.meta.state_machine import encode_entry
from mountfs.raft.core import Save
from mountfs.raft.messages import (
    Entry,
    EntryKind,
    HardState,
    Membership,
    NodeId,
    Term,
    encode_membership,
)
from mountfs.raft.storage import GroupLog, Storage
from mountfs.types import LogIndex

READ_BYTES = 4 << 20


class Found(msgspec.Struct, frozen=True):
    """What a node has.  Of several, the one with the greatest (last_term, last_index) has most."""

    term: int
    last_term: int
    last_index: int
    committed: int
    """Known here to be acknowledged by a majority; what follows may have been, or not."""
    inodes: int
    last_time: int
    """Of the last operation, in nanoseconds since 1970."""
    voters: tuple[int, ...]
    nodes: tuple[NodeRecord, ...]


class Survivor:
    """The metadata of a node in `directory` (HOME/meta), taken in as far as the log goes.

    Raises CORRUPT, BAD_HOME: this one is not fit to go on alone.  Its store is not changed.
    """

    def __init__(self, directory: Path, home: bytes, node: NodeId) -> None:
        self._node = node
        self._journal = Journal(directory / "log", home=home)
        try:
            self._storage = Storage(self._journal)
            if META_GROUP not in self._storage.groups:
                raise FsError(Fault.BAD_HOME, f"{directory}: there is no metadata")
            stored = self._storage.stored(META_GROUP)
            self._log = self._storage.groups[META_GROUP]
            memberships = [stored.base.membership, *(one for _, one in stored.memberships)]
            self._membership = memberships[-1]
            self._last_term = stored.terms[-1][1] if stored.terms else stored.base.term
            self._machine = MetaMachine(
                directory, stored.base, lambda path: LevelStore(path, create=False)
            )
        except BaseException:
            self._journal.close()
            raise
        try:
            check_place(self._log, self._machine.applied)
            _take_in(self._machine, self._log)
        except BaseException:
            self.close()
            raise

    def found(self) -> Found:
        tree = self._machine.replica.machine.tree
        return Found(
            self._log.hard.term,
            self._last_term,
            self._log.last_index,
            max(self._log.hard.committed, self._machine.stored.index),
            tree.counters.inodes,
            tree.counters.last_time,
            self._membership.voters,
            tuple(all_nodes(tree)),
        )

    def go_on_alone(self) -> None:
        """Durably."""
        tree = self._machine.replica.machine.tree
        term = Term(self._log.hard.term + 1)
        alone = encode_membership(Membership((self._node,)))
        data = [(EntryKind.MEMBERSHIP, alone)]
        for record in all_nodes(tree):
            if record.number != self._node and record.has_metadata:
                forgotten = RemoveNode(record.number)
                data.append(
                    (EntryKind.COMMAND, encode_entry(0, 0, 0, self._machine.now(), forgotten))
                )
        first = self._log.last_index + 1
        entries = tuple(
            Entry(LogIndex(index), term, kind, one) for index, (kind, one) in enumerate(data, first)
        )
        last = entries[-1].index
        hard = HardState(term, self._node, last)
        self._storage.save(META_GROUP, Save(hard, entries, None, True, last, 0))
        self._journal.sync()

    def close(self) -> None:
        self._machine.close()
        self._journal.close()


def _take_in(machine: MetaMachine, log: GroupLog) -> None:
    index = LogIndex(machine.applied + 1)
    while index <= log.last_index:
        for entry in log.read(index, LogIndex(log.last_index + 1), READ_BYTES):
            if entry.kind is EntryKind.COMMAND:
                machine.apply(entry, None)
            else:
                machine.skip(entry.index)
            index = LogIndex(entry.index + 1)
