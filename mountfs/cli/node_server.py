"""A node of a cluster: its home, its ports, and the roles that it has."""

import contextlib
import logging
import signal
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

import trio

from mountfs.chunks.reporter import Reporter
from mountfs.cli.metrics import NodeMetrics, served
from mountfs.cli.node_chunk import METHODS, Volumes, open_volumes
from mountfs.cli.node_ground import Ground, open_ground
from mountfs.cli.node_homes import rejoin, settle
from mountfs.cli.node_meta import WithMeta, with_meta
from mountfs.cli.node_ports import listen
from mountfs.cli.node_settings import Settings
from mountfs.cli.node_without_meta import ClusterRenamed, WithoutMeta, without_meta
from mountfs.cli.trust import Trust
from mountfs.errors import Fault, FsError, only_fault
from mountfs.meta.ops.nodes import CHUNK, META
from mountfs.meta.server import MetadataDamaged, MetaServer, Place
from mountfs.vfs.home import open_home, read_format
from mountfs.wire.config import Limits
from mountfs.wire.connection import Body
from mountfs.wire.frames import Parts
from mountfs.wire.service import Peer, Service
from mountfs.wire.stream import Later

log = logging.getLogger(__name__)

LEAVE_S: Final = 3.0
"""What a node takes at most to hand over before it stops."""


class Node(NamedTuple):
    place: Place
    meta: MetaServer | None
    """None: it has no metadata."""
    volumes: Volumes | None
    """None: it keeps no slices."""


@contextlib.asynccontextmanager
async def node_server(settings: Settings) -> AsyncIterator[Node]:
    """Run a node on its home, which exists."""
    home = open_home(settings.home, create=False)
    try:
        home.hold(f"node at {settings.rpc}")
        async with open_ground(settings, home) as ground, _running(ground) as node:
            yield node
    finally:
        home.close()


@contextlib.asynccontextmanager
async def _running(ground: Ground) -> AsyncIterator[Node]:
    settings, trust = ground.settings, ground.trust
    async with contextlib.AsyncExitStack() as stack:
        part: WithMeta | WithoutMeta
        if META in settings.roles:
            part = await stack.enter_async_context(with_meta(ground))
        else:
            part = await stack.enter_async_context(without_meta(ground))
        ground.server.is_complete = True
        volumes = reporter = None
        if CHUNK in settings.roles:
            volumes = stack.enter_context(
                open_volumes(ground.home, trust, part.link, part.ask_metadata, settings)
            )
            reporter = Reporter(
                ground.place.number, volumes.gather, part.to_leader, settings.durability
            )
            part.reports(reporter)

        async def handle(peer: Peer, method: int, body: Body) -> Parts | Later:
            if method < METHODS:
                return await part.handle(peer, method, body)
            if volumes is None:
                raise FsError(Fault.NOT_IMPLEMENTED, f"node {settings.name} keeps no slices")
            return await volumes.service.handle(peer, method, body)

        listeners = await listen(settings.host, settings.port + 1)
        service = Service(
            handle,
            ground.hello,
            limits=Limits(poll_us=0),
            ssl_context=trust.server_context,
            admit=part.admit,
        )
        space = None if volumes is None else volumes.disks.space
        _serve_metrics(stack, ground, NodeMetrics(part.meta, space, reporter, part.overview))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.serve, listeners)
            nursery.start_soon(part.run)
            if volumes is not None and reporter is not None:
                nursery.start_soon(volumes.run)
                nursery.start_soon(reporter.run)
            try:
                yield Node(ground.place, part.meta, volumes)
            finally:
                with trio.move_on_after(LEAVE_S, shield=True):
                    await part.hand_over()
                    with trio.move_on_after(LEAVE_S / 3):
                        await service.drain("the node stops")
                    await part.end()
                nursery.cancel_scope.cancel()


def _serve_metrics(
    stack: contextlib.AsyncExitStack, ground: Ground, collector: NodeMetrics
) -> None:
    settings = ground.settings
    if settings.metrics is None:
        return
    try:
        stack.enter_context(served(collector, *settings.metrics, ground.trust.server_context))
    except FsError as error:
        if settings.metrics_must:
            raise
        log.warning("%s", error)


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
                if damage is None:
                    continue
                cluster = read_format(settings.home).id
                trust = Trust(settings.tls, cluster)
                await rejoin(settings.home, damage, settings.join, trust)


async def _until_damaged(settings: Settings) -> FsError | None:
    """What is damaged; None: nothing, but all is to be begun anew.  Raises what ends the node
    otherwise.
    """
    try:
        async with node_server(settings) as node:
            who = f"node {node.place.name} (number {node.place.number})"
            cluster = read_format(settings.home).id
            where = f"{settings.rpc} and {settings.door}"
            print(f"{who} of cluster {cluster} listens at {where}", flush=True)
            if node.meta is None:
                await trio.sleep_forever()
            await node.meta.damaged.wait()
        failure = node.meta.group.failure
    except BaseExceptionGroup as group:
        failure = only_fault(group)
        if isinstance(failure, ClusterRenamed):
            log.info("%s", failure)
            return None
        if not isinstance(failure, MetadataDamaged):
            raise
    assert failure is not None
    if isinstance(failure, FsError) and failure.fault is Fault.CORRUPT:
        return failure
    raise failure
