"""Work that waits, in simulated time: coroutines, which the world steps when what they wait for
has come.  So what the product does one after the other reads here as it does there; and what of it
waits for nothing but what it was given is the same code.
"""

from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

from mountfs.errors import FsError
from mountfs.sim.world import World

T = TypeVar("T")

Gate = Callable[[Callable[[], None]], None]
"""Lets something happen now, later, or, when the process is no more, never."""


class Wait(Generic[T]):
    """Something that comes once; whatever comes afterwards is ignored."""

    def __init__(self) -> None:
        self.is_over = False
        self._value: Any = None
        self._then: list[Callable[[], None]] = []

    def set(self, value: T | FsError) -> None:
        """An FsError is raised where it is waited for."""
        if self.is_over:
            return
        self.is_over, self._value = True, value
        then, self._then = self._then, []
        for happens in then:
            happens()

    def then(self, happens: Callable[[], None]) -> None:
        if self.is_over:
            happens()
        else:
            self._then.append(happens)

    def __await__(self) -> Generator["Wait[Any]", None, T]:
        if not self.is_over:
            yield self
        if isinstance(self._value, FsError):
            raise self._value
        return self._value  # type: ignore[no-any-return]


class Tasks:
    """Those of one process, which end together."""

    def __init__(self, world: World, gate: Gate) -> None:
        self._world = world
        self._gate = gate
        self._running: dict[int, Coroutine[Any, Any, Any]] = {}
        self._count = 0
        world.last.append(self.end)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Nobody waits for it: it must not fail."""
        self._begin(work, None)

    def ask(self, work: Coroutine[Any, Any, T]) -> Wait[T]:
        """Its result, or the FsError that it raises."""
        result: Wait[T] = Wait()
        self._begin(work, result)
        return result

    def sleep(self, us: int) -> Wait[None]:
        found: Wait[None] = Wait()
        self._world.after(us, lambda: found.set(None))
        return found

    async def first(self, one: Wait[Any], us: int) -> bool:
        """Until it has come, or so much time is over.  Whether it has come."""
        either: Wait[None] = Wait()
        one.then(lambda: either.set(None))
        self._world.after(max(us, 0), lambda: either.set(None))
        await either
        return one.is_over

    def end(self) -> None:
        """The process is no more."""
        running, self._running = self._running, {}
        for work in running.values():
            work.close()

    def _begin(self, work: Coroutine[Any, Any, Any], result: Wait[Any] | None) -> None:
        self._count += 1
        self._running[self._count] = work
        self._soon(self._count, result)

    def _soon(self, number: int, result: Wait[Any] | None) -> None:
        self._world.after(0, lambda: self._gate(lambda: self._step(number, result)))

    def _step(self, number: int, result: Wait[Any] | None) -> None:
        work = self._running.get(number)
        if work is None:
            return
        try:
            waits: Wait[Any] = work.send(None)
        except StopIteration as stop:
            del self._running[number]
            if result is not None:
                result.set(stop.value)
        except FsError as error:
            del self._running[number]
            if result is None:
                raise AssertionError(f"nobody waits for it: {error!r}") from error
            result.set(error)
        else:
            waits.then(lambda: self._soon(number, result))
