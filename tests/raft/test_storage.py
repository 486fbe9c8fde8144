"""The logs of many groups in one journal, against lists."""

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from mountfs.errors import Fault, FsError
from mountfs.kv.journal import Journal
from mountfs.raft.core import Save
from mountfs.raft.log_record import GroupId
from mountfs.raft.messages import (
    Entry,
    EntryKind,
    HardState,
    Membership,
    NodeId,
    SnapshotHead,
    Term,
    encode_membership,
)
from mountfs.raft.storage import Storage
from mountfs.types import KIB, MIB, LogIndex

SEGMENT = 32 * KIB
THREE = Membership((NodeId(1), NodeId(2), NodeId(3)))
FOUR = Membership((NodeId(1), NodeId(2), NodeId(3)), (), (NodeId(4),))
GROUPS = [GroupId(number) for number in (1, 2, 70_000)]


def head(index: int, term: int, membership: Membership = THREE) -> SnapshotHead:
    return SnapshotHead(LogIndex(index), Term(term), membership)


def entry(index: int, term: int, data: bytes = b"x") -> Entry:
    return Entry(LogIndex(index), Term(term), EntryKind.COMMAND, data)


def save(
    *entries: Entry, hard: HardState | None = None, snapshot: SnapshotHead | None = None
) -> Save:
    return Save(hard, entries, snapshot, True, LogIndex(0), 0)


def everything(storage: Storage, group: GroupId) -> list[Entry]:
    log = storage.groups[group]
    if log.is_empty:
        return []
    start, stop = LogIndex(log.base.index + 1), LogIndex(log.last_index + 1)
    return list(log.read(start, stop, 64 * MIB))


@dataclass
class Model:
    base: SnapshotHead
    hard: HardState
    entries: list[Entry] = field(default_factory=list)

    @property
    def last(self) -> int:
        return self.base.index + len(self.entries)

    def terms(self) -> tuple[tuple[int, int], ...]:
        runs: list[tuple[int, int]] = []
        for one in self.entries:
            if not runs or runs[-1][1] != one.term:
                runs.append((one.index, one.term))
        return tuple(runs)


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = TemporaryDirectory()
        self.models: dict[GroupId, Model] = {}
        self.storage = Storage(self.open_journal())

    def open_journal(self) -> Journal:
        return Journal(self.directory.name, segment_bytes=SEGMENT)

    def teardown(self) -> None:
        self.storage.journal.close()
        self.directory.cleanup()

    @initialize()
    def first_group(self) -> None:
        self.create(GROUPS[0], 0)

    @rule(group=st.sampled_from(GROUPS), index=st.sampled_from([0, 5]))
    def create(self, group: GroupId, index: int) -> None:
        if group not in self.models:
            begin, hard = head(index, index), HardState(Term(index))
            self.storage.create(group, begin, hard)
            self.models[group] = Model(begin, hard)

    @rule(
        group=st.sampled_from(GROUPS),
        back=st.integers(0, 6),
        sizes=st.lists(st.sampled_from([0, 10, 1_000, 9_000, 20_000]), max_size=6),
        terms=st.lists(st.integers(0, 1), min_size=6, max_size=6),
        votes=st.booleans(),
        members=st.booleans(),
    )
    def grow(
        self, group: GroupId, back: int, sizes: list[int], terms: list[int], votes: bool,
        members: bool,
    ) -> None:  # fmt: skip
        model = self.models.get(group)
        if model is None:
            return
        first = model.last + 1 - min(back, len(model.entries) if sizes else 0)
        kept = model.entries[: first - model.base.index - 1]
        term = max(model.entries[-1].term if model.entries else model.base.term, model.hard.term)
        new = []
        for at, size in enumerate(sizes):
            term = Term(term + terms[at])
            data = bytes([at]) * size
            kind = EntryKind.COMMAND
            if members and at == 0:
                data, kind = encode_membership(FOUR), EntryKind.MEMBERSHIP
            new.append(Entry(LogIndex(first + at), term, kind, data))
        hard = HardState(term, NodeId(2), LogIndex(model.base.index)) if votes else None
        if not new and hard is None:
            return
        self.storage.save(group, save(*new, hard=hard))
        model.entries = kept + new
        model.hard = hard or model.hard

    @rule(group=st.sampled_from(GROUPS), part=st.floats(0, 1))
    def compact(self, group: GroupId, part: float) -> None:
        model = self.models.get(group)
        if model is None:
            return
        count = round(part * len(model.entries))
        if count:
            last = model.entries[count - 1]
            model.base = head(last.index, last.term)
            del model.entries[:count]
        self.storage.compact(group, model.base)

    @rule(group=st.sampled_from(GROUPS), ahead=st.integers(1, 9), more=st.booleans())
    def restore(self, group: GroupId, ahead: int, more: bool) -> None:
        model = self.models.get(group)
        if model is None:
            return
        index = model.last + ahead
        term = model.hard.term + 1
        model.base = head(index, term, FOUR)
        model.hard = HardState(Term(term), NodeId(0), LogIndex(index))
        model.entries = [entry(index + 1, term)] if more else []
        self.storage.save(group, save(*model.entries, hard=model.hard, snapshot=model.base))

    @rule(group=st.sampled_from(GROUPS))
    def forget(self, group: GroupId) -> None:
        if len(self.models) > 1 and group in self.models:
            self.storage.forget(group)
            del self.models[group]

    @rule(sync=st.booleans())
    def release(self, sync: bool) -> None:
        if sync:
            self.storage.journal.sync()
        self.storage.release()

    @rule()
    def reopen(self) -> None:
        self.storage.journal.close()
        self.storage = Storage(self.open_journal())
        assert self.storage.groups.keys() == self.models.keys()
        for group, model in self.models.items():
            stored = self.storage.stored(group)
            assert stored.base == model.base
            assert stored.last_index == model.last
            assert stored.terms == model.terms()
            found = [index for index, _ in stored.memberships]
            kinds = [one.index for one in model.entries if one.kind is EntryKind.MEMBERSHIP]
            assert found == kinds

    @invariant()
    def same(self) -> None:
        for group, model in self.models.items():
            log = self.storage.groups[group]
            assert (log.base, log.hard, log.last_index) == (model.base, model.hard, model.last)
            assert everything(self.storage, group) == model.entries
            for start in range(model.base.index + 1, model.last + 1, 3):
                found = log.read(LogIndex(start), LogIndex(model.last + 1), 1_500)
                at = start - model.base.index - 1
                assert list(found) == model.entries[at : at + len(found)]
                assert found


def test_histories() -> None:
    run_state_machine_as_test(
        Histories, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
    )


def test_a_group_that_rests_does_not_hold_the_journal(tmp_path: Path) -> None:
    with closing(Journal(tmp_path, segment_bytes=SEGMENT)) as journal:
        storage = Storage(journal)
        for group in GROUPS:
            storage.create(group, head(0, 0), HardState())
        for index in range(1, 200):
            storage.save(GROUPS[1], save(entry(index, 1, bytes(2_000))))
            if index % 20 == 0:
                storage.compact(GROUPS[1], head(index, 1))
                journal.sync()
                storage.release()
                assert journal.size_bytes < 4 * SEGMENT
        assert len(everything(storage, GROUPS[1])) == 19


def test_a_group_that_rests_with_entries_is_told(tmp_path: Path) -> None:
    with closing(Journal(tmp_path, segment_bytes=SEGMENT)) as journal:
        storage = Storage(journal)
        for group in GROUPS[:2]:
            storage.create(group, head(0, 0), HardState())
        storage.save(GROUPS[0], save(entry(1, 1)))
        for index in range(1, 100):
            storage.save(GROUPS[1], save(entry(index, 1, bytes(2_000))))
        storage.compact(GROUPS[1], head(99, 1))
        assert [storage.holds(group) for group in GROUPS[:2]] == [True, False]
        before = journal.size_bytes
        for _ in range(3):
            journal.sync()
            storage.release()
        assert journal.size_bytes == before
        storage.compact(GROUPS[0], head(1, 1))
        for _ in range(3):
            journal.sync()
            storage.release()
        assert journal.size_bytes < before / 3


def test_a_save_that_is_larger_than_a_record_is_several(tmp_path: Path) -> None:
    with closing(Journal(tmp_path, segment_bytes=SEGMENT)) as journal:
        storage = Storage(journal)
        storage.create(GROUPS[0], head(0, 0), HardState())
        entries = [entry(index, 1, bytes([index]) * 9_000) for index in range(1, 30)]
        before = journal.last_index
        storage.save(GROUPS[0], save(*entries, hard=HardState(Term(1), NodeId(3))))
        assert journal.last_index > before + 8
        assert everything(storage, GROUPS[0]) == entries
    with closing(Journal(tmp_path, segment_bytes=SEGMENT)) as journal:
        storage = Storage(journal)
        assert everything(storage, GROUPS[0]) == entries
        assert storage.groups[GROUPS[0]].hard.vote == 3


def test_a_journal_without_the_begin_of_a_group_is_refused(tmp_path: Path) -> None:
    with closing(Journal(tmp_path, segment_bytes=SEGMENT)) as journal:
        storage = Storage(journal)
        storage.create(GROUPS[0], head(0, 0), HardState())
        storage.save(GROUPS[0], save(entry(1, 1)))
        part = journal.read(2, 3, 1)[0]
    (tmp_path / "other").mkdir()
    with closing(Journal(tmp_path / "other", segment_bytes=SEGMENT)) as journal:
        journal.append(1, part)
        with pytest.raises(FsError, match="group 1, but not its begin") as caught:
            Storage(journal)
        assert caught.value.fault is Fault.CORRUPT
