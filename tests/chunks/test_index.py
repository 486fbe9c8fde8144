"""The index of needles against a model: whatever is written when, it says the same."""

from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountfs.chunks.index import Growth, NeedleIndex, Place
from mountfs.chunks.needle import needle_bytes
from mountfs.errors import Fault, FsError
from mountfs.kv.memory import MemoryStore
from mountfs.meta.reports import with_name
from mountfs.types import SliceId, VolumeId

ONE, TWO = VolumeId(1), VolumeId(2)

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from([ONE, TWO]), st.integers(1, 5)),
        st.tuples(st.just("remove"), st.sampled_from([ONE, TWO]), st.integers(1, 5)),
        st.tuples(st.just("write"), st.integers(0, 40), st.booleans()),
        st.tuples(st.just("compact"), st.sampled_from([ONE, TWO]), st.just(0)),
    ),
    max_size=40,
)


NOTHING = Growth(0, 0, 0)


def grown(before: Growth, more: Growth) -> Growth:
    return Growth(
        before.bytes + more.bytes, before.needles + more.needles, before.digest ^ more.digest
    )


def growth_of(living: dict[SliceId, Place]) -> Growth:
    """From nothing to this."""
    size = sum(needle_bytes(place.length) for place in living.values())
    return Growth(size, len(living), reduce(with_name, living, 0))


def write(index: NeedleIndex, durable: dict[VolumeId, tuple[int, int]], *, done: bool) -> None:
    index.write(index.begin_write(durable) if done else index.begin_write(durable) and {})
    index.end_write(done=done)


@given(STEPS)
def test_it_says_what_a_dictionary_would(steps):
    store = MemoryStore()
    index = NeedleIndex(store)
    model: dict[tuple[VolumeId, SliceId], Place] = {}
    living = {ONE: NOTHING, TWO: NOTHING}
    generation = {ONE: 1, TWO: 1}
    end = {ONE: 4096, TWO: 4096}
    synced = {ONE: 4096, TWO: 4096}
    history: dict[VolumeId, list[tuple[int, SliceId, Place | None]]] = {ONE: [], TWO: []}
    for what, which, number in steps:
        if what == "put":
            place = Place(end[which], 10 * number)
            living[which] = grown(living[which], index.put(which, SliceId(number), place))
            model[which, SliceId(number)] = place
            history[which].append((end[which], SliceId(number), place))
            end[which] += needle_bytes(place.length)
        elif what == "remove":
            gone = index.remove(which, SliceId(number), end[which])
            living[which] = grown(living[which], gone)
            if model.pop((which, SliceId(number)), None):
                history[which].append((end[which], SliceId(number), None))
                end[which] += 48
        elif what == "write":
            synced = {one: max(end[one] - 48 * which, synced[one]) for one in end}
            durable = {one: (generation[one], synced[one]) for one in end}
            write(index, durable, done=bool(number))
        else:
            kept = index.slices(which)
            stale = [slice_id for slice_id, _ in index.table(which)]
            generation[which] += 1
            end[which], places, history[which] = 4096, [], []
            for slice_id, old in kept:
                place = Place(end[which], old.length)
                places.append((slice_id, place))
                history[which].append((end[which], slice_id, place))
                model[which, slice_id] = place
                end[which] += needle_bytes(old.length)
            index.replace(which, generation[which], places, stale)
            synced[which] = end[which]
            write(index, {which: (generation[which], end[which])}, done=True)
    for one in (ONE, TWO):
        wanted = {slice_id: place for (owner, slice_id), place in model.items() if owner == one}
        assert dict(index.slices(one)) == wanted
        assert all(index.get(one, slice_id) == place for slice_id, place in wanted.items())
        assert living[one] == growth_of(wanted)
        check_after_a_crash(NeedleIndex(store), one, history[one], wanted)
        on_disk = [record for record in history[one] if record[0] < synced[one]]
        wanted = {slice_id: place for _, slice_id, place in on_disk if place}
        for at, slice_id, place in on_disk:
            if place is None and slice_id in wanted and wanted[slice_id].offset < at:
                del wanted[slice_id]
        check_after_a_crash(NeedleIndex(store), one, on_disk, wanted)


def check_after_a_crash(
    index: NeedleIndex,
    volume: VolumeId,
    history: list[tuple[int, SliceId, Place | None]],
    wanted: dict[SliceId, Place],
) -> None:
    """The table, and the file behind the checkpoint, together say everything."""
    state = index.states().get(volume)
    living = Growth(state.living_bytes, state.needles, state.digest) if state else NOTHING
    for at, slice_id, place in history:
        if state is None or at >= state.checkpoint:
            change = index.put(volume, slice_id, place) if place else None
            living = grown(living, change or index.remove(volume, slice_id, at))
    assert dict(index.slices(volume)) == wanted
    assert living == growth_of(wanted)


@pytest.mark.parametrize("left", ["none", "of another row"])
def test_a_digest_that_a_version_before_has_not_kept_is_made_anew(left):
    store = MemoryStore()
    index = NeedleIndex(store)
    key, rows = b"d" + bytes(3) + b"\1", []
    for number in (1, 2):
        index.put(ONE, SliceId(number), Place(4096 + 64 * number, 8))
        write(index, {ONE: (1, 4096 + 64 * number + 64)}, done=True)
        rows.append(store.get(key))
    assert NeedleIndex(store).states()[ONE].digest == with_name(
        with_name(0, SliceId(1)), SliceId(2)
    )
    store.write({key: None if left == "none" else rows[0]}, sync=True)
    assert NeedleIndex(store).states()[ONE].digest == with_name(
        with_name(0, SliceId(1)), SliceId(2)
    )


def test_what_is_not_durable_is_not_in_the_table():
    store = MemoryStore()
    index = NeedleIndex(store)
    index.put(ONE, SliceId(1), Place(4096, 8))
    index.put(ONE, SliceId(2), Place(4160, 8))
    write(index, {ONE: (1, 4160)}, done=True)
    again = NeedleIndex(store)
    assert again.slices(ONE) == [(1, Place(4096, 8))]
    assert again.states()[ONE].checkpoint == 4160
    assert index.pending == 1


def test_a_needle_whose_deletion_is_not_durable_is_scanned_for():
    store = MemoryStore()
    index = NeedleIndex(store)
    index.put(ONE, SliceId(1), Place(4096, 8))
    index.remove(ONE, SliceId(1), 4160)
    write(index, {ONE: (1, 4160)}, done=True)  # the tombstone may be lost, and the needle is there
    assert NeedleIndex(store).states()[ONE].checkpoint == 4096


def test_a_table_that_cannot_be_written_costs_nothing():
    store = MemoryStore()
    index = NeedleIndex(store)
    index.put(ONE, SliceId(1), Place(4096, 8))
    store.fail_next(Fault.NO_SPACE)
    changes = index.begin_write({ONE: (1, 4160)})
    assert index.get(ONE, SliceId(1)) == Place(4096, 8)
    try:
        index.write(changes)
    except FsError:
        index.end_write(done=False)
    assert index.get(ONE, SliceId(1)) == Place(4096, 8)
    write(index, {ONE: (1, 4160)}, done=True)
    assert NeedleIndex(store).states()[ONE].needles == 1


def test_a_dropped_volume_leaves_nothing():
    store = MemoryStore()
    index = NeedleIndex(store)
    for number in range(1, 30):
        index.put(ONE, SliceId(number), Place(4096 * number, 8))
        index.put(TWO, SliceId(number), Place(4096 * number, 8))
    write(index, {ONE: (1, 1 << 20), TWO: (1, 1 << 20)}, done=True)
    index.put(ONE, SliceId(99), Place(1 << 20, 8))
    index.drop(ONE)
    index.forget(ONE)
    assert index.slices(ONE) == []
    assert len(index.slices(TWO)) == 29
    assert list(NeedleIndex(store).states()) == [TWO]


def test_a_table_that_says_how_far_it_goes_is_durable() -> None:
    store = MemoryStore()
    index = NeedleIndex(store)
    index.put(ONE, SliceId(1), Place(4096, 10))
    write(index, {ONE: (1, 8192)}, done=True)
    assert store.unsynced_batches == 0
    assert index.states()[ONE].checkpoint == 8192
