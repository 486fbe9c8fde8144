"""Volumes with copies: who may write to them, and when their copies may change."""

from typing import Any

import pytest

from mountfs.errors import Fault, FsError
from mountfs.kv.memory import MemoryStore
from mountfs.meta import keys
from mountfs.meta.ops.copy_range import CopyRange
from mountfs.meta.ops.reap import Reap
from mountfs.meta.ops.slices import Discard, Garbage, ReserveSlices
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.ops.volumes import (
    AdoptVolume,
    AllotVolume,
    CloseSlices,
    ForgetVolume,
    GetVolumes,
    ListVolumes,
    ReturnVolumes,
    SealVolume,
    SetReplicas,
    UsedSlices,
    VolumeRecord,
)
from mountfs.meta.ops.write import Run, Write
from mountfs.meta.replica import Replica
from mountfs.types import FIRST_REPLICATED, KIB, ROOT, SUPERUSER, SliceId, VolumeId

NEW = VolumeId(0)
OWN = VolumeId(7)
"""Of a node that was alone."""


def allot(machine: Any, number: VolumeId = NEW, owner: int = 5) -> VolumeRecord:
    found: VolumeRecord = machine.do(AllotVolume(owner, 3, (1, 2, 3), number))
    return found


def write(machine: Any, ino: int, volume: VolumeId, slice_id: SliceId | None = None) -> SliceId:
    name = SliceId(machine.do(ReserveSlices(1))) if slice_id is None else slice_id
    machine.do(Write(ino, (Run(0, 8 * KIB, 5, name, volume),), 1, False))
    return name


def test_a_new_volume_is_written_to_by_one_session(machine: Any, fails: Any) -> None:
    first = allot(machine)
    assert first == VolumeRecord(VolumeId(FIRST_REPLICATED), (1, 2, 3), 3, 1, 5, False)
    assert allot(machine).number == first.number + 1
    with fails(Fault.BUSY):
        allot(machine, first.number, owner=6)


def test_what_was_returned_is_opened_again_in_another_epoch(machine: Any) -> None:
    first = allot(machine)
    machine.do(ReturnVolumes(((first.number, first.epoch), (VolumeId(99), 1))))
    second = allot(machine, first.number, owner=6)
    assert (second.owner, second.epoch) == (6, first.epoch + 1)
    machine.do(ReturnVolumes(((first.number, first.epoch),)))  # it came late
    assert machine.ask(GetVolumes((first.number,))) == (second,)


def test_replicas_change_only_while_it_is_sealed(machine: Any, fails: Any) -> None:
    number = allot(machine).number
    change = SetReplicas(number, (1, 2, 3), (1, 2, 4), 3)
    with fails(Fault.BUSY):
        machine.do(change)
    sealed = machine.do(SealVolume(number))
    assert sealed.sealed
    assert not sealed.owner
    assert machine.do(change).replicas == (1, 2, 4)
    with fails(Fault.BUSY):
        machine.do(change)  # what it was decided on is no longer so
    with fails(Fault.BUSY):
        allot(machine, number)
    with fails(Fault.NOT_FOUND):
        machine.do(SealVolume(VolumeId(99)))


def test_a_volume_of_a_node_is_adopted_once(machine: Any) -> None:
    machine.do(AdoptVolume(OWN, 1, 3))
    machine.do(AdoptVolume(OWN, 2, 1))
    assert machine.ask(GetVolumes((OWN, VolumeId(99)))) == (
        VolumeRecord(OWN, (1,), 3, sealed=True),
    )


def test_volumes_are_listed_in_order(machine: Any) -> None:
    records = [allot(machine) for _ in range(3)]
    machine.do(AdoptVolume(OWN, 1, 3))
    assert [one.number for one in machine.ask(ListVolumes(2))] == [OWN, records[0].number]
    assert machine.ask(ListVolumes(9, records[0].number)) == tuple(records[1:])


def test_what_files_refer_to_is_known_by_volume(machine: Any) -> None:
    volume = allot(machine).number
    one, other = machine.make("a"), machine.make("b")
    first, second = write(machine, one, volume), write(machine, other, volume)
    used = ((first, 8 * KIB, 5), (second, 8 * KIB, 5))
    assert machine.ask(UsedSlices(volume, 10)) == used
    assert machine.ask(UsedSlices(volume, 1)) == used[:1]
    assert machine.ask(UsedSlices(volume, 10, first)) == used[1:]
    # Shared, the slice is used until the last reference has gone.
    third = machine.make("c")
    machine.do(CopyRange(other, 0, third, 0, 8 * KIB, False))
    for name, ino, left in ((b"b", other, used), (b"c", third, used[:1])):
        machine.do(Unlink(ROOT, name, SUPERUSER))
        machine.do(Reap(machine.session, (ino,)))
        assert machine.ask(UsedSlices(volume, 10)) == left
    assert [name for name, _, _ in machine.ask(Garbage(9))] == [second]


def test_a_volume_is_forgotten_when_nothing_in_it_is_used(machine: Any, fails: Any) -> None:
    volume = allot(machine).number
    with fails(Fault.BUSY):
        machine.do(ForgetVolume(volume))
    machine.do(SealVolume(volume))
    write(machine, machine.make("a"), volume)
    with fails(Fault.BUSY):
        machine.do(ForgetVolume(volume))
    empty = allot(machine).number
    machine.do(SealVolume(empty))
    machine.do(ForgetVolume(empty))
    with fails(Fault.SLICE_EXPIRED):
        write(machine, machine.make("b"), empty)


def test_what_comes_behind_the_mark_is_refused_and_what_is_used_is_not(
    machine: Any, fails: Any
) -> None:
    volume = allot(machine).number
    ino = machine.make("a")
    used = write(machine, ino, volume)
    late = SliceId(machine.do(ReserveSlices(1)))
    machine.do(CloseSlices(SliceId(late + 1)))
    machine.do(CloseSlices(SliceId(1)))  # it does not go back
    with fails(Fault.SLICE_EXPIRED):
        write(machine, ino, volume, late)
    assert machine.ask(UsedSlices(volume, 9)) == ((used, 8 * KIB, 5),)
    machine.do(CopyRange(ino, 0, machine.make("b"), 0, 8 * KIB, False))
    write(machine, ino, volume)


def test_the_mark_is_not_set_beyond_the_names_that_were_given_out(machine: Any) -> None:
    machine.do(CloseSlices(SliceId(1 << 60)))
    write(machine, machine.make("a"), allot(machine).number)


def test_slices_in_use_cannot_be_discarded(machine: Any) -> None:
    name = write(machine, machine.make("a"), OWN)
    machine.do(Discard(((name, OWN, 8 * KIB),)))
    assert machine.ask(Garbage(9)) == ()


@pytest.mark.parametrize(
    "command",
    [
        AllotVolume(5, 0, (1,)),
        AllotVolume(5, 9, (1,)),
        AllotVolume(5, 1, ()),
        AllotVolume(5, 2, (1, 1)),
        AllotVolume(5, 2, (0, 1)),
        SetReplicas(OWN, (1,), (), 1),
        AdoptVolume(VolumeId(FIRST_REPLICATED), 1, 1),
        AdoptVolume(VolumeId(0), 1, 1),
    ],
)
def test_what_makes_no_sense_is_refused(command: Any) -> None:
    with pytest.raises(FsError) as caught:
        command.check()
    assert caught.value.fault is Fault.INVALID


def test_a_state_of_before_gets_the_rows_that_it_lacks(machine: Any) -> None:
    one, other = machine.make("a"), machine.make("b")
    write(machine, one, OWN)
    write(machine, other, VolumeId(8))
    machine.write(other, (0, b"inline"))
    machine.do(CopyRange(one, 0, other, 8 * KIB, 8 * KIB, False))
    machine.checkpoint()
    rows = dict(machine.store.scan(b"", b"\xff" * 16))
    before = {
        key: value for key, value in rows.items() if key[:9] != keys.used(OWN, SliceId(0))[:9]
    }
    assert len(before) == len(rows) - 2
    counters = machine.state.tree.counters
    assert counters.format == 4
    counters.format = 2
    store = MemoryStore()
    store.write({**before, keys.COUNTERS: machine.state.tree.counters_row()}, sync=True)
    counters.format = 4
    Replica(store)
    found = dict(store.scan(b"", b"\xff" * 16))
    assert {**found, keys.COUNTERS: b""} == {**rows, keys.COUNTERS: b""}
    assert found[keys.COUNTERS] == machine.state.tree.counters_row()
