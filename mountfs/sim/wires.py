"""Connections to chunkservers, and from them to whoever leads: late, cut, broken.

Whoever has one is named by a letter and a number: "m3" is mount 3, "n2" metaserver 2, "c5" the
chunkserver that is node 5.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from mountfs.chunks.protocol import Method
from mountfs.errors import Fault, FsError
from mountfs.sim.tasks import Wait
from mountfs.sim.world import MS, World


class Answering(Protocol):
    """A server."""

    life: int
    """Another one whenever it has started."""

    @property
    def up(self) -> bool: ...


class Wires:
    def __init__(self, world: World) -> None:
        self._world = world
        self.servers: Mapping[Any, Any] = {}
        """Chunkservers by their nodes."""
        self.metas: Mapping[Any, Any] = {}
        """Metaservers."""
        self.delay_us = MS // 2
        self.breaking = 0.0
        """How many requests end with a connection that breaks, before or after they arrive."""
        self.straggling = 0.0
        """How many arrive when nobody waits for them any more."""
        self.cut: set[tuple[str, str]] = set()
        """(source, target) pairs between which nothing passes."""

    def call(self, source: str, node: int, method: Method, body: bytes, us: int) -> Wait[bytes]:
        """The answer of a chunkserver; UNAVAILABLE if there is none within so many microseconds."""
        found: Wait[bytes] = Wait()

        def handle(server: Any, answer: Callable[[Any], None]) -> None:
            server.handle(method, body, answer)

        server = self.servers.get(node)
        self._carry(source, f"c{node}", server, handle, found, us)
        return found

    def tell(self, source: str, node: int, report: Any, us: int) -> Wait[Any]:
        """What a metaserver answers to a report."""
        found: Wait[Any] = Wait()

        def hear(meta: Any, answer: Callable[[Any], None]) -> None:
            meta.hear(report, answer)

        meta = self.metas.get(node)
        self._carry(source, f"n{node}", meta, hear, found, us)
        return found

    def _carry(
        self,
        source: str,
        target: str,
        server: Any,
        handle: Callable[[Any, Callable[[Any], None]], None],
        found: Wait[Any],
        us: int,
    ) -> None:
        world = self._world
        world.after(us, lambda: found.set(_silent(target)))
        delay = self._delay()
        if self.straggling and world.chance(self.straggling):
            delay *= 500
        breaks = world.random.random() if self.breaking else 1.0
        if breaks < self.breaking:
            world.after(delay, lambda: found.set(_gone(target)))
            if breaks < self.breaking / 2:
                return
        life = server.life if server is not None and server.up else 0

        def arrive() -> None:
            if (source, target) in self.cut:
                return
            if server is None or not server.up or server.life != life:
                back(_gone(target))
            else:
                handle(server, answer)

        def answer(result: Any) -> None:
            # A process that is no more answers nothing, and its connections end.
            back(result if server.up and server.life == life else _gone(target))

        def back(result: Any) -> None:
            if (target, source) not in self.cut:
                world.after(self._delay(), lambda: found.set(result))

        world.after(delay, arrive)

    def _delay(self) -> int:
        return int(self._world.random.expovariate(1 / self.delay_us)) + 50

    def separate(self, some: set[str], others: set[str]) -> None:
        """Nothing passes between these, either way."""
        for one in some:
            for other in others:
                if one != other:
                    self.cut |= {(one, other), (other, one)}


def _silent(target: str) -> FsError:
    return FsError(Fault.UNAVAILABLE, f"{target}: no answer in time")


def _gone(target: str) -> FsError:
    return FsError(Fault.UNAVAILABLE, f"{target}: the connection is gone")
