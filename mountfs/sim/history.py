"""Whether what clients saw could have happened one after the other (linearizability).

By the algorithm of Wing and Gong with the memory of Lowe, for one register at a time: a history is
linearizable if its part for each key is.
"""

import msgspec


class Operation(msgspec.Struct):
    """What a client asked, and what it got."""

    client: int
    key: int
    kind: str
    """"read", "write" or "compare"."""
    value: int
    """Written; of a read, what came back."""
    expected: int | None
    called: int
    returned: int | None = None
    """None: never answered; it may have happened at any time after `called`, or not at all."""
    acted: bool | None = None
    """Of a compare, whether the value was as expected."""


def linearizable(operations: list[Operation]) -> bool:
    """For the operations on one register, which begins with 0."""
    todo = [one for one in operations if not (one.kind == "read" and one.returned is None)]
    todo.sort(key=lambda one: one.called)
    count = len(todo)
    must = sum(1 << at for at, one in enumerate(todo) if one.returned is not None)
    seen: set[tuple[int, int]] = set()
    stack = [(0, 0)]
    """(operations that have happened, as bits; value)"""
    while stack:
        done, value = stack.pop()
        if done & must == must:
            return True
        if (done, value) in seen:
            continue
        seen.add((done, value))
        # Whatever returned first among those that have not happened bounds who may be next.
        horizon = min(
            one.returned
            for at, one in enumerate(todo)
            if not done >> at & 1 and one.returned is not None
        )
        for at in range(count):
            one = todo[at]
            if one.called > horizon:
                break
            if done >> at & 1:
                continue
            after = _after(one, value)
            if after is not None:
                stack.append((done | 1 << at, after))
    return False


def _after(one: Operation, value: int) -> int | None:
    """The value after an operation; None if it cannot have been answered so then."""
    if one.kind == "read":
        return value if one.value == value else None
    if one.kind == "write":
        return one.value
    acts = value == one.expected
    if one.acted is not None and one.acted is not acts:
        return None
    return one.value if acts else value
