"""unlink(2)."""

from mountfs.errors import Fault
from mountfs.meta.ops.link import Link
from mountfs.meta.ops.reap import Orphans
from mountfs.meta.ops.unlink import Unlink
from mountfs.types import ROOT, SUPERUSER, Cred


def test_the_last_name_leaves_an_orphan_that_can_still_be_read(machine):
    ino = machine.make("a")
    machine.write(ino, (0, b"hello"))
    assert machine.do(Unlink(ROOT, b"a", SUPERUSER)) == ino
    assert machine.paths() == set()
    assert machine.read(ino) == b"hello"
    assert machine.ask(Orphans(machine.session, 10)) == ((machine.session, ino),)


def test_a_file_with_another_name_stays(machine):
    ino = machine.make("a")
    machine.do(Link(ino, ROOT, b"b", SUPERUSER))
    assert machine.do(Unlink(ROOT, b"a", SUPERUSER)) == 0
    assert machine.paths() == {"b"}
    assert machine.stat(ino).nlink == 1


def test_a_directory_is_refused(machine, fails):
    machine.make("d/")
    with fails(Fault.IS_DIRECTORY):
        machine.do(Unlink(ROOT, b"d", SUPERUSER))


def test_in_a_sticky_directory_only_the_owner_removes(machine, fails):
    machine.make("tmp/", mode=0o1777)
    machine.make("tmp/a", cred=Cred(1, 1))
    with fails(Fault.NOT_PERMITTED):
        machine.do(Unlink(machine.ino("tmp"), b"a", Cred(2, 2)))
    machine.do(Unlink(machine.ino("tmp"), b"a", Cred(1, 1)))
    assert machine.paths() == {"tmp/"}


def test_a_name_that_is_not_there_is_not_found(machine, fails):
    with fails(Fault.NOT_FOUND):
        machine.do(Unlink(ROOT, b"a", SUPERUSER))
