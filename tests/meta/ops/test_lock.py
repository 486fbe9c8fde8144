"""fcntl(2) and flock(2) locks in the state."""

import pytest

from mountfs.errors import Fault
from mountfs.meta.locks import EOF, FLOCK, POSIX, Lock, Owner
from mountfs.meta.ops import lock as locking
from mountfs.meta.ops.session import EndSession
from mountfs.types import Ino


@pytest.fixture
def ino(machine):
    return machine.make("a")


@pytest.fixture
def lock(machine):
    def lock(number, start=0, stop=EOF, *, exclusive=True, flavor=POSIX, session=None):
        owner = Owner(session or machine.session, number)
        return Lock(flavor, owner, start, stop, exclusive, 100 + number)

    return lock


def test_the_lock_in_the_way_is_the_answer(machine, ino, lock):
    assert machine.do(locking.TakeLock(ino, lock(1, 0, 10))) is None
    assert machine.do(locking.TakeLock(ino, lock(2, 5, 15))) == lock(1, 0, 10)
    assert machine.ask(locking.TestLock(ino, lock(2, 10, 15))) is None


def test_readers_share(machine, ino, lock):
    assert machine.do(locking.TakeLock(ino, lock(1, exclusive=False))) is None
    assert machine.do(locking.TakeLock(ino, lock(2, exclusive=False))) is None
    assert machine.do(locking.TakeLock(ino, lock(1))) is not None


def test_flock_and_fcntl_do_not_see_each_other(machine, ino, lock):
    assert machine.do(locking.TakeLock(ino, lock(1))) is None
    assert machine.do(locking.TakeLock(ino, lock(2, flavor=FLOCK))) is None


def test_a_released_range_is_free_for_others(machine, ino, lock):
    machine.do(locking.TakeLock(ino, lock(1, 0, 30)))
    machine.do(locking.ReleaseLock(ino, POSIX, lock(1).owner, 10, 20))
    assert machine.do(locking.TakeLock(ino, lock(2, 10, 20))) is None
    assert machine.do(locking.TakeLock(ino, lock(2, 10, 21))) == lock(1, 20, 30)


def test_locks_survive_a_restart(machine, ino, lock):
    machine.do(locking.TakeLock(ino, lock(1, 0, 10)))
    machine.checkpoint()
    machine.restart()
    assert machine.ask(locking.TestLock(ino, lock(2))) == lock(1, 0, 10)


def test_a_session_that_ends_releases_its_locks_and_nobody_elses(machine, ino, lock):
    other = machine.open_session()
    machine.do(locking.TakeLock(ino, lock(1, 0, 10)))
    machine.do(locking.TakeLock(ino, lock(1, 10, 20, session=other)), session=other)
    machine.do(EndSession(other))
    assert machine.ask(locking.TestLock(ino, lock(2, 10, 20))) is None
    assert machine.ask(locking.TestLock(ino, lock(2))) == lock(1, 0, 10)


def test_what_is_gone_cannot_be_locked(machine, lock, fails):
    with fails(Fault.STALE):
        machine.do(locking.TakeLock(Ino(99), lock(1)))


def test_locks_beside_others_do_not_touch_the_inode(machine, ino, lock, monkeypatch):
    machine.do(locking.TakeLock(ino, lock(1, 0, 10)))
    touched = []
    edit = machine.state.tree.edit
    monkeypatch.setattr(machine.state.tree, "edit", lambda ino: touched.append(ino) or edit(ino))
    machine.do(locking.TakeLock(ino, lock(2, 10, 20)))
    machine.do(locking.ReleaseLock(ino, POSIX, lock(1).owner))
    machine.do(locking.ReleaseLock(ino, POSIX, lock(3).owner))  # which holds nothing
    assert touched == []
    machine.do(locking.ReleaseLock(ino, POSIX, lock(2).owner))
    assert touched == [ino]
