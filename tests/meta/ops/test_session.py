"""The life of sessions."""

import pytest

from mountfs.errors import Fault, FsError
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.meta.ops.session import EndSession, Sessions
from mountfs.types import ROOT, SUPERUSER


def test_no_number_is_given_out_twice_even_over_a_restart(machine):
    first = machine.open_session()
    machine.checkpoint()
    machine.restart()
    second = machine.open_session()
    machine.do(EndSession(second))
    machine.restart()
    assert len({machine.session, first, second, machine.open_session()}) == 4


def test_sessions_are_listed_until_they_end(machine):
    other = machine.open_session()
    assert machine.ask(Sessions()) == (machine.session, other)
    machine.do(EndSession(machine.session), session=machine.session)
    assert machine.ask(Sessions()) == (other,)
    machine.checkpoint()
    machine.restart()
    assert machine.ask(Sessions()) == (other,)


def test_what_a_session_asked_before_its_end_has_no_effect_after_it(machine):
    other = machine.open_session()
    machine.do(EndSession(other))
    with pytest.raises(FsError) as caught:
        machine.do(Mkdir(ROOT, b"late", 0o755, 0, SUPERUSER), session=other)
    assert caught.value.fault is Fault.SESSION_ENDED
    assert machine.paths() == set()
    machine.make("next/")
