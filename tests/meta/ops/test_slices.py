"""Compaction and garbage, as the metadata see them."""

import crc32c
import pytest

from mountfs.errors import Fault
from mountfs.meta import keys
from mountfs.meta.ops.allocate import KEEP_SIZE, PUNCH_HOLE, Allocate
from mountfs.meta.ops.copy_range import CopyRange
from mountfs.meta.ops.read import GetLayout
from mountfs.meta.ops.setattr import SetAttr
from mountfs.meta.ops.slices import (
    Discard,
    Garbage,
    Reclaimed,
    ReserveSlices,
    Rewrite,
    Settle,
    Tangles,
    crc_of_rows,
)
from mountfs.meta.records import Slice
from mountfs.types import SUPERUSER, VolumeId

VOLUME = VolumeId(7)


@pytest.fixture
def ino(machine):
    return machine.make("a")


@pytest.fixture
def places(machine, ino):
    return lambda: tuple(
        keys.slice_place(key)[1:] for key, _ in machine.state.tree.slice_rows(ino, 0)
    )


@pytest.fixture
def merged(machine, ino):
    """All that is visible of a chunk, in a slice of its own."""

    def merged():
        data = machine.read(ino)
        name = machine.do(ReserveSlices(1))
        machine.slices[name] = data
        return Slice(0, len(data), name, 0, VOLUME, len(data), crc32c.crc32c(data))

    return merged


@pytest.fixture
def tangled(machine, ino):
    """A chunk of two slices, one over the other."""
    machine.write(ino, (0, b"a" * 1000), slices=True)
    machine.write(ino, (300, b"b" * 100), slices=True)
    return b"a" * 300 + b"b" * 100 + b"a" * 600


def test_names_of_slices_are_given_out_once(machine):
    first = machine.do(ReserveSlices(10))
    assert machine.do(ReserveSlices(1)) == first + 10


def test_a_rewritten_chunk_says_the_same_and_its_old_slices_are_garbage(
    machine, ino, tangled, places, merged
):
    old = {piece.slice_id for piece in machine.ask(GetLayout(ino, 0)).slices}
    new = merged()
    machine.do(Rewrite(ino, 0, places(), (new,)))
    assert machine.ask(GetLayout(ino, 0)).slices == (new,)
    assert machine.read(ino) == tangled
    assert {name for name, _, _ in machine.ask(Garbage(10))} == old
    assert machine.ask(Tangles(10)) == ()


def test_a_write_meanwhile_stays_on_top_and_the_chunk_stays_marked(
    machine, ino, tangled, places, merged
):
    before, new = places(), merged()
    machine.write(ino, (0, b"late"), slices=True)
    machine.do(Rewrite(ino, 0, before, (new,)))
    assert machine.read(ino) == b"late" + tangled[4:]
    assert machine.ask(Tangles(10)) == ((ino, 0),)


def test_a_hole_and_a_cut_meanwhile_stay_too(machine, ino, tangled, places, merged):
    before, new = places(), merged()
    machine.do(Allocate(ino, PUNCH_HOLE | KEEP_SIZE, 10, 10, False))
    machine.do(SetAttr(ino=ino, cred=SUPERUSER, size=500))
    machine.do(Rewrite(ino, 0, before, (new,)))
    machine.do(SetAttr(ino=ino, cred=SUPERUSER, size=1000))
    assert machine.read(ino) == tangled[:10] + bytes(10) + tangled[20:500] + bytes(500)


def test_it_is_refused_when_its_rows_are_gone(machine, ino, tangled, places, merged, fails):
    before, new = places(), merged()
    machine.do(SetAttr(ino=ino, cred=SUPERUSER, size=0))
    with fails(Fault.BUSY):
        machine.do(Rewrite(ino, 0, before, (new,)))
    machine.do(Discard(((new.slice_id, new.volume, new.length),)))
    assert machine.read(ino) == b""
    assert len(machine.ask(Garbage(10))) == 3


def test_of_two_compactions_the_second_is_refused(machine, ino, tangled, places, merged, fails):
    before, one, other = places(), merged(), merged()
    machine.do(Rewrite(ino, 0, before, (one,)))
    with fails(Fault.BUSY):
        machine.do(Rewrite(ino, 0, before, (other,)))
    machine.do(Discard(((other.slice_id, other.volume, other.length),)))
    assert machine.read(ino) == tangled


def test_a_slice_that_is_kept_in_two_parts_is_counted_twice(machine, ino, tangled, places):
    below, above = machine.ask(GetLayout(ino, 0)).slices
    machine.do(Rewrite(ino, 0, places(), (below.cut(0, 300), above, below.cut(400, 1000))))
    assert machine.read(ino) == tangled
    assert machine.ask(Garbage(10)) == ()
    machine.do(SetAttr(ino=ino, cred=SUPERUSER, size=0))
    assert len(machine.ask(Garbage(10))) == 2


def test_slices_that_another_file_shares_are_no_garbage(machine, ino, tangled, places, merged):
    copy = machine.make("copy")
    machine.do(CopyRange(ino, 0, copy, 0, 1000, False))
    machine.do(Rewrite(ino, 0, places(), (merged(),)))
    assert machine.ask(Garbage(10)) == ()
    assert machine.read(copy) == tangled


def test_settling_takes_the_mark_unless_slices_came(machine, ino, tangled):
    machine.do(Settle(ino, 0, 1))
    assert machine.ask(Tangles(10)) == ((ino, 0),)
    machine.do(Settle(ino, 0, 2))
    assert machine.ask(Tangles(10)) == ()


def test_settling_takes_the_mark_only_of_the_rows_that_were_judged(
    machine, ino, tangled, places, merged
):
    judged = crc_of_rows(machine.state.tree.slice_rows(ino, 0))
    machine.do(Rewrite(ino, 0, places(), (merged(),)))
    machine.write(ino, (300, b"c" * 100), slices=True)
    now = machine.state.tree.slice_rows(ino, 0)
    assert len(now) == 2, "as many as were judged, and others"
    machine.do(Settle(ino, 0, 2, judged))
    assert machine.ask(Tangles(10)) == ((ino, 0),)
    machine.do(Settle(ino, 0, 2, crc_of_rows(now)))
    assert machine.ask(Tangles(10)) == ()


def test_garbage_is_told_until_it_is_reclaimed(machine):
    first = machine.do(ReserveSlices(3))
    machine.do(Discard(tuple((first + n, VOLUME, 10) for n in range(3))))
    assert [name for name, _, _ in machine.ask(Garbage(2))] == [first, first + 1]
    machine.do(Reclaimed((first, first + 1)))
    assert [name for name, _, _ in machine.ask(Garbage(2))] == [first + 2]
