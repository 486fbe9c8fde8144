"""What is shown of a history that could not have happened is enough, and little."""

from collections.abc import Iterable
from typing import Any

import pytest

from mountfs.sim.counterexample import beginning, shortest
from mountfs.sim.history import Call, Undecided, linearizable
from mountfs.sim.models import names, register


def write(value: int, called: int, returned: int | None, who: str = "a") -> Call:
    return Call(who, ("write", value), called, returned)


def read(value: int, called: int, returned: int | None, who: str = "b") -> Call:
    return Call(who, ("read",), called, returned, value)


def whats(calls: Iterable[Call]) -> list[Any]:
    return [(*one.what, one.result) for one in calls]


def stale(rounds: int) -> list[Call]:
    """Many right calls, a read of what was there before, and many right calls again."""
    calls: list[Call] = []
    for at in range(0, rounds * 10, 10):
        calls += [write(at, at, at + 3), read(at, at + 4, at + 5), read(at, at + 5, at + 7, "c")]
        if at == rounds * 5:
            calls.append(read(at - 10, at + 8, at + 9))
    return calls


def test_it_ends_with_the_first_answer_that_cannot_be() -> None:
    calls = stale(40)
    example = shortest(calls, register, 0)
    assert example.wrong is next(one for one in calls if one.result == 190 and one.called == 208)
    assert not linearizable(example.calls, register, 0)
    assert max(one.returned or 0 for one in example.calls) == example.wrong.returned


def test_reads_that_are_not_needed_are_left_out() -> None:
    example = shortest(stale(40), register, 0)
    assert [one for one in example.calls if one.what == ("read",)] == [example.wrong]
    assert example.left_out == 2 * 21


def test_reads_that_are_needed_are_kept() -> None:
    # While a value is written another sees it, and then a third does not: who is wrong?
    calls = [
        write(5, 0, 100),
        read(5, 10, 20),
        read(0, 30, 40, "c"),
        read(0, 1, 2),
        read(5, 101, 102),
    ]
    example = shortest(calls, register, 0)
    assert whats(example.calls) == [("write", 5, None), ("read", 5), ("read", 0)]
    assert example.calls[0].returned is None, "it was not answered yet"
    assert example.states == [5]


def test_the_states_that_were_possible_are_told() -> None:
    calls = [write(5, 0, 10), write(6, 1, 11), read(7, 12, 13)]
    assert sorted(shortest(calls, register, 0).states) == [5, 6]


def test_what_was_refused_may_be_left_out_too() -> None:
    a = (1, b"a")
    whats = [("make", a, 7), ("make", a, "EXISTS"), ("unlink", a, 7), ("lookup", a, 7)]
    calls = [
        Call("a", what[:-1], at * 10, at * 10 + 1, what[-1], at) for at, what in enumerate(whats)
    ]
    example = shortest(
        calls, names, frozenset(), observes=lambda call: isinstance(call.result, str)
    )
    assert [one.number for one in example.calls] == [0, 2, 3]


def test_a_beginning_is_what_was_known_then() -> None:
    calls = [write(1, 0, 5), write(2, 3, 9), write(3, 6, None), write(4, 8, 9)]
    then = beginning(calls, 6)
    assert [(one.called, one.returned) for one in then] == [(0, 5), (3, None), (6, None)]
    assert calls[1].returned == 9, "they are not changed"


def test_it_can_be_read() -> None:
    text = shortest(stale(40), register, 0).text(since=0, calls_max=3)
    before, *lines = text.splitlines()
    assert before == "    ... 61 calls before these, or beside them"
    assert lines == [
        "         0.000 to      0.000  a  write 190 -> None",
        "         0.000 to      0.000  a  write 200 -> None",
        ">>>      0.000 to      0.000  b  read -> 190",
        "    Before that answer it was in one of these states:",
        "        200",
    ]


def test_it_has_a_bound() -> None:
    calls = [write(value, 0, 100) for value in range(1, 13)]
    with pytest.raises(Undecided):
        shortest([*calls, read(99, 101, 102)], register, 0, steps_max=500)
