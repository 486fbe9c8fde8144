"""Which sessions have fallen silent, and what is answered to a command that came before."""

import pytest

from mountfs.errors import Fault, FsError
from mountfs.kv.memory import MemoryStore
from mountfs.kv.overlay import Overlay
from mountfs.meta.ops.make_root import MakeRoot
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.meta.ops.session import OpenSession
from mountfs.meta.session_watch import SessionWatch, kept_reply
from mountfs.meta.state_machine import StateMachine
from mountfs.types import ROOT, SUPERUSER

TTL_MS = 1_000


def watch(*sessions: int, now: float = 0) -> SessionWatch:
    found = SessionWatch(TTL_MS)
    found.began_to_lead(sessions, now)
    return found


def look(sessions: SessionWatch, known: set[int], start: int, stop: int) -> list[int]:
    """Who is silent at `stop`, after a look every now and then."""
    for now in range(start, stop, TTL_MS // 10):
        sessions.silent(known, now)
    return sessions.silent(known, stop)


def test_a_session_that_is_heard_of_is_not_silent() -> None:
    sessions = watch(1, 2)
    assert look(sessions, {1, 2}, 0, 900) == []
    assert sessions.hear({1, 2}, 1, 900)
    assert sessions.silent({1, 2}, 1_000) == []
    assert sessions.silent({1, 2}, 1_001) == [2]
    assert look(sessions, {1, 2}, 1_001, 1_901) == [1, 2]


def test_who_begins_to_lead_gives_everybody_their_whole_time() -> None:
    assert look(watch(1, now=5_000), {1}, 5_000, 6_000) == []


def test_a_session_that_appears_later_has_its_whole_time_too() -> None:
    sessions = watch()
    assert look(sessions, {3}, 10_000, 11_000) == []
    assert sessions.silent({3}, 11_001) == [3]


def test_who_has_slept_ends_nobody_for_that() -> None:
    """A machine that was suspended, or a process that was stopped: nobody could renew meanwhile."""
    sessions = watch(1)
    assert look(sessions, {1}, 0, 400) == []
    assert sessions.silent({1}, 10_000) == []
    assert look(sessions, {1}, 10_000, 11_000) == []
    assert sessions.silent({1}, 11_001) == [1]


def test_a_session_that_has_ended_is_forgotten() -> None:
    sessions = watch(1)
    assert sessions.silent((), 2_000) == []
    assert sessions.silent({1}, 2_001) == []


def test_of_a_session_that_is_not_there_nothing_is_heard() -> None:
    sessions = watch(1)
    assert not sessions.hear({1}, 2, 100)
    assert sessions.silent({1, 2}, 1_000) == []


@pytest.fixture
def machine() -> StateMachine:
    found = StateMachine(Overlay(MemoryStore()))
    found.apply(1, 0, 0, 0, 1, MakeRoot(0, 0))
    assert found.apply(2, 0, 0, 0, 2, OpenSession()) == 1
    return found


def mkdir(name: bytes) -> Mkdir:
    return Mkdir(ROOT, name, 0o755, 0, SUPERUSER)


def test_what_was_never_asked_has_no_reply(machine: StateMachine) -> None:
    assert kept_reply(machine, 1, 1) == (False, None)
    assert kept_reply(machine, 99, 1) == (False, None)


def test_a_command_that_comes_again_has_the_reply_of_the_first_time(machine: StateMachine) -> None:
    reply = machine.apply(3, 1, 1, 1, 3, mkdir(b"a"))
    assert kept_reply(machine, 1, 1) == (True, reply)


def test_a_refusal_is_repeated(machine: StateMachine) -> None:
    machine.apply(3, 1, 1, 1, 3, mkdir(b"a"))
    with pytest.raises(FsError):
        machine.apply(4, 1, 2, 1, 4, mkdir(b"a"))
    known, refused = kept_reply(machine, 1, 2)
    assert known
    assert isinstance(refused, FsError)
    assert refused.fault is Fault.EXISTS


def test_what_was_answered_long_ago_is_stale(machine: StateMachine) -> None:
    machine.apply(3, 1, 1, 1, 3, mkdir(b"a"))
    machine.apply(4, 1, 2, 2, 4, mkdir(b"b"))
    with pytest.raises(FsError) as refused:
        kept_reply(machine, 1, 1)
    assert refused.value.fault is Fault.STALE
