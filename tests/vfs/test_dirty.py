"""Unwritten bytes against a dict of bytes; slices and chunks are small here."""

from collections.abc import Iterator
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountfs.vfs import dirty
from mountfs.vfs.dirty import Dirty, Run

SLICE, CHUNK = 16, 40

WRITES = st.tuples(st.just("write"), st.integers(0, 100), st.integers(1, 30), st.booleans())
STEPS = st.lists(
    st.one_of(
        WRITES,
        WRITES,
        WRITES,
        st.just(("take",)),
        st.just(("take full",)),
        st.just(("put back",)),
    ),
    max_size=30,
)


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    with mock.patch.multiple(dirty, SLICE_BYTES_MAX=SLICE, CHUNK_BYTES=CHUNK, _JOIN_BYTES=6):
        yield


def contents(runs: list[Run]) -> dict[int, int]:
    found: dict[int, int] = {}
    for run in runs:
        data = b"".join(bytes(part) for part in run.parts)
        assert len(data) == run.size
        found.update(enumerate(data, run.start))
    return found


@given(STEPS)
def test_the_last_byte_that_was_written_is_there(steps):
    buffer = Dirty()
    model: dict[int, int] = {}
    taken: list[Run] = []  # on their way, until they are put back
    for turn, (what, *rest) in enumerate(steps):
        if what == "write":
            offset, length, keep = rest
            data = bytearray([turn + 1]) * length
            kept = buffer.write(offset, memoryview(data), keep=keep)
            assert keep or not kept
            if not kept:
                data[:] = bytes(length)  # the caller's again
            model.update((at, turn + 1) for at in range(offset, offset + length))
        elif what == "put back":
            model = {**contents(taken), **model}
            buffer.put_back(taken)
            taken = []
        elif not taken:
            taken = buffer.take(full_only=what == "take full")
            gone = contents(taken)
            assert gone == {at: byte for at, byte in model.items() if at in gone}
            model = {at: byte for at, byte in model.items() if at not in gone}
            if what == "take":
                assert not model

        assert contents(buffer.runs) == model
        assert buffer.bytes == len(model)
        assert buffer.stop == max(model, default=-1) + 1
        behind = 0
        for run in buffer.runs:
            assert behind <= run.start, "ascending and disjoint"
            behind = run.stop
            assert 0 < run.size <= SLICE
            assert run.start // CHUNK == (run.stop - 1) // CHUNK


@given(STEPS, st.integers(0, 110), st.integers(1, 40))
def test_a_range_is_read_over_what_was_there(steps, offset, length):
    buffer = Dirty()
    for turn, (what, *rest) in enumerate(steps):
        if what == "write":
            buffer.write(rest[0], memoryview(bytes([turn + 1]) * rest[1]))
    model = contents(buffer.runs)
    target = bytearray(b"\xee" * length)
    buffer.copy_into(target, offset)
    assert target == bytes(model.get(at, 0xEE) for at in range(offset, offset + length))
    covered = any(offset <= at < offset + length for at in model)
    assert buffer.overlaps(offset, offset + length) == covered


def test_appending_makes_whole_slices():
    buffer = Dirty()
    for at in range(0, 38, 2):
        buffer.write(at, memoryview(b"ab"))
    assert [(run.start, run.stop) for run in buffer.runs] == [(0, 16), (16, 32), (32, 38)]


def test_of_much_only_the_first_runs_are_taken():
    buffer = Dirty()
    buffer.write(0, memoryview(bytes(60)))
    sizes = [run.size for run in buffer.runs]
    assert [run.size for run in buffer.take(bytes_max=1)] == sizes[:1]
    assert buffer.bytes == 60 - sizes[0]
    assert [run.size for run in buffer.take(bytes_max=sizes[1] + 1)] == sizes[1:3]
    assert [run.size for run in buffer.take(bytes_max=100)] == sizes[3:]
    assert buffer.bytes == 0
    assert buffer.take(bytes_max=1) == []


def test_the_last_run_stays_while_it_may_grow():
    buffer = Dirty()
    buffer.write(0, memoryview(bytes(20)))
    assert [(run.start, run.stop) for run in buffer.take(full_only=True)] == [(0, 16)]
    assert [(run.start, run.stop) for run in buffer.runs] == [(16, 20)]
    buffer.write(20, memoryview(bytes(12)))
    assert [(run.start, run.stop) for run in buffer.take(full_only=True)] == [(16, 32)]
    assert buffer.bytes == 0


def test_bytes_that_come_back_lie_below_newer_ones():
    buffer = Dirty()
    buffer.write(0, memoryview(b"old old"))
    taken = buffer.take()
    buffer.write(4, memoryview(b"new"))
    buffer.put_back(taken)
    assert bytes(contents(buffer.runs).values()) == b"old new"


def test_memory_that_is_larger_than_a_slice_is_not_kept():
    buffer = Dirty()
    assert not buffer.write(0, memoryview(bytearray(SLICE + 1)), keep=True)
    assert [run.size for run in buffer.runs] == [SLICE, 1]
