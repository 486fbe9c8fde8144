"""What reads take when servers are not well: servers with queues, and a client that hedges, on a
clock of their own and from one seed.
"""

import heapq
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from functools import cache, partial
from itertools import count, permutations
from random import Random
from typing import Any, Final

import pytest

from mountfs.chunks.config import HedgeConfig
from mountfs.chunks.hedge import Hedges, Read
from mountfs.types import KIB

NODES: Final = (1, 2, 3)
ORDERS: Final = list(permutations(NODES))
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
                self.world.after(request.takes_ms, partial(self._end, request))

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
        nodes = self.random.choice(ORDERS)
        read = self.hedges.read(nodes, 4 * KIB, self.near, self.now)
        _Client(self, read).begin()

    @property
    def p99_ms(self) -> float:
        return sorted(self.took_ms)[int(0.99 * len(self.took_ms))]

    @property
    def extra_share(self) -> float:
        """Extra reads, of the reads of this run."""
        return sum(self.asked.values()) / len(self.took_ms) - 1

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


OFF: Final = HedgeConfig(enabled=False)
READS: Final = 2_500
WARM_UP: Final = 1_000
SLOWLY: Final = 0.01
"""Reads in a ms: what is learned fades before much has been seen."""


def world(config: HedgeConfig | None = None, **how: Any) -> World:
    """One in which all is well and known."""
    found = World(config, **how)
    found.run(WARM_UP)
    return found


@cache
def healthy_p99_ms(per_ms: float = 1.0) -> float:
    found = world(OFF, per_ms=per_ms)
    found.run(READS)
    return found.p99_ms


def test_servers_that_are_well_are_read_alike_and_hedging_does_no_harm() -> None:
    found = world()
    found.run(READS)
    assert found.p99_ms <= 1.05 * healthy_p99_ms()
    assert found.extra_share <= 0.05
    for node in NODES:
        assert 0.28 < found.share_of(node) < 0.39
    assert found.hedges.health.probations == 0


@pytest.mark.parametrize("per_ms", [1.0, SLOWLY])
def test_a_server_that_is_slow_now_and_then_is_not_noticed(per_ms: float) -> None:
    found = world(per_ms=per_ms)
    found.trouble[3] = sometimes(0.05, 200)
    for _ in range(3):
        found.run(READS)
        assert found.p99_ms <= 2 * healthy_p99_ms(per_ms=per_ms)
    assert found.hedges.hedges <= 0.05 * found.hedges.reads


@pytest.mark.parametrize("per_ms", [1.0, SLOWLY])
def test_nor_much_if_it_is_the_nearest_and_so_all_that_may_be_hedged_is(per_ms: float) -> None:
    found = world(per_ms=per_ms, near={3: 0})
    found.trouble[3] = sometimes(0.05, 200)
    for _ in range(3):
        found.run(READS)
        assert found.p99_ms <= 4 * healthy_p99_ms(per_ms=per_ms)
    assert found.hedges.hedges <= 0.05 * found.hedges.reads + 20


def test_without_hedging_it_is_noticed() -> None:
    found = world(OFF, per_ms=SLOWLY)
    found.trouble[3] = sometimes(0.05, 200)
    found.run(READS)
    assert found.p99_ms > 100


@pytest.mark.parametrize("near", [{}, {3: 0}], ids=["anywhere", "the nearest"])
@pytest.mark.parametrize("trouble", [always(50), always(SILENT)], ids=["slow", "silent"])
@pytest.mark.parametrize("per_ms", [8.0, 1.0, SLOWLY])
def test_a_server_that_is_slow_or_silent_is_hardly_asked_any_more(
    per_ms: float, trouble: Trouble, near: dict[int, int]
) -> None:
    found = world(per_ms=per_ms, near=near)
    found.trouble[3] = trouble
    found.run(READS)
    assert found.share_of(3) < 0.03
    assert found.p99_ms <= 2 * healthy_p99_ms(per_ms=per_ms)
    found.run(READS)
    assert found.share_of(3) < 0.03
    assert found.p99_ms <= 2 * healthy_p99_ms(per_ms=per_ms)
    assert found.extra_share <= 0.06


@pytest.mark.parametrize("trouble", [always(50), always(SILENT)], ids=["slow", "silent"])
def test_one_that_is_well_is_enough(trouble: Trouble) -> None:
    found = world()
    found.trouble[2] = found.trouble[3] = trouble
    found.run(READS)
    assert found.p99_ms <= 2 * healthy_p99_ms()
    assert found.share_of(1) > 0.95


@pytest.mark.parametrize("trouble", [always(50), always(SILENT)], ids=["slow", "silent"])
def test_a_server_that_is_well_again_is_read_again(trouble: Trouble) -> None:
    found = world()
    found.trouble[3] = trouble
    found.run(READS)
    found.trouble[3] = well
    found.run(2 * READS)
    found.run(READS)
    assert 0.28 < found.share_of(3) < 0.39
    assert found.hedges.health.on_probation == 0


def test_when_all_are_slow_there_are_no_more_reads_than_before() -> None:
    found = world()
    found.usual_ms = 12
    hedges, reads = found.hedges.hedges, found.hedges.reads
    found.run(READS)
    assert found.hedges.hedges - hedges <= 0.05 * (found.hedges.reads - reads) + 20
    found.run(READS)
    slow = world(OFF, usual_ms=12)
    slow.run(READS)
    assert found.p99_ms <= 1.1 * slow.p99_ms


def test_when_all_are_slow_now_and_then_nobody_is_overrun() -> None:
    """Whom all others avoid has more to do: it must not drown while they are idle."""
    found = world()
    found.trouble = dict.fromkeys(NODES, sometimes(0.05, 200))
    for _ in range(4):
        found.run(READS)
        assert statistics.median(found.took_ms) < 2
        assert found.p99_ms < 250
        assert found.hedges.hedges <= 0.05 * found.hedges.reads + 20


def test_what_hangs_costs_no_more_than_patience_where_nobody_may_be_hedged() -> None:
    found = world(HedgeConfig(extra_share=0, burst=2), patience_ms=500)
    found.trouble[3] = always(SILENT)
    found.run(READS)
    assert max(found.took_ms) < 510
    assert found.share_of(3) < 0.03
