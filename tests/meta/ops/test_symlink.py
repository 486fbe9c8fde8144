"""symlink(2), readlink(2)."""

from mountfs.errors import Fault
from mountfs.meta.ops.read import Readlink
from mountfs.meta.ops.symlink import Symlink
from mountfs.meta.records import ino_of
from mountfs.types import ROOT, SUPERUSER


def test_a_symlink_says_where_it_leads(machine):
    ino = ino_of(machine.do(Symlink(ROOT, b"a", b"../there", SUPERUSER)))
    assert machine.ask(Readlink(ino)) == b"../there"
    assert machine.stat("a").size == len(b"../there")
    assert machine.stat("a").mode == 0o120777


def test_only_symlinks_have_a_target(machine, fails):
    with fails(Fault.INVALID):
        machine.ask(Readlink(machine.make("a")))


def test_targets_are_from_1_to_4095_bytes_long(machine, fails):
    Symlink(ROOT, b"a", b"x" * 4095, SUPERUSER).check()
    with fails(Fault.NAME_TOO_LONG):
        Symlink(ROOT, b"a", b"x" * 4096, SUPERUSER).check()
    with fails(Fault.NOT_FOUND):
        Symlink(ROOT, b"a", b"", SUPERUSER).check()
