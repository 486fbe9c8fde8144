"""The logs of all groups of a node, in one journal: one sync serves all that wait.

What a group's log holds is in memory only as places: which record of the journal has the entries
from an index on.  A record is needed as long as it has an entry that is still in a log, or the
newest hard state or base of a group.  So a group that rests would keep the journal from ever
letting go of what is old: what it has in old records is written again, which is little, for a log
that rests is short.

Everything happens in one thread; only `Journal.sync` may run beside it.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Final

from mountfs.errors import Fault, FsError
from mountfs.kv.journal import Journal
from mountfs.raft.core import Save
from mountfs.raft.log import StoredLog
from mountfs.raft.log_record import (
    ENTRIES_OVERHEAD_BYTES,
    ENTRY_OVERHEAD_BYTES,
    Cut,
    Entries,
    Gone,
    GroupId,
    Hard,
    decode,
    encode_base,
    encode_cut,
    encode_entries,
    encode_gone,
    encode_hard,
    one_command,
)
from mountfs.raft.messages import (
    Entry,
    EntryKind,
    HardState,
    Membership,
    SnapshotHead,
    Term,
    decode_membership,
)
from mountfs.types import KIB, LogIndex

_REST_BYTES: Final = 4 * KIB
"""Room in a record for what a save has beside entries: the hard state, and the members of a group.
"""


class GroupLog:
    """One group's part of the journal, to be read back; a `LogReader`."""

    def __init__(self, journal: Journal, group: GroupId) -> None:
        self._journal = journal
        self.group = group
        self.hard = HardState()
        self.base = SnapshotHead(LogIndex(0), Term(0), Membership(()))
        self.last_index = LogIndex(0)
        self.anchor = 0
        """The oldest record that has the newest hard state or base."""
        self._hard_at = self._base_at = 0
        self._firsts = array("Q")
        self._records = array("Q")
        """Entries from `_firsts[i]` on, until the next one's, are in record `_records[i]`."""

    def read(self, start: LogIndex, stop: LogIndex, bytes_max: int) -> Sequence[Entry]:
        """Entries from `start` on, at least one, until `stop` or `bytes_max`.  Raises CORRUPT or
        DEVICE.
        """
        assert self.base.index < start < stop <= self.last_index + 1, (start, stop, self.last_index)
        at = bisect_right(self._firsts, start) - 1
        found: list[Entry] = []
        size = 0
        wanted = start
        while wanted < stop and (size < bytes_max or not found):
            first = self._records[at]
            last = min(bisect_left(self._firsts, stop, at + 1), at + 256)
            behind = self._records[last - 1] + 1  # other groups' records may lie between
            for number, record in enumerate(
                self._journal.read(first, behind, bytes_max - size), first
            ):
                if at == len(self._records) or self._records[at] != number:
                    continue
                ends = self._firsts[at + 1] if at + 1 < len(self._firsts) else self.last_index + 1
                for entry in self._entries_in(record):
                    if wanted <= entry.index < min(ends, stop):
                        assert entry.index == wanted, (entry.index, wanted)
                        found.append(entry)
                        size += len(entry.data)
                        wanted = LogIndex(wanted + 1)
                at += 1
        return found

    def _entries_in(self, record: bytes) -> list[Entry]:
        """Those that the log has after the record, if only the record counts."""
        found: list[Entry] = []
        for item in decode(record):
            if isinstance(item, Entries) and item.group == self.group:
                if found and item.entries[0].index <= found[-1].index:
                    del found[item.entries[0].index - found[0].index :]
                found.extend(item.entries)
        return found

    @property
    def needed(self) -> int:
        """The oldest record that is needed."""
        return min(self.anchor, self._records[0]) if self._records else self.anchor

    @property
    def is_empty(self) -> bool:
        """Of entries."""
        return self.last_index == self.base.index

    # -- what a record says

    def note_entries(self, record: int, first: LogIndex, last: LogIndex) -> None:
        firsts = self._firsts
        while firsts and firsts[-1] >= first:
            firsts.pop()
            self._records.pop()
        firsts.append(first)
        self._records.append(record)
        self.last_index = last

    def note_next(self, record: int, index: LogIndex) -> None:
        """The record has the one entry that follows all others."""
        self._firsts.append(index)
        self._records.append(record)
        self.last_index = index

    def note_cut(self, last: LogIndex) -> None:
        while self._firsts and self._firsts[-1] > last:
            self._firsts.pop()
            self._records.pop()
        self.last_index = min(last, self.last_index)

    def record_of(self, index: LogIndex) -> int:
        """The record that has an entry."""
        return self._records[bisect_right(self._firsts, index) - 1]

    def note_hard(self, record: int, hard: HardState) -> None:
        self.hard = hard
        self._hard_at = record
        self.anchor = min(self._hard_at, self._base_at)

    def note_base(self, record: int, head: SnapshotHead, *, restored: bool) -> None:
        self.base = head
        self._base_at = record
        self.anchor = min(self._hard_at, self._base_at)
        if restored or head.index >= self.last_index:
            assert restored or head.index == self.last_index, (head.index, self.last_index)
            del self._firsts[:], self._records[:]
            self.last_index = head.index
            return
        done = bisect_right(self._firsts, head.index + 1) - 1
        if done > 0:
            del self._firsts[:done], self._records[:done]


class Storage:
    """All groups on a journal.  Reads it, which takes as long as it is large.

    Raises CORRUPT: then this node cannot know what it promised.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.groups: dict[GroupId, GroupLog] = {}
        self._found: dict[GroupId, _Found] = {}
        self._released = 0
        self._releasing: tuple[int, int] | None = None
        """(records below which are not needed, record that must be on disk first)."""
        for number, record in journal.replay(journal.first_index - 1):
            self._replay(number, record)
        for group, log in self.groups.items():
            if not log.base.membership.everyone:
                raise FsError(
                    Fault.CORRUPT, f"the journal has a part of group {group}, but not its begin"
                )

    @property
    def command_bytes_max(self) -> int:
        """The largest command that fits into a record."""
        overhead = ENTRIES_OVERHEAD_BYTES + ENTRY_OVERHEAD_BYTES
        return self.journal.record_bytes_max - _REST_BYTES - overhead

    # -- at the start

    def stored(self, group: GroupId) -> StoredLog:
        """What the journal had when it was opened; to be asked for once."""
        log = self.groups[group]
        found = self._found.pop(group)
        return StoredLog(
            log.base,
            log.last_index,
            () if log.is_empty else tuple(found.terms_behind(log.base.index)),
            tuple(pair for pair in found.memberships if pair[0] > log.base.index),
        )

    def _replay(self, number: int, record: bytes) -> None:
        for item in decode(record):
            group = item.group
            if isinstance(item, Gone):
                self.groups.pop(group, None)
                self._found.pop(group, None)
                continue
            log = self.groups.get(group)
            if log is None:
                log = self.groups[group] = GroupLog(self.journal, group)
                self._found[group] = _Found()
            found = self._found[group]
            if isinstance(item, Hard):
                log.note_hard(number, item.state)
            elif isinstance(item, Cut):
                log.note_cut(item.last)
                found.cut(LogIndex(item.last + 1))
            elif isinstance(item, Entries):
                # What lies before the base, when the journal begins in the middle of a log, is not
                # in the log; and neither is what follows a gap that this makes.
                log.note_entries(number, item.entries[0].index, item.entries[-1].index)
                found.note(item.entries)
            elif item.restored or item.head.index > log.last_index:
                log.note_base(number, item.head, restored=True)
                found.clear()
            else:
                log.note_base(number, item.head, restored=False)

    # -- what is written

    def create(self, group: GroupId, head: SnapshotHead, hard: HardState) -> None:
        """A group comes to be here: with nothing (index 0), or behind a snapshot."""
        assert group not in self.groups, group
        log = GroupLog(self.journal, group)
        number = self._append(encode_hard(group, hard) + encode_base(group, head, restored=True))
        self.groups[group] = log
        self._found[group] = _Found()
        log.note_hard(number, hard)
        log.note_base(number, head, restored=True)

    def save(self, group: GroupId, save: Save) -> int:
        """Hand a save to the kernel; it is on disk when the journal has synced the record of the
        number that is returned.  Raises NO_SPACE, READ_ONLY or DEVICE: then only a first part of
        its entries may have been taken, which is as good as nothing.
        """
        log = self.groups[group]
        chunks = self._cut(save)
        for at, entries in enumerate(chunks):
            parts: list[bytes] = []
            if save.snapshot is not None and at == 0:
                parts.append(encode_base(group, save.snapshot, restored=True))
            if entries:
                parts.append(encode_entries(group, entries))
            if save.hard is not None and at == len(chunks) - 1:
                parts.append(encode_hard(group, save.hard))
            number = self._append(b"".join(parts))
            if save.snapshot is not None and at == 0:
                log.note_base(number, save.snapshot, restored=True)
            if entries:
                log.note_entries(number, entries[0].index, entries[-1].index)
        if save.hard is not None:
            log.note_hard(number, save.hard)
        return number

    def _cut(self, save: Save) -> list[Sequence[Entry]]:
        """The entries, as they fit into one record each; at least one record."""
        room = self.journal.record_bytes_max - _REST_BYTES
        chunks: list[Sequence[Entry]] = []
        start = size = 0
        for at, entry in enumerate(save.entries):
            more = ENTRIES_OVERHEAD_BYTES + ENTRY_OVERHEAD_BYTES + len(entry.data)
            if size + more > room and at > start:
                chunks.append(save.entries[start:at])
                start, size = at, 0
            size += more
        return [*chunks, save.entries[start:]]

    def append_command(self, group: GroupId, term: Term, index: LogIndex, data: bytes) -> None:
        """Add one command: the short way of a group of one."""
        number = self.journal.last_index + 1
        self.journal.append(number, one_command(group, term, index, data))
        self.groups[group].note_next(number, index)

    def save_hard(self, group: GroupId, hard: HardState) -> None:
        self.groups[group].note_hard(self._append(encode_hard(group, hard)), hard)

    def cut(self, group: GroupId, last: LogIndex) -> None:
        """Drop the entries behind `last`: for a group of one, whose entries nobody else has."""
        log = self.groups[group]
        assert log.base.index <= last, (log.base, last)
        self._append(encode_cut(group, last))
        log.note_cut(last)

    def compact(self, group: GroupId, head: SnapshotHead) -> None:
        """The state up to `head` is on disk, and entries up to it are not needed any more."""
        self._anchor(self.groups[group], head)

    def forget(self, group: GroupId) -> None:
        """The group is no longer here."""
        self._append(encode_gone(group))
        del self.groups[group]

    def _anchor(self, log: GroupLog, head: SnapshotHead) -> None:
        hard, group = log.hard, log.group
        number = self._append(encode_hard(group, hard) + encode_base(group, head, restored=False))
        log.note_hard(number, hard)
        log.note_base(number, head, restored=False)

    def _append(self, record: bytes) -> int:
        number = self.journal.last_index + 1
        self.journal.append(number, record)
        return number

    # -- letting go

    def holds(self, group: GroupId) -> bool:
        """Entries of this group keep the oldest part of the journal from being let go."""
        log = self.groups[group]
        return not log.is_empty and log.needed < self.journal.oldest_stop

    def release(self) -> None:
        """Let go of records that nobody needs, as far as what took their place is on disk."""
        journal = self.journal
        if self._releasing is not None:
            needed, proof = self._releasing
            if journal.synced_index < proof:
                return
            self._releasing = None
            journal.release(needed - 1)
        stop = journal.oldest_stop
        for log in self.groups.values():
            if log.is_empty and log.needed < stop:
                self._anchor(log, log.base)
        needed = min((log.needed for log in self.groups.values()), default=journal.last_index)
        if needed >= stop > 0:
            self._releasing = (needed, journal.last_index)


class _Found:
    """Of a group's entries, as they are read: terms and memberships."""

    def __init__(self) -> None:
        self.terms: list[tuple[LogIndex, Term]] = []
        self.memberships: list[tuple[LogIndex, Membership]] = []

    def clear(self) -> None:
        self.terms.clear()
        self.memberships.clear()

    def cut(self, first: LogIndex) -> None:
        while self.terms and self.terms[-1][0] >= first:
            self.terms.pop()
        while self.memberships and self.memberships[-1][0] >= first:
            self.memberships.pop()

    def note(self, entries: Sequence[Entry]) -> None:
        self.cut(entries[0].index)
        for entry in entries:
            if not self.terms or self.terms[-1][1] != entry.term:
                self.terms.append((entry.index, entry.term))
            if entry.kind is EntryKind.MEMBERSHIP:
                self.memberships.append((entry.index, decode_membership(entry.data)))

    def terms_behind(self, base: LogIndex) -> list[tuple[LogIndex, Term]]:
        """The runs, of which the first may have begun before."""
        at = max(bisect_right(self.terms, base + 1, key=lambda run: run[0]) - 1, 0)
        runs = self.terms[at:]
        if runs and runs[0][0] <= base:
            runs[0] = (LogIndex(base + 1), runs[0][1])
        return runs
