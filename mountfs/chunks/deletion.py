"""The leader has slices deleted that no file refers to any more: their rows say so (`Garbage`), and
stay until every node that has a copy has answered.
"""

import logging
from typing import Final

from mountfs.chunks.orders import Orders
from mountfs.chunks.volume_map import nodes_of
from mountfs.meta.ops.nodes import all_nodes
from mountfs.meta.ops.slices import Garbage, Reclaimed
from mountfs.meta.ops.volumes import GetVolumes
from mountfs.meta.server import MetaServer
from mountfs.types import SliceId, VolumeId

log = logging.getLogger(__name__)

BATCH: Final = 4_096
LOOK_S: Final = 5.0
"""Between two steps."""
PER_SECOND: Final = BATCH / LOOK_S
"""Slices, at most."""


class Deletion:
    def __init__(self, server: MetaServer, orders: Orders) -> None:
        self._server = server
        self._orders = orders
        self.unreachable: dict[int, str] = {}
        """Nodes that keep deleted slices for now, and why."""
        self._after = SliceId(0)
        """So far we have looked: what is on nodes that are down must not keep us from the rest."""

    async def step(self) -> None:
        """The next few.  Raises NOT_LEADER, UNAVAILABLE."""
        self._server.group.require_leader()
        tree = self._server.machine.replica.machine.tree
        found = Garbage(BATCH, self._after).read(tree)
        self._after = found[-1][0] if len(found) == BATCH else SliceId(0)
        volumes = tuple({volume: None for _, volume, _ in found})
        records = {record.number: record for record in GetVolumes(volumes).read(tree)}
        by_node: dict[int, dict[VolumeId, list[SliceId]]] = {}
        there = {node.number for node in all_nodes(tree)}
        for slice_id, volume, _ in found:
            for node in nodes_of(volume, records.get(volume)):
                if there and node not in there:
                    continue  # it was removed, and never comes back
                by_node.setdefault(node, {}).setdefault(volume, []).append(slice_id)
        failed = await self._orders.each(
            by_node, lambda node: self._orders.delete(node, by_node[node])
        )
        for node in by_node:
            if node not in failed:
                self.unreachable.pop(node, None)
                continue
            why = str(failed[node])
            if self.unreachable.get(node) != why:
                log.warning("node %d keeps deleted slices for now: %s", node, why)
            self.unreachable[node] = why
        left = {one for node in failed for ids in by_node[node].values() for one in ids}
        # A slice is not garbage any more when no replica has it.
        gone = tuple(slice_id for slice_id, _, _ in found if slice_id not in left)
        if gone:
            await self._server.service.order(Reclaimed(gone))
