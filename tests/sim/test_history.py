"""Whether a history is linearizable, by histories whose answer is known."""

from itertools import combinations, permutations
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mountfs.sim.history import Call, Model, Search, Undecided, explain, linearizable
from mountfs.sim.models import BUSY, NOTHING_HELD, counter, locks, names, register


def write(value: int, called: int, returned: int | None) -> Call:
    return Call("a", ("write", value), called, returned)


def read(value: int, called: int, returned: int | None) -> Call:
    return Call("b", ("read",), called, returned, value)


def compare(expected: int, value: int, acted: bool, called: int, returned: int | None) -> Call:
    return Call("c", ("compare", expected, value), called, returned, acted)


def is_linearizable(*calls: Call) -> bool:
    return linearizable(list(calls), register, 0)


def test_one_after_the_other() -> None:
    assert is_linearizable(read(0, 0, 1), write(5, 2, 3), read(5, 4, 5))
    assert not is_linearizable(write(5, 0, 1), read(0, 2, 3))


def test_at_the_same_time_either_order_is_right() -> None:
    assert is_linearizable(write(5, 0, 10), read(0, 1, 2))
    assert is_linearizable(write(5, 0, 10), read(5, 1, 2))


def test_what_was_seen_once_stays_seen() -> None:
    assert not is_linearizable(write(5, 0, 10), read(5, 1, 2), read(0, 3, 4))


def test_a_write_that_was_never_answered_may_have_happened_or_not() -> None:
    assert is_linearizable(write(5, 0, None), read(0, 1, 2), read(5, 3, 4))
    assert is_linearizable(write(5, 0, None), read(0, 1, 2))
    assert not is_linearizable(write(5, 3, None), read(5, 1, 2))


def test_a_compare_says_whether_it_acted() -> None:
    assert is_linearizable(compare(0, 7, True, 0, 1), read(7, 2, 3))
    assert is_linearizable(compare(1, 7, False, 0, 1), read(0, 2, 3))
    assert not is_linearizable(compare(0, 7, False, 0, 1))
    assert not is_linearizable(compare(0, 7, True, 0, 1), compare(0, 8, True, 2, 3))


def test_reads_without_an_answer_say_nothing() -> None:
    assert is_linearizable(read(99, 0, None), write(1, 1, 2))


def test_the_call_that_cannot_be_is_named() -> None:
    wrong = read(4, 4, 5)
    assert explain([write(5, 0, 1), wrong, read(5, 6, 7)], register, 0) is wrong


def test_a_long_history_with_calls_that_were_never_answered_is_judged() -> None:
    calls: list[Call] = []
    for at in range(0, 4_000, 10):
        calls += [write(at, at, at + 15), read(at, at + 16, at + 18)]
        if at % 1_000 == 0:
            calls.append(write(-at, at, None))
    assert linearizable(calls, register, 0)
    calls.append(read(7, 4_100, 4_101))
    assert not linearizable(calls, register, 0)


def test_a_search_has_a_bound() -> None:
    # Writes at one time, and a read of what nobody wrote: every order of them is tried.
    calls = [write(value, 0, 100) for value in range(1, 13)]
    calls.append(read(99, 101, 102))
    with pytest.raises(Undecided):
        explain(calls, register, 0, steps_max=500)
    assert explain(calls, register, 0, steps_max=100_000) is calls[-1]
    assert explain(calls[:-1], register, 0, steps_max=13) is None


def test_the_states_at_the_end_are_all_that_are_possible() -> None:
    calls = [write(5, 0, 10), write(6, 1, 11), write(7, 2, None), write(8, 12, None)]
    assert set(Search(calls, register, 0).ends()) == {5, 6, 7, 8}


# -- against every order that there is


@st.composite
def small_histories(draw: st.DrawFn) -> list[Call]:
    """A few calls on a register, with any answers, some without."""
    calls = []
    for number in range(draw(st.integers(1, 5))):
        called = draw(st.integers(0, 12))
        returned = draw(st.none() | st.integers(called, 14))
        value = draw(st.integers(0, 2))
        one = draw(st.sampled_from(["read", "write", "compare"]))
        if one == "read":
            calls.append(read(value, called, returned))
        elif one == "write":
            calls.append(write(value, called, returned))
        else:
            other = draw(st.integers(0, 2))
            calls.append(compare(other, value, draw(st.booleans()), called, returned))
        calls[-1].number = number
    return calls


def by_trying_all(calls: list[Call], state: int) -> bool:
    """Linearizable, by definition."""
    unsure = [one for one in calls if one.returned is None]
    sure = [one for one in calls if one.returned is not None]
    return any(
        _possible(order, state)
        for count in range(len(unsure) + 1)
        for some in combinations(unsure, count)
        for order in permutations([*sure, *some])
        if not any(
            later.returned is not None and later.returned < earlier.called
            for at, earlier in enumerate(order)
            for later in order[at + 1 :]
        )
    )


def _possible(order: tuple[Call, ...], state: int) -> bool:
    for one in order:
        after = list(register(state, one))
        if not after:
            return False
        (state,) = after
    return True


@given(small_histories())
def test_the_answer_is_that_of_trying_every_order(calls: list[Call]) -> None:
    assert linearizable(calls, register, 0) is by_trying_all(calls, 0)


# -- what happened in one order, with overlaps


@given(st.data())
def test_calls_that_overlap_more_than_they_had_to_are_linearizable(data: st.DataObject) -> None:
    model, begins, calls = data.draw(sequential())
    for one in calls:
        one.called -= data.draw(st.integers(0, 40))
        one.returned = (one.returned or 0) + data.draw(st.integers(0, 40))
    for one in data.draw(st.lists(st.sampled_from(calls))):
        one.returned, one.result = None, None  # nobody was told: it happened all the same
    assert linearizable(data.draw(st.permutations(calls)), model, begins)


@given(st.data())
def test_another_answer_is_found_when_nothing_overlaps(data: st.DataObject) -> None:
    model, begins, calls = data.draw(sequential())
    at = data.draw(st.integers(0, len(calls) - 1))
    state = begins
    for one in calls[:at]:
        (state,) = model(state, one)
    wrong = []
    for answer in _wrong_answers(model, calls[at].what):
        calls[at].result = answer
        if not list(model(state, calls[at])):
            wrong.append(answer)
    assume(wrong)
    calls[at].result = data.draw(st.sampled_from(wrong))
    assert explain(data.draw(st.permutations(calls)), model, begins) is calls[at]


FAULTS = ["NOT_FOUND", "EXISTS", "IS_DIRECTORY", "NOT_DIRECTORY"]
PLACES = [(directory, name) for directory in (1, 2) for name in (b"a", b"b")]
ANSWERS: dict[Model, list[Any]] = {
    register: [None, True, False, 0, 1, 2, 3],
    counter: list(range(15)),
    locks: [None, BUSY],
}


@st.composite
def sequential(draw: st.DrawFn) -> tuple[Model, Any, list[Call]]:
    """Calls one after the other, 10 apart, with answers that the model gives."""
    model, begins = draw(st.sampled_from(BEGINS))
    state, calls = begins, []
    for number in range(draw(st.integers(1, 12))):
        what = draw(ASKED[model])
        one = Call(f"w{number % 3}", what, number * 10, number * 10 + 1, None, number)
        right = []
        for answer in _answers(model, state, what, number):
            one.result = answer
            right += [(answer, after) for after in model(state, one)]
        assert right, (what, state)
        one.result, state = draw(st.sampled_from(right))
        calls.append(one)
    return model, begins, calls


def _answers(model: Model, state: Any, what: tuple[Any, ...], number: int) -> list[Any]:
    if model is not names:
        return ANSWERS[model]
    if what[0] == "list":
        return [frozenset((name, found.ino) for (top, name), found in state if top == what[1])]
    if what[0] in ("make", "mkdir"):
        return [*FAULTS, 100 + number]  # no two have one number
    if what[0] == "link":
        return ["EXISTS", what[2]]
    return [*FAULTS, 0, *(found.ino for _, found in state)]


def _wrong_answers(model: Model, what: tuple[Any, ...]) -> list[Any]:
    if model is not names:
        return ANSWERS[model]
    if what[0] == "list":
        return [frozenset(), frozenset({(b"a", 100)}), frozenset({(b"b", 101)})]
    return [*FAULTS, 0, *range(98, 112)]


BEGINS = [(register, 0), (counter, 0), (names, frozenset()), (locks, NOTHING_HELD)]
_place, _value = st.sampled_from(PLACES), st.integers(0, 3)
_owner = st.tuples(st.integers(1, 3), st.just(0))
ASKED: dict[Model, Any] = {
    register: st.one_of(
        st.just(("read",)),
        st.tuples(st.just("write"), _value),
        st.tuples(st.just("compare"), _value, _value),
    ),
    counter: st.just(("add",)),
    names: st.one_of(
        st.tuples(st.sampled_from(["lookup", "make", "mkdir", "unlink", "rmdir"]), _place),
        st.tuples(st.just("list"), st.sampled_from([1, 2])),
        st.tuples(st.just("link"), _place, st.sampled_from([98, 99])),
        st.tuples(st.just("rename"), _place, _place, st.booleans()),
        st.tuples(st.just("exchange"), _place, _place),
    ),
    locks: st.one_of(
        st.tuples(st.sampled_from(["lock", "test"]), _owner, st.booleans()),
        st.tuples(st.just("unlock"), _owner),
    ),
}
