"""The role of a node that has the metadata: its metaserver, and what it does for the cluster."""

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Final, TypeVar

import trio

from mountfs.chunks.admin import ChunkAdmin
from mountfs.chunks.leading import LEADERS, Leading
from mountfs.chunks.overview import Overview
from mountfs.chunks.reporter import Reporter
from mountfs.cli.node_ground import Ground
from mountfs.cli.node_homes import read_seeds, write_seeds
from mountfs.cli.standing import watch_standing
from mountfs.errors import FsError
from mountfs.inline import leave
from mountfs.meta.admin import Admin, ask
from mountfs.meta.client import Router
from mountfs.meta.command import Query
from mountfs.meta.ops.nodes import all_nodes
from mountfs.meta.server import MetaServer, meta_server
from mountfs.meta.to_leader import ByGroup
from mountfs.raft.links import MESSAGES, Links
from mountfs.rpc.client import Client
from mountfs.vfs.reclaimer import Reclaimer
from mountfs.wire.connection import Body
from mountfs.wire.frames import Parts
from mountfs.wire.service import Peer
from mountfs.wire.stream import Later

log = logging.getLogger(__name__)

R = TypeVar("R")

LOOK_S: Final = 1.0
MOVE_S: Final = 5.0
MOVED_S: Final = 30.0
"""Until what we have told the cluster of us is what it tells us, with time to spare."""


class WithMeta:
    """Use `with_meta`."""

    def __init__(
        self, ground: Ground, meta: MetaServer, links: Links, admin: Admin, leading: Leading
    ) -> None:
        self._ground = ground
        self._admin = admin
        self._links = links
        self._leading = leading
        self._reclaimer = Reclaimer(
            meta, leading.nodes, leading.link, leading.allotter, leading.orders
        )
        self.chunk_admin = ChunkAdmin(admin, meta, leading, self._reclaimer.deletion)
        self.meta = meta
        self.link = leading.link
        self.to_leader = ByGroup(meta, ground.client)

    async def handle(self, peer: Peer, method: int, body: Body) -> Parts | Later:
        if method in LEADERS:
            return await self._leading.handle(method, body)
        return await self.meta.service.handle(peer, method, body)

    async def ask_metadata(self, query: Query[R]) -> R:
        """As of now, whoever leads.  Raises UNAVAILABLE."""
        group = self.meta.group
        if not group.read_now():
            await leave()
            await group.wait_read()
        return query.read(self.meta.machine.replica.machine.tree)

    def reports(self, reporter: Reporter) -> None:
        """What this node keeps is told by it."""
        self._admin.more = lambda: {
            "reports": reporter.problem or "heard",
            "durability": reporter.durability,
        }

    def overview(self) -> Overview | None:
        """Of the bytes of the cluster; None: this node does not lead.  For threads, too."""
        return self.chunk_admin.latest

    def admit(self, peer: Peer) -> None:
        def noted(method: int, body: Body) -> None:
            if method == MESSAGES:
                self._ground.trust.require_node(peer)
                self._links.take(body)

        peer.noted = noted
        peer.noted_all = self._links.deliver

    async def run(self) -> None:
        """Until cancelled.  Raises BAD_HOME when this node was removed."""
        ground, meta = self._ground, self.meta
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._leading.run)
            nursery.start_soon(self.chunk_admin.run)
            nursery.start_soon(self._reclaimer.run)
            nursery.start_soon(watch_standing, meta, ground.client, read_seeds(ground.home.path))
            nursery.start_soon(introduce, meta, ground.client)

    async def hand_over(self) -> None:
        await hand_over(self.meta)
        self.meta.safe_mode.leave()

    async def end(self) -> None:
        """When nobody asks any more."""
        await self.meta.checkpoint()


@contextlib.asynccontextmanager
async def with_meta(ground: Ground) -> AsyncIterator[WithMeta]:
    home, options = ground.home, ground.options
    links = Links(
        ground.place.number,
        ground.hello,
        ssl_context=options.ssl_context,
        server_hostname=options.server_hostname,
    )
    async with meta_server(
        ground.place,
        home.path / "meta",
        home.id,
        ground.server,
        ground.client,
        links,
        seeds=read_seeds(home.path),
        session_ttl_ms=ground.settings.session_ttl_ms,
    ) as meta:
        meta.on_nodes = lambda nodes: write_seeds(home.path, nodes)
        meta.hearing.on_report = meta.chunkservers.hear
        admin = Admin(meta, ground.server, home.format.id, home.format.generation)
        async with trio.open_nursery() as nursery:
            own = (ground.settings.host, ground.settings.port + 1)
            leading = Leading(meta, Router(nursery, [own], options))
            leading.be_patient(ground.settings.heal_after_s)
            yield WithMeta(ground, meta, links, admin, leading)
            nursery.cancel_scope.cancel()


async def introduce(meta: MetaServer, client: Client) -> None:
    """Tell the cluster when we are elsewhere, or do something else, than it knows; until cancelled.
    Who leads does so by itself.
    """
    problem = ""
    while True:
        await trio.sleep(LOOK_S)
        nodes = all_nodes(meta.machine.replica.machine.tree)
        mine = next((node for node in nodes if node.number == meta.place.number), None)
        if mine is None or meta.group.is_leader:
            continue
        news = meta.place.introduction(mine)
        if news is None:
            continue
        others = [node.rpc for node in nodes if node is not mine and node.has_metadata]
        if not others:
            continue
        try:
            await ask(client, others, "Move", news, deadline_s=MOVE_S)
        except FsError as error:
            if problem != str(error):
                log.warning("cannot tell the cluster where this node is: %s", error)
            problem = str(error)
        else:
            problem = ""
            await trio.sleep(MOVED_S)


async def hand_over(meta: MetaServer) -> None:
    """Let another node lead, if there is one that can."""
    raft = meta.group.raft
    if not meta.group.is_leader or meta.group.failure is not None:
        return
    peers = [
        peer
        for node, peer in raft.state.peers.items()
        if node in raft.state.membership.voters and meta.is_alive(node)
    ]
    if not peers:
        return
    best = max(peers, key=lambda peer: peer.match)
    try:
        meta.group.transfer(best.node)
    except FsError as error:
        log.info("cannot hand over: %s", error)
        return
    for _ in range(200):
        if not meta.group.is_leader:
            return
        await trio.sleep(0.005)
