"""open(2) with O_CREAT, mknod(2)."""

import stat

import pytest

from mountfs.errors import Fault
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.rmdir import Rmdir
from mountfs.meta.records import ino_of
from mountfs.types import ROOT, SUPERUSER, Cred

ALICE = Cred(1000, 100)


def test_a_new_file_is_empty_and_has_one_name(machine):
    home = machine.make("home/")
    attributes, new = machine.do(Make(home, b"a", 0o100666, 0o022, 0, True, ALICE))
    assert new
    found = machine.stat("home/a")
    assert found.ino == ino_of(attributes)
    assert (found.size, found.nlink, found.blocks) == (0, 1, 0)
    assert (found.mode, found.uid, found.gid) == (0o100644, 1000, 100)


def test_without_exclusive_an_existing_file_is_the_answer(machine):
    ino = machine.make("a")
    attributes, new = machine.do(Make(ROOT, b"a", 0o100666, 0, 0, False, SUPERUSER))
    assert (ino_of(attributes), new) == (ino, False)


def test_with_exclusive_an_existing_name_is_refused(machine, fails):
    machine.make("a/")
    with fails(Fault.EXISTS):
        machine.do(Make(ROOT, b"a", 0o100666, 0, 0, True, SUPERUSER))


def test_a_device_keeps_its_number(machine):
    machine.do(Make(ROOT, b"null", stat.S_IFCHR | 0o666, 0, 0x103, True, SUPERUSER))
    assert machine.stat("null").rdev == 0x103


def test_a_setgid_directory_hands_down_its_group(machine):
    machine.make("shared/", cred=Cred(0, 42), mode=0o2777)
    machine.do(Make(machine.ino("shared"), b"a", 0o100644, 0, 0, True, ALICE))
    assert machine.stat("shared/a").gid == 42


def test_who_may_not_write_the_directory_makes_nothing(machine, fails):
    machine.make("closed/", mode=0o755)
    with fails(Fault.DENIED):
        machine.do(Make(machine.ino("closed"), b"a", 0o100644, 0, 0, True, ALICE))
    assert machine.paths() == {"closed/"}


def test_a_removed_directory_takes_no_new_names(machine, fails):
    gone = machine.make("gone/")
    machine.do(Rmdir(ROOT, b"gone", SUPERUSER))
    with fails(Fault.NOT_FOUND):
        machine.do(Make(gone, b"a", 0o100644, 0, 0, True, SUPERUSER))


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        (b"x" * 256, Fault.NAME_TOO_LONG),
        (b"", Fault.INVALID),
        (b".", Fault.INVALID),
        (b"..", Fault.INVALID),
        (b"a/b", Fault.INVALID),
        (b"a\0", Fault.INVALID),
    ],
)
def test_what_cannot_be_a_name_is_refused(name, fault, fails):
    with fails(fault):
        Make(ROOT, name, 0o100644, 0, 0, True, SUPERUSER).check()


def test_a_directory_is_not_made_this_way(fails):
    with fails(Fault.INVALID):
        Make(ROOT, b"a", stat.S_IFDIR | 0o755, 0, 0, True, SUPERUSER).check()
