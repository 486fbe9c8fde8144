"""Whether this node still belongs to its cluster.

Others have agreed without it when a node is removed, and do not talk to it any more.  So one that
hears of no leader for a while asks those who were there when it last knew.
"""

import logging
from collections.abc import Sequence
from typing import Any, Final

import trio

from mountfs.errors import Fault, FsError
from mountfs.meta import admin
from mountfs.meta.ops.nodes import NodeRecord, all_nodes
from mountfs.meta.server import MetaServer, Place
from mountfs.rpc.client import Client

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0
LEADERLESS_S: Final = 3.0
"""An election takes less."""
ASK_S: Final = 5.0


async def watch_standing(meta: MetaServer, client: Client, seeds: Sequence[NodeRecord]) -> None:
    """Until cancelled.  Raises BAD_HOME when this node was removed."""
    led = trio.current_time()
    while True:
        await trio.sleep(LOOK_S)
        raft = meta.group.raft
        number = meta.place.number
        if raft.leader and number in raft.log.membership.everyone:
            led = trio.current_time()
        if trio.current_time() - led < LEADERLESS_S:
            continue
        known = {node.number: node.rpc for node in seeds}
        known |= {node.number: node.rpc for node in all_nodes(meta.machine.replica.machine.tree)}
        known.pop(number, None)
        if not known:
            continue
        try:
            nodes = await admin.ask(client, [*known.values()], "Nodes", None, deadline_s=ASK_S)
        except FsError as error:
            log.debug("whether we belong to the cluster: %s", error)
            continue
        if all(node["number"] != number for node in nodes):
            raise removed(meta.place, nodes)


def removed(place: Place, nodes: list[Any]) -> FsError:
    """`nodes`: who belongs to the cluster."""
    where = ",".join(node["rpc"] for node in nodes)
    return FsError(
        Fault.BAD_HOME,
        f"node {place.name} (number {place.number}) was removed from its cluster, and "
        "its home is of no use any more; for this machine to become a node again, move the home "
        f"away and start it with --join {where}",
    )
