"""The steps of one task of the healer: which node is told what, and when the record changes.

Each task stands alone: it may fail, or be forgotten when another node leads, and is planned anew.
Nothing here waits but for what others do; the node that leads and the simulation carry out the
same steps.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from mountfs.chunks.comparison import LAST, compare
from mountfs.chunks.orders import Orders
from mountfs.chunks.protocol import LIST_MAX
from mountfs.errors import Fault, FsError
from mountfs.meta.command import Command
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
    volume_of,
)
from mountfs.meta.tree import Tree
from mountfs.types import MIB, SliceId, VolumeId

PART_BYTES: Final = 16 * MIB
"""Copied with one call: so often it is known how far a copy has come; and so little that the call
ends in time where a node copies slowly.
"""
Pace = Callable[[int], Awaitable[None]]
CLOSED: Final = SliceId((1 << 64) - 1)


class Steps:
    """`order` has a command agreed on; `tree` is the metadata as the leader sees it (NOT_LEADER);
    `copied` is told how many bytes of a volume have been copied, and `pace`, which may wait.
    """

    def __init__(
        self,
        orders: Orders,
        order: Callable[[Command[Any]], Awaitable[Any]],
        tree: Callable[[], Tree],
        copied: Callable[[VolumeId, int], None],
        pace: Pace | None = None,
    ) -> None:
        self._orders = orders
        self._order = order
        self._tree = tree
        self._copied = copied
        self._pace = pace

    async def carry_out(self, task: Task) -> None:
        """Raises FsError, saying why it could not be done."""
        match task:
            case Adopt():
                await self._order(AdoptVolume(task.volume, task.node, task.copies))
            case Seal():
                await self._seal(task)
            case CopyVolume():
                await self._copy(task.volume, task.source, task.target)
                if task.replicas != task.before:
                    await self._set_replicas(task)
            case Reconcile():
                await self._reconcile(task)
            case Repair():
                await self._repair(task)
            case Shrink():
                await self._set_replicas(task)
            case Remove():
                await self._remove(task)
            case Rescue():
                await self._orders.seal(task.node, task.volume)
                for source in task.others:
                    await self._copy(task.volume, source, task.node)
                await self._require_all(task.volume, task.node)
                await self._set_replicas(task)

    async def _seal(self, task: Seal) -> None:
        await self._order(SealVolume(task.volume))
        failed = await self._orders.each(task.to, lambda node: self._orders.seal(node, task.volume))
        for error in failed.values():
            raise error

    async def _set_replicas(self, task: CopyVolume | Shrink | Rescue) -> None:
        await self._order(SetReplicas(task.volume, task.before, task.replicas, task.copies))

    async def _copy(self, volume: VolumeId, source: int, target: int) -> None:
        """All that the source has and the target has not.  The target may have been away when the
        volume was sealed.
        """
        await self._orders.seal(target, volume)
        after = SliceId(0)
        while True:
            self._tree()
            part = await self._orders.copy(target, volume, source, after, PART_BYTES)
            self._copied(volume, part.bytes)
            if self._pace is not None:
                await self._pace(part.bytes)
            if part.done:
                return
            if part.after <= after:
                raise FsError(Fault.DEVICE, f"node {target}: a copy that does not get on")
            after = part.after

    async def _reconcile(self, task: Reconcile) -> None:
        """What one cannot give another one may: a failure is told at the end."""
        failure: FsError | None = None
        for target in task.among:
            for source in task.among:
                if source == target:
                    continue
                try:
                    await self._copy(task.volume, source, target)
                except FsError as error:
                    if error.fault is Fault.NOT_LEADER:
                        raise
                    failure = failure or error
        if failure is not None:
            raise failure

    async def _repair(self, task: Repair) -> None:
        """Every slice that is known to be damaged, from the first source that has it whole.  Those
        that nobody has whole keep no others from being repaired.
        """
        await self._orders.seal(task.node, task.volume)
        failure: FsError | None = None
        after = SliceId(0)
        while True:
            listed = await self._orders.listing(
                task.node, task.volume, after, LIST_MAX, damaged=True
            )
            for slice_id, _ in listed:
                try:
                    await self._fetch_anew(task, slice_id)
                except FsError as error:
                    if error.fault is Fault.NOT_LEADER:
                        raise
                    failure = failure or error
                after = slice_id
            if len(listed) < LIST_MAX:
                break
        if failure is not None:
            raise failure

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
                self._copied(task.volume, part.bytes)
                return
        assert failure is not None
        raise failure

    async def _remove(self, task: Remove) -> None:
        """What a stray copy has, and a replica lacks, is not lost with it."""
        if not task.replicas and UsedSlices(task.volume, 1).read(self._tree()):
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
            record = volume_of(self._tree(), task.volume)
            if (record.replicas if record else ()) != task.replicas or stray in task.replicas:
                raise FsError(Fault.BUSY, "other nodes are to have it now")
            await self._orders.drop(stray, task.volume)

    async def _require_all(self, volume: VolumeId, node: int) -> None:
        """Raises CORRUPT if the node lacks a slice that is in use."""
        after = SliceId(0)
        while after != LAST:
            listed = await self._orders.listing(node, volume, after, LIST_MAX)
            used = UsedSlices(volume, LIST_MAX, after).read(self._tree())
            found = compare(listed, used, LIST_MAX, CLOSED)
            if found.missing or found.wrong:
                raise FsError(
                    Fault.CORRUPT,
                    f"node {node} lacks {len(found.missing) + len(found.wrong)} slices of volume "
                    f"{volume} that files refer to",
                )
            after = found.upto
