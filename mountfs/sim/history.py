"""Whether what clients saw could have happened one after the other (linearizability).

By the algorithm of Wing and Gong with the memory of Lowe, for one object at a time: a history is
linearizable if its part for each object is.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import msgspec

State = Any
"""Of an object; hashable."""


class Call(msgspec.Struct):
    """What a client asked of one object, and what it got."""

    who: str
    what: tuple[Any, ...]
    called: int
    returned: int | None = None
    """None: never answered; it may have happened at any time after `called`, or not at all."""
    result: Any = None
    number: int = 0
    """Of all calls of a run."""

    def __str__(self) -> str:
        until = "?" if self.returned is None else f"{self.returned / 1e6:.4f}"
        words = " ".join(map(str, self.what))
        return f"{self.called / 1e6:.4f}-{until} {self.who}: {words} -> {self.result}"


Model = Callable[[State, Call], Iterable[State]]
"""The states that an object may be in after a call that was answered as it was; none, if it cannot
have been answered so.  Of a call without an answer: after any answer.
"""


def linearizable(calls: list[Call], model: Model, state: Hashable) -> bool:
    """For the calls on one object, which begins as `state`."""
    return explain(calls, model, state) is None


def explain(calls: list[Call], model: Model, state: Hashable) -> Call | None:
    """None if they are linearizable; or else the call that could not be answered so, whatever the
    order of those before it: the first in the order that comes furthest.
    """
    todo = sorted((one for one in calls if one.returned is not None), key=_called)
    maybe = sorted((one for one in calls if one.returned is None), key=_called)
    ends = [one.returned or 0 for one in todo]
    count = len(todo)
    seen: set[tuple[int, int, int, Hashable]] = set()
    stack: list[tuple[int, int, int, int, Hashable]] = [(0, 0, 0, 0, state)]
    """(those before have all happened; bits of later ones that have; bits of those of `maybe` that
    have; how many have in all; state)
    """
    furthest, stuck = -1, None
    while stack:
        base, bits, taken, done, now = stack.pop()
        if base == count:
            return None
        if (base, bits, taken, now) in seen:
            continue
        seen.add((base, bits, taken, now))
        # Whatever returned first among those that have not happened bounds who may be next.
        horizon = ends[base]
        candidates = []
        for at in range(base, count):
            if todo[at].called > horizon:
                break
            if not bits >> (at - base) & 1:
                candidates.append(at)
                horizon = min(horizon, ends[at])
        # What nobody has an answer to is tried last, and what returned first is tried first: that
        # is mostly right.
        for number, one in enumerate(maybe):
            if one.called > horizon:
                break
            if not taken >> number & 1:
                for after in model(now, one):
                    if after != now:
                        stack.append((base, bits, taken | 1 << number, done, after))
        candidates.sort(key=lambda at: -ends[at])
        if done > furthest:
            furthest, stuck = done, todo[candidates[-1]]
        for at in candidates:
            if todo[at].called > horizon:
                continue
            after_bits = bits | 1 << (at - base)
            after_base = base
            while after_bits & 1:
                after_bits >>= 1
                after_base += 1
            for after in model(now, todo[at]):
                stack.append((after_base, after_bits, taken, done + 1, after))
    return stuck


def _called(one: Call) -> int:
    return one.called
