"""Tells whoever leads what this node keeps, once a second, as long as it runs.

A leader that does not answer is given up after a second, and the next one is looked for: what is
not reported for a few seconds counts as lost.
"""

import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, NamedTuple, Protocol

import trio

from mountfs.chunks.telling import Telling
from mountfs.errors import FsError
from mountfs.meta.reports import FSYNC, DiskReport, Report, ReportReply, VolumeReport

log = logging.getLogger(__name__)

EVERY_S: Final = 1.0
ROUND_S: Final = 2.5
"""To find who leads, and be answered; then it is tried anew."""
PATIENCE_S: Final = 5.0
"""An election is no trouble that anybody is to be told of."""


class Gathered(NamedTuple):
    """What there is to report; see `Report`."""

    disks: tuple[DiskReport, ...]
    volumes: Iterable[VolumeReport]
    """All of them."""
    busy: float = 0.0
    scrubbed: float = 0.0


class ToLeader(Protocol):
    """A way to whoever leads."""

    async def find(self) -> str:
        """Who that is: another word for each that leads, and whenever it has begun anew.

        Raises NOT_LEADER when nobody is known to.
        """
        ...

    async def report(self, report: Report) -> ReportReply:
        """To the one that was found.  Raises what it says, and UNAVAILABLE or the like when it does
        not answer; `find` looks for another one then.
        """
        ...


class Reporter:
    """`gather` may wait for a disk: as long as it does, nothing is reported."""

    def __init__(
        self,
        node: int,
        gather: Callable[[], Awaitable[Gathered]],
        leader: ToLeader,
        durability: str = FSYNC,
    ) -> None:
        self._gather = gather
        self._leader = leader
        self.durability = durability
        self._telling = Telling(node, int.from_bytes(os.urandom(7), "little"), durability)
        self.problem = "it has only just started"
        """Why the last report was not heard; empty: it was."""
        self.heard_at = -float("inf")
        """When one was, by Trio's clock."""
        self._silent_since: float | None = None
        self._said = False

    async def run(self) -> None:
        """Until cancelled."""
        self._silent_since = trio.current_time()
        while True:
            begun = trio.current_time()
            with trio.move_on_after(ROUND_S) as waited:
                await self._round()
            if waited.cancelled_caught:
                self._not_heard(
                    f"no answer from the leader, or from the disks here, within {ROUND_S:g} s"
                )
            await trio.sleep_until(max(begun + EVERY_S, trio.current_time()))

    async def _round(self) -> None:
        try:
            if await self._report():
                await self._report()  # now it gets all, if it does not know what there was before
        except FsError as error:
            self._not_heard(str(error))
        else:
            self._heard()

    async def _report(self) -> bool:
        """Returns whether the leader wants more."""
        leader = await self._leader.find()
        report = self._telling.next(leader, *await self._gather())
        try:
            reply = await self._leader.report(report)
        except BaseException:
            self._telling.failed()
            raise
        self._telling.answered(reply)
        return reply.wants_whole and not report.whole

    def _heard(self) -> None:
        self.problem, self.heard_at = "", trio.current_time()
        self._silent_since = None
        if self._said:
            log.info("the leader hears what this node keeps again")
        self._said = False

    def _not_heard(self, why: str) -> None:
        self.problem = why
        if self._silent_since is None:
            self._silent_since = trio.current_time()
        if not self._said and trio.current_time() - self._silent_since >= PATIENCE_S:
            log.warning("cannot tell the leader what this node keeps: %s", why)
            self._said = True
