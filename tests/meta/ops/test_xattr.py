"""Extended attributes, and ACLs among them."""

import pytest

from mountfs.errors import Fault
from mountfs.meta import acl
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.meta.ops.xattr import (
    CREATE,
    REPLACE,
    VALUE_BYTES_MAX,
    GetXattr,
    ListXattr,
    RemoveXattr,
    SetXattr,
)
from mountfs.types import SUPERUSER, Cred


@pytest.fixture
def ino(machine):
    return machine.make("a")


@pytest.fixture
def put(machine):
    def put(ino, name, value, flags=0, *, drop_sgid=False, cred=SUPERUSER):
        machine.do(SetXattr(ino, name, value, flags, drop_sgid, cred))

    return put


def entries(*rest, user=7, group=5, other=1):
    return acl.pack(
        tuple(
            sorted(
                (
                    acl.Entry(acl.USER_OBJ, user),
                    acl.Entry(acl.GROUP_OBJ, group),
                    acl.Entry(acl.OTHER, other),
                    *rest,
                )
            )
        )
    )


MASKED = entries(acl.Entry(acl.USER, 6, 1000), acl.Entry(acl.MASK, 6))


def test_a_value_is_kept_under_its_name(machine, ino, put):
    put(ino, b"user.a", b"1")
    put(ino, b"trusted.b", b"")
    assert machine.ask(GetXattr(ino, b"user.a")) == b"1"
    assert sorted(machine.ask(ListXattr(ino))) == [b"trusted.b", b"user.a"]
    machine.do(RemoveXattr(ino, b"user.a", SUPERUSER))
    assert machine.ask(ListXattr(ino)) == (b"trusted.b",)


def test_create_and_replace_mean_what_they_say(ino, put, fails):
    with fails(Fault.NO_ATTRIBUTE):
        put(ino, b"user.a", b"1", REPLACE)
    put(ino, b"user.a", b"1", CREATE)
    with fails(Fault.EXISTS):
        put(ino, b"user.a", b"2", CREATE)
    put(ino, b"user.a", b"2", REPLACE)


def test_what_is_not_there_is_no_attribute(machine, ino, fails):
    with fails(Fault.NO_ATTRIBUTE):
        machine.ask(GetXattr(ino, b"user.a"))
    with fails(Fault.NO_ATTRIBUTE):
        machine.do(RemoveXattr(ino, b"user.a", SUPERUSER))


def test_the_list_of_names_has_a_bound(ino, put, fails):
    names = [b"user.%03d" % number + b"x" * 247 for number in range(255)]
    for name in names:
        put(ino, name, b"")
    with fails(Fault.NO_SPACE):
        for number in range(2):
            put(ino, b"user.more%d" % number + b"x" * 200, b"")
    put(ino, names[0], b"a value may still change")


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        (b"other.a", b"", Fault.UNSUPPORTED),
        (b"system.other", b"", Fault.UNSUPPORTED),
        (b"user.", b"", Fault.INVALID),
        (b"user." + b"x" * 251, b"", Fault.TOO_SMALL),
        (b"user.a", b"x" * (VALUE_BYTES_MAX + 1), Fault.TOO_BIG),
    ],
)
def test_names_and_values_have_rules(ino, name, value, fault, fails):
    with fails(fault):
        SetXattr(ino, name, value, 0, False, SUPERUSER).check()


def test_an_access_acl_sets_the_mode(machine, ino, put):
    put(ino, acl.ACCESS, MASKED)
    assert machine.stat(ino).mode == 0o100761
    assert machine.ask(GetXattr(ino, acl.ACCESS)) == MASKED


def test_an_acl_that_says_no_more_than_the_mode_is_not_kept(machine, ino, put, fails):
    put(ino, acl.ACCESS, MASKED)
    put(ino, acl.ACCESS, entries(user=6, group=4, other=0))
    assert machine.stat(ino).mode == 0o100640
    with fails(Fault.NO_ATTRIBUTE):
        machine.ask(GetXattr(ino, acl.ACCESS))


def test_an_acl_without_entries_takes_it_away(machine, ino, put):
    put(ino, acl.ACCESS, MASKED)
    put(ino, acl.ACCESS, acl.pack(()))
    assert machine.ask(ListXattr(ino)) == ()


def test_only_the_owner_sets_an_acl(ino, put, fails):
    with fails(Fault.NOT_PERMITTED):
        put(ino, acl.ACCESS, MASKED, cred=Cred(5, 5))


def test_who_is_not_in_the_group_drops_set_group_id(machine, put):
    ino = machine.make("b", mode=0o2755)
    put(ino, acl.ACCESS, MASKED, drop_sgid=True)
    assert machine.stat(ino).mode == 0o100761


def test_only_directories_have_a_default_acl(ino, put, fails):
    with fails(Fault.DENIED):
        put(ino, acl.DEFAULT, MASKED)


def test_a_default_acl_is_inherited_and_the_umask_plays_no_part(machine, put):
    home = machine.make("d/")
    put(home, acl.DEFAULT, MASKED)
    machine.do(Make(home, b"a", 0o100666, 0o077, 0, True, SUPERUSER))
    machine.do(Mkdir(home, b"e", 0o777, 0o077, SUPERUSER))
    assert machine.stat("d/a").mode == 0o100660
    granted = machine.ask(GetXattr(machine.ino("d/a"), acl.ACCESS))
    assert acl.Entry(acl.USER, 6, 1000) in acl.parse(granted)
    assert machine.ask(GetXattr(machine.ino("d/e"), acl.DEFAULT)) == MASKED
    assert sorted(machine.ask(ListXattr(machine.ino("d/a")))) == [acl.ACCESS]


def test_an_acl_that_is_none_is_refused(ino, put, fails):
    for value in (b"\2\0\0\0garbage!", MASKED[:-8], b"\1\0\0\0" + MASKED[4:]):
        with fails(Fault.INVALID):
            put(ino, acl.ACCESS, value)
