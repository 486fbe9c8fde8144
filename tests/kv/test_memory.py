"""The store that tests stand on, against a plain dict."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountfs.errors import Fault, FsError
from mountfs.kv.memory import MemoryStore

keys = st.binary(max_size=2)
batches = st.lists(
    st.tuples(st.dictionaries(keys, st.none() | st.binary(max_size=2), max_size=5), st.booleans()),
    max_size=12,
)


def rows(store: MemoryStore) -> dict[bytes, bytes]:
    return dict(store.scan(b"", b"\xff" * 3))


@given(batches=batches, keep=st.integers(0, 3), start=keys, stop=keys)
def test_it_is_a_sorted_dict_that_forgets_what_was_not_synced(batches, keep, start, stop):
    store = MemoryStore()
    states = [{}]
    synced = 0
    for changes, sync in batches:
        store.write(changes, sync=sync)
        state = {**states[-1], **changes}
        states.append({key: value for key, value in state.items() if value is not None})
        synced = len(states) - 1 if sync else synced
        assert all(store.get(key) == states[-1].get(key) for key in changes)
    expected = sorted((k, v) for k, v in states[-1].items() if start <= k < stop)
    assert list(store.scan(start, stop)) == expected
    store.crash(keep)
    assert rows(store) == states[min(synced + keep, len(states) - 1)]
    assert store.unsynced_batches == 0


def test_a_scan_shows_the_moment_of_the_call():
    store = MemoryStore()
    store.write({b"a": b"1", b"b": b"2"}, sync=True)
    scan = store.scan(b"", b"z")
    store.write({b"a": None, b"b": b"3", b"c": b"4"}, sync=True)
    assert list(scan) == [(b"a", b"1"), (b"b", b"2")]


def test_a_write_that_is_told_to_fail_changes_nothing():
    store = MemoryStore()
    store.fail_next(Fault.NO_SPACE)
    with pytest.raises(FsError) as caught:
        store.write({b"a": b"1"}, sync=True)
    assert caught.value.fault is Fault.NO_SPACE
    assert rows(store) == {}
    store.write({b"a": b"1"}, sync=True)
    assert rows(store) == {b"a": b"1"}
