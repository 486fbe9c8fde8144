"""link(2)."""

from mountfs.errors import Fault
from mountfs.meta.ops.link import Link
from mountfs.types import ROOT, SUPERUSER, Cred


def test_two_names_are_one_file(machine):
    ino = machine.make("a")
    machine.make("d/")
    machine.do(Link(ino, machine.ino("d"), b"b", SUPERUSER))
    assert machine.ino("d/b") == ino
    assert machine.stat(ino).nlink == 2


def test_a_directory_gets_no_second_name(machine, fails):
    with fails(Fault.NOT_PERMITTED):
        machine.do(Link(machine.make("d/"), ROOT, b"e", SUPERUSER))


def test_a_name_that_is_taken_is_refused(machine, fails):
    machine.make("a", "b")
    with fails(Fault.EXISTS):
        machine.do(Link(machine.ino("a"), ROOT, b"b", SUPERUSER))
    assert machine.stat("a").nlink == 1


def test_the_directory_must_be_writable(machine, fails):
    machine.make("a", "d/", mode=0o755)
    with fails(Fault.DENIED):
        machine.do(Link(machine.ino("a"), machine.ino("d"), b"b", Cred(1, 1)))
