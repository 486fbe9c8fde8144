"""A row that cannot be read is not a file that is gone: others have it, and would do otherwise."""

from typing import Any

import pytest

from mountfs.errors import Fault, FsError
from mountfs.kv.memory import MemoryStore
from mountfs.kv.overlay import Overlay
from mountfs.meta import keys
from mountfs.meta.command import Command
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.make_root import MakeRoot
from mountfs.meta.ops.reap import Reap
from mountfs.meta.ops.session import OpenSession
from mountfs.meta.ops.touch import Touch
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.records import ino_of
from mountfs.meta.state_machine import StateMachine
from mountfs.types import ROOT, SUPERUSER, Ino


class DamagedStore(MemoryStore):
    damaged: bytes | None = None

    def get(self, key: bytes) -> bytes | None:
        if key == self.damaged:
            raise FsError(Fault.CORRUPT, "a block of the table is damaged")
        return super().get(key)


def orphan() -> tuple[DamagedStore, Ino]:
    """A file that session 1 has unlinked, in a store."""
    store = DamagedStore()
    machine = StateMachine(Overlay(store))
    machine.apply(1, 0, 0, 0, 1, MakeRoot(0, 0))
    machine.apply(2, 0, 0, 0, 2, OpenSession())
    made, _ = machine.apply(3, 1, 1, 1, 3, Make(ROOT, b"a", 0o100644, 0, 0, True, SUPERUSER))
    machine.apply(4, 1, 2, 1, 4, Unlink(ROOT, b"a", SUPERUSER))
    store.write(machine.freeze(), sync=True)
    return store, ino_of(made)


@pytest.mark.parametrize("command", [lambda ino: Touch(((ino, 5),)), lambda ino: Reap(1, (ino,))])
def test_a_command_that_passes_over_what_is_gone_stops_at_what_is_damaged(command: Any) -> None:
    store, ino = orphan()
    store.damaged = keys.inode(ino)
    machine = StateMachine(Overlay(store))
    asked: Command[Any] = command(ino)
    with pytest.raises(FsError) as damaged:
        machine.apply(5, 1, 3, 1, 5, asked)
    assert damaged.value.fault is Fault.CORRUPT
    assert machine.applied == 4  # it was not taken in
