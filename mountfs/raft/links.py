"""Messages between nodes, over `wire`: to each other node one connection that carries ours, and
from each one that carries theirs.

A message is lost when a connection breaks, when there is none, or when too much is under way.  It
never comes twice, and what comes on one connection comes in order.
"""

import logging
import random
import ssl
import struct
from collections.abc import Callable, Mapping
from typing import Final

import trio

from mountfs.errors import Fault, FsError
from mountfs.raft.messages import NodeId
from mountfs.types import MIB
from mountfs.wire.config import Limits
from mountfs.wire.connection import Body, Disconnected
from mountfs.wire.frames import Hello
from mountfs.wire.stream import Address, Client, connect

log = logging.getLogger(__name__)

MESSAGES: Final = 50
"""The method of an envelope."""
_HEAD: Final = struct.Struct("<QQ")  # from, to; then the envelope

LIMITS: Final = Limits(
    poll_us=0,
    ping_ms=500,
    dead_ms=2_000,
    connect_ms=2_000,
    stall_ms=5_000,
    out_bytes_max=32 * MIB,
)
RETRY_FIRST_S: Final = 0.02
RETRY_MAX_S: Final = 0.5

Received = Callable[[NodeId, list[bytes | memoryview]], None]


class Links:
    """A `raft.driver.Transport`.  `unreachable` is told once of each loss."""

    def __init__(
        self,
        own: NodeId,
        hello: Hello,
        *,
        ssl_context: Callable[[], ssl.SSLContext] | None = None,
        server_hostname: str | None = None,
    ) -> None:
        self._own = own
        self._hello = hello
        self._ssl_context = ssl_context
        self._server_hostname = server_hostname
        self._links: dict[NodeId, _Link] = {}
        self._nursery: trio.Nursery | None = None
        self.unreachable: Callable[[NodeId], None] = lambda node: None
        self.received: Received = lambda node, bodies: None
        self._taken: dict[NodeId, list[bytes | memoryview]] = {}
        self.dropped = 0
        """Messages that could not be sent."""

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for link in self._links.values():
                nursery.start_soon(link.keep)
            await trio.sleep_forever()

    def set_peers(self, addresses: Mapping[NodeId, Address]) -> None:
        """These are the other nodes, from now on."""
        for node, link in list(self._links.items()):
            if addresses.get(node) != link.address:
                link.scope.cancel()
                del self._links[node]
        for node, address in addresses.items():
            if node != self._own and node not in self._links:
                link = self._links[node] = _Link(self, node, address)
                if self._nursery is not None:
                    self._nursery.start_soon(link.keep)

    def send(self, node: NodeId, body: bytes) -> None:
        """At once, or never."""
        link = self._links.get(node)
        if link is None or link.client is None:
            return
        if not link.client.tell(MESSAGES, (_HEAD.pack(self._own, node), body)):
            self.dropped += 1

    def take(self, body: Body) -> None:
        """The other side of `send`: what was told by the method `MESSAGES`.  Raises INVALID."""
        if len(body) < _HEAD.size:
            raise FsError(Fault.INVALID, "not an envelope")
        source, target = _HEAD.unpack_from(body)
        if target != self._own:
            raise FsError(
                Fault.INVALID,
                f"this is node {self._own}, not {target}: it is found at another address now",
            )
        self._taken.setdefault(NodeId(source), []).append(memoryview(body)[_HEAD.size :])

    def deliver(self) -> None:
        """Hand on what was taken: what has come together is dealt with together."""
        taken, self._taken = self._taken, {}
        for source, bodies in taken.items():
            self.received(source, bodies)

    @property
    def problems(self) -> dict[int, str]:
        """Nodes that we are not connected with, and why."""
        return {node: link.problem for node, link in self._links.items() if link.problem}

    async def _connect(self, nursery: trio.Nursery, address: Address) -> Client:
        return await connect(
            nursery,
            address,
            self._hello,
            limits=LIMITS,
            ssl_context=self._ssl_context() if self._ssl_context else None,
            server_hostname=self._server_hostname,
        )


class _Link:
    """Our connection to one node, kept up."""

    def __init__(self, links: Links, node: NodeId, address: Address) -> None:
        self._links = links
        self._node = node
        self.address = address
        self.client: Client | None = None
        self.problem = "not connected yet"
        self.scope = trio.CancelScope()

    async def keep(self) -> None:
        wait_s = RETRY_FIRST_S
        with self.scope:
            while True:
                try:
                    async with trio.open_nursery() as nursery:
                        self.client = await self._links._connect(nursery, self.address)
                        self.problem = ""
                        begun = trio.current_time()
                        await self.client.closed.wait()
                        self.problem = self.client.why or "closed"
                        if trio.current_time() - begun > RETRY_MAX_S:  # it did want us
                            wait_s = RETRY_FIRST_S
                        nursery.cancel_scope.cancel()
                except* Disconnected as group:
                    self._failed(str(group.exceptions[0]))
                except* FsError as group:
                    self._failed(str(group.exceptions[0]))
                    wait_s = RETRY_MAX_S  # it does not want us
                finally:
                    was, self.client = self.client, None
                    if was is not None:
                        self._links.unreachable(self._node)
                await trio.sleep(wait_s * random.uniform(0.7, 1.3))
                wait_s = min(2 * wait_s, RETRY_MAX_S)

    def _failed(self, why: str) -> None:
        if why != self.problem:
            log.info("node %d: %s", self._node, why)
        self.problem = why
