"""What the roles of a node stand on: its home, who it is, its server and its client of gRPC."""

import contextlib
from collections.abc import AsyncIterator
from typing import NamedTuple

from mountfs.cli.node_settings import Settings
from mountfs.cli.trust import Trust
from mountfs.meta.client import Options
from mountfs.meta.protocol import ROLE
from mountfs.meta.server import Place
from mountfs.raft.messages import NodeId
from mountfs.rpc.client import Client, open_client
from mountfs.rpc.server import Server, open_server
from mountfs.vfs.home import Home
from mountfs.wire.frames import Hello


class Ground(NamedTuple):
    settings: Settings
    home: Home
    trust: Trust
    place: Place
    server: Server
    """Its role says when all that it answers is registered."""
    client: Client
    options: Options
    """How it connects to others as a client does."""

    @property
    def hello(self) -> Hello:
        return Hello(cluster=self.home.cluster, role=ROLE, name=self.place.name)


@contextlib.asynccontextmanager
async def open_ground(settings: Settings, home: Home) -> AsyncIterator[Ground]:
    trust = Trust(settings.tls, home.format.id)
    place = Place(
        number=NodeId(home.format.node),
        name=settings.name,
        rpc=settings.rpc,
        door=settings.door,
        disk=home.disk,
        roles=settings.roles,
        location=settings.location,
        cluster=home.cluster,
    )
    async with (
        open_server(settings.rpc, home.format.id, trust.credentials) as server,
        open_client(home.format.id, trust.credentials) as client,
    ):
        server.is_complete = False
        options = trust.client_options(home.cluster, settings.name)
        yield Ground(settings, home, trust, place, server, client, options)
