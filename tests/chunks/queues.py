"""Servers with queues and a client that hedges, on a clock of their own: what reads take."""

import heapq
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import count, permutations
from random import Random
from typing import Final

from mountfs.chunks.config import HedgeConfig
from mountfs.chunks.hedge import Hedges, Read
from mountfs.types import KIB

NODES: Final = (1, 2, 3)
READERS: Final = 8
"""Requests that a server works at at a time; the others wait."""

Trouble = Callable[[Random], float]
"""How many ms more a request takes."""
SILENT: Final = float("inf")


def well(random: Random) -> float:
    return 0.0


def sometimes(share: float, ms: float) -> Trouble:
    return lambda random: ms if random.random() < share else 0.0


def always(ms: float) -> Trouble:
    return lambda random: ms


class Request:
    def __init__(self, node: int, takes_ms: float, done: Callable[[], None]) -> None:
        self.node = node
        self.takes_ms = takes_ms
        self.done = done
        self.wanted = True
        """It was not cancelled."""


class Server:
    """A request that is cancelled is not begun; one that has begun is carried through."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.queue: deque[Request] = deque()
        self.busy = 0

    def ask(self, request: Request) -> None:
        self.queue.append(request)
        self._work()

    def _work(self) -> None:
        while self.queue and self.busy < READERS:
            request = self.queue.popleft()
            if request.wanted and request.takes_ms != SILENT:
                self.busy += 1
                self.world.after(request.takes_ms, lambda request=request: self._end(request))

    def _end(self, request: Request) -> None:
        self.busy -= 1
        if request.wanted:
            request.done()
        self._work()


class World:
    def __init__(
        self,
        config: HedgeConfig | None = None,
        *,
        seed: int = 1,
        per_ms: float = 1.0,
        usual_ms: float = 1.0,
        near: Mapping[int, int] | None = None,
        patience_ms: float = 2_000.0,
    ) -> None:
        self.random = Random(seed)
        self.hedges = Hedges(config or HedgeConfig())
        self.now = 0.0
        self.per_ms = per_ms
        """Reads that begin."""
        self.usual_ms = usual_ms
        self.near = near or {}
        self.patience_ms = patience_ms
        """A server that is silent for so long is gone: what the shell says then is `failed`."""
        self.trouble: dict[int, Trouble] = dict.fromkeys(NODES, well)
        self.servers = {node: Server(self) for node in NODES}
        self.took_ms: list[float] = []
        """Of each read that was answered."""
        self.asked: dict[int, int] = dict.fromkeys(NODES, 0)
        self.under_way = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def after(self, ms: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + ms, next(self._order), event))

    def run(self, reads: int) -> None:
        """So many more, and what they take and asked is of them."""
        self.took_ms = []
        self.asked = dict.fromkeys(NODES, 0)
        at = 0.0
        for _ in range(reads):
            at += self.random.expovariate(self.per_ms)
            self.after(at, self._read)
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            event()
        assert self.under_way == 0
        assert len(self.took_ms) == reads

    def _read(self) -> None:
        nodes = self.random.choice(list(permutations(NODES)))
        read = self.hedges.read(nodes, 4 * KIB, self.near, self.now)
        _Client(self, read).begin()

    def quantile(self, share: float) -> float:
        return sorted(self.took_ms)[int(share * len(self.took_ms))]

    def share_of(self, node: int) -> float:
        return self.asked[node] / sum(self.asked.values())


class _Client:
    """What the shell does for one read."""

    def __init__(self, world: World, read: Read) -> None:
        self.world = world
        self.read = read
        self.began = world.now
        self.requests: dict[int, Request] = {}

    def begin(self) -> None:
        self.world.under_way += 1
        self._ask(self.read.first)

    def _ask(self, node: int) -> None:
        world = self.world
        assert node not in self.requests
        takes_ms = world.usual_ms * world.random.lognormvariate(0, 0.5)
        takes_ms += world.trouble[node](world.random)
        request = Request(node, takes_ms, lambda: self._answered(node))
        self.requests[node] = request
        world.asked[node] += 1
        world.servers[node].ask(request)
        world.after(world.patience_ms, lambda: self._out_of_patience(node))
        self._set_alarm()

    def _set_alarm(self) -> None:
        if (due := self.read.due) is not None:
            self.world.after(due - self.world.now, lambda: self._hedge(due))

    def _hedge(self, due: float) -> None:
        if self.read.due != due:
            return
        node = self.read.hedge(self.world.now)
        if node is not None:
            self._ask(node)
        else:
            self._set_alarm()

    def _answered(self, node: int) -> None:
        for beaten in self.read.answered(node, self.world.now):
            self.requests[beaten].wanted = False
        self._end()

    def _out_of_patience(self, node: int) -> None:
        if not self.requests[node].wanted or self.read.over:
            return
        self.requests[node].wanted = False
        other = self.read.failed(node, self.world.now)
        if other is not None:
            self._ask(other)
        elif self.read.over:
            self._end()

    def _end(self) -> None:
        self.world.under_way -= 1
        self.world.took_ms.append(self.world.now - self.began)


