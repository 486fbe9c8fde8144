"""open(2) with O_TMPFILE."""

from mountfs.errors import Fault
from mountfs.meta.ops.link import Link
from mountfs.meta.ops.reap import Orphans, Reap
from mountfs.meta.ops.tmpfile import Tmpfile
from mountfs.meta.records import ino_of
from mountfs.types import ROOT, SUPERUSER


def test_a_file_without_a_name_is_its_sessions_orphan(machine):
    ino = ino_of(machine.do(Tmpfile(ROOT, 0o600, 0, SUPERUSER)))
    assert machine.stat(ino).nlink == 0
    assert machine.paths() == set()
    assert machine.ask(Orphans(None, 10)) == ((machine.session, ino),)


def test_a_name_saves_it_from_being_reaped(machine):
    ino = ino_of(machine.do(Tmpfile(ROOT, 0o600, 0, SUPERUSER)))
    machine.do(Link(ino, ROOT, b"a", SUPERUSER))
    machine.do(Reap(machine.session, (ino,)))
    assert machine.ino("a") == ino
    assert machine.ask(Orphans(None, 10)) == ()


def test_only_its_own_session_gives_it_a_name(machine, fails):
    ino = ino_of(machine.do(Tmpfile(ROOT, 0o600, 0, SUPERUSER)))
    with fails(Fault.NOT_FOUND):
        machine.do(Link(ino, ROOT, b"a", SUPERUSER), session=machine.open_session())
