"""Which servers are well, and so who is asked first: what their reads have told.

Three things keep reads away from a server:
- it is *slow*, for the kind of read in question, if it takes twice as long as the best of those
  that have the bytes: others are asked first, however near it is.
- it is *silent* if something is asked of it and nothing has come for several times as long as it
  usually takes.  That needs no second server to be found out.
- it is *on probation* when it has lost too many of its last reads: another server, asked later,
  was quicker, or it has failed.
The first read that may, `probe_ms` after the last, finds out whether it has recovered.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from math import inf
from typing import Any, Final

from mountfs.chunks.config import HedgeConfig
from mountfs.chunks.latency import Latency

FAR: Final = 2
"""How far a node is of which nothing is said.  0: this machine; 1: this rack."""

FEW: Final = 8
"""Of so few samples nobody can say what 95 of 100 are."""
EARLY: Final = 4.0
"""Who has waited for so many times what the best server needs for half of its reads has waited long
enough.  It is for servers of which more than 5 of 100 reads hang: their 95th percentile says only
for how long.
"""
SLOW: Final = 2.0
BUSY: Final = 8
"""With more reads under way a server is thought to take longer in proportion.  Else all reads would
go to the one that is a little quicker, until its figures say that it no longer is.
"""
OVERWHELMED: Final = 4 * BUSY
"""With more reads under way a server is no better than one that is on probation, of which one read
at a time finds out at once whether it is well.
"""
SILENT: Final = 4.0
"""Times as long as it is waited for before another is asked."""
MEMORY: Final = 16
"""Of about so many reads it is remembered whether they were lost."""
RECOVERED: Final = 3
"""Good answers, one after the other."""


class Rank(IntEnum):
    """Who is asked first."""

    WELL = 0
    SLOW = 1
    SILENT = 2
    ON_PROBATION = 3


class Peer:
    """A server, as a whole."""

    __slots__ = ("good", "lanes", "lost_share", "on_probation", "probe_at")

    def __init__(self) -> None:
        self.lanes: list[Lane] = []
        self.lost_share = 0.0
        """Of the last MEMORY reads or so, those that another one answered, or that failed."""
        self.on_probation = False
        self.good = 0
        """Answers in a row that were as quick as those of others, while it is not well."""
        self.probe_at = -inf
        """It is not tried before."""


class Lane:
    """A server, for reads of one kind."""

    __slots__ = (
        "_config",
        "cost_ms",
        "early_ms",
        "fades_at",
        "latency",
        "node",
        "peer",
        "silent_at",
        "under_way",
        "wait_ms",
    )

    def __init__(self, node: int, peer: Peer, config: HedgeConfig, now: float) -> None:
        self.node = node
        self.peer = peer
        self.latency = Latency(config.window, config.fade_ms, now)
        self.under_way = 0
        """Reads that are not answered yet."""
        self.silent_at = inf
        """When it counts as silent, if something is under way and nothing is answered."""
        self._config = config
        self.update()

    def update(self) -> None:
        """The figures have changed."""
        config, latency = self._config, self.latency
        self.weigh()
        self.fades_at = latency.fades_at
        wait_ms, early_ms = latency.p95_ms, EARLY * latency.p50_ms
        if latency.samples < FEW:
            wait_ms = max(wait_ms, (config.floor_ms * config.ceiling_ms) ** 0.5)  # a guess
        if not early_ms:
            early_ms = wait_ms
        self.wait_ms = min(max(wait_ms, config.floor_ms), config.ceiling_ms)
        """Who reads waits for so long before another server is asked."""
        self.early_ms = min(max(early_ms, config.floor_ms), config.ceiling_ms)
        """Or for so long, whoever was asked, when this server has the bytes too."""

    def weigh(self) -> None:
        """The figures have changed, or it is busy."""
        cost_ms = self.latency.mean_ms
        if self.under_way > BUSY:
            cost_ms *= self.under_way / BUSY
        self.cost_ms = cost_ms
        """What is expected of the next read; 0 when nothing is known."""

    def begin(self, now: float) -> None:
        if not self.under_way:
            self.silent_at = now + SILENT * self.wait_ms
        self.under_way += 1
        if self.under_way > BUSY:
            self.weigh()

    def end(self) -> None:
        if self.under_way > BUSY:
            self.under_way -= 1
            self.weigh()
        else:
            self.under_way -= 1

    def answered(self, took_ms: float, now: float) -> None:
        self.end()
        self.silent_at = now + SILENT * self.wait_ms
        self.note(took_ms)
        peer = self.peer
        if peer.lost_share:
            peer.lost_share -= peer.lost_share / MEMORY

    def let_go(self, after_ms: float) -> None:
        """It was asked, and is no longer waited for."""
        self.end()
        self.note(after_ms, answered=False)

    def note(self, took_ms: float, *, answered: bool = True) -> None:
        if self.latency.note(took_ms, answered=answered):
            self.update()

    def fade(self, now: float) -> None:
        self.latency.fade(now)
        self.update()

    def rank(self, slow_ms: float, now: float) -> Rank:
        if self.peer.on_probation:
            return Rank.ON_PROBATION
        if self.under_way:
            if now > self.silent_at:
                return Rank.SILENT
            if not self.cost_ms:  # it has never answered: one read finds out
                return Rank.SLOW
        return Rank.SLOW if self.cost_ms > slow_ms else Rank.WELL


class Health:
    """Of all servers, as one client sees them."""

    def __init__(self, config: HedgeConfig) -> None:
        self._config = config
        self._peers: dict[int, Peer] = {}
        self.small: dict[int, Lane] = {}
        self.large: dict[int, Lane] = {}
        self.on_probation = 0
        """How many are."""
        self.probations = 0
        """How often one was put there."""

    def meet(self, node: int, lanes: dict[int, Lane], now: float) -> Lane:
        """The first read of this kind; `lanes` are `small` or `large`."""
        peer = self._peers.setdefault(node, Peer())
        lane = lanes[node] = Lane(node, peer, self._config, now)
        peer.lanes.append(lane)
        return lane

    def ranked(
        self, lanes: Sequence[Lane], near: Mapping[int, int], now: float
    ) -> list[tuple[Rank, Lane]]:
        """Whom to ask first, and next if need be.  Of those that are as well and as near the order
        is kept.
        """
        slow_ms = self.slow_ms(lanes)

        def place(ranked: tuple[Rank, Lane]) -> tuple[int, float]:
            rank, lane = ranked
            return rank, lane.cost_ms if rank is Rank.SLOW else near.get(lane.node, FAR)

        return sorted(((lane.rank(slow_ms, now), lane) for lane in lanes), key=place)

    def slow_ms(self, lanes: Iterable[Lane]) -> float:
        """Who takes longer than this is slow beside them."""
        known = (lane.cost_ms for lane in lanes if lane.cost_ms and not lane.peer.on_probation)
        return SLOW * min(known, default=inf) + self._config.floor_ms

    def to_try(self, wanted: Lane, ranked: Sequence[tuple[Rank, Lane]], now: float) -> Lane | None:
        """One that is not well, if it is time to find out whether it still is not.  `wanted` would
        be the first if it was; of those that are only slow, no other matters.
        """
        overwhelmed = ranked[0][1].under_way > OVERWHELMED
        for rank, lane in ranked[1:]:
            sick = rank is Rank.ON_PROBATION or (rank is Rank.SLOW and lane is wanted)
            if sick and (self.may_try(lane, now) or (overwhelmed and not lane.under_way)):
                return lane
        return None

    def may_try(self, lane: Lane, now: float) -> bool:
        return not lane.under_way and now >= lane.peer.probe_at

    def trying(self, peer: Peer, now: float) -> None:
        peer.probe_at = now + self._config.probe_ms

    def lost(self, peer: Peer, now: float) -> None:
        """A later one was quicker, or it has failed."""
        peer.good = 0
        peer.lost_share += (1 - peer.lost_share) / MEMORY
        if peer.lost_share > self._config.probation_share and not peer.on_probation:
            peer.on_probation = True
            self.trying(peer, now)
            self.on_probation += 1
            self.probations += 1

    def tried(self, lane: Lane, took_ms: float, others: Iterable[Lane]) -> None:
        """One that was not well has answered.  Several times as quickly as the others, and it is as
        good as new.
        """
        peer = lane.peer
        if took_ms > self.slow_ms(others):
            peer.good = 0
            return
        peer.good += 1
        if peer.good < RECOVERED:
            return
        peer.good = 0
        peer.lost_share = 0.0
        self.on_probation -= peer.on_probation
        peer.on_probation = False
        for each in peer.lanes:
            each.latency.forget()
            each.update()
        lane.note(took_ms)

    def told(self) -> dict[int, dict[str, Any]]:
        """By node, for `mountfs stats`."""
        return {
            node: {
                "on_probation": peer.on_probation,
                "small": _told(self.small.get(node)),
                "large": _told(self.large.get(node)),
            }
            for node, peer in sorted(self._peers.items())
        }


def _told(lane: Lane | None) -> dict[str, float] | None:
    """None: nothing is known."""
    if lane is None or not lane.latency.samples:
        return None
    latency = lane.latency
    return {
        "samples": round(latency.samples),
        "p50_ms": round(latency.p50_ms, 3),
        "p95_ms": round(latency.p95_ms, 3),
        "under_way": lane.under_way,
    }
