"""`Log` against a plain list of entries, with a disk that gets what is handed out to be saved."""

from collections.abc import Sequence

import msgspec
import pytest
from group import entry
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from image import Image

from mountfs.raft.log import ENTRY_OVERHEAD_BYTES, Log, StoredLog
from mountfs.raft.messages import (
    Entry,
    EntryKind,
    Membership,
    NodeId,
    SnapshotHead,
    Term,
    decode_membership,
    encode_membership,
)
from mountfs.types import LogIndex

FIRST = Membership((NodeId(1),))
HUGE = 1 << 40

payloads = st.one_of(
    st.binary(max_size=200),
    st.integers(1, 9).map(lambda number: Membership((NodeId(number),))),
)


def made(index: int, term: int, payload: bytes | Membership) -> Entry:
    if isinstance(payload, Membership):
        data = encode_membership(payload)
        return Entry(LogIndex(index), Term(term), EntryKind.MEMBERSHIP, data)
    return entry(index, term, payload)


def plain(terms: Sequence[int], base: int = 0, base_term: int = 0) -> Log:
    """A log of entries without data."""
    image = Image(FIRST)
    image.base = SnapshotHead(LogIndex(base), Term(base_term), FIRST)
    image.entries = [entry(base + 1 + at, term) for at, term in enumerate(terms)]
    log = Log(image.stored(), image, cached_bytes_max=HUGE)
    log.start_at(LogIndex(base), LogIndex(base))
    return log


class Model(RuleBasedStateMachine):
    """`entries`: the log as it should be, behind `base`.  `disk` is written in the order in which
    things were handed out.
    """

    @initialize(cached=st.sampled_from([0, 300, 2_000, HUGE]))
    def begin(self, cached: int) -> None:
        self.cached = cached
        self.disk = Image(FIRST)
        self.base = SnapshotHead(LogIndex(0), Term(0), FIRST)
        self.entries: list[Entry] = []
        self.pending: list[tuple[SnapshotHead | None, tuple[Entry, ...], LogIndex, int]] = []
        self.restored: SnapshotHead | None = None
        self.out = 0
        """Up to here it was handed out to be saved."""
        self.handed = 0
        """Up to here it was handed out to be applied."""
        self._open()
        self.append(0, [b"x"] * 4)
        self.append(1, [FIRST] * 4)

    def _open(self) -> None:
        self.log = Log(self.disk.stored(), self.disk, cached_bytes_max=self.cached)

    @property
    def last(self) -> int:
        return self.base.index + len(self.entries)

    def term(self, index: int) -> int | None:
        if index == self.base.index:
            return self.base.term
        if self.base.index < index <= self.last:
            return self.entries[index - self.base.index - 1].term
        return None

    def _members(self, index: int) -> Membership:
        found = self.base.membership
        for one in self.entries[: index - self.base.index]:
            if one.kind is EntryKind.MEMBERSHIP:
                found = decode_membership(one.data)
        return found

    # -- it grows

    @rule(later=st.integers(0, 2), found=st.lists(payloads, min_size=1, max_size=4))
    def append(self, later: int, found: list[bytes | Membership]) -> None:
        term = max(self.term(self.last) or 0, 1) + later
        new = [made(self.last + 1 + at, term, one) for at, one in enumerate(found)]
        self.log.append(new)
        self.entries += new

    @rule(
        back=st.integers(0, 6),
        kept=st.integers(0, 2),
        found=st.lists(payloads, min_size=1, max_size=4),
    )
    def take(self, back: int, kept: int, found: list[bytes | Membership]) -> None:
        """From another leader: some that we have, and then new ones of a later term."""
        prev = max(self.last - back, self.log.committed)
        at = prev - self.base.index
        same = self.entries[at : at + kept]
        start = prev + len(same) + 1
        term = (self.term(self.last) or 0) + 1
        new = [made(start + at, term, one) for at, one in enumerate(found)]
        got = self.log.take(LogIndex(prev), Term(self.term(prev) or 0), [*same, *new])
        assert got == prev + len(same) + len(new)
        self.entries[start - self.base.index - 1 :] = new
        self.out = min(self.out, start - 1)

    @rule(back=st.integers(0, 6), count=st.integers(0, 4))
    def take_again(self, back: int, count: int) -> None:
        """A message that came late."""
        prev = max(self.last - back, self.log.committed)
        at = prev - self.base.index
        before = self._seen()
        same = self.entries[at : at + count]
        got = self.log.take(LogIndex(prev), Term(self.term(prev) or 0), same)
        assert (got, self._seen()) == (prev + len(same), before)

    @rule(back=st.integers(-1, 6))
    def take_what_does_not_fit(self, back: int) -> None:
        prev = max(self.last - back, self.base.index)
        before = self._seen()
        assert self.log.take(LogIndex(prev), Term(99_999), ()) is None
        assert self._seen() == before

    def _seen(self) -> tuple[object, ...]:
        log = self.log
        return log.last_index, log.last_term, log.saved, log.saving, log.cuts, log.membership

    # -- it goes to disk

    @rule()
    def hand_out(self) -> None:
        unsaved = self.log.take_unsaved()
        assert list(unsaved) == self.entries[self.out - self.base.index :]
        self.out = self.last
        if unsaved or self.restored:
            self.pending.append((self.restored, unsaved, self.log.last_index, self.log.cuts))
            self.restored = None
        assert self.log.take_unsaved() == ()

    @precondition(lambda self: self.pending)
    @rule()
    def save(self) -> None:
        head, entries, last_index, cuts = self.pending.pop(0)
        if head is not None:
            self.disk.base, self.disk.entries = head, []
        for one in entries:
            del self.disk.entries[one.index - self.disk.base.index - 1 :]
            self.disk.entries.append(one)
        self.log.saved_to(last_index, cuts)

    @rule()
    def save_all(self) -> None:
        self.hand_out()
        while self.pending:
            self.save()
        assert self.log.saved == self.last

    # -- it is committed and applied

    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        index = LogIndex(data.draw(st.integers(self.log.base, self.last)))
        before = self.log.committed
        assert self.log.commit_to(index) is (index > before)
        assert self.log.committed == max(index, before)

    @rule(bytes_max=st.sampled_from([1, 300, HUGE]))
    def apply(self, bytes_max: int) -> None:
        stop = min(self.log.committed, self.log.saved)
        found = self.log.take_committed(bytes_max)
        at = self.handed - self.base.index
        assert list(found) == self.entries[at : at + len(found)]
        assert bool(found) is (stop > self.handed)
        self._bounded(found, bytes_max)
        self.handed += len(found)
        assert self.handed <= max(stop, self.handed - len(found))
        assert self.log.applying == self.handed

    @rule(data=st.data())
    def applied(self, data: st.DataObject) -> None:
        index = LogIndex(data.draw(st.integers(self.log.applied, self.handed)))
        self.log.applied_to(index)
        assert self.log.applied == index

    @rule(back=st.integers(0, 3))
    def all_is_well(self, back: int) -> None:
        """Saved, committed and applied, but for the last few."""
        self.save_all()
        self.log.commit_to(LogIndex(max(self.last - back, self.log.committed)))
        self.apply(HUGE)
        self.log.applied_to(LogIndex(self.handed))

    # -- its beginning goes

    @precondition(lambda self: not self.restored and not self.pending)
    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(self.base.index, self.log.applied))
        head = self.log.head_at(LogIndex(index))
        assert head == SnapshotHead(LogIndex(index), Term(self.term(index) or 0), head.membership)
        assert head.membership == self._members(index)
        count = index - self.base.index
        del self.entries[:count]
        del self.disk.entries[:count]
        self.base = self.disk.base = head
        self.log.compacted(LogIndex(index))

    @rule(ahead=st.integers(1, 5), later=st.integers(0, 1), number=st.integers(1, 9))
    def restore(self, ahead: int, later: int, number: int) -> None:
        index = self.log.committed + ahead
        term = (self.term(self.last) or 0) + later
        head = SnapshotHead(LogIndex(index), Term(term), Membership((NodeId(number),)))
        self.log.restore(head)
        self.base = self.restored = head
        self.entries = []
        self.out = self.handed = index

    @rule(ahead=st.integers(0, 3))
    def restart(self, ahead: int) -> None:
        """What was not saved is gone; the commit index on disk may say more than there is."""
        applied = self.log.applied
        if self.restored or any(head for head, *_ in self.pending):
            applied = self.disk.base.index
        committed = LogIndex(min(self.log.committed, self.disk.last_index) + ahead)
        self.base, self.entries = self.disk.base, list(self.disk.entries)
        self.pending, self.restored = [], None
        self._open()
        self.log.start_at(committed, applied)
        self.out, self.handed = self.last, applied
        assert self.log.committed == max(min(committed, self.last), applied)
        assert self.log.saved == self.log.saving == self.last

    # -- what always holds

    @rule(data=st.data(), bytes_max=st.sampled_from([1, 300, HUGE]), count=st.integers(1, 5))
    def look(self, data: st.DataObject, bytes_max: int, count: int) -> None:
        if self.restored or any(head for head, *_ in self.pending):
            return  # the disk is about to be replaced
        start = data.draw(st.integers(self.base.index + 1, self.last + 1))
        stop = data.draw(st.integers(start, self.last + 2))
        found = self.log.entries(LogIndex(start), LogIndex(stop), bytes_max, count)
        at = start - self.base.index - 1
        assert list(found) == self.entries[at : at + len(found)]
        assert len(found) <= min(count, stop - start)
        assert bool(found) is (start < min(stop, self.last + 1))
        self._bounded(found, bytes_max)

    def _bounded(self, found: Sequence[Entry], bytes_max: int) -> None:
        size = sum(len(one.data) + ENTRY_OVERHEAD_BYTES for one in found)
        assert size <= bytes_max or len(found) == 1

    @invariant()
    def knows_its_terms(self) -> None:
        if not hasattr(self, "log"):
            return
        log = self.log
        assert (log.base, log.last_index) == (self.base.index, self.last)
        assert log.last_term == self.term(self.last)
        for index in range(max(self.base.index - 1, 0), self.last + 2):
            assert log.term(LogIndex(index)) == self.term(index), index

    @invariant()
    def knows_its_members(self) -> None:
        if not hasattr(self, "log"):
            return
        for index in range(self.base.index, self.last + 1):
            assert self.log.membership_at(LogIndex(index)) == self._members(index)
        assert self.log.membership == self._members(self.last)
        index = self.log.membership_index
        if index > self.base.index:
            assert self.entries[index - self.base.index - 1].kind is EntryKind.MEMBERSHIP

    @invariant()
    def is_in_order(self) -> None:
        if not hasattr(self, "log"):
            return
        log = self.log
        assert log.base <= log.applied <= log.applying <= log.committed <= log.last_index
        assert log.saved <= log.saving <= log.last_index

    @invariant()
    def says_truly_what_is_on_disk(self) -> None:
        if not hasattr(self, "log") or self.restored or any(head for head, *_ in self.pending):
            return
        count = self.log.saved - self.base.index
        assert self.disk.entries[:count] == self.entries[:count]

    @invariant()
    def counts_what_it_keeps(self) -> None:
        if not hasattr(self, "log"):
            return
        kept = self.log._recent
        assert kept == self.entries[len(self.entries) - len(kept) :]
        size = sum(len(one.data) + ENTRY_OVERHEAD_BYTES for one in kept)
        assert self.log._recent_bytes == size


Model.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestModel = Model.TestCase


# -- where two logs may agree (paper 5.3)

rising = st.lists(st.integers(1, 6), max_size=12).map(sorted)


@given(rising, st.integers(0, 4), st.integers(0, 16), st.integers(0, 7))
def test_agrees_up_to_is_the_last_place_with_no_later_term(
    terms: list[int], base: int, index: int, term: int
) -> None:
    base = min(base, len(terms))
    base_term = terms[base - 1] if base else 0
    log = plain(terms[base:], base, base_term)
    known = {0: 0, **{at + 1: one for at, one in enumerate(terms)}}
    places = [at for at in range(base, len(terms) + 1) if at <= index and known[at] <= term]
    expected = (places[-1], known[places[-1]]) if places else (min(index, base), 0)
    assert log.agrees_up_to(LogIndex(index), Term(term)) == expected


@given(rising, rising, rising)
def test_backing_up_finds_the_place_where_two_logs_part(
    common: list[int], mine: list[int], theirs: list[int]
) -> None:
    """A leader and a follower that agree up to there and nowhere behind: in no more questions than
    there are terms.
    """
    last = common[-1] if common else 0
    mine = [last + 2 * term for term in mine]  # even steps, and odd ones: no term in common
    theirs = [last + 2 * term - 1 for term in theirs]
    leader, follower = plain(common + mine), plain(common + theirs)
    prev, questions = leader.last_index, 0
    while not follower.matches(prev, Term(leader.term(prev) or 0)):
        questions += 1
        hint = follower.agrees_up_to(prev, Term(leader.term(prev) or 0))
        prev = LogIndex(min(leader.agrees_up_to(*hint)[0], prev - 1))
    assert prev == len(common)
    assert questions <= min(len(set(mine)), len(set(theirs))) + 1


def test_an_entry_that_conflicts_with_what_is_committed_is_a_bug() -> None:
    log = plain([1, 1, 1])
    log.commit_to(LogIndex(2))
    with pytest.raises(AssertionError):
        log.take(LogIndex(1), Term(1), [entry(2, 5)])


def test_nothing_is_kept_in_memory_beyond_the_bound() -> None:
    image = Image(FIRST)
    log = Log(StoredLog(image.base, LogIndex(0)), image, cached_bytes_max=1_000)
    for index in range(1, 100):
        log.append([entry(index, 1, b"x" * 100)])
        image.entries += log.take_unsaved()
        log.saved_to(log.last_index, log.cuts)
    assert len(log._recent) * (100 + ENTRY_OVERHEAD_BYTES) <= 1_000 + 200
    assert [one.index for one in log.entries(LogIndex(1), LogIndex(4), HUGE, 9)] == [1, 2, 3]


def test_memory_of_terms_and_memberships_shrinks_with_the_log() -> None:
    log = plain([])
    for index in range(1, 200):
        log.append([made(index, index, Membership((NodeId(index),)))])
    log.take_unsaved()
    log.saved_to(log.last_index, log.cuts)
    log.commit_to(log.last_index)
    log.take_committed(HUGE)
    log.applied_to(log.last_index)
    log.compacted(LogIndex(190))
    assert (len(log._runs), len(log._memberships)) == (9, 10)
    assert msgspec.structs.asdict(log.membership)["voters"] == (199,)
