"""A node of a cluster: its home, its ports, and the roles that it has."""

import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import trio
import trio.lowlevel

from mountfs.chunks.disk_identity import Owner
from mountfs.chunks.disks import Disks
from mountfs.chunks.service import ChunkService
from mountfs.cli.metrics import NodeMetrics, served
from mountfs.cli.node_homes import read_seeds, rejoin, settle, write_seeds
from mountfs.cli.standing import watch_standing
from mountfs.cli.trust import Trust
from mountfs.errors import Fault, FsError, only_fault
from mountfs.meta.admin import Admin
from mountfs.meta.client import Router
from mountfs.meta.protocol import ROLE, Cluster
from mountfs.meta.server import MetadataDamaged, MetaServer, Place, meta_server
from mountfs.meta.service import SESSION_TTL_MS
from mountfs.raft.links import MESSAGES, Links
from mountfs.raft.messages import NodeId
from mountfs.rpc.client import open_client
from mountfs.rpc.server import open_server
from mountfs.vfs.home import Home, open_home, read_format
from mountfs.vfs.reclaimer import Reclaimer
from mountfs.wire.config import Limits
from mountfs.wire.connection import Body
from mountfs.wire.frames import Hello, Parts
from mountfs.wire.service import Peer, Service
from mountfs.wire.stream import Client, Later

log = logging.getLogger(__name__)

LEAVE_S: Final = 3.0
"""What a node takes at most to hand over before it stops."""
CHUNK_METHODS: Final = 100
"""Methods from here on are of the role chunk."""
COMPACT_S: Final = 5.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    home: Path
    host: str
    port: int
    """Of gRPC; clients find the next one."""
    name: str
    roles: tuple[str, ...] = ("meta", "chunk")
    join: tuple[str, ...] = ()
    tls: Path | None = None
    session_ttl_ms: int = SESSION_TTL_MS
    metrics: tuple[str, int] | None = None
    """Where they are read; None: nowhere."""
    metrics_must: bool = False
    """Somebody has asked for them there."""

    @property
    def rpc(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def door(self) -> str:
        return f"{self.host}:{self.port + 1}"


@contextlib.asynccontextmanager
async def node_server(settings: Settings) -> AsyncIterator[MetaServer]:
    """Run a node on its home, which exists."""
    home = open_home(settings.home, create=False)
    try:
        home.hold(f"node at {settings.rpc}")
        async with _running(settings, home) as meta:
            yield meta
    finally:
        home.close()


@contextlib.asynccontextmanager
async def _running(settings: Settings, home: Home) -> AsyncIterator[MetaServer]:
    trust = Trust(settings.tls, home.format.id)
    place = Place(
        number=NodeId(home.format.node),
        name=settings.name,
        rpc=settings.rpc,
        door=settings.door,
        disk=home.disk,
        roles=settings.roles,
        cluster=home.cluster,
    )
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            open_server(settings.rpc, home.format.id, trust.credentials)
        )
        server.is_complete = False
        client = await stack.enter_async_context(open_client(home.format.id, trust.credentials))
        options = trust.client_options(home.cluster, settings.name)
        links = Links(
            place.number,
            Hello(cluster=home.cluster, role=ROLE, name=settings.name),
            ssl_context=options.ssl_context,
            server_hostname=options.server_hostname,
        )
        meta = await stack.enter_async_context(
            meta_server(
                place,
                home.path / "meta",
                home.id,
                server,
                client,
                links,
                seeds=read_seeds(home.path),
                session_ttl_ms=settings.session_ttl_ms,
            )
        )
        meta.on_nodes = lambda nodes: write_seeds(home.path, nodes)
        Admin(meta, server, home.format.id, home.format.generation)
        server.is_complete = True
        volumes = None
        if "chunk" in settings.roles:
            volumes = stack.enter_context(open_volumes(home, trust))
            volumes.nodes = meta.service.cluster

        def admit(peer: Peer) -> None:
            def noted(method: int, body: Body) -> None:
                if method == MESSAGES:
                    trust.require_node(peer)
                    links.take(body)

            peer.noted = noted
            peer.noted_all = links.deliver

        async def handle(peer: Peer, method: int, body: Body) -> Parts | Later:
            if method < CHUNK_METHODS:
                return await meta.service.handle(peer, method, body)
            if volumes is None:
                raise FsError(Fault.NOT_IMPLEMENTED, f"node {settings.name} keeps no slices")
            return await volumes.service.handle(peer, method, body)

        listeners = await _listen(settings.host, settings.port + 1)
        service = Service(
            handle,
            Hello(cluster=home.cluster, role=ROLE, name=settings.name),
            limits=Limits(poll_us=0),
            ssl_context=trust.server_context,
            admit=admit,
        )
        if settings.metrics is not None:
            space = None if volumes is None else volumes.disks.space
            collector = NodeMetrics(meta, space)
            try:
                where = served(collector, *settings.metrics, trust.server_context)
                stack.enter_context(where)
            except FsError as error:
                if settings.metrics_must:
                    raise
                log.warning("%s", error)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.serve, listeners)
            if volumes is not None:
                nursery.start_soon(volumes.run)
            own = (settings.host, settings.port + 1)
            if volumes is not None:
                volumes.router = Router(nursery, [own], options)
            reclaimer = Reclaimer(meta, nursery, own, options)
            nursery.start_soon(reclaimer.run)
            nursery.start_soon(watch_standing, meta, client, read_seeds(home.path))
            try:
                yield meta
            finally:
                with trio.move_on_after(LEAVE_S, shield=True):
                    await hand_over(meta)
                    meta.safe_mode.leave()
                    with trio.move_on_after(LEAVE_S / 3):
                        await service.drain("the node stops")
                    await meta.checkpoint()
                nursery.cancel_scope.cancel()


class Volumes:
    """The volumes of this node, and the work behind the requests."""

    def __init__(self, disks: Disks, may_order: Callable[[Any], None]) -> None:
        self.disks = disks
        self.service = ChunkService(disks, may_order, self._link)
        self.router: Router | None = None
        """How other nodes are reached, once we run."""
        self.nodes: Callable[[], Cluster]
        """Which there are."""

    async def _link(self, node: int) -> Client:
        if self.router is None:
            raise FsError(Fault.UNAVAILABLE, "this node is just starting")
        self.router.learn(self.nodes())
        return await self.router.link_to(node)

    async def run(self) -> None:
        while True:
            try:
                while await self.disks.compact_one():
                    await trio.lowlevel.checkpoint()
            except FsError as error:
                log.error("compacting volumes: %s", error)
            await trio.sleep(COMPACT_S)


@contextlib.contextmanager
def open_volumes(home: Home, trust: Trust) -> Iterator[Volumes]:
    """Raises BAD_HOME, and DEVICE when the disk cannot be used."""
    disks = Disks([home.chunks], Owner(home.id, home.format.node, home.cluster))
    try:
        for what, told in disks.troubles().items():
            log.warning("%s: %s", what, told)
        yield Volumes(disks, trust.require_node)
    finally:
        disks.close()


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


async def serve(settings: Settings) -> None:
    """Until SIGTERM or SIGINT.  A node whose metadata is damaged joins its cluster anew."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def end() -> None:
                async for number in signals:
                    log.info("ended by %s", signal.Signals(number).name)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(end)
            while True:
                settle(settings.home)
                damage = await _until_damaged(settings)
                cluster = read_format(settings.home).id
                trust = Trust(settings.tls, cluster)
                await rejoin(settings.home, damage, settings.join, trust)


async def _until_damaged(settings: Settings) -> FsError:
    """Raises what ends the node otherwise."""
    try:
        async with node_server(settings) as meta:
            who = f"node {meta.place.name} (number {meta.place.number})"
            cluster = read_format(settings.home).id
            where = f"{settings.rpc} and {settings.door}"
            print(f"{who} of cluster {cluster} listens at {where}", flush=True)
            await meta.damaged.wait()
        failure = meta.group.failure
    except BaseExceptionGroup as group:
        failure = only_fault(group)
        if not isinstance(failure, MetadataDamaged):
            raise
    assert failure is not None
    if isinstance(failure, FsError) and failure.fault is Fault.CORRUPT:
        return failure
    raise failure


async def require_free(settings: Settings) -> None:
    """Raises BUSY if somebody listens where we want to."""
    for port in (settings.port, settings.port + 1):
        for listener in await _listen(settings.host, port):
            await listener.aclose()


async def _listen(host: str, port: int) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        what = f"cannot listen at {host}:{port}: {error.strerror or error}"
        raise FsError(Fault.BUSY, f"{what}; name another place with --listen") from error
