"""Which volumes a leader waits for after a cold start."""

from types import SimpleNamespace
from typing import Any

import pytest

from mountfs.meta.chunkservers import Chunkservers
from mountfs.meta.ops.reap import Reap
from mountfs.meta.ops.slices import ReserveSlices
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.ops.volumes import AllotVolume, VolumeRecord
from mountfs.meta.ops.write import Run, Write
from mountfs.types import KIB, ROOT, SUPERUSER, SliceId


@pytest.fixture
def servers(machine: Any) -> Chunkservers:
    seen: Any = SimpleNamespace(replica=SimpleNamespace(machine=machine.state))
    return Chunkservers(seen, lambda: 0)


def fill(machine: Any, name: str) -> VolumeRecord:
    """A volume with a slice of a file."""
    record: VolumeRecord = machine.do(AllotVolume(5, 3, (1, 2, 3)))
    slice_id = SliceId(machine.do(ReserveSlices(1)))
    run = Run(0, 8 * KIB, 5, slice_id, record.number)
    machine.do(Write(machine.make(name), (run,), 1, False))
    return record


def test_a_volume_with_nothing_in_it_is_not_waited_for(machine: Any, servers: Chunkservers) -> None:
    """The leader before went before it was opened anywhere: nobody will ever report it."""
    machine.do(AllotVolume(5, 3, (1, 2, 3)))
    fill(machine, "a")
    servers.began_to_lead()
    servers.expect_less()
    assert servers.volumes() == (1, 0)


def test_a_volume_that_is_not_needed_any_more_is_waited_for_no_longer(
    machine: Any, servers: Chunkservers
) -> None:
    fill(machine, "a")
    fill(machine, "b")
    servers.began_to_lead()
    ino = machine.ino("a")
    machine.do(Unlink(ROOT, b"a", SUPERUSER))
    machine.do(Reap(machine.session, (ino,)))
    servers.expect_less()
    assert servers.volumes() == (1, 0)
