"""The end of files without a name."""

import pytest

from mountfs.meta import keys
from mountfs.meta.locks import Lock, Owner
from mountfs.meta.ops import lock as locking
from mountfs.meta.ops import reap
from mountfs.meta.ops.reap import Orphans, Reap
from mountfs.meta.ops.rmdir import Rmdir
from mountfs.meta.ops.session import EndSession
from mountfs.meta.ops.slices import Garbage
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.ops.xattr import SetXattr
from mountfs.types import CHUNK_BYTES, ROOT, SUPERUSER, Ino


@pytest.fixture
def rows_of(machine):
    return lambda ino: list(machine.overlay.scan(*keys.everything_of(ino)))


def test_nothing_is_left_of_a_file(machine, rows_of):
    ino = machine.make("a")
    machine.write(ino, (0, b"a" * 5000), (CHUNK_BYTES, b"b" * 10), slices=True)
    machine.write(ino, (100, b"piece"))
    machine.do(SetXattr(ino, b"user.a", b"1", 0, False, SUPERUSER))
    machine.do(Unlink(ROOT, b"a", SUPERUSER))
    assert machine.do(Reap(machine.session, (ino,))) == ()
    assert rows_of(ino) == []
    assert machine.state.tree.counters.inodes == 1
    assert machine.state.tree.counters.allocated == 0
    assert sorted(length for _, _, length in machine.ask(Garbage(10))) == [10, 5000]


def test_directories_and_small_files_go_in_one_round(machine, rows_of):
    file, directory = machine.make("a"), machine.make("d/")
    machine.write(file, (0, b"hello"))
    machine.do(Unlink(ROOT, b"a", SUPERUSER))
    machine.do(Rmdir(ROOT, b"d", SUPERUSER))
    assert machine.do(Reap(machine.session, (file, directory, file))) == ()
    assert rows_of(file) == rows_of(directory) == []


def test_a_file_with_many_slices_takes_several_rounds(machine, monkeypatch, rows_of):
    monkeypatch.setattr(reap, "SLICES_MAX", 3)
    large, small = machine.make("a"), machine.make("b")
    for chunk in range(7):
        machine.write(large, (chunk * CHUNK_BYTES, b"a"), slices=True)
    for name in (b"a", b"b"):
        machine.do(Unlink(ROOT, name, SUPERUSER))
    rounds = 0
    left: tuple[Ino, ...] = (large, small)
    while left:
        left = machine.do(Reap(machine.session, left))
        assert machine.violations() == []
        rounds += 1
    assert rounds == 3
    assert rows_of(large) == rows_of(small) == []
    assert len(machine.ask(Garbage(10))) == 7


def test_only_orphans_of_that_session_are_taken(machine):
    other = machine.open_session()
    mine, theirs, named = machine.make("a"), machine.make("b"), machine.make("c")
    machine.do(Unlink(ROOT, b"a", SUPERUSER))
    machine.do(Unlink(ROOT, b"b", SUPERUSER), session=other)
    machine.do(Reap(machine.session, (mine, theirs, named, Ino(999))))
    assert machine.ask(Orphans(None, 10)) == ((other, theirs),)
    assert machine.paths() == {"c"}


def test_what_a_dead_session_left_can_be_reaped(machine):
    other = machine.open_session()
    ino = machine.make("a")
    machine.do(Unlink(ROOT, b"a", SUPERUSER), session=other)
    machine.do(EndSession(other))
    assert machine.violations() == []
    assert machine.do(Reap(other, (ino,))) == ()
    assert machine.ask(Orphans(None, 10)) == ()


def test_locks_go_with_the_file_and_their_session_can_still_end(machine, rows_of):
    other = machine.open_session()
    ino = machine.make("a")
    lock = Lock(locking.FLOCK, Owner(other, 1), 0, 10, True, 1)
    machine.do(locking.TakeLock(ino, lock), session=other)
    machine.do(Unlink(ROOT, b"a", SUPERUSER))
    machine.do(Reap(machine.session, (ino,)))
    assert rows_of(ino) == []
    machine.do(EndSession(other))
