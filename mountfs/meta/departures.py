"""Nodes are emptied, leave, or are given up: what that does to volumes, and when it is refused."""

from collections.abc import Callable, Collection, Iterable
from typing import Final

import msgspec
import trio

from mountfs.errors import Fault, FsError
from mountfs.meta.membership_policy import why_not_to_remove
from mountfs.meta.ops.nodes import CHUNK, DrainNode, LeaveNode, NodeRecord, all_nodes
from mountfs.meta.ops.volumes import ListVolumes, VolumeRecord
from mountfs.meta.placement import COPIES_MIN, host_of
from mountfs.meta.server import MetaServer
from mountfs.raft.messages import NodeId
from mountfs.types import VolumeId

PAGE: Final = 1_000
NAMED_MAX: Final = 8
"""Volumes that are named to people."""


class Holdings(msgspec.Struct):
    """What a node keeps, as seen when it is to go."""

    volumes: int = 0
    """Records that name it, and volumes of its own without one."""
    several: int = 0
    """Of those, which should have more copies than one."""
    only: int = 0
    """Of those, of which no other copy is there now."""
    some_only: tuple[VolumeId, ...] = ()


def take_stock(
    node: int,
    records: Iterable[VolumeRecord],
    is_there: Callable[[VolumeId, int], bool],
    found: Holdings,
) -> None:
    """Add to `found` what `records` say of a node.  `is_there`: a node is heard, and has a copy
    that can be read.
    """
    for record in records:
        if node not in record.replicas:
            continue
        found.volumes += 1
        found.several += record.copies > 1
        others = (one for one in record.replicas if one != node)
        if not any(is_there(record.number, one) for one in others):
            _only(found, record.number)


def _only(found: Holdings, volume: VolumeId) -> None:
    found.only += 1
    if len(found.some_only) < NAMED_MAX:
        found.some_only = (*found.some_only, volume)


def why_not_to_empty(node: int, nodes: Collection[NodeRecord], holdings: Holdings) -> str | None:
    """Why what it keeps could not go anywhere, in a sentence with what to do; None: it can."""
    hosts = {
        host_of(one.number, one.location)
        for one in nodes
        if one.number != node and CHUNK in one.roles and not one.is_emptied
    }
    needed = COPIES_MIN if holdings.several else min(1, holdings.volumes)
    if len(hosts) >= needed:
        return None
    return (
        f"it keeps {_volumes(holdings.volumes)}, and for their copies {needed} other hosts that "
        f"keep slices are needed; there would be {len(hosts)}: add a node first"
    )


def why_not_to_give_up(holdings: Holdings) -> str | None:
    """What would be lost with a node that is gone for good, in a sentence; None: nothing."""
    if not holdings.only:
        return None
    some = ", ".join(map(str, holdings.some_only))
    more = ", ..." if holdings.only > len(holdings.some_only) else ""
    return (
        f"of {_volumes(holdings.only)} ({some}{more}) no other copy is there now: what is in them "
        "would be lost.  Bring other nodes back first; or, if it is lost anyway, say --force --yes"
    )


def _volumes(count: int) -> str:
    return f"{count:,} volume{'' if count == 1 else 's'}"


class Departures:
    """For who leads."""

    def __init__(self, meta: MetaServer) -> None:
        self._meta = meta

    async def remove(self, record: NodeRecord, *, lost: bool, yes: bool) -> Holdings:
        """It leaves when others have what it keeps; `lost`: at once.  Raises BUSY when that would
        do harm, which who says `lost` accepts; what is lost for ever only with `yes`.
        """
        nodes = self._nodes()
        holdings = await self._holdings(record)
        if lost:
            why_not = None if yes else why_not_to_give_up(holdings)
        else:
            why_not = self._why_not_to_leave(record, nodes)
            why_not = why_not or why_not_to_empty(record.number, nodes, holdings)
        if why_not is not None:
            raise FsError(Fault.BUSY, f"node {record.name} cannot be removed: {why_not}")
        await self._meta.service.order(LeaveNode(record.number, lost))
        return holdings

    async def drain(self, record: NodeRecord, *, undo: bool) -> Holdings:
        """What it keeps is taken elsewhere, and it stays; or it may have slices again.  Raises
        INVALID, and BUSY when there is no room for that elsewhere.
        """
        if record.leaving:
            raise FsError(Fault.INVALID, f"node {record.name} leaves the cluster: that is for good")
        if CHUNK not in record.roles:
            raise FsError(Fault.INVALID, f"node {record.name} keeps no slices")
        holdings = await self._holdings(record)
        if not undo:
            why_not = why_not_to_empty(record.number, self._nodes(), holdings)
            if why_not is not None:
                raise FsError(Fault.BUSY, f"node {record.name} cannot be drained: {why_not}")
        await self._meta.service.order(DrainNode(record.number, not undo))
        return holdings

    def _nodes(self) -> list[NodeRecord]:
        return all_nodes(self._meta.machine.replica.machine.tree)

    def _why_not_to_leave(self, record: NodeRecord, nodes: Collection[NodeRecord]) -> str | None:
        meta = self._meta
        leaving = {node.number for node in nodes if node.leaving} - {record.number}
        membership = meta.group.raft.log.membership
        return why_not_to_remove(NodeId(record.number), membership, meta.is_alive, leaving)

    async def _holdings(self, record: NodeRecord) -> Holdings:
        chunkservers = self._meta.chunkservers
        found = Holdings()
        own = chunkservers.unrecorded(record.number)
        for volume in own:
            found.volumes += 1
            _only(found, volume)
        if not chunkservers.assigned.count(record.number):
            return found
        heard = {node.number for node in self._nodes() if chunkservers.is_heard(node.number)}

        def is_there(volume: VolumeId, node: int) -> bool:
            report = chunkservers.fleet.reported(volume).get(node)
            return node in heard and report is not None and not report.trouble

        after = VolumeId(0)
        while True:
            page = ListVolumes(PAGE, after).read(self._meta.machine.replica.machine.tree)
            take_stock(record.number, page, is_there, found)
            if len(page) < PAGE:
                return found
            after = page[-1].number
            await trio.lowlevel.checkpoint()
