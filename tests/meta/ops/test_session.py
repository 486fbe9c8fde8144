"""The life of sessions."""

from mountfs.meta.ops.session import EndSession, Sessions


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
