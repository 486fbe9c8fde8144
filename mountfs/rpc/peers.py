"""Messages between nodes: to each other node one stream that carries ours, and from each one that
carries theirs.

A message is lost when the stream breaks, when there is none, or when too much waits.  It never
comes twice, and what comes on one stream comes in order.  Who needs more asks again.

A stream begins with a handshake in the metadata: cluster, both nodes' numbers, the versions of the
protocol.  What does not fit is refused with a sentence, which both sides keep in `problems`.
"""

import contextlib
import functools
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import grpc
import trio

from mountfs.errors import Fault, FsError
from mountfs.rpc import faults
from mountfs.rpc.bridge import Inbox, Lane, Outbox, Soon, Threads
from mountfs.rpc.client import open_channel
from mountfs.rpc.config import options
from mountfs.rpc.faults import Metadata
from mountfs.rpc.handshake import Hello, Trouble, refusal, trouble
from mountfs.rpc.identity import NODE, Credentials
from mountfs.rpc.joined import split
from mountfs.rpc.server import Call, Server

SERVICE: Final = "mountfs.Peers"
METHOD: Final = "Messages"
PROBLEMS_MAX: Final = 64
"""Of nodes that we do not know; anybody may claim any number."""


class Counters(NamedTuple):
    """Of one peer, since this node has started."""

    sent_messages: int
    sent_bytes: int
    sent_joined: int
    """gRPC messages that they went in."""
    waiting_messages: int
    waiting_bytes: int
    dropped_messages: int
    """That we know of: what was on its way when a stream broke is not among them."""
    connections: int


@contextlib.asynccontextmanager
async def open_peers(
    node: int,
    server: Server,
    received: Callable[[int, list[bytes]], None],
    unreachable: Callable[[int], None],
    credentials: Credentials | None = None,
) -> AsyncIterator["Peers"]:
    """`received` gets the messages of a node, `unreachable` says that a node has been lost, or was
    not found at first: once, until it has been there again.  Both are called in the Trio thread,
    must not wait, and may come before this returns.
    """
    peers = Peers(node, server, received, unreachable, credentials)
    try:
        async with trio.open_nursery() as nursery:
            peers._start(nursery)
            try:
                yield peers
            finally:
                nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await peers._close()


class Peers:
    def __init__(
        self,
        node: int,
        server: Server,
        received: Callable[[int, list[bytes]], None],
        unreachable: Callable[[int], None],
        credentials: Credentials | None,
    ) -> None:
        self.node = node
        self.cluster = server.cluster
        self.config = server.config
        self._received = received
        self._unreachable = unreachable
        self._credentials = credentials
        self._soon = Soon()
        self._threads = Threads()
        self._links: dict[int, _Link] = {}
        self._refused: dict[int, str] = {}
        """By the number that it claims: why a node was last refused."""
        self._inbox = Inbox(self._soon, self._deliver, self.config.inbox_bytes_max)
        self._lock = threading.Lock()
        self._incoming: dict[int, tuple[Lane, grpc.ServicerContext]] = {}
        """Under the lock."""
        self._closing = False
        self._nursery: trio.Nursery
        server.register_threaded(SERVICE, METHOD, self._receive)

    # -- what the owner may ask

    def set_peers(self, addresses: Mapping[int, str]) -> None:
        """These are the other nodes, from now on."""
        for node, link in list(self._links.items()):
            if addresses.get(node) != link.address:
                link.scope.cancel()
                del self._links[node]
        for node, address in addresses.items():
            if node != self.node and node not in self._links:
                link = self._links[node] = _Link(self, node, address)
                self._nursery.start_soon(link.keep)

    def send(self, node: int, body: bytes) -> None:
        """Soon, or never."""
        if (link := self._links.get(node)) is not None:
            link.send(body)

    def hold(self) -> None:
        """Deliver nothing until `resume`: then those who send must wait, in the end."""
        self._inbox.hold()

    def resume(self) -> None:
        self._inbox.resume()

    @property
    def problems(self) -> dict[int, str]:
        """By node: why we are not connected with it, why it was refused, or what was not sent."""
        outgoing = {node: link.problem for node, link in self._links.items() if link.problem}
        return self._refused | outgoing

    def counters(self, node: int) -> Counters:
        return self._links[node].counters()

    # -- streams from others, each in its thread

    def _receive(
        self, messages: Iterator[bytes], context: grpc.ServicerContext, call: Call
    ) -> None:
        hello = Hello.from_metadata(call.metadata)
        why = refusal(hello, self.cluster, self.node)
        if not why and call.identity is not None and call.identity.kind != NODE:
            why = (
                f"the certificate of {call.identity.name} is that of a {call.identity.kind}, and "
                "only nodes may send messages to nodes"
            )
        if why:
            if hello is not None:
                self._soon(functools.partial(self._note_refused, hello.source, why))
            raise FsError(Fault.NOT_PERMITTED, why)
        assert hello is not None
        lane = Lane(hello.source)
        self._supersede(lane, context)
        if not context.add_callback(functools.partial(self._end, lane)):
            self._end(lane)
            return
        context.send_initial_metadata(Hello(self.cluster, self.node, hello.source).to_metadata())
        self._soon(functools.partial(self._note_met, hello.source))
        with contextlib.suppress(grpc.RpcError):  # the caller has gone
            for joined in messages:
                if not self._inbox.put(lane, split(joined)):
                    return

    def _supersede(self, lane: Lane, context: grpc.ServicerContext) -> None:
        """A new stream of a node is the end of its old one, that it has given up before we did."""
        with self._lock:
            if self._closing:
                raise FsError(Fault.NOT_LEADER, "this node is stopping")
            old = self._incoming.get(lane.sender)
            self._incoming[lane.sender] = (lane, context)
        if old is not None:
            old[0].supersede()
            old[1].cancel()

    def _end(self, lane: Lane) -> None:
        lane.stop()
        with self._lock:
            if (present := self._incoming.get(lane.sender)) and present[0] is lane:
                del self._incoming[lane.sender]

    # -- in Trio

    def _deliver(self, node: int, bodies: list[bytes]) -> None:
        if self._closing:
            return
        try:
            self._received(node, bodies)
        except Exception as bug:
            self._nursery.start_soon(_fail, bug)

    def _note_refused(self, node: int, why: str) -> None:
        if node in self._links or node in self._refused or len(self._refused) < PROBLEMS_MAX:
            self._refused[node] = why

    def _note_met(self, node: int) -> None:
        """It is there: now is the time to try to reach it."""
        self._refused.pop(node, None)
        if (link := self._links.get(node)) is not None:
            link.wake.set()

    def _start(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    async def _close(self) -> None:
        with self._lock:
            self._closing = True
            incoming = list(self._incoming.values())
        for lane, context in incoming:
            lane.stop()
            context.cancel()
        with trio.move_on_after(self.config.close_ms / 1000):
            await self._threads.ended()


async def _fail(bug: Exception) -> None:
    raise bug


class _Link:
    """What we send to one node: one stream after the other."""

    def __init__(self, peers: Peers, node: int, address: str) -> None:
        self.node = node
        self.address = address
        self.scope = trio.CancelScope()
        self.wake = trio.Event()
        self.problem = "not connected yet"
        self._peers = peers
        self._config = peers.config
        self._outbox: Outbox | None = self._new_outbox()
        """None: between two attempts."""
        self._lost = False
        """The owner has been told."""
        self._past = Counters(0, 0, 0, 0, 0, 0, 0)
        """Without the present outbox."""

    def send(self, body: bytes) -> None:
        if len(body) > self._config.message_bytes_max:
            self.problem = f"a message of {len(body)} bytes to node {self.node} was not sent"
        elif self._outbox is not None and self._outbox.put(body):
            return
        self._drop(1)

    def counters(self) -> Counters:
        past, outbox = self._past, self._outbox
        if outbox is None:
            return past
        return past._replace(
            sent_messages=past.sent_messages + outbox.taken_messages,
            sent_bytes=past.sent_bytes + outbox.taken_bytes,
            sent_joined=past.sent_joined + outbox.joined_messages,
            waiting_messages=outbox.waiting_messages,
            waiting_bytes=outbox.waiting_bytes,
        )

    def _new_outbox(self) -> Outbox:
        return Outbox(
            bytes_max=self._config.queue_bytes_max,
            messages_max=self._config.queue_messages_max,
            joined_bytes_max=self._config.joined_bytes_max,
        )

    def _drop(self, messages: int) -> None:
        self._past = self._past._replace(dropped_messages=self._past.dropped_messages + messages)

    async def keep(self) -> None:
        """Be connected, or try to be."""
        config = self._config
        delay_ms = config.retry_ms
        with self.scope:
            while True:
                connections = self._past.connections
                self.wake = trio.Event()
                lasting = await self._stream()
                if self._past.connections > connections:
                    delay_ms = config.retry_ms
                self._tell_lost()
                pause_ms = config.refused_retry_ms if lasting else delay_ms
                # Not all at once, when a peer that many wait for comes back.
                with trio.move_on_after(pause_ms * random.uniform(0.5, 1) / 1000):
                    await self.wake.wait()
                delay_ms = min(2 * delay_ms, config.retry_max_ms)

    async def _stream(self) -> bool:
        """One attempt, and as long as it lasts.  Whether it failed for a lasting reason."""
        peers, config = self._peers, self._config
        pems = peers._credentials() if peers._credentials else None
        outbox = self._outbox = self._outbox or self._new_outbox()
        channel = open_channel(self.address, peers.cluster, pems, options(config))
        attempt = _Attempt(peers._soon, peers._threads, outbox)
        attempt.start(channel, Hello(peers.cluster, peers.node, self.node).to_metadata())
        try:
            with trio.move_on_after(config.connect_ms / 1000):
                await attempt.settled.wait()
            if attempt.agreed:
                self._past = self._past._replace(connections=self._past.connections + 1)
                self.problem = ""
                self._lost = False
                await attempt.ended.wait()
        finally:
            # What waits is old news by the time of the next stream.
            self._past = self.counters()._replace(waiting_messages=0, waiting_bytes=0)
            self._outbox = None
            self._drop(outbox.waiting_messages)
            with trio.CancelScope(shield=True):
                await attempt.end(config.close_ms / 1000)
            channel.close()
        trouble = attempt.trouble(self.node, self.address)
        self.problem = trouble.sentence
        return trouble.lasting

    def _tell_lost(self) -> None:
        if not self._lost:
            self._lost = True
            self._peers._unreachable(self.node)


class _Attempt:
    """A stream, from its start to its end."""

    def __init__(self, soon: Soon, threads: Threads, outbox: Outbox) -> None:
        self.settled = trio.Event()
        """The other side has agreed, or it is over."""
        self.ended = trio.Event()
        self.agreed = False
        self._soon = soon
        self._threads = threads
        self._outbox = outbox
        self._started = threading.Event()
        self._call: Any = None
        self._unanswered = False

    def start(self, channel: grpc.Channel, metadata: Metadata) -> None:
        method: grpc.StreamUnaryMultiCallable[bytes, bytes]
        method = channel.stream_unary(f"/{SERVICE}/{METHOD}")
        self._call = method.future(self._messages(), metadata=metadata)
        self._started.set()
        self._call.add_done_callback(self._tell_end)

    def _messages(self) -> Iterator[bytes]:
        """In a thread of grpcio.  Nothing is sent to who has not agreed."""
        self._threads.see()
        self._started.wait()
        if Hello.from_metadata(dict(self._call.initial_metadata() or ())) is None:
            return
        self._soon(self._note_agreed)
        yield from self._outbox

    def _note_agreed(self) -> None:
        self.agreed = True
        self.settled.set()

    def _tell_end(self, _: object) -> None:
        self._threads.see()
        self._soon(self._note_end)

    def _note_end(self) -> None:
        self.settled.set()
        self.ended.set()

    async def end(self, within_s: float) -> None:
        self._unanswered = not self.settled.is_set()
        self._outbox.end()
        self._call.cancel()
        with trio.move_on_after(within_s):
            await self.ended.wait()

    def trouble(self, node: int, address: str) -> Trouble:
        """Why it is over."""
        if self._unanswered:
            return trouble("", "no answer in time", refused=False, node=node, address=address)
        code, details = self._call.code(), self._call.details() or ""
        error = faults.from_status(code, details, self._call.trailing_metadata() or (), address)
        refused = error.fault is Fault.NOT_PERMITTED
        return trouble(
            code.name,
            error.detail if refused else details,
            refused=refused,
            node=node,
            address=address,
        )
