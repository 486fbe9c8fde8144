"""The retention that files of a tree get by themselves: which, when, and which not."""

from typing import Any

import pytest

from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.ops.default_retention import (
    AtClose,
    CommitRetention,
    GetDefault,
    SetDefault,
    Uncommitted,
)
from mountfs.meta.ops.link import Link
from mountfs.meta.ops.reap import Reap
from mountfs.meta.ops.rename import Rename
from mountfs.meta.ops.retention import Kept, SetRetention
from mountfs.meta.ops.setattr import SetAttr
from mountfs.meta.ops.slices import Rewrite
from mountfs.meta.ops.tmpfile import Tmpfile
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.records import NS, Slice, ino_of
from mountfs.meta.retention import Default, Mode, Retention, Right
from mountfs.types import ROOT, SUPERUSER, Cred, Ino

NOW = 1_800_000_000 * NS
DAY, MINUTE = 86_400 * NS, 60 * NS
MONTH = Default(Mode.COMPLIANCE, 30 * DAY, 10 * MINUTE)


@pytest.fixture
def machine(machine: Any) -> Any:
    machine.proven = NOW
    return machine


def retains(machine: Any, path: str, default: Default = MONTH) -> None:
    machine.do(SetDefault(machine.ino(path), default, SUPERUSER))


def closed(machine: Any, ino: Ino) -> Retention | None:
    return machine.do(CommitRetention(ino)) if machine.ask(AtClose(ino)) else None


def waiting(machine: Any) -> set[Ino]:
    return {ino for ino, _ in machine.ask(Uncommitted(100, 0))}


def test_a_file_that_was_written_is_retained_when_it_is_closed(machine: Any, fails: Any) -> None:
    machine.make("d/")
    retains(machine, "d")
    ino = machine.make("d/a/", "d/a/f")
    machine.write(ino, (0, b"one"))
    machine.write(ino, (3, b"two"))
    assert closed(machine, ino) == Retention(Mode.COMPLIANCE, NOW + 30 * DAY)
    with fails(Fault.NOT_PERMITTED):
        machine.write(ino, (0, b"three"))
    assert machine.read(ino) == b"onetwo"
    assert closed(machine, ino) is None
    assert machine.do(CommitRetention(ino)) is None
    assert waiting(machine) == set()


def test_an_empty_file_waits_for_its_first_bytes(machine: Any) -> None:
    machine.make("d/")
    retains(machine, "d")
    ino = machine.make("d/f")
    assert closed(machine, ino) is None
    machine.do(SetAttr(ino=ino, cred=SUPERUSER, mode=0o600))
    assert closed(machine, ino) is None
    machine.write(ino, (0, b"x"))
    assert closed(machine, ino)


def test_the_nearest_directory_counts(machine: Any) -> None:
    machine.make("d/", "d/e/", "d/e/g/")
    retains(machine, "d")
    week = Default(Mode.GOVERNANCE, 7 * DAY)
    retains(machine, "d/e", week)
    assert machine.ask(GetDefault(machine.ino("d/e/g"))) == (machine.ino("d/e"), week)
    assert machine.ask(GetDefault(ROOT)) is None
    for path, until in (("d/f", NOW + 30 * DAY), ("d/e/g/f", NOW + 7 * DAY)):
        ino = machine.make(path)
        machine.write(ino, (0, b"x"))
        found = closed(machine, ino)
        assert found and found.until == until
    retains(machine, "d/e", Default())
    assert machine.ask(GetDefault(machine.ino("d/e/g"))) == (machine.ino("d"), MONTH)


def test_it_holds_where_a_directory_is_now_and_not_where_it_was(machine: Any) -> None:
    machine.make("d/", "e/", "d/sub/", "e/other/")
    retains(machine, "d")
    machine.do(Rename(machine.ino("e"), b"other", machine.ino("d"), b"other", 0, SUPERUSER))
    machine.do(Rename(machine.ino("d"), b"sub", machine.ino("e"), b"sub", 0, SUPERUSER))
    for path, is_retained in (("d/other/f", True), ("e/sub/f", False)):
        ino = machine.make(path)
        machine.write(ino, (0, b"x"))
        assert (closed(machine, ino) is not None) == is_retained


def test_a_file_that_comes_into_the_tree_with_bytes_waits_too(machine: Any) -> None:
    machine.make("d/", "e/")
    retains(machine, "d")
    for number in range(2):
        machine.write(machine.make(f"e/f{number}"), (0, b"x"))
    machine.make("e/empty")
    assert waiting(machine) == set()
    directory, other = machine.ino("d"), machine.ino("e")
    machine.do(Rename(other, b"f0", directory, b"f0", 0, SUPERUSER))
    machine.do(Link(machine.ino("e/f1"), directory, b"f1", SUPERUSER))
    machine.do(Rename(other, b"empty", directory, b"empty", 0, SUPERUSER))
    assert waiting(machine) == {machine.ino("d/f0"), machine.ino("d/f1")}


def test_a_file_that_had_no_name_waits_from_when_it_gets_one(machine: Any) -> None:
    machine.make("d/")
    retains(machine, "d")
    ino = ino_of(machine.do(Tmpfile(machine.ino("d"), 0o644, 0, SUPERUSER)))
    machine.write(ino, (0, b"x"))
    assert closed(machine, ino) is None
    machine.do(Link(ino, machine.ino("d"), b"f", SUPERUSER))
    assert closed(machine, ino)


def test_what_was_there_before_is_left_alone_until_it_is_written(machine: Any) -> None:
    ino = machine.make("d/", "d/f")
    for _ in range(2):
        machine.write(ino, (0, b"x" * 9_000), slices=True)
    retains(machine, "d")
    run = machine.run(0, b"x" * 9_000, in_slice=True)
    new = Slice(0, run.length, run.slice_id, 0, run.volume, run.length, run.crc)
    rows = machine.state.tree.slice_rows(ino, 0)
    places = tuple(keys.slice_place(key)[1:] for key, _ in rows)
    machine.do(Rewrite(ino, 0, places, (new,)))  # compaction writes nothing
    assert waiting(machine) == set()
    machine.write(ino, (5, b"y"))
    assert waiting(machine) == {ino}


def test_a_file_that_is_left_alone_is_retained_without_being_closed(machine: Any) -> None:
    machine.make("d/", "e/")
    retains(machine, "d")
    retains(machine, "e", Default(Mode.GOVERNANCE, DAY))  # only at close
    ino, other = machine.make("d/f", "e/f") - 1, machine.ino("e/f")
    for one in (ino, other):
        machine.write(one, (0, b"x"))
    changed = machine.state.tree.inode(ino).ctime
    for now, is_due in ((changed + 10 * MINUTE - 1, False), (changed + 10 * MINUTE, True)):
        assert machine.ask(Uncommitted(9, now)) == ((ino, is_due), (other, False))
    assert machine.ask(Uncommitted(9, 0, ino)) == ((other, False),)
    assert machine.do(CommitRetention(ino, idle=True)) is None  # not yet, whoever asks
    machine.state.tree.inode(ino).ctime = changed - 10 * MINUTE
    assert machine.do(CommitRetention(ino, idle=True))
    assert waiting(machine) == {other}


def test_a_tree_may_wait_until_files_are_left_alone(machine: Any) -> None:
    machine.make("d/")
    retains(machine, "d", Default(Mode.GOVERNANCE, DAY, MINUTE, at_close=False))
    ino = machine.make("d/tmp")
    machine.write(ino, (0, b"x"))
    assert closed(machine, ino) is None
    assert machine.do(CommitRetention(ino)) is None
    machine.do(Rename(machine.ino("d"), b"tmp", machine.ino("d"), b"final", 0, SUPERUSER))
    assert waiting(machine) == {ino}


def test_what_is_said_of_a_file_and_longer_stays(machine: Any) -> None:
    machine.make("d/")
    retains(machine, "d", Default(Mode.GOVERNANCE, DAY))
    ino = machine.make("d/f")
    machine.write(ino, (0, b"x"))
    long = SetRetention(ino=ino, mode=Mode.COMPLIANCE, duration=9 * DAY, cred=SUPERUSER)
    machine.do(long)
    closed(machine, ino)
    assert machine.ask(Kept(ino))[0] == Retention(Mode.COMPLIANCE, NOW + 9 * DAY)


def test_nobody_waits_who_is_gone_or_where_nothing_is_said_any_more(machine: Any) -> None:
    machine.make("d/")
    retains(machine, "d")
    removed, other = machine.make("d/removed"), machine.make("d/other")
    for ino in (removed, other):
        machine.write(ino, (0, b"x"))
    machine.do(Unlink(machine.ino("d"), b"removed", SUPERUSER))
    machine.do(Reap(machine.session, (removed,)))
    assert machine.do(CommitRetention(removed)) is None
    retains(machine, "d", Default())
    assert machine.ask(Uncommitted(9, 0)) == ((other, True),)
    assert machine.do(CommitRetention(other, idle=True)) is None
    assert waiting(machine) == set()


def test_it_takes_a_right_to_say_what_holds_in_a_tree(machine: Any, fails: Any) -> None:
    ino = machine.make("d/", cred=Cred(5, 5, (), True))
    for cred in (Cred(5, 5), Cred(5, 5, (), True)):
        with fails(Fault.NOT_PERMITTED):
            machine.do(SetDefault(ino, MONTH, cred))
    machine.do(SetDefault(ino, MONTH, Cred(5, 5), (Right.DEFAULT_RETENTION,)))
    with fails(Fault.NOT_DIRECTORY):
        machine.do(SetDefault(machine.make("f"), MONTH, SUPERUSER))


@pytest.mark.parametrize(
    "default",
    [
        Default(Mode.GOVERNANCE),
        Default(Mode.GOVERNANCE, -1),
        Default(Mode.GOVERNANCE, 1 << 63),
        Default(Mode.GOVERNANCE, DAY, -1),
        Default(Mode.GOVERNANCE, DAY, 0, at_close=False),
    ],
)
def test_what_makes_no_sense_is_refused(default: Default) -> None:
    with pytest.raises(FsError) as caught:
        SetDefault(ROOT, default, SUPERUSER).check()
    assert caught.value.fault is Fault.INVALID


def test_an_expired_file_may_be_written_again_and_is_retained_again(machine: Any) -> None:
    machine.make("d/", "d/e/")
    retains(machine, "d")
    ino = machine.make("d/f")
    machine.write(ino, (0, b"x"))
    closed(machine, ino)
    machine.proven = NOW + 30 * DAY
    machine.do(Rename(machine.ino("d"), b"f", machine.ino("d/e"), b"f", 0, SUPERUSER))
    assert waiting(machine) == set()
    machine.write(ino, (0, b"y"))
    found = closed(machine, ino)
    assert found and found.until == NOW + 60 * DAY
