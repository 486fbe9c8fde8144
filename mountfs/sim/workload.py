"""Clients of registers: each asks one thing after the other, asks again when it gets no answer, and
notes what it saw.
"""

from collections.abc import Callable

from mountfs.errors import FsError
from mountfs.raft.messages import NOBODY, NodeId
from mountfs.sim.history import Call
from mountfs.sim.register import Command, encode
from mountfs.sim.server import GONE, Server
from mountfs.sim.world import MS, World

PATIENCE_MS = (100, 300, 500)


class Client:
    """`ends`: when it begins nothing new."""

    def __init__(
        self,
        world: World,
        servers: dict[NodeId, Server],
        number: int,
        calls: dict[int, list[Call]],
        *,
        keys: int,
        pause_ms: int,
        ends: int,
        answered: Callable[[], None],
        reads: bool = False,
    ) -> None:
        self._world = world
        self._servers = servers
        self._number = number
        self._random = world.stream(f"client {number}")
        self._calls = calls
        self._keys = keys
        self._ends = ends
        self._answered = answered
        self._kinds = ("read",) * (6 if reads else 1) + ("write", "write", "compare")
        self._pause_ms = pause_ms
        self._patience = self._random.choice(PATIENCE_MS) * MS
        self._sequence = 0
        self._attempt = 0
        self._server = self._anyone()

    def start(self) -> None:
        self._world.after(self._random.randrange(20 * MS), self._next)

    def _anyone(self) -> NodeId:
        return self._random.choice(sorted(self._servers))

    def _next(self) -> None:
        if self._world.now >= self._ends:
            return
        if (nap := self._world.nap()) > 0:
            self._world.after(nap, self._next)
            return
        random = self._random
        self._sequence += 1
        if random.random() < 0.15:  # or all would wait for one that has just been replaced
            self._server = self._anyone()
        key = random.randrange(self._keys)
        kind = random.choice(self._kinds)
        value = self._number * 1_000_000 + self._sequence
        what: tuple[object, ...] = ("read",)
        if kind == "write":
            what = ("write", value)
        elif kind == "compare":
            # What somebody has written lately is there with some luck.
            known = [one.what[-1] for one in self._calls[key][-5:] if one.what[0] != "read"]
            what = ("compare", random.choice(known) if known else 0, value)
        call = Call(f"client {self._number}", what, self._world.now)
        self._calls[key].append(call)
        self._try(key, call)

    def _try(self, key: int, call: Call) -> None:
        self._attempt += 1
        attempt = self._attempt

        def answer(result: object) -> None:
            if attempt != self._attempt:
                return  # we asked somebody else meanwhile
            self._attempt += 1
            if isinstance(result, FsError):
                self._again(key, call, 20 * MS)
            else:
                self._finish(call, result)

        def patience_ends() -> None:
            if attempt == self._attempt:
                self._attempt += 1
                self._again(key, call, 0)

        server = self._servers[self._server]
        self._world.after(self._patience, patience_ends)
        if not server.up:
            answer(GONE)
        elif call.what[0] == "read":
            call.called = self._world.now  # earlier attempts had no effect
            server.when_running(f"reader {key}", lambda: server.read(key, answer))
        else:
            expected = call.what[1] if call.what[0] == "compare" else None
            command = Command(self._number, self._sequence, key, call.what[-1], expected)
            data = encode(command)
            server.when_running(f"client {self._number}", lambda: server.propose(data, answer))

    def _again(self, key: int, call: Call, delay: int) -> None:
        server = self._servers[self._server]
        hint = server.raft.leader if server.up else NOBODY
        good = hint in self._servers and self._random.random() < 0.8
        self._server = hint if good else self._anyone()
        self._world.after(delay, lambda: self._try(key, call))

    def _finish(self, call: Call, result: object) -> None:
        call.returned = self._world.now
        call.result = result
        self._answered()
        pause = int(self._random.expovariate(1 / (self._pause_ms * MS)))
        self._world.after(pause, self._next)
