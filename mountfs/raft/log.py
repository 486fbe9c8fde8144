"""The log of one server: what is in it, how far it is on disk, committed and applied.

Entries live with the storage; here are the newest of them, and for all of them the terms, as runs:
there are few terms, so where two logs part is found without reading any.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol

import msgspec

from mountfs.raft.messages import (
    Entry,
    EntryKind,
    Membership,
    SnapshotHead,
    Term,
    decode_membership,
)
from mountfs.types import LogIndex

ENTRY_OVERHEAD_BYTES = 64
"""What an entry counts for beside its data, in all bounds."""


class LogReader(Protocol):
    """What is on disk, to be read back."""

    def read(self, start: LogIndex, stop: LogIndex, bytes_max: int) -> Sequence[Entry]:
        """Entries from `start` on, at least one, until `stop` or `bytes_max`.  Raises CORRUPT or
        DEVICE.
        """
        ...


class StoredLog(msgspec.Struct, frozen=True):
    """What a server finds on its disk when it starts."""

    base: SnapshotHead
    """The entry before the first one, and who counted there."""
    last_index: LogIndex
    terms: tuple[tuple[LogIndex, Term], ...] = ()
    """The first index of each run of entries of one term, ascending."""
    memberships: tuple[tuple[LogIndex, Membership], ...] = ()
    """Those in the entries, ascending."""


class Log:
    """Invariants: base <= applied <= applying <= committed <= last; saved <= saving <= last."""

    def __init__(self, stored: StoredLog, reader: LogReader, *, cached_bytes_max: int) -> None:
        self._reader = reader
        self._cached_bytes_max = cached_bytes_max
        self.base = stored.base.index
        """Up to here entries are gone: they live on in snapshots only."""
        self.base_term = stored.base.term
        self.last_index = stored.last_index
        self._runs = list(stored.terms)
        self._memberships = [(stored.base.index, stored.base.membership), *stored.memberships]
        self.saved = stored.last_index
        """Up to here the log, as it is now, is on disk."""
        self.saving = stored.last_index
        """Up to here it was handed out to be saved."""
        self.cuts = 0
        """How often its end was cut off: what was handed out before a cut is not what counts."""
        self.committed = stored.base.index
        """The highest index known to be stored by a quorum.  Only grows."""
        self.applying = stored.base.index
        """The highest index handed out to be applied."""
        self.applied = stored.base.index
        """The highest index that the state machine has taken in."""
        self._recent: list[Entry] = []
        """The newest entries, without a gap, up to `last_index`."""
        self._recent_bytes = 0
        assert self.base <= self.last_index, (self.base, self.last_index)

    # -- looking

    @property
    def last_term(self) -> Term:
        return self._runs[-1][1] if self._runs else self.base_term

    def term(self, index: LogIndex) -> Term | None:
        """The term of an entry; None before `base` and behind the end."""
        if index == self.base:
            return self.base_term
        if not self.base < index <= self.last_index:
            return None
        return self._runs[bisect_right(self._runs, index, key=_first) - 1][1]

    def matches(self, index: LogIndex, term: Term) -> bool:
        return self.term(index) == term

    def is_behind(self, last_index: LogIndex, last_term: Term) -> bool:
        """Whether a log that ends there is at least as up to date as ours (paper 5.4.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def agrees_up_to(self, index: LogIndex, term: Term) -> tuple[LogIndex, Term]:
        """The last place at or before `index` with a term of at most `term`: the first one, going
        back, where a log with `term` at `index` may agree with ours.
        """
        index = min(index, self.last_index)
        while index > self.base:
            at = bisect_right(self._runs, index, key=_first) - 1
            first, run_term = self._runs[at]
            if run_term <= term:
                return index, run_term
            index = LogIndex(first - 1)
        if index == self.base and self.base_term <= term:
            return index, self.base_term
        # Before the base we do not know; all of it is committed, so that the leader has it.
        return min(index, self.base), Term(0)

    @property
    def membership(self) -> Membership:
        """Who counts now: the latest in the log, committed or not (paper 6)."""
        return self._memberships[-1][1]

    @property
    def membership_index(self) -> LogIndex:
        """The entry that says so."""
        return self._memberships[-1][0]

    def membership_at(self, index: LogIndex) -> Membership:
        """Who counted after that entry; `index` >= base."""
        at = bisect_right(self._memberships, index, key=_index_of) - 1
        assert at >= 0, (index, self.base)
        return self._memberships[at][1]

    def head_at(self, index: LogIndex) -> SnapshotHead:
        """What a snapshot of the state machine after that entry begins with."""
        term = self.term(index)
        assert term is not None, (index, self.base, self.last_index)
        return SnapshotHead(index, term, self.membership_at(index))

    def entries(
        self, start: LogIndex, stop: LogIndex, bytes_max: int, count_max: int
    ) -> tuple[Entry, ...]:
        """From `start` on, at least one if there is one, until `stop` or a limit."""
        assert self.base < start, (start, self.base)
        stop = min(stop, LogIndex(self.last_index + 1), LogIndex(start + count_max))
        if start >= stop:
            return ()
        recent = self.last_index + 1 - len(self._recent)
        if start < recent:
            found = self._reader.read(start, LogIndex(min(stop, recent)), bytes_max)
            assert found, (start, stop)
            assert found[0].index == start, (found[0].index, start)
        else:
            found = self._recent[start - recent : stop - recent]
        size = 0
        for count, entry in enumerate(found):
            size += len(entry.data) + ENTRY_OVERHEAD_BYTES
            if size > bytes_max and count:
                return tuple(found[:count])
        return tuple(found)

    # -- growing

    def append(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            assert entry.index == self.last_index + 1, (entry.index, self.last_index)
            assert entry.term >= self.last_term, (entry.term, self.last_term)
            if entry.term != self.last_term or not self._runs:
                self._runs.append((entry.index, entry.term))
            if entry.kind is EntryKind.MEMBERSHIP:
                self._memberships.append((entry.index, decode_membership(entry.data)))
            self.last_index = entry.index
            self._recent.append(entry)
            self._recent_bytes += len(entry.data) + ENTRY_OVERHEAD_BYTES
        self._trim()

    def take(
        self, prev_index: LogIndex, prev_term: Term, entries: Sequence[Entry]
    ) -> LogIndex | None:
        """Make our log agree with a leader's (paper 5.3).

        Returns the last index that does, or None when the entry before is not ours.  Only what
        conflicts is cut: a message that was overtaken must not take away what came after it.
        """
        if not self.matches(prev_index, prev_term):
            return None
        for at, entry in enumerate(entries):
            if not self.matches(entry.index, entry.term):
                if entry.index <= self.last_index:
                    self._cut(entry.index)
                self.append(entries[at:])
                break
        return LogIndex(prev_index + len(entries))

    def _cut(self, start: LogIndex) -> None:
        """Drop the entries from `start` on."""
        assert start > self.committed, (start, self.committed)
        kept = LogIndex(start - 1)
        recent = self.last_index + 1 - len(self._recent)
        dropped = self._recent[max(start - recent, 0) :]
        self._recent_bytes -= sum(len(entry.data) + ENTRY_OVERHEAD_BYTES for entry in dropped)
        del self._recent[max(start - recent, 0) :]
        while self._runs and self._runs[-1][0] >= start:
            self._runs.pop()
        while self._memberships[-1][0] >= start:
            self._memberships.pop()
        self.last_index = kept
        self.saved = min(self.saved, kept)
        self.saving = min(self.saving, kept)
        self.cuts += 1

    def _trim(self) -> None:
        """Keep memory bounded.  What is not saved yet stays: nobody else has it."""
        if self._recent_bytes <= self._cached_bytes_max:
            return
        recent = self.last_index + 1 - len(self._recent)
        count = 0
        for entry in self._recent:
            if entry.index > self.saved or self._recent_bytes <= self._cached_bytes_max * 3 // 4:
                break
            self._recent_bytes -= len(entry.data) + ENTRY_OVERHEAD_BYTES
            count += 1
        assert count <= self.saved + 1 - recent or not count, (count, self.saved)
        del self._recent[:count]

    # -- moving on

    def take_unsaved(self) -> tuple[Entry, ...]:
        """What is to be saved now, and was not handed out before."""
        count = self.last_index - self.saving
        self.saving = self.last_index
        return tuple(self._recent[len(self._recent) - count :]) if count else ()

    def saved_to(self, index: LogIndex, cuts: int) -> None:
        """What was handed out up to `index`, after so many `cuts`, is on disk.

        It counts only if nothing was cut since: a later save may be about to overwrite it.  That
        save will count.
        """
        if cuts == self.cuts:
            self.saved = max(self.saved, index)
            assert self.saved <= self.saving, (self.saved, self.saving)

    def commit_to(self, index: LogIndex) -> bool:
        """Returns whether that is news."""
        assert index <= self.last_index, (index, self.last_index)
        if index <= self.committed:
            return False
        self.committed = index
        return True

    def take_committed(self, bytes_max: int) -> tuple[Entry, ...]:
        """What is to be applied now.  Only what is on our own disk: after a crash the state must
        not be ahead of the log.
        """
        stop = min(self.committed, self.saved)
        if stop <= self.applying:
            return ()
        start = LogIndex(self.applying + 1)
        found = self.entries(start, LogIndex(stop + 1), bytes_max, stop)
        self.applying = found[-1].index
        return found

    def applied_to(self, index: LogIndex) -> None:
        if index <= self.base:
            return  # a snapshot has arrived meanwhile
        assert self.applied <= index <= self.applying, (self.applied, index, self.applying)
        self.applied = index

    def start_at(self, committed: LogIndex, applied: LogIndex) -> None:
        """After a restart: what the disk says was committed, and what the state machine has."""
        assert self.base <= applied <= self.last_index, (self.base, applied, self.last_index)
        self.committed = min(max(committed, applied), self.last_index)
        self.applying = self.applied = applied

    def compacted(self, index: LogIndex) -> None:
        """Entries up to `index` are no longer kept."""
        if index <= self.base:
            return  # a snapshot has arrived meanwhile
        assert index <= self.applied, (index, self.applied)
        term = self.term(index)
        assert term is not None, index
        membership = self.membership_at(index)
        at = bisect_right(self._runs, index, key=_first) - 1
        if at >= 0:
            run_term = self._runs[at][1]
            del self._runs[: at + 1]
            if index < self.last_index and (not self._runs or self._runs[0][0] > index + 1):
                self._runs.insert(0, (LogIndex(index + 1), run_term))
        later = [pair for pair in self._memberships if pair[0] > index]
        self._memberships = [(self._index_before(index), membership), *later]
        recent = self.last_index + 1 - len(self._recent)
        if index >= recent:
            dropped = self._recent[: index + 1 - recent]
            self._recent_bytes -= sum(len(entry.data) + ENTRY_OVERHEAD_BYTES for entry in dropped)
            del self._recent[: index + 1 - recent]
        self.base, self.base_term = index, term

    def _index_before(self, index: LogIndex) -> LogIndex:
        """The index of the membership in force at `index`, which stays known after compaction."""
        return self._memberships[bisect_right(self._memberships, index, key=_index_of) - 1][0]

    def restore(self, head: SnapshotHead) -> None:
        """A snapshot takes the place of the whole log (paper 7)."""
        assert head.index > self.committed, (head.index, self.committed)
        self.base = self.last_index = self.saved = self.saving = head.index
        self.base_term = head.term
        self.committed = self.applying = self.applied = head.index
        self._runs = []
        self._memberships = [(head.index, head.membership)]
        self._recent = []
        self._recent_bytes = 0
        self.cuts += 1


def _first(run: tuple[LogIndex, Term]) -> LogIndex:
    return run[0]


def _index_of(pair: tuple[LogIndex, Membership]) -> LogIndex:
    return pair[0]
