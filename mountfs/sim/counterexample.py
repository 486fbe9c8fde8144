"""Of a history that could not have happened: what is enough to see it, for people.

The shortest beginning that could not have happened ends with an answer: until that came, all could
have been.  Of the calls before it those that only look are left out, as long as what is left could
not have happened either.
"""

from bisect import bisect_left
from collections.abc import Callable, Hashable
from typing import NamedTuple

import msgspec

from mountfs.sim.history import Call, Model, Search, State, Undecided, explain

OBSERVERS = frozenset({"read", "get", "lookup", "list", "test"})
"""Calls, of any model, that change nothing whatever is answered."""
_TRIALS_MAX = 200
"""So often it is tried to leave something out."""
_STATES_MAX = 8


class Counterexample(NamedTuple):
    wrong: Call
    """The answer that cannot be."""
    calls: list[Call]
    """With `wrong`, by when they were called.  What was not answered yet has no answer."""
    states: list[State]
    """In which the object may be at the end, if `wrong` was not answered yet."""
    left_out: int
    """So many calls of the beginning."""

    def text(self, *, since: int = 0, calls_max: int = 16) -> str:
        """A line for each call, of the last ones.  Times in ms, `since` is 0."""
        shown = self.calls[-calls_max:]
        before = len(self.calls) - len(shown) + self.left_out
        lines = [f"    ... {before} calls before these, or beside them"] if before else []
        width = max(len(one.who) for one in shown)
        for one in shown:
            until = "?" if one.returned is None else f"{(one.returned - since) / 1e6:.3f}"
            mark = ">>>" if one is self.wrong else "   "
            asked = " ".join(map(_word, one.what))
            answer = "(no answer yet)" if one.returned is None else f"-> {_word(one.result)}"
            times = f"{(one.called - since) / 1e6:10.3f} to {until:>10}"
            lines.append(f"{mark} {times}  {one.who:{width}}  {asked} {answer}")
        states = [f"        {_word(state)}" for state in self.states]
        return "\n".join([*lines, "    Before that answer it was in one of these states:", *states])


def _word(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, frozenset):
        return "{" + ", ".join(sorted(map(_word, value))) + "}"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_word, value)) + ")"
    return str(value)


def shortest(
    calls: list[Call],
    model: Model,
    state: Hashable,
    *,
    steps_max: int | None = None,
    observes: Callable[[Call], bool] = lambda call: call.what[0] in OBSERVERS,
) -> Counterexample:
    """`calls` are not linearizable.  Raises Undecided as `explain` does."""

    def fails(some: list[Call]) -> bool:
        return explain(some, model, state, steps_max=steps_max) is not None

    answers = sorted(one.returned for one in calls if one.returned is not None)
    # What happened until an answer could have been, if it could until a later one.
    first = bisect_left(answers, True, key=lambda end: fails(beginning(calls, end)))
    assert first < len(answers), "they are linearizable"
    some = beginning(calls, answers[first])
    (wrong, *_) = [one for one in some if one.returned == answers[first]]
    kept = [one for one in some if one.returned is not None or not observes(one)]
    kept = _without(kept, lambda one: one is not wrong and observes(one), fails)
    unsaid = [_unanswered(one) if one is wrong else one for one in kept]
    return Counterexample(
        wrong,
        sorted(kept, key=lambda one: one.called),
        _states(unsaid, model, state, steps_max),
        len(some) - len(kept),
    )


def beginning(calls: list[Call], end: int) -> list[Call]:
    """What there was at that moment: what is answered later was not answered yet."""
    return [
        one if one.returned is not None and one.returned <= end else _unanswered(one)
        for one in calls
        if one.called <= end
    ]


def _unanswered(call: Call) -> Call:
    return msgspec.structs.replace(call, returned=None, result=None)


def _without(
    calls: list[Call], droppable: Callable[[Call], bool], fails: Callable[[list[Call]], bool]
) -> list[Call]:
    """Leave out what can be, in large parts first."""
    trials = 0
    size = sum(map(droppable, calls))
    while size and trials < _TRIALS_MAX:
        candidates = [one for one in calls if droppable(one)]
        for start in range(0, len(candidates), size):
            part = {id(one) for one in candidates[start : start + size]}
            fewer = [one for one in calls if id(one) not in part]
            trials += 1
            if fails(fewer):
                calls = fewer
        size //= 2
    return calls


def _states(calls: list[Call], model: Model, state: Hashable, steps_max: int | None) -> list[State]:
    found: dict[State, None] = {}
    try:
        for end in Search(calls, model, state, steps_max).ends():
            found[end] = None
            if len(found) == _STATES_MAX:
                break
    except Undecided:
        pass  # those that were found are worth showing
    return list(found)
