"""Whether a history is linearizable, by histories whose answer is known."""

from mountfs.sim.history import Operation, linearizable


def write(value: int, called: int, returned: int | None) -> Operation:
    return Operation(1, 0, "write", value, None, called, returned)


def read(value: int, called: int, returned: int | None) -> Operation:
    return Operation(2, 0, "read", value, None, called, returned)


def compare(expected: int, value: int, acted: bool, called: int, returned: int | None) -> Operation:
    return Operation(3, 0, "compare", value, expected, called, returned, acted)


def test_one_after_the_other() -> None:
    assert linearizable([read(0, 0, 1), write(5, 2, 3), read(5, 4, 5)])
    assert not linearizable([write(5, 0, 1), read(0, 2, 3)])


def test_at_the_same_time_either_order_is_right() -> None:
    assert linearizable([write(5, 0, 10), read(0, 1, 2)])
    assert linearizable([write(5, 0, 10), read(5, 1, 2)])


def test_what_was_seen_once_stays_seen() -> None:
    assert not linearizable([write(5, 0, 10), read(5, 1, 2), read(0, 3, 4)])


def test_a_write_that_was_never_answered_may_have_happened_or_not() -> None:
    assert linearizable([write(5, 0, None), read(0, 1, 2), read(5, 3, 4)])
    assert linearizable([write(5, 0, None), read(0, 1, 2)])
    assert not linearizable([write(5, 3, None), read(5, 1, 2)])


def test_a_compare_says_whether_it_acted() -> None:
    assert linearizable([compare(0, 7, True, 0, 1), read(7, 2, 3)])
    assert linearizable([compare(1, 7, False, 0, 1), read(0, 2, 3)])
    assert not linearizable([compare(0, 7, False, 0, 1)])
    assert not linearizable([compare(0, 7, True, 0, 1), compare(0, 8, True, 2, 3)])


def test_reads_without_an_answer_say_nothing() -> None:
    assert linearizable([read(99, 0, None), write(1, 1, 2)])
