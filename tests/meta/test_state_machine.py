"""The machine: every command acts once, and the same entries give the same state."""

import pytest

from mountfs.errors import Fault, FsError
from mountfs.meta.locks import POSIX, Lock, Owner
from mountfs.meta.ops.copy_range import CopyRange
from mountfs.meta.ops.lock import TakeLock
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.meta.ops.slices import ReserveSlices
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.records import unpack_attributes
from mountfs.meta.state_machine import COMMANDS, decode_entry, encode_entry
from mountfs.types import ROOT, SUPERUSER, Ino

MAKE = Make(ROOT, b"a", 0o100644, 0, 0, True, SUPERUSER)


def no_restart(machine):
    pass


def replay(machine):
    machine.restart()


def checkpoint_and_restart(machine):
    machine.checkpoint()
    machine.restart()


MEANWHILE = pytest.mark.parametrize("meanwhile", [no_restart, replay, checkpoint_and_restart])


@MEANWHILE
def test_a_command_that_comes_twice_acts_once_and_answers_the_same(machine, meanwhile):
    session = machine.open_session()
    reply = machine.deliver(session, 1, 1, MAKE)
    meanwhile(machine)
    assert machine.deliver(session, 1, 1, MAKE) == reply
    assert machine.paths() == {"a"}


@MEANWHILE
def test_a_refusal_is_repeated_although_it_would_work_by_now(machine, meanwhile, fails):
    session = machine.open_session()
    with fails(Fault.NOT_FOUND):
        machine.deliver(session, 1, 1, Unlink(ROOT, b"a", SUPERUSER))
    machine.make("a")
    meanwhile(machine)
    with pytest.raises(FsError) as raised:
        machine.deliver(session, 1, 1, Unlink(ROOT, b"a", SUPERUSER))
    assert raised.value.fault is Fault.NOT_FOUND
    assert machine.paths() == {"a"}


@MEANWHILE
def test_replies_are_kept_until_the_session_says_that_it_has_them(machine, meanwhile):
    session = machine.open_session()
    first = machine.deliver(session, 1, 1, ReserveSlices(1))
    second = machine.deliver(session, 2, 1, ReserveSlices(1))
    meanwhile(machine)
    assert machine.deliver(session, 1, 1, ReserveSlices(1)) == first
    assert machine.deliver(session, 2, 1, ReserveSlices(1)) == second


@MEANWHILE
def test_a_repeat_that_comes_after_its_answer_was_received_does_nothing(machine, meanwhile, fails):
    session = machine.open_session()
    machine.deliver(session, 1, 1, MAKE)
    machine.deliver(session, 2, 2, Unlink(ROOT, b"a", SUPERUSER))
    meanwhile(machine)
    with fails(Fault.STALE):
        machine.deliver(session, 1, 1, MAKE)
    assert machine.paths() == set()


def test_commands_of_one_session_may_overtake_each_other(machine):
    session = machine.open_session()
    machine.deliver(session, 2, 1, Mkdir(ROOT, b"two", 0o755, 0, SUPERUSER))
    machine.deliver(session, 1, 1, Mkdir(ROOT, b"one", 0o755, 0, SUPERUSER))
    assert machine.paths() == {"one/", "two/"}


def test_sessions_do_not_share_their_sequences(machine):
    one, other = machine.open_session(), machine.open_session()
    first = machine.deliver(one, 1, 1, ReserveSlices(1))
    assert machine.deliver(other, 1, 1, ReserveSlices(1)) == first + 1


def test_a_repeated_reply_has_the_form_of_the_first_after_a_restart_too(machine):
    ino, other = machine.make("a", "b"), machine.make("c")
    lock = Lock(POSIX, Owner(machine.session, 1), 0, 10, True, 5)
    machine.do(TakeLock(ino, lock))
    session = machine.open_session()
    blocked = TakeLock(ino, Lock(POSIX, Owner(session, 1), 0, 5, True, 6))
    copy = CopyRange(ino, 0, other, 0, 5, False)
    replies = [machine.deliver(session, 1, 1, blocked), machine.deliver(session, 2, 1, copy)]
    checkpoint_and_restart(machine)
    again = [machine.deliver(session, 1, 1, blocked), machine.deliver(session, 2, 1, copy)]
    assert again == replies
    assert replies[0] == lock


def test_time_does_not_go_back_when_the_clock_does(machine):
    machine.deliver(machine.session, 1, 1, MAKE)
    before = machine.stat("a")
    index = machine.state.applied + 1
    command = Make(ROOT, b"b", 0o100644, 0, 0, True, SUPERUSER)
    attributes, _ = machine.state.apply(index, machine.session, 2, 2, 5, command)
    after = unpack_attributes(attributes)
    assert (after.ctime_s, after.ctime_ns) > (before.ctime_s, before.ctime_ns)


def test_a_refused_command_changes_nothing_but_is_applied(machine, fails):
    machine.make("d/", "d/a")
    before, applied = machine.files(), machine.state.applied
    with fails(Fault.EXISTS):
        machine.do(Mkdir(ROOT, b"d", 0o755, 0, SUPERUSER))
    assert machine.files() == before
    assert machine.state.applied == applied + 1


def test_a_bug_in_a_command_leaves_no_trace(machine):
    class Buggy(Mkdir, frozen=True, tag="buggy"):
        def apply(self, tree, stamp):
            super().apply(tree, stamp)
            raise ZeroDivisionError

    before, applied = machine.rows(), machine.state.applied
    with pytest.raises(ZeroDivisionError):
        machine.state.apply(
            applied + 1, machine.session, 1, 1, 5, Buggy(ROOT, b"a", 0o755, 0, SUPERUSER)
        )
    assert (machine.rows(), machine.state.applied) == (before, applied)
    machine.make("a")


def test_a_checkpoint_that_fails_loses_nothing(machine):
    machine.make("a")
    machine.state.freeze()
    machine.make("b")
    machine.overlay.unfreeze()
    before = machine.rows()
    checkpoint_and_restart(machine)
    assert machine.rows() == before
    assert machine.paths() == {"a", "b"}


def test_every_command_has_a_tag_of_its_own():
    tags = [command.__struct_config__.tag for command in COMMANDS]
    assert len(set(tags)) == len(tags)


def test_entries_come_back_from_their_bytes_as_they_were():
    entry = decode_entry(encode_entry(3, 5, 4, 17, MAKE))
    assert (entry.session, entry.sequence, entry.answered, entry.time) == (3, 5, 4, 17)
    assert entry.command == MAKE


def test_more_inodes_than_are_kept_in_memory(machine, monkeypatch):
    monkeypatch.setattr("mountfs.meta.tree._INODES_CACHED", 4)
    machine.make(*(f"d{number}/" for number in range(8)))
    machine.make(*(f"d{number}/e{letter}" for letter in "abc" for number in range(8)))
    assert [machine.stat(f"d{number}").nlink for number in range(8)] == [2] * 8
    assert machine.listing(Ino(2)) == {b"ea": 10, b"eb": 18, b"ec": 26}
