"""Whether a history is linearizable, by histories whose answer is known."""

from mountfs.sim.history import Call, explain, linearizable
from mountfs.sim.models import register


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
