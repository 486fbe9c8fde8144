"""What is to be thrown away in a cluster and has not been yet, by cause: for `mountfs gc`.

Deleted slices are noted in the metadata until every node has deleted them.  Orphans, which nobody
has noted, are found by looking at one volume after the other.  Bytes of what was deleted stay in
the volumes until those are compacted, which each node does by itself.
"""

from typing import Final

import msgspec
import trio

from mountfs.chunks.collector import Collector, Figures
from mountfs.chunks.config import ChunkConfig
from mountfs.chunks.deletion import PER_SECOND, Deletion
from mountfs.meta.ops.slices import Garbage
from mountfs.meta.server import MetaServer
from mountfs.types import SliceId

PAGE: Final = 10_000
COUNTED_MAX: Final = 1_000_000
"""Deleted slices; of more it is only said that there are more."""
WORTH: Final = ChunkConfig().garbage_ratio
"""A node compacts a volume of which at least so much is dead."""


class Deleted(msgspec.Struct):
    """Slices that no file refers to any more."""

    slices: int = 0
    bytes: int = 0
    more: bool = False
    """There are more than were counted."""
    kept_by: dict[int, str] = {}
    """Which node has not deleted some, and why."""
    seconds_left: float | None = 0.0
    """None: nobody can say, as long as a node keeps some."""


class Dead(msgspec.Struct):
    """Space in the volumes of a node."""

    node: int
    name: str
    total_bytes: int = 0
    dead_bytes: int = 0
    """Of what was deleted."""
    worth_bytes: int = 0
    """Of those, in volumes that will be compacted; the others have too few."""


class Debt(msgspec.Struct):
    deleted: Deleted
    orphans: Figures
    volumes: int
    """To be looked at in a round."""
    is_hurried: bool
    """A round is under way that does not pause."""
    round_seconds_left: float
    grace_seconds: float
    """So long a slice may have been written without a file that refers to it."""
    dead: tuple[Dead, ...]


async def look(server: MetaServer, collector: Collector, deletion: Deletion) -> Debt:
    """To be called where the node leads.  Changes nothing."""
    deleted = await _deleted(server, deletion)
    dead = []
    fleet = server.chunkservers.fleet
    for record in server.chunkservers.nodes():
        one = Dead(record.number, record.name)
        for volume in fleet.of_node(record.number).values():
            gone = max(volume.total_bytes - volume.living_bytes, 0)
            one.total_bytes += volume.total_bytes
            one.dead_bytes += gone
            if not volume.epoch and gone >= volume.total_bytes * WORTH:
                one.worth_bytes += gone
        dead.append(one)
        await trio.lowlevel.checkpoint()
    volumes = server.chunkservers.volumes()[0]
    left = max(volumes - collector.figures.looked, 0)
    return Debt(
        deleted=deleted,
        orphans=collector.figures,
        volumes=volumes,
        is_hurried=collector.is_hurried,
        round_seconds_left=left * collector.pause_s,
        grace_seconds=collector.grace_s,
        dead=tuple(dead),
    )


async def _deleted(server: MetaServer, deletion: Deletion) -> Deleted:
    found = Deleted(kept_by=dict(deletion.unreachable))
    after = SliceId(0)
    while True:
        page = Garbage(PAGE, after).read(server.machine.replica.machine.tree)
        found.slices += len(page)
        found.bytes += sum(length for _, _, length in page)
        if len(page) < PAGE:
            break
        if found.slices >= COUNTED_MAX:
            found.more = True
            break
        after = page[-1][0]
        await trio.lowlevel.checkpoint()
    found.seconds_left = None if found.kept_by else found.slices / PER_SECOND
    return found
