"""Whether what clients saw could have happened one after the other (linearizability).

By the algorithm of Wing and Gong with the memory of Lowe, for one object at a time: a history is
linearizable if its part for each object is.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
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


_NEVER = 1 << 63
"""Later than any answer."""


class Undecided(Exception):
    """So many situations were looked at as was allowed, and there are more."""


def linearizable(calls: list[Call], model: Model, state: Hashable) -> bool:
    """For the calls on one object, which begins as `state`."""
    return explain(calls, model, state) is None


def explain(
    calls: list[Call], model: Model, state: Hashable, *, steps_max: int | None = None
) -> Call | None:
    """None if they are linearizable; or else the call that could not be answered so, whatever the
    order of those before it: the first in the order that comes furthest.

    Raises Undecided when that takes more than `steps_max` steps; each keeps some 200 bytes.
    """
    search = Search(calls, model, state, steps_max)
    for _ in search.ends():
        return None
    return search.stuck


class Search:
    """All orders in which calls may have happened; of those that lead to the same, one."""

    def __init__(
        self, calls: list[Call], model: Model, state: Hashable, steps_max: int | None = None
    ) -> None:
        self._calls = calls
        self._model = model
        self._begins = state
        self._steps_max = steps_max
        self.steps = 0
        """Situations that were looked at."""
        self.stuck: Call | None = None
        """What could not go on, in the order that came furthest."""

    def ends(self) -> Iterator[State]:
        """The states in which the object may be when all that was answered has happened."""
        model = self._model
        todo = sorted((one for one in self._calls if one.returned is not None), key=_called)
        maybe = sorted((one for one in self._calls if one.returned is None), key=_called)
        count = len(todo)
        ends = [one.returned or 0 for one in todo] + [_NEVER]
        seen: set[tuple[int, int, int, Hashable]] = set()
        stack: list[tuple[int, int, int, int, Hashable]] = [(0, 0, 0, 0, self._begins)]
        """(those before have all happened; bits of later ones that have; bits of those of `maybe`
        that have; how many have in all; state)
        """
        furthest = -1
        while stack:
            base, bits, taken, done, now = stack.pop()
            if (base, bits, taken, now) in seen:
                continue
            seen.add((base, bits, taken, now))
            self.steps += 1
            if self._steps_max is not None and self.steps > self._steps_max:
                raise Undecided(f"{count} calls, {len(maybe)} of unknown outcome")
            if base == count:
                yield now
            # Whatever returned first among those that have not happened bounds who may be next.
            horizon = ends[base]
            candidates = []
            for at in range(base, count):
                if todo[at].called > horizon:
                    break
                if not bits >> (at - base) & 1:
                    candidates.append(at)
                    horizon = min(horizon, ends[at])
            # What nobody has an answer to is tried last, and what returned first is tried first:
            # that is mostly right.
            for number, one in enumerate(maybe):
                if one.called > horizon:
                    break
                if not taken >> number & 1:
                    for after in model(now, one):
                        if after != now:
                            stack.append((base, bits, taken | 1 << number, done, after))
            candidates.sort(key=lambda at: -ends[at])
            if done > furthest and candidates:
                furthest, self.stuck = done, todo[candidates[-1]]
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


def _called(one: Call) -> int:
    return one.called
