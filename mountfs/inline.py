"""Run a coroutine in the caller until it has to wait, and only then pay for a task.

Most requests are answered from memory.  Starting a Trio task for each of them costs more than the
answer. So a door steps the coroutine itself with `attempt`: nearly always it returns at once.  Code
that is about to wait, and so needs a task of its own, first says `await leave()`; the door then
moves the rest of the coroutine into a task with `finish`.  Outside of `attempt` (in tests, in other
doors) `leave` does nothing.

Work that many requests can share (a trip to the disk) says `await pause()` before it: the door goes
on with the requests that are there already, and steps the coroutine again when it has seen them
all.

Other work goes on between `await leave()` and what follows it: what is waited for is to be looked
at after it, or kept from before it.

The one rule: nothing that belongs to Trio (a cancel scope, an event, a lock, a thread) may be
entered or awaited before `await leave()`.  `attempt` asserts it.
"""

import types
from collections.abc import Coroutine, Generator
from typing import Any, Final, TypeVar

T = TypeVar("T")

_LEAVE: Final = object()
_PAUSE: Final = object()
PAUSED: Final = object()
"""What `attempt` returns for a coroutine that has said `pause`: attempt it again soon."""
WAITING: Final = object()
"""What `attempt` returns for a coroutine that has said `leave`."""

_stepping = False


@types.coroutine
def leave() -> Generator[object, None, None]:
    """Say that what follows may wait.  Cheap, and harmless to repeat."""
    if _stepping:
        yield _LEAVE


@types.coroutine
def pause() -> Generator[object, None, bool]:
    """Let the requests that are there already come first.  In a task it does nothing, and returns
    False.
    """
    if not _stepping:
        return False
    yield _PAUSE
    return True


def attempt(coroutine: Coroutine[Any, Any, T]) -> T | object:
    """Run `coroutine` until it returns, pauses or leaves.

    Returns its result; or `PAUSED`: then `attempt` it again; or `WAITING`: then `finish`
    must be awaited.
    """
    global _stepping
    assert not _stepping, "attempt() does not nest"
    _stepping = True
    try:
        trap = coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        _stepping = False
    if trap is _PAUSE:
        return PAUSED
    assert trap is _LEAVE, f"awaited {trap!r} without leave()"
    return WAITING


@types.coroutine
def finish(coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Run the rest of a coroutine that has left, in the current task."""
    return (yield from coroutine.__await__())
