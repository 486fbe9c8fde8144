"""What a chunkserver is told when it asks whether slices and volumes may go."""

from typing import Any

from mountfs.errors import Fault
from mountfs.meta.ops.consent import SLICES_MAX, MustKeep, Needed
from mountfs.meta.ops.reap import Reap
from mountfs.meta.ops.slices import Discard, Reclaimed, ReserveSlices
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.ops.volumes import (
    AllotVolume,
    CloseSlices,
    ForgetVolume,
    SealVolume,
    SetReplicas,
)
from mountfs.meta.ops.write import Run, Write
from mountfs.types import KIB, ROOT, SUPERUSER, SliceId, VolumeId


def allot(machine: Any) -> VolumeId:
    return machine.do(AllotVolume(machine.session, 3, (1, 2, 3))).number  # type: ignore[no-any-return]


def needed(machine: Any, volume: VolumeId, *slices: SliceId) -> tuple[SliceId, ...]:
    return machine.ask(Needed(volume, slices))  # type: ignore[no-any-return]


def test_a_slice_is_needed_until_it_is_garbage(machine: Any, fails: Any) -> None:
    volume, other = allot(machine), allot(machine)
    used, discarded, late = (machine.do(ReserveSlices(1)) for _ in range(3))
    ino = machine.make("f")
    machine.do(Write(ino, (Run(0, 8 * KIB, 5, used, volume),), 0, False))
    machine.do(Discard(((discarded, volume, 8 * KIB),)))
    assert needed(machine, volume, used, discarded, late) == (used, late)
    assert needed(machine, other, discarded) == (discarded,)  # that it is garbage is said of volume
    machine.do(CloseSlices(SliceId(late + 1)))
    assert needed(machine, volume, used, discarded, late) == (used,)
    machine.do(Unlink(ROOT, b"f", SUPERUSER))
    assert needed(machine, volume, used) == (used,)
    machine.do(Reap(machine.session, (ino,)))
    assert needed(machine, volume, used) == ()
    machine.do(Reclaimed((used,)))  # the order may come twice
    assert needed(machine, volume, used) == ()
    with fails(Fault.INVALID):
        needed(machine, volume, *range(1, SLICES_MAX + 2))


def test_a_volume_is_kept_by_those_that_are_to_have_it(machine: Any) -> None:
    volume = allot(machine)
    assert machine.ask(MustKeep(volume, 1)) and machine.ask(MustKeep(volume, 3))
    assert not machine.ask(MustKeep(volume, 4))
    machine.do(SealVolume(volume))
    machine.do(SetReplicas(volume, (1, 2, 3), (2, 3, 4), 3))
    assert not machine.ask(MustKeep(volume, 1))
    assert machine.ask(MustKeep(volume, 4))
    machine.do(ForgetVolume(volume))
    assert not machine.ask(MustKeep(volume, 4))


def test_one_that_the_metadata_has_no_record_of_is_kept_as_long_as_files_need_it(
    machine: Any,
) -> None:
    own = VolumeId(7)
    assert not machine.ask(MustKeep(own, 1))
    machine.write(machine.make("f"), (0, b"x" * 9_000), slices=True)
    assert machine.ask(MustKeep(own, 1))
