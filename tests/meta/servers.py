"""Metaservers in one process, on ports of loopback that the kernel has chosen.

Clients find each of them behind a `Proxy`, which loses what a test wants to be lost.
"""

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import trio

from mountfs.errors import FsError
from mountfs.kv.journal import Journal
from mountfs.meta import server as server_module
from mountfs.meta.admin import Admin, Join, Joined, ask_raw
from mountfs.meta.client import Options, RemoteMeta, remote_meta
from mountfs.meta.ops.make_root import MakeRoot
from mountfs.meta.ops.nodes import NodeRecord
from mountfs.meta.protocol import ROLE
from mountfs.meta.replica import META_GROUP
from mountfs.meta.server import SEGMENT_BYTES, MetaServer, Place, meta_server
from mountfs.meta.service import SESSION_TTL_MS
from mountfs.raft.config import Config
from mountfs.raft.links import MESSAGES, Links
from mountfs.raft.messages import HardState, Membership, NodeId, SnapshotHead, Term
from mountfs.raft.storage import Storage
from mountfs.rpc.client import Client, open_client
from mountfs.rpc.server import open_server
from mountfs.types import LogIndex
from mountfs.wire.config import Limits
from mountfs.wire.connection import Body
from mountfs.wire.frames import Hello, Parts
from mountfs.wire.service import Peer, Service
from mountfs.wire.stream import Later

CLUSTER = bytes(range(16))
CONFIG = Config(heartbeat_ms=50, election_ms=500, snapshot_retry_ms=200)
ABOUT = "a test's client"
END_S = 30.0
"""Nothing here takes as long, unless it hangs."""


class Proxy:
    """In front of a server's door."""

    def __init__(self) -> None:
        self.port = 0
        self.target = 0
        self.lose_answers = 0
        """So many answers to clients are not passed on: the connection breaks instead."""
        self.swallow = False
        """Nothing is passed on any more, and nothing is said."""
        self._scopes: set[trio.CancelScope] = set()

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        await trio.serve_listeners(self._connection, listeners, task_status=task_status)  # type: ignore[arg-type]

    def cut(self) -> None:
        """Break all connections."""
        for scope in self._scopes:
            scope.cancel()

    async def _connection(self, client: trio.SocketStream) -> None:
        with trio.CancelScope() as scope, contextlib.suppress(OSError, trio.BrokenResourceError):
            self._scopes.add(scope)
            try:
                if not self.target:
                    return
                server = await trio.open_tcp_stream("127.0.0.1", self.target)
                async with client, server:
                    hello = await client.receive_some(4096)
                    await server.send_all(hello)
                    answers = ABOUT.encode() in hello  # it is not another server
                    async with trio.open_nursery() as nursery:
                        both = nursery.cancel_scope
                        nursery.start_soon(self._pass_on, client, server, False, both)
                        nursery.start_soon(self._pass_on, server, client, answers, both)
            except* (OSError, trio.BrokenResourceError):
                pass
            finally:
                self._scopes.discard(scope)
                await trio.aclose_forcefully(client)

    async def _pass_on(
        self,
        source: trio.SocketStream,
        target: trio.SocketStream,
        answers: bool,
        scope: trio.CancelScope,
    ) -> None:
        said = False
        async for data in source:
            if self.swallow:
                continue
            if answers and said and self.lose_answers:
                self.lose_answers -= 1
                break
            said = True  # the hello is no answer
            await target.send_all(data)
        scope.cancel()


class Running:
    """A server and what belongs to it."""

    def __init__(self, number: int, directory: Path) -> None:
        self.number = number
        self.directory = directory
        self.proxy = Proxy()
        self.rpc = "127.0.0.1:0"
        self.door_port = 0
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.meta: MetaServer
        self.seeds: tuple[NodeRecord, ...] = ()
        self.up = False

    @property
    def door(self) -> str:
        return f"127.0.0.1:{self.proxy.port}"


class Servers:
    def __init__(
        self, path: Path, nursery: trio.Nursery, client: Client, session_ttl_ms: int
    ) -> None:
        self.path = path
        self._session_ttl_ms = session_ttl_ms
        self.client = client
        self.all: dict[int, Running] = {}
        self.on_start: Callable[[MetaServer], None] = lambda meta: None
        self._nursery = nursery

    def __getitem__(self, number: int) -> Running:
        return self.all[number]

    @property
    def up(self) -> list[Running]:
        return [one for one in self.all.values() if one.up]

    # -- servers come and go

    async def add(self, roles: tuple[str, ...] = ("meta",)) -> Running:
        """One more: the first makes the cluster, others join it."""
        one = Running(0, self.path / f"n{len(self.all) + 1}")
        (one.directory / "log").mkdir(parents=True)
        await self._nursery.start(one.proxy.serve)
        async with open_server(one.rpc, CLUSTER.hex()) as server:
            one.rpc = server.address  # it is ours from now on
        if not self.all:
            one.number = 1
            membership = Membership((NodeId(1),))
        else:
            asked = Join(one.directory.name, one.rpc, one.door, str(one.directory), roles)
            joined = msgspec.msgpack.decode(await self.ask_raw("Join", asked), type=Joined)
            one.number, membership, one.seeds = joined.number, joined.membership, joined.nodes
        journal = Journal(one.directory / "log", home=CLUSTER, segment_bytes=SEGMENT_BYTES)
        head = SnapshotHead(LogIndex(0), Term(0), membership)
        Storage(journal).create(META_GROUP, head, HardState())
        journal.close()
        self.all[one.number] = one
        await self.start(one.number)
        if one.number == 1:
            await self.until(lambda: one.meta.group.is_leader and one.meta.group.read_now())
            await one.meta.service.order(MakeRoot(0, 0))
        return one

    async def start(self, number: int) -> None:
        one = self.all[number]
        one.scope, one.ended = trio.CancelScope(), trio.Event()
        await self._nursery.start(self._run, one)

    async def _run(self, one: Running, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            with one.scope:
                async with self._serving(one) as one.meta:
                    one.up = True
                    task_status.started()
                    await trio.sleep_forever()
        finally:
            one.up = False
            one.proxy.target = 0
            one.proxy.cut()
            one.ended.set()

    @contextlib.asynccontextmanager
    async def _serving(self, one: Running) -> AsyncIterator[MetaServer]:
        place = Place(
            number=NodeId(one.number),
            name=one.directory.name,
            rpc=one.rpc,
            door=one.door,
            disk=str(one.directory),
            cluster=CLUSTER,
        )
        hello = Hello(cluster=CLUSTER, role=ROLE, name=place.name)
        links = Links(place.number, hello)
        async with (
            open_server(one.rpc, CLUSTER.hex()) as server,
            open_client(CLUSTER.hex()) as client,
            meta_server(
                place, one.directory, CLUSTER, server, client, links,
                seeds=one.seeds, config=CONFIG, session_ttl_ms=self._session_ttl_ms,
            ) as meta,
            trio.open_nursery() as nursery,
        ):  # fmt: skip
            Admin(meta, server, CLUSTER.hex(), 1)

            def admit(peer: Peer) -> None:
                def noted(method: int, body: Body) -> None:
                    if method == MESSAGES:
                        links.take(body)

                peer.noted = noted
                peer.noted_all = links.deliver

            async def handle(peer: Peer, method: int, body: Body) -> Parts | Later:
                return await meta.service.handle(peer, method, body)

            service = Service(handle, hello, limits=Limits(poll_us=0), admit=admit)
            listeners = await trio.open_tcp_listeners(one.door_port, host="127.0.0.1")
            one.proxy.target = one.door_port = listeners[0].socket.getsockname()[1]
            nursery.start_soon(service.serve, listeners)
            self.on_start(meta)
            yield meta
            nursery.cancel_scope.cancel()

    async def kill(self, number: int) -> None:
        one = self.all[number]
        one.scope.cancel()
        await one.ended.wait()

    # -- who there is

    @property
    def addresses(self) -> list[str]:
        return [one.rpc for one in self.up]

    @property
    def seeds(self) -> list[tuple[str, int]]:
        return [("127.0.0.1", one.proxy.port) for one in self.all.values()]

    async def until(self, holds: Callable[[], object]) -> None:
        with trio.fail_after(END_S):
            while True:  # nobody tells us
                if holds():
                    return
                await trio.sleep(0.005)

    def leads(self, one: Running) -> bool:
        return one.up and one.meta.group.is_leader and one.meta.group.raft.state.proven

    async def leader(self, *, other_than: int = 0) -> Running:
        found: list[Running] = []

        def look() -> bool:
            found[:] = [one for one in self.up if self.leads(one) and one.number != other_than]
            return bool(found)

        await self.until(look)
        return max(found, key=lambda one: one.meta.group.raft.term)

    async def voters(self, *numbers: int) -> None:
        """Wait until these vote, and everybody has what the leader has."""

        def look() -> bool:
            leading = [one for one in self.up if self.leads(one)]
            if not leading:
                return False
            log = leading[0].meta.group.raft.log
            agreed = log.membership.voters == numbers and log.membership_index <= log.committed
            applied = {one.meta.machine.applied for one in self.up}
            return agreed and applied == {log.last_index} and not log.membership.is_joint

        await self.until(look)

    # -- asking

    async def ask_raw(self, method: str, body: object, *, deadline_s: float = 20.0) -> bytes:
        return await ask_raw(self.client, self.addresses, method, body, deadline_s=deadline_s)

    async def ask(self, method: str, body: object = None, *, deadline_s: float = 20.0) -> object:
        answer = await self.ask_raw(method, body, deadline_s=deadline_s)
        return msgspec.msgpack.decode(answer)

    @contextlib.asynccontextmanager
    async def mount(self, *, soft_s: float | None = None) -> AsyncIterator[RemoteMeta]:
        options = Options(cluster=CLUSTER, about=ABOUT, soft_s=soft_s)
        async with remote_meta(self.seeds, options) as meta:
            yield meta


@contextlib.asynccontextmanager
async def servers(
    path: Path, count: int = 3, *, session_ttl_ms: int = SESSION_TTL_MS
) -> AsyncIterator[Servers]:
    before = server_module.HOUSEKEEPING_S
    server_module.HOUSEKEEPING_S = 0.02  # type: ignore[misc]
    try:
        async with open_client(CLUSTER.hex()) as client, trio.open_nursery() as nursery:
            found = Servers(path, nursery, client, session_ttl_ms)
            with trio.fail_after(4 * END_S):
                for _ in range(count):
                    await found.add()
                await found.voters(*range(1, count + 1 - (count % 2 == 0)))
                await found.until(lambda: found[1].meta.service.node_of(1))
                yield found
                nursery.cancel_scope.cancel()
    finally:
        server_module.HOUSEKEEPING_S = before  # type: ignore[misc]


def faults(error: BaseException) -> list[FsError]:
    """The expected errors within groups."""
    if isinstance(error, BaseExceptionGroup):
        return [one for inner in error.exceptions for one in faults(inner)]
    return [error] if isinstance(error, FsError) else []
