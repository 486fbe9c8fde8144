"""To which replica a read goes, and when it goes to another one as well.

Who wants bytes asks one server.  When that has not answered in the time in which it answers 95 of
100 reads, another is asked too; the first good answer wins, and the others are cancelled.  So what
a server is slow at now and then costs the reader little.  It costs the servers at most
`extra_share` more reads: each read puts so much into a bucket, and each extra read takes 1 from it.
When nothing is left, nobody is hedged: a cluster that is slow as a whole is not made slower.

Whom to ask at all, and for how long to wait, is told by what reads before have shown (`health`).

No I/O and no clock: `now` is ms of a clock that does not go back.  The shell asks `first`, asks
whom `hedge` names once that is `due`, and says what has become of it.
"""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, Final

from mountfs.chunks.config import HedgeConfig
from mountfs.chunks.health import BUSY, FAR, SLOW, Health, Lane, Rank
from mountfs.types import KIB

SMALL_BYTES: Final = 64 * KIB
"""Up to this size a read takes as long as it takes to ask; above, as its bytes take."""


class Hedges:
    """What all reads of one client share.  Counters are since it began."""

    def __init__(self, config: HedgeConfig) -> None:
        self.config = config
        self.health = Health(config)
        self.tokens = config.burst
        """Extra reads that may be made now.  Invariant: 0 <= tokens <= burst."""
        self.reads = 0
        self.hedges = 0
        """Extra reads."""
        self.won = 0
        """Of them, those that were answered first."""
        self.cancelled = 0
        """What was asked of servers and was not needed any more, as another one had answered."""
        self.denied = 0
        """Reads that were not hedged when it was time, because too many were."""
        self.failovers = 0

    def read(
        self, nodes: Sequence[int], size_bytes: int, near: Mapping[int, int], now: float
    ) -> "Read":
        """Begin a read of so many bytes, which all `nodes` have: at least one, each once.  `near`
        says how far they are: 0, 1 or FAR.

        Where nothing speaks for another order theirs is kept.  So a slice that is always named with
        the same order is always read of the same server, which then has it in memory; it is for the
        caller to spread slices over servers by it.
        """
        config, health = self.config, self.health
        self.reads += 1
        tokens = self.tokens + config.extra_share
        self.tokens = tokens if tokens < config.burst else config.burst

        known = self._kind(size_bytes)
        lanes = {}
        wanted = best = None
        nearest = best_ms = inf
        for node in nodes:
            lane = known.get(node) or health.meet(node, known, now)
            if now >= lane.fades_at:
                lane.fade(now)
            if 0 < lane.cost_ms < best_ms and not lane.peer.on_probation:
                best, best_ms = lane, lane.cost_ms
            if (distance := near.get(node, FAR)) < nearest:
                wanted, nearest = lane, distance
            lanes[node] = lane
        assert wanted is not None, "nobody has it"

        read = Read(self, lanes, near, best or wanted)
        if not health.on_probation and not wanted.rank(SLOW * best_ms + config.floor_ms, now):
            read.begin(wanted, now)  # as nearly always
            return read
        ranked = health.ranked(list(lanes.values()), near, now)
        rank, lane = ranked[0]
        tried = None
        # With half of the bucket there is enough for another one to be asked soon.
        if 2 * self.tokens >= config.burst or rank or lane.under_way > BUSY:
            tried = health.to_try(wanted, ranked, now)
        read.begin(tried or lane, now, tried=tried is not None)
        return read

    def order(
        self, nodes: Sequence[int], size_bytes: int, near: Mapping[int, int], now: float
    ) -> list[int]:
        """Whom to ask first, and next if need be, when something else is read of them."""
        known = self._kind(size_bytes)
        lanes = [known.get(node) or self.health.meet(node, known, now) for node in nodes]
        for lane in lanes:
            if now >= lane.fades_at:
                lane.fade(now)
        return [lane.node for _, lane in self.health.ranked(lanes, near, now)]

    def _kind(self, size_bytes: int) -> dict[int, Lane]:
        return self.health.large if size_bytes > SMALL_BYTES else self.health.small

    def told(self) -> dict[str, Any]:
        """For `mountfs stats`."""
        return {
            "reads": self.reads,
            "hedges": self.hedges,
            "hedges_won": self.won,
            "cancelled": self.cancelled,
            "denied": self.denied,
            "failovers": self.failovers,
            "probations": self.health.probations,
            "nodes": self.health.told(),
        }


class Read:
    """One read, from `Hedges.read`.

    It has to end, in one of three ways: with `answered`, with `given_up`, or with `failed` when
    that leaves nobody `under_way`.  What is said of it afterwards, by an answer that had been on
    its way, changes nothing.
    """

    __slots__ = (
        "_asked",
        "_best",
        "_denied",
        "_hedged",
        "_hedges",
        "_lanes",
        "_near",
        "_slept",
        "_tried",
        "_wait_ms",
        "due",
        "first",
        "over",
    )

    first: int
    """Whom to ask at the beginning."""
    due: float | None
    """When to call `hedge`; None: not before something else happens.  Any call may change it."""
    over: bool

    def __init__(
        self, hedges: Hedges, lanes: Mapping[int, Lane], near: Mapping[int, int], best: Lane
    ) -> None:
        self._hedges = hedges
        self._lanes = lanes
        """Those that have the bytes, in the order of the caller."""
        self._near = near
        self._best = best
        """The quickest of them."""
        self._asked: dict[int, float | None] = {}
        """When; None: it has failed.  Nobody is asked twice."""
        self._hedged: tuple[int, ...] = ()
        """Who was asked while another one was."""
        self._denied = self._slept = self._tried = self.over = False

    def begin(self, first: Lane, now: float, *, tried: bool = False) -> None:
        """`tried`: to find out whether it is well again."""
        self.first = first.node
        if tried:
            self._tried = True
            self._hedges.health.trying(first.peer, now)
        self._ask(first, now)

    @property
    def under_way(self) -> list[int]:
        """Those that are asked and have not answered."""
        if self.over:
            return []
        return [node for node, asked in self._asked.items() if asked is not None]

    def _ask(self, lane: Lane, now: float) -> None:
        lane.begin(now)
        self._asked[lane.node] = now
        config = self._hedges.config
        wait_ms = lane.wait_ms
        best = self._best
        if best.early_ms < wait_ms:
            wait_ms = best.early_ms
        scarce = 1 - 2 * self._hedges.tokens / config.burst
        if scarce > 0:  # spend it on those that take longest
            wait_ms = min(wait_ms * (1 + scarce), config.ceiling_ms)
        self._wait_ms = wait_ms
        if len(self._asked) == len(self._lanes) or not config.enabled:
            self.due = None
        else:
            self.due = now + wait_ms

    def hedge(self, now: float) -> int | None:
        """Whom to ask as well.  None: nobody, for now; `due` says whether to call again."""
        if self.over or self.due is None or now < self.due:
            return None
        hedges = self._hedges
        config = hedges.config
        if now - self.due > config.floor_ms and not self._slept:
            # It is us who were not there, and what has come meanwhile may still wait to be read.
            self._slept = True
            self.due = now + config.floor_ms
            return None
        if hedges.tokens < 1:
            hedges.denied += not self._denied
            self._denied = True
        lane = self._another(now) if hedges.tokens >= 1 else None
        if lane is None:
            self._wait_ms = min(2 * self._wait_ms, config.ceiling_ms)
            self.due = now + self._wait_ms
            return None
        hedges.tokens -= 1
        hedges.hedges += 1
        self._hedged += (lane.node,)
        self._ask(lane, now)
        return lane.node

    def _another(self, now: float) -> Lane | None:
        """Who is likely to answer sooner; or one that is on probation, if it is time to try it."""
        rank, lane = self._left(now)[0]
        if rank <= Rank.SLOW:
            return lane
        health = self._hedges.health
        if rank is Rank.SILENT or not health.may_try(lane, now):
            return None
        health.trying(lane.peer, now)
        return lane

    def _left(self, now: float) -> list[tuple[Rank, Lane]]:
        left = [lane for node, lane in self._lanes.items() if node not in self._asked]
        return self._hedges.health.ranked(left, self._near, now)

    def failed(self, node: int, now: float) -> int | None:
        """`node` cannot answer.  Whom to ask at once; None: nobody, so wait for who is `under_way`,
        or give up if that is nobody.
        """
        if self.over:
            return None
        assert self._asked[node] is not None, "it has failed before"
        self._asked[node] = None
        lane = self._lanes[node]
        lane.end()
        self._hedges.health.lost(lane.peer, now)
        if self.under_way:
            return None
        left = self._left(now)
        if not left:
            self.over = True
            self.due = None
            return None
        self._hedges.failovers += 1
        self._ask(left[0][1], now)
        return left[0][1].node

    def answered(self, node: int, now: float) -> list[int]:
        """`node` has answered, and well.  Returns those whose answers are not needed any more."""
        if self.over:
            return []
        asked = self._asked[node]
        assert asked is not None, "it has failed before"
        self.over = True
        self.due = None
        lane = self._lanes[node]
        took_ms = now - asked
        lane.answered(took_ms, now)
        if lane.peer.on_probation or (self._tried and node == self.first):
            others = (other for other in self._lanes.values() if other is not lane)
            self._hedges.health.tried(lane, took_ms, others)
        if len(self._asked) == 1:
            return []
        return self._beaten(node, asked, now)

    def _beaten(self, winner: int, winner_asked: float, now: float) -> list[int]:
        hedges = self._hedges
        hedges.won += winner in self._hedged
        beaten = []
        for node, asked in self._asked.items():
            if asked is None or node == winner:
                continue
            beaten.append(node)
            lane = self._lanes[node]
            lane.let_go(now - asked)
            if asked < winner_asked:  # it had more time
                hedges.health.lost(lane.peer, now)
        hedges.cancelled += len(beaten)
        return beaten

    def given_up(self, now: float) -> list[int]:
        """Nobody waits for it any more.  Returns those that are still asked."""
        under_way = self.under_way
        for node in under_way:
            asked = self._asked[node]
            assert asked is not None, node
            lane = self._lanes[node]
            lane.let_go(now - asked)
        self.over = True
        self.due = None
        return under_way
