"""The models judge what clients saw: by histories whose answer is known."""

from itertools import count
from typing import Any

import pytest

from mountfs.sim.history import Call, Model, linearizable
from mountfs.sim.models import (
    BUSY,
    NOTHING_HELD,
    apart,
    appended,
    attribute,
    counter,
    locks,
    names,
)

A, B = (1, b"a"), (1, b"b")
ELSEWHERE = (2, b"a")

Seen = tuple[Any, ...]
"""(what was asked, ..., the answer)"""


def holds(model: Model, begins: Any, *seen: Seen) -> bool:
    """Whether that could have been answered, one after the other."""
    times = count(0, 2)
    calls = [
        Call("a", one[:-1], at, at + 1, one[-1], number)
        for number, (one, at) in enumerate(zip(seen, times, strict=False))
    ]
    return linearizable(calls, model, begins)


def named(*seen: Seen) -> bool:
    return holds(names, frozenset(), *seen)


@pytest.mark.parametrize(
    "seen",
    [
        [("lookup", A, "NOT_FOUND"), ("make", A, 7), ("lookup", A, 7)],
        [("make", A, 7), ("make", A, "EXISTS"), ("open", A, (7, False))],
        [("open", A, (7, True)), ("unlink", A, 7), ("lookup", A, "NOT_FOUND")],
        [("mkdir", A, 7), ("unlink", A, "IS_DIRECTORY"), ("rmdir", A, 7)],
        [("make", A, 7), ("rmdir", A, "NOT_DIRECTORY")],
        [("make", A, 7), ("rename", A, B, True, 0), ("list", 1, frozenset({(b"b", 7)}))],
        [("make", A, 7), ("make", B, 8), ("rename", A, B, True, 8), ("lookup", B, 7)],
        [("make", A, 7), ("make", B, 8), ("rename", A, B, False, "EXISTS")],
        [("make", A, 7), ("mkdir", B, 8), ("rename", A, B, True, "IS_DIRECTORY")],
        [("mkdir", A, 7), ("make", B, 8), ("rename", A, B, True, "NOT_DIRECTORY")],
        [("make", A, 7), ("rename", A, ELSEWHERE, True, 0), ("lookup", ELSEWHERE, 7)],
        [("make", A, 7), ("make", B, 8), ("exchange", A, B, 0), ("lookup", A, 8)],
        [("link", A, 9, 9), ("link", B, 9, 9), ("rename", A, B, True, 0), ("lookup", A, 9)],
        [("link", A, 9, 9), ("unlink", A, 0)],  # it has another name
        [("mkdir", A, 0), ("lookup", A, 7), ("list", 1, frozenset({(b"a", 7)}))],
    ],
)
def test_what_posix_says_of_names_is_accepted(seen: list[Seen]) -> None:
    assert named(*seen)


@pytest.mark.parametrize(
    "seen",
    [
        [("make", A, 7), ("lookup", A, "NOT_FOUND")],
        [("make", A, 7), ("make", A, 8)],
        [("make", A, 7), ("open", A, (8, True))],
        [("make", A, 7), ("open", A, (7, True))],
        [("make", A, 7), ("lookup", A, 8)],
        [("make", A, 7), ("unlink", A, 8)],
        [("make", A, 7), ("unlink", A, 7), ("unlink", A, 7)],
        [("make", A, 7), ("rename", A, B, True, 0), ("lookup", A, 7)],
        [("make", A, 7), ("make", B, 8), ("rename", A, B, True, 7)],
        [("make", A, 7), ("list", 1, frozenset())],
        [("make", A, 7), ("list", 1, frozenset({(b"a", 7), (b"b", 8)}))],
        [("make", A, 7), ("exchange", A, B, 0)],
        [("rename", A, B, True, 0)],
        [("mkdir", A, 0), ("lookup", A, 7), ("lookup", A, 8)],  # it was not told, but is one
    ],
)
def test_what_cannot_be_of_names_is_refused(seen: list[Seen]) -> None:
    assert not named(*seen)


def test_a_name_that_was_made_without_an_answer_has_one_number() -> None:
    made = Call("a", ("make", A), 0, None, None, 1)
    first = Call("b", ("lookup", A), 1, 2, 7)
    moved = Call("b", ("rename", A, B, True), 3, 4, 0)
    assert linearizable([made, first, moved, Call("b", ("lookup", B), 5, 6, 7)], names, frozenset())
    wrong = Call("b", ("lookup", B), 5, 6, 8)
    assert not linearizable([made, first, moved, wrong], names, frozenset())


@pytest.mark.parametrize(
    ("right", "seen"),
    [
        (True, [("get", "NO_ATTRIBUTE"), ("set", b"x", "ok"), ("get", b"x")]),
        (True, [("create", b"x", "ok"), ("create", b"y", "EXISTS"), ("get", b"x")]),
        (True, [("replace", b"x", "NO_ATTRIBUTE"), ("remove", "NO_ATTRIBUTE")]),
        (False, [("create", b"x", "ok"), ("create", b"y", "ok")]),
        (False, [("create", b"x", "EXISTS")]),
        (False, [("set", b"x", "ok"), ("remove", "ok"), ("remove", "ok")]),
        (False, [("set", b"x", "ok"), ("get", b"y")]),
    ],
)
def test_an_extended_attribute(right: bool, seen: list[Seen]) -> None:
    assert holds(attribute, None, *seen) is right


ONE, TWO = (1, 1), (2, 1)


@pytest.mark.parametrize(
    ("right", "seen"),
    [
        (True, [("lock", ONE, True, None), ("lock", TWO, True, ONE), ("test", TWO, False, ONE)]),
        (True, [("lock", ONE, False, None), ("lock", TWO, False, None), ("lock", ONE, True, TWO)]),
        (True, [("lock", ONE, True, None), ("unlock", ONE, "ok"), ("lock", TWO, True, None)]),
        (True, [("lock", ONE, True, None), ("end", 1, "ok"), ("lock", TWO, True, None)]),
        (True, [("lock", ONE, True, None), ("lock", TWO, True, BUSY), ("test", TWO, True, BUSY)]),
        (False, [("lock", ONE, True, BUSY)]),
        (False, [("lock", ONE, False, None), ("lock", TWO, False, BUSY)]),
        (False, [("lock", ONE, True, None), ("lock", TWO, True, None)]),
        (False, [("lock", ONE, True, None), ("unlock", ONE, "ok"), ("lock", TWO, True, ONE)]),
        (False, [("lock", ONE, True, None), ("end", 2, "ok"), ("lock", TWO, True, None)]),
        (False, [("end", 1, "ok"), ("lock", ONE, True, None)]),
    ],
)
def test_locks(right: bool, seen: list[Seen]) -> None:
    assert holds(locks, NOTHING_HELD, *seen) is right


@pytest.mark.parametrize(
    ("right", "seen"),
    [
        (True, [("add", 1), ("add", 2)]),
        (False, [("add", 1), ("add", 1)]),
        (False, [("add", 1), ("add", 3)]),
        (False, [("add", "not a number")]),
    ],
)
def test_a_counter(right: bool, seen: list[Seen]) -> None:
    assert holds(counter, 0, *seen) is right


@pytest.mark.parametrize(
    ("right", "seen"),
    [
        (True, [("append", 7, None), ("read", 1), ("append", 8, None), ("read", 2)]),
        (True, [("read", 0), ("append", 7, None)]),  # more may have come later
        (False, [("append", 7, None), ("read", 0)]),
        (False, [("read", 1), ("append", 7, None)]),
        (False, [("append", 8, None), ("append", 7, None)]),
        (False, [("append", 7, None), ("append", 8, None), ("append", 9, None)]),
        (False, [("append", 7, None), ("append", 8, None), ("append", 8, None)]),
        (False, [("append", 7, None), ("read", [16, 12345])]),
    ],
)
def test_a_file_to_which_is_appended(right: bool, seen: list[Seen]) -> None:
    assert holds(appended([7, 8]), 0, *seen) is right


def test_an_append_without_an_answer_is_where_it_is_in_the_file() -> None:
    sure = Call("a", ("append", 7), 2, 3)
    unsure = Call("b", ("append", 8), 0, None)
    for records in ([7], [7, 8], [8, 7]):
        assert linearizable([sure, unsure], appended(records), 0)
    assert not linearizable([sure, unsure, Call("a", ("read",), 4, 5, 2)], appended([7, 9]), 0)


def test_directories_between_which_nothing_moves_are_judged_apart() -> None:
    three = (3, b"a")
    whats = [
        ("make", A), ("make", ELSEWHERE), ("list", 3), ("rename", ELSEWHERE, three, True),
        ("lookup", B), ("exchange", (4, b"a"), (5, b"a")), ("lookup", (4, b"b")),
    ]  # fmt: skip
    calls = [Call("a", what, at, at + 1, 0, at) for at, what in enumerate(whats)]
    found = {tuple(tops): sorted(one.number for one in some) for tops, some in apart(calls)}
    assert found == {(1,): [0, 4], (2, 3): [1, 2, 3], (4, 5): [5, 6]}
