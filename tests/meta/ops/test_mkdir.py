"""mkdir(2)."""

from mountfs.errors import Fault
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.types import ROOT, SUPERUSER, Cred


def test_a_new_directory_is_counted_in_its_parent(machine):
    machine.make("a/", "a/b/", "a/c/", "a/file")
    assert machine.stat("a").nlink == 4  # ".", its name, and two ".."
    assert machine.stat("a/b").nlink == 2


def test_umask_and_setgid_make_the_mode(machine):
    machine.make("shared/", mode=0o2777)
    machine.do(Mkdir(machine.ino("shared"), b"a", 0o777, 0o027, Cred(1, 1)))
    assert machine.stat("shared/a").mode == 0o042750


def test_a_name_that_is_taken_is_refused(machine, fails):
    machine.make("a")
    with fails(Fault.EXISTS):
        machine.do(Mkdir(ROOT, b"a", 0o755, 0, SUPERUSER))


def test_a_file_has_no_subdirectories(machine, fails):
    with fails(Fault.NOT_DIRECTORY):
        machine.do(Mkdir(machine.make("a"), b"b", 0o755, 0, SUPERUSER))
