"""rmdir(2)."""

from mountfs.errors import Fault
from mountfs.meta.ops.rmdir import Rmdir
from mountfs.types import ROOT, SUPERUSER, Cred


def test_an_empty_directory_goes_and_its_parent_loses_a_link(machine):
    ino = machine.make("d/")
    assert machine.do(Rmdir(ROOT, b"d", SUPERUSER)) == ino
    assert machine.paths() == set()
    assert machine.stat("").nlink == 2
    assert machine.stat(ino).nlink == 0


def test_a_non_empty_directory_is_refused(machine, fails):
    machine.make("d/", "d/a")
    with fails(Fault.NOT_EMPTY):
        machine.do(Rmdir(ROOT, b"d", SUPERUSER))
    assert machine.paths() == {"d/", "d/a"}


def test_a_file_is_refused(machine, fails):
    machine.make("a")
    with fails(Fault.NOT_DIRECTORY):
        machine.do(Rmdir(ROOT, b"a", SUPERUSER))


def test_the_sticky_bit_protects_directories_too(machine, fails):
    machine.make("tmp/", mode=0o1777)
    machine.make("tmp/d/", cred=Cred(1, 1))
    with fails(Fault.NOT_PERMITTED):
        machine.do(Rmdir(machine.ino("tmp"), b"d", Cred(2, 2)))
