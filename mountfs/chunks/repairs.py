"""The leader carries out what the healer plans: volumes are sealed, copied, given up.

Each task stands alone: it may fail, or be forgotten when another node leads, and is planned anew.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from mountfs.chunks.comparison import LAST, compare
from mountfs.chunks.orders import Orders
from mountfs.chunks.protocol import LIST_MAX
from mountfs.errors import Fault, FsError
from mountfs.meta.diagnosis import Member
from mountfs.meta.healing import Healer
from mountfs.meta.healing_tasks import (
    Adopt,
    CopyVolume,
    Reconcile,
    Remove,
    Repair,
    Rescue,
    Seal,
    Shrink,
    Task,
)
from mountfs.meta.ops.volumes import (
    AdoptVolume,
    SealVolume,
    SetReplicas,
    UsedSlices,
)
from mountfs.meta.server import MetaServer
from mountfs.types import MIB, SliceId, VolumeId

log = logging.getLogger(__name__)

EVERY_S: Final = 1.0
PART_BYTES: Final = 16 * MIB
"""Copied with one call: so often it is known how far a copy has come; and so little that the call
ends in time where a node copies slowly.
"""
Pace = Callable[[int], Awaitable[None]]
CLOSED: Final = SliceId((1 << 64) - 1)


class Repairs:
    def __init__(self, server: MetaServer, orders: Orders, healer: Healer) -> None:
        self._server = server
        self._orders = orders
        self.healer = healer
        self._running: dict[VolumeId, Task] = {}
        self._guests: set[VolumeId] = set()
        """Of those, which were not planned here."""
        self.done = 0
        self.failed = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(EVERY_S)
            if self._leads():
                await self._lead()
            # Not leading any more, all that was under way has been let go of.
            self._running.clear()
            self.healer.clear()

    def _leads(self) -> bool:
        group = self._server.group
        return group.is_leader and group.raft.state.proven

    async def _lead(self) -> None:
        async with trio.open_nursery() as nursery:
            while self._leads():
                for task in self._plan():
                    self._running[task.volume] = task
                    nursery.start_soon(self._carry_out, task)
                await trio.sleep(EVERY_S)
            nursery.cancel_scope.cancel()

    def _plan(self) -> list[Task]:
        server = self._server
        members = [
            Member(node.number, node.location, node.is_emptied)
            for node in server.chunkservers.nodes()
        ]
        safe_mode = server.safe_mode
        return self.healer.plan(
            members,
            self._running.values(),
            VolumeId(server.machine.replica.machine.tree.counters.next_volume),
            self._now(),
            held_up=safe_mode.report().why if safe_mode.is_on else "",
        )

    def _now(self) -> float:
        return float(self._server.node.now())

    @property
    def heals(self) -> bool:
        """Bytes are being moved because something is wrong."""
        return any(
            task.moves_bytes and number not in self._guests
            for number, task in self._running.items()
        )

    async def carry_out(self, task: CopyVolume, pace: Pace) -> None:
        """One that was not planned here.  `pace` is told of bytes that were copied, and may wait.
        Raises BUSY when something is done about the volume already, and what hinders it.
        """
        if task.volume in self._running:
            raise FsError(Fault.BUSY, f"volume {task.volume} is being repaired")
        self._running[task.volume] = task
        self._guests.add(task.volume)
        try:
            await self._copy_volume(task, pace)
        finally:
            self._guests.discard(task.volume)
            if self._running.get(task.volume) is task:
                del self._running[task.volume]

    async def _copy_volume(self, task: CopyVolume, pace: Pace | None = None) -> None:
        await self._copy(task.volume, task.source, task.target, pace)
        if task.replicas != task.before:
            order = self._server.service.order
            await order(SetReplicas(task.volume, task.before, task.replicas, task.copies))

    async def _carry_out(self, task: Task) -> None:
        failure = "it was given up"
        try:
            await self._do(task)
            failure = ""
            self.done += 1
            if not isinstance(task, Seal):
                log.info("volume %d: %s: %s", task.volume, type(task).__name__, task.why)
        except FsError as error:
            failure = str(error)
            self.failed += 1
            if error.fault is not Fault.NOT_LEADER:
                log.warning("volume %d: %s: %s", task.volume, type(task).__name__, error)
        finally:
            del self._running[task.volume]
            self.healer.ended(task, self._now(), failure)

    async def _do(self, task: Task) -> None:
        order = self._server.service.order
        match task:
            case Adopt():
                await order(AdoptVolume(task.volume, task.node, task.copies))
            case Seal():
                await order(SealVolume(task.volume))
                await self._each(task.to, lambda node: self._orders.seal(node, task.volume))
            case CopyVolume():
                await self._copy_volume(task)
            case Reconcile():
                for target in task.among:
                    for source in task.among:
                        if source != target:
                            await self._copy(task.volume, source, target)
            case Repair():
                await self._repair(task)
            case Shrink():
                await order(SetReplicas(task.volume, task.before, task.replicas, task.copies))
            case Remove():
                await self._remove(task)
            case Rescue():
                for source in task.others:
                    await self._copy(task.volume, source, task.node)
                await self._require_all(task.volume, task.node)
                await order(SetReplicas(task.volume, task.before, task.replicas, task.copies))

    async def _each(self, nodes: tuple[int, ...], ask: Callable[[int], object]) -> None:
        failures: list[FsError] = []

        async def one(node: int) -> None:
            try:
                await ask(node)  # type: ignore[misc]
            except FsError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(one, node)
        if failures:
            raise failures[0]

    async def _copy(
        self, volume: VolumeId, source: int, target: int, pace: Pace | None = None
    ) -> None:
        """All that the source has and the target has not."""
        after = SliceId(0)
        while True:
            self._server.group.require_leader()
            part = await self._orders.copy(target, volume, source, after, PART_BYTES)
            if pace is None:
                self.healer.copied(volume, part.bytes)
            else:
                await pace(part.bytes)
            if part.done:
                return
            if part.after <= after and not part.needles:
                raise FsError(Fault.DEVICE, f"node {target}: a copy that does not get on")
            after = part.after

    async def _repair(self, task: Repair) -> None:
        """Every slice that is known to be damaged, from the first source that has it whole."""
        after = SliceId(0)
        while True:
            listed = await self._orders.listing(
                task.node, task.volume, after, LIST_MAX, damaged=True
            )
            for slice_id, _ in listed:
                await self._fetch_anew(task, slice_id)
                after = slice_id
            if len(listed) < LIST_MAX:
                return

    async def _fetch_anew(self, task: Repair, slice_id: SliceId) -> None:
        failure: FsError | None = None
        for source in task.sources:
            try:
                part = await self._orders.copy(
                    task.node, task.volume, source, SliceId(slice_id - 1), PART_BYTES, (slice_id,)
                )
            except FsError as error:
                failure = error
            else:
                self.healer.copied(task.volume, part.bytes)
                return
        assert failure is not None
        raise failure

    async def _remove(self, task: Remove) -> None:
        """What a stray copy has, and a replica lacks, is not lost with it."""
        if not task.replicas:
            tree = self._server.machine.replica.machine.tree
            if UsedSlices(task.volume, 1).read(tree):
                raise FsError(Fault.BUSY, "files refer to slices in it")
        for replica in task.replicas:
            try:
                await self._require_all(task.volume, replica)
            except FsError as error:
                if error.fault is not Fault.CORRUPT:
                    raise
                for stray in task.strays:
                    await self._copy(task.volume, stray, replica)
                await self._require_all(task.volume, replica)
        for stray in task.strays:
            await self._orders.drop(stray, task.volume)

    async def _require_all(self, volume: VolumeId, node: int) -> None:
        """Raises CORRUPT if the node lacks a slice that is in use."""
        tree = self._server.machine.replica.machine.tree
        after = SliceId(0)
        while after != LAST:
            listed = await self._orders.listing(node, volume, after, LIST_MAX)
            used = UsedSlices(volume, LIST_MAX, after).read(tree)
            found = compare(listed, used, LIST_MAX, CLOSED)
            if found.missing or found.wrong:
                raise FsError(
                    Fault.CORRUPT,
                    f"node {node} lacks {len(found.missing) + len(found.wrong)} slices of volume "
                    f"{volume} that files refer to",
                )
            after = found.upto
