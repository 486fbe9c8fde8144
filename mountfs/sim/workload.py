"""Clients: each asks one thing after the other, asks again when it gets no answer, and notes what
it saw.
"""

from collections.abc import Callable

from mountfs.raft.messages import NOBODY, NodeId
from mountfs.sim.history import Operation
from mountfs.sim.register import Command
from mountfs.sim.server import Server
from mountfs.sim.world import MS, World

PATIENCE_MS = (100, 300, 500)


class Client:
    """`ends`: when it begins nothing new."""

    def __init__(
        self,
        world: World,
        servers: dict[NodeId, Server],
        number: int,
        history: list[Operation],
        *,
        keys: int,
        ends: int,
        answered: Callable[[], None],
        reads: bool = False,
    ) -> None:
        self._world = world
        self._servers = servers
        self._number = number
        self._history = history
        self._keys = keys
        self._ends = ends
        self._answered = answered
        self._kinds = ("read",) * (6 if reads else 1) + ("write", "write", "compare")
        self._patience = world.random.choice(PATIENCE_MS) * MS
        self._sequence = 0
        self._attempt = 0
        self._server = self._anyone()

    def start(self) -> None:
        self._world.after(self._world.random.randrange(20 * MS), self._next)

    def _anyone(self) -> NodeId:
        return self._world.random.choice(sorted(self._servers))

    def _next(self) -> None:
        world = self._world
        if world.now >= self._ends:
            return
        self._sequence += 1
        if world.chance(0.15):  # or all would wait for one that has just been replaced
            self._server = self._anyone()
        key = world.random.randrange(self._keys)
        kind = world.random.choice(self._kinds)
        expected = None
        if kind == "compare":
            known = [one.value for one in self._history[-20:] if one.key == key]
            expected = world.random.choice(known) if known else 0
        value = 0 if kind == "read" else self._number * 1_000_000 + self._sequence
        operation = Operation(self._number, key, kind, value, expected, world.now)
        self._history.append(operation)
        self._try(operation)

    def _try(self, operation: Operation) -> None:
        self._attempt += 1
        attempt = self._attempt

        def answer(result: bool | int | None, known: bool) -> None:
            if attempt != self._attempt:
                return  # we asked somebody else meanwhile
            if result is None:
                self._attempt += 1
                self._again(operation, 20 * MS)
            else:
                self._attempt += 1
                self._finish(operation, result)

        def patience_ends() -> None:
            if attempt == self._attempt:
                self._attempt += 1
                self._again(operation, 0)

        if operation.kind == "read":
            operation.called = self._world.now  # earlier attempts had no effect
        server = self._servers[self._server]
        self._world.after(self._patience, patience_ends)
        if operation.kind == "read":
            server.read(operation.key, answer)
        else:
            server.propose(
                Command(
                    self._number,
                    self._sequence,
                    operation.key,
                    operation.value,
                    operation.expected,
                ),
                answer,
            )

    def _again(self, operation: Operation, delay: int) -> None:
        server = self._servers[self._server]
        hint = server.raft.leader if server.up else NOBODY
        self._server = hint if hint in self._servers and self._world.chance(0.8) else self._anyone()
        self._world.after(delay, lambda: self._try(operation))

    def _finish(self, operation: Operation, result: bool | int) -> None:
        operation.returned = self._world.now
        if operation.kind == "read":
            operation.value = int(result)
        elif operation.kind == "compare":
            operation.acted = bool(result)
        self._answered()
        pause = int(self._world.random.expovariate(1 / (30 * MS)))
        self._world.after(pause, self._next)
