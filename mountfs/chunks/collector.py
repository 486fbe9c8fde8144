"""The leader looks, volume by volume, whether the nodes have what files refer to, and nothing else.

A slice that was written and never committed (its client died, or it went into another volume) is
garbage that nobody has noted.  It is found here, and deleted by order of the leader, once the
metadata has closed its name (`CloseSlices`): then no file can come to refer to it.
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec
import trio

from mountfs.chunks.comparison import LAST, compare
from mountfs.chunks.orders import Orders
from mountfs.chunks.protocol import LIST_MAX
from mountfs.errors import Fault, FsError
from mountfs.meta.ops.volumes import (
    CloseSlices,
    ForgetVolume,
    ListVolumes,
    UsedSlices,
    VolumeRecord,
)
from mountfs.meta.server import MetaServer
from mountfs.types import FIRST_REPLICATED, SliceId, VolumeId

log = logging.getLogger(__name__)

GRACE_S: Final = 3600.0
"""A slice that no file refers to is left alone for so long."""
MARK_S: Final = 30.0
ROUND_S: Final = 6 * 3600.0
"""What all volumes take together, if they are not looked at faster than one in `PAUSE_S`."""
PAUSE_S: Final = 0.5
PAGE: Final = LIST_MAX
DELETED_AT_ONCE: Final = 1_000


class Figures(msgspec.Struct):
    """For `mountfs gc`."""

    rounds: int = 0
    """Times that all volumes were looked at."""
    looked: int = 0
    """Volumes in this round."""
    orphans: int = 0
    """Found and deleted, since this node leads."""
    missing: int = 0
    """Slices that a node should have and has not."""
    forgotten: int = 0
    """Volumes in which nothing was in use."""
    closed: int = 0
    """Names below it that nobody refers to are garbage."""
    finished_at: float = 0.0
    """When the last round ended, in seconds since 1970."""


class Collector:
    """`differs` is told of a volume that lacks slices at a node."""

    def __init__(
        self,
        server: MetaServer,
        orders: Orders,
        differs: Callable[[VolumeId, int], None],
        *,
        grace_s: float = GRACE_S,
        round_s: float = ROUND_S,
    ) -> None:
        self._server = server
        self._orders = orders
        self._differs = differs
        self.grace_s = grace_s
        self.round_s = round_s
        self._marks: deque[tuple[float, SliceId]] = deque()
        """(when, the next name then), the oldest first."""
        self._after = VolumeId(0)
        self._unused: dict[VolumeId, float] = {}
        """Sealed volumes with nothing in use, and when that was first seen."""
        self._hurried = False
        self._held_up = False
        """The last step could not be done."""
        self._wake = trio.Event()
        self.figures = Figures()

    def hurry(self) -> None:
        """Begin a round now, and look at one volume after the other until it ends."""
        self._after = VolumeId(0)
        self.figures.looked = 0
        self._hurried = True
        self._wake.set()

    async def run(self) -> None:
        while True:
            with trio.move_on_after(self.pause_s):
                await self._wake.wait()
            self._wake = trio.Event()
            try:
                await self.step()
            except FsError as error:
                self._held_up = True
                if error.fault not in (Fault.NOT_LEADER, Fault.UNAVAILABLE):
                    log.warning("looking for garbage: %s", error)

    async def step(self) -> None:
        """Close names that are old enough, and look at one volume.  Raises FsError."""
        group = self._server.group
        self._held_up = self._server.safe_mode.is_on
        if not group.is_leader or not group.raft.state.proven:
            self._marks.clear()
            self._unused.clear()
            self._hurried = False
            self._after = VolumeId(0)
            self.figures = Figures()
        elif not self._held_up:
            await self._close_names()
            await self._look_at_next()

    @property
    def is_hurried(self) -> bool:
        return self._hurried

    @property
    def pause_s(self) -> float:
        """Between two volumes."""
        if self._hurried and not self._held_up:
            return 0.0
        volumes = max(self._server.chunkservers.volumes()[0], 1)
        return min(max(self.round_s / volumes, PAUSE_S), self.grace_s, MARK_S)

    # -- names that are too old

    async def _close_names(self) -> None:
        counters = self._server.machine.replica.machine.tree.counters
        now = self._server.node.now() / 1000
        marks = self._marks
        if not marks or now - marks[-1][0] >= min(MARK_S, self.grace_s):
            marks.append((now, SliceId(counters.next_slice)))
        below = SliceId(0)
        while marks and now - marks[0][0] >= self.grace_s:
            below = marks.popleft()[1]
        if below > counters.closed_slices:
            await self._server.service.order(CloseSlices(below))
        self.figures.closed = counters.closed_slices

    # -- volumes

    async def _look_at_next(self) -> None:
        tree = self._server.machine.replica.machine.tree
        page = ListVolumes(1, self._after).read(tree)
        if not page:
            if self.figures.looked:
                self.figures.rounds += 1
                self.figures.finished_at = self._server.machine.now() / 1e9
            self.figures.looked = 0
            self._after = VolumeId(0)
            self._hurried = False
            return
        (record,) = page
        self._after = record.number
        self.figures.looked += 1
        last = SliceId(0)
        for node in record.replicas:
            if not self._server.chunkservers.is_heard(node):
                continue  # it is looked at again in the next round
            try:
                last = max(last, await self._look_at(record, node))
            except FsError as error:
                if error.fault is Fault.NOT_LEADER:
                    raise
                if error.fault is Fault.UNAVAILABLE:
                    continue
                log.warning("volume %d at node %d: %s", record.number, node, error)
        await self._forget_if_unused(record, last)

    async def _forget_if_unused(self, record: VolumeRecord, last: SliceId) -> None:
        """A sealed volume in which nothing has been in use for a while is one no more.  Its copies
        are then removed by the healer; and who has a slice in it for a file writes it again.
        `last`: the greatest name that was found in it, whose slice may be on its way to a file.

        What a node has made for itself would be adopted again: it stays, though it is empty.
        """
        tree = self._server.machine.replica.machine.tree
        number = record.number
        is_open = not record.sealed or last >= max(tree.counters.closed_slices, 1)
        if is_open or number < FIRST_REPLICATED or UsedSlices(number, 1).read(tree):
            self._unused.pop(number, None)
            return
        now = self._server.node.now() / 1000
        if now - self._unused.setdefault(number, now) < self.grace_s:
            return
        self._unused.pop(number, None)
        try:
            await self._server.service.order(ForgetVolume(number))
        except FsError as error:
            if error.fault not in (Fault.BUSY, Fault.NOT_FOUND):
                raise
        else:
            self.figures.forgotten += 1

    async def _look_at(self, record: VolumeRecord, node: int) -> SliceId:
        """Returns the last name that the node has in it."""
        last = SliceId(0)
        tree = self._server.machine.replica.machine.tree
        closed = SliceId(tree.counters.closed_slices)
        after = SliceId(0)
        while after != LAST:
            listed = await self._orders.listing(node, record.number, after, PAGE)
            last = listed[-1][0] if listed else last
            self._server.group.require_leader()
            used = UsedSlices(record.number, PAGE, after).read(tree)
            found = compare(listed, used, PAGE, closed)
            if found.missing or found.wrong:
                self.figures.missing += len(found.missing) + len(found.wrong)
                log.warning(
                    "volume %d at node %d: %d slices are missing, %d have another length",
                    record.number, node, len(found.missing), len(found.wrong),
                )  # fmt: skip
                self._differs(record.number, node)
            for at in range(0, len(found.orphans), DELETED_AT_ONCE):
                doomed = list(found.orphans[at : at + DELETED_AT_ONCE])
                await self._orders.delete(node, {record.number: doomed})
                self.figures.orphans += len(doomed)
            after = found.upto
        return last
