"""The overlay against one plain dict, through checkpoints that work, fail and are under way."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mountfs.kv.memory import MemoryStore
from mountfs.kv.overlay import Overlay

GROUPS = [number.to_bytes(8, "big") for number in (0, 1, 2, 0xFFFF_FFFF_FFFF_FFFE)]
KEYS = st.builds(bytes.__add__, st.sampled_from(GROUPS), st.sampled_from([b"", b"a", b"b", b"c"]))
VALUES = st.one_of(st.none(), st.binary(max_size=3))


def behind(group: bytes) -> bytes:
    return (int.from_bytes(group, "big") + 1).to_bytes(8, "big")


class History(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore()
        self.overlay = Overlay(self.store, cached_rows=4)
        self.model: dict[bytes, bytes] = {}
        self.frozen: tuple[dict, dict] | None = None
        """What a checkpoint has to write, and what the store must say then."""

    @rule(changes=st.dictionaries(KEYS, VALUES, max_size=4))
    def apply(self, changes) -> None:
        self.overlay.apply(changes)
        for key, value in changes.items():
            self.model.pop(key, None)
            if value is not None:
                self.model[key] = value

    @precondition(lambda self: self.frozen is None)
    @rule()
    def freeze(self) -> None:
        self.frozen = self.overlay.freeze(), dict(self.model)
        assert (self.overlay.pending_rows, self.overlay.pending_bytes) == (0, 0)

    @precondition(lambda self: self.frozen is not None)
    @rule()
    def finish(self) -> None:
        rows, model = self.frozen
        self.frozen = None
        self.store.write(rows, sync=True)
        assert dict(self.store.scan(b"", b"\xff" * 16)) == model
        self.overlay.forget_frozen()

    @precondition(lambda self: self.frozen is not None)
    @rule()
    def fail(self) -> None:
        self.frozen = None
        self.overlay.unfreeze()

    @precondition(lambda self: self.frozen is not None)
    @rule()
    def write(self) -> None:
        """The rows are in the store, and the overlay does not know yet."""
        self.store.write(self.frozen[0], sync=True)

    @rule(key=KEYS)
    def get(self, key) -> None:
        assert self.overlay.get(key) == self.model.get(key)

    @rule(low=KEYS, high=st.sampled_from([b"", b"a", b"b", b"bb", b"z"]), limit=st.integers(0, 4))
    def scan(self, low, high, limit) -> None:
        stop = max(low[:8] + high, low)
        found = list(self.overlay.scan(low, stop))
        assert found == sorted((k, v) for k, v in self.model.items() if low <= k < stop)
        assert list(self.overlay.scan(low, stop, limit=limit)) == found[:limit]

    @rule(group=st.sampled_from(GROUPS), changes=st.dictionaries(KEYS, VALUES, max_size=2))
    def change_while_scanning(self, group, changes) -> None:
        """A scan tells what was there when it began."""
        expected = sorted((k, v) for k, v in self.model.items() if k[:8] == group)
        scan = self.overlay.scan(group, behind(group))
        found = [pair for pair in [next(scan, None)] if pair]
        self.apply(changes)
        assert [*found, *scan] == expected

    @invariant()
    def all_of_it_is_there(self) -> None:
        assert list(self.overlay.everything()) == sorted(self.model.items())
        for group in GROUPS:
            expected = sorted((k, v) for k, v in self.model.items() if k[:8] == group)
            assert list(self.overlay.scan(group, behind(group))) == expected


TestHistory = History.TestCase


@pytest.fixture
def overlay():
    return Overlay(MemoryStore())


def test_newer_changes_are_seen_after_a_checkpoint_of_the_same_inode(overlay):
    overlay.apply({GROUPS[1] + b"a": b"1"})
    rows = overlay.freeze()
    overlay.apply({GROUPS[1] + b"b": b"2"})
    assert len(list(overlay.scan(GROUPS[1], GROUPS[2]))) == 2  # remembers the order of both
    overlay._store.write(rows, sync=True)
    overlay.forget_frozen()
    assert len(list(overlay.scan(GROUPS[1], GROUPS[2]))) == 2


def test_a_key_that_changes_often_is_one_row_of_its_last_size(overlay):
    for size in range(100):
        overlay.apply({GROUPS[1]: b"x" * size})
    once = Overlay(MemoryStore())
    once.apply({GROUPS[1]: b"x" * 99})
    assert overlay.pending_rows == once.pending_rows == 1
    assert overlay.pending_bytes == once.pending_bytes


def test_what_is_pending_again_after_a_failure_counts_the_same(overlay):
    changes = {group: b"x" * 10 for group in GROUPS}
    overlay.apply(changes)
    before = (overlay.pending_rows, overlay.pending_bytes)
    overlay.freeze()
    overlay.apply({GROUPS[0]: b"y" * 10})
    overlay.unfreeze()
    assert (overlay.pending_rows, overlay.pending_bytes) == before
