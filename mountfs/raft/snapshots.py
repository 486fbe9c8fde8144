"""Snapshots on their way to who is too far behind for the log.

The leader offers; who is offered one fetches it, piece by piece, and goes on where it was when a
transfer breaks off.  Pieces are paced, so that work goes on beside it.
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, Protocol, TypeVar

import msgspec
import trio

from mountfs.errors import Fault, FsError
from mountfs.raft.driver import Group, Node
from mountfs.raft.log_record import GroupId
from mountfs.raft.messages import InstallSnapshot, NodeId, SnapshotHead, Term
from mountfs.rpc.client import Client
from mountfs.rpc.identity import NODE
from mountfs.rpc.server import Call, Server
from mountfs.types import MIB

log = logging.getLogger(__name__)

T = TypeVar("T")

SERVICE: Final = "mountfs.Snapshots"
OFFER: Final = "Offer"
FETCH: Final = "Fetch"

TRANSFER_S: Final = 3_600.0
FETCH_S: Final = 600.0
KEPT_S: Final = 600.0
"""A copy is kept for so long after its last use."""
RETRIES_MAX: Final = 20
RETRY_S: Final = 0.5


class Source(Protocol):
    head: SnapshotHead

    def piece(self, after: bytes) -> tuple[bytes, bytes]:
        """(a piece, its last key), to be called in a thread; the last one has no key."""
        ...

    def close(self) -> None: ...


class Sink(Protocol):
    head: SnapshotHead
    last_key: bytes
    is_whole: bool

    def take(self, encoded: bytes) -> bool:
        """To be called in a thread.  Returns whether it was the last."""
        ...

    def abandon(self) -> None: ...


class Offer(msgspec.Struct, frozen=True, array_like=True):
    cluster: bytes
    group: GroupId
    source: NodeId
    address: str
    term: Term
    head: SnapshotHead


class Fetch(msgspec.Struct, frozen=True, array_like=True):
    group: GroupId
    index: int
    after: bytes


class _Kept:
    """A copy that others read from, until nobody does and it is no longer wanted."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.used_at = trio.current_time()
        self.users = 0
        self.retired = False

    def retire(self) -> None:
        self.retired = True
        self.close_if_done()

    def close_if_done(self) -> None:
        if self.retired and not self.users:
            self.source.close()


class Transfer(msgspec.Struct):
    """For `mountfs status`."""

    group: int
    node: int
    index: int
    bytes: int = 0


class Snapshots:
    """`address`: where others find us; `cluster`: what all of us call it; `make_source` checkpoints
    a group and opens a copy, `make_sink` takes one in.
    """

    def __init__(
        self,
        node: Node,
        server: Server,
        client: Client,
        address: str,
        *,
        cluster: bytes,
        address_of: Callable[[NodeId], str | None],
        make_source: Callable[[Group], Awaitable[Source]],
        make_sink: Callable[[Group, SnapshotHead], Sink],
        bytes_per_s: int = 64 * MIB,
    ) -> None:
        self._node = node
        self._client = client
        self._address = address
        self._cluster = cluster
        self._address_of = address_of
        self._make_source = make_source
        self._make_sink = make_sink
        self._bytes_per_s = bytes_per_s
        self._kept: dict[GroupId, _Kept] = {}
        self._copying = trio.Lock()
        self._sinks: dict[GroupId, Sink] = {}
        self._receiving: set[GroupId] = set()
        self._wanted, self._wants = trio.open_memory_channel[tuple[Group, NodeId, Term]](1_000)
        self.sending: dict[NodeId, Transfer] = {}
        self.received: dict[GroupId, Transfer] = {}
        node.on_snapshot_wanted = self._want
        server.register(SERVICE, OFFER, self._on_offer)
        server.register_source(SERVICE, FETCH, self._on_fetch)

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._forget_unused)
                async for group, target, term in self._wants:
                    nursery.start_soon(self._offer, group, target, term)
        finally:
            for kept in self._kept.values():
                kept.retire()
            for sink in self._sinks.values():
                if not sink.is_whole:
                    sink.abandon()

    # -- who leads

    def _want(self, group: Group, target: NodeId) -> None:
        try:
            self._wanted.send_nowait((group, target, group.raft.term))
        except trio.WouldBlock:
            group.raft.snapshot_sent(target, whole=False, now=self._node.now())

    async def _offer(self, group: Group, target: NodeId, term: Term) -> None:
        """`term`: in which we lead.  By now somebody else may, in another one."""
        whole = False
        try:
            address = self._address_of(target)
            if address is None:
                return
            source = await self._source(group, group.raft.log.base)
            offer = Offer(
                self._cluster, group.id, self._node.number, self._address, term, source.head
            )
            self.sending[target] = Transfer(group.id, target, source.head.index)
            log.info("group %d: offering a snapshot at %d to node %d",
                     group.id, source.head.index, target)  # fmt: skip
            await self._client.call(
                address, SERVICE, OFFER, msgspec.msgpack.encode(offer), deadline_s=TRANSFER_S
            )
            whole = True
        except FsError as error:
            log.warning("a snapshot for node %d: %s", target, error)
        finally:
            self.sending.pop(target, None)
            group.raft.snapshot_sent(target, whole=whole, now=self._node.now())
            self._node.wake(group)

    async def _source(self, group: Group, base: int) -> Source:
        """The copy that is there, unless the log has gone on so far that it leads nowhere."""
        async with self._copying:
            kept = self._kept.get(group.id)
            if kept is not None and kept.source.head.index < base:
                del self._kept[group.id]
                kept.retire()
                kept = None
            if kept is None:
                kept = self._kept[group.id] = _Kept(await self._make_source(group))
            kept.used_at = trio.current_time()
            return kept.source

    async def _on_fetch(self, body: bytes, call: Call) -> AsyncGenerator[bytes, None]:
        require_node(call)
        asked = _decoded(body, Fetch)
        kept = self._kept.get(asked.group)
        if kept is None or kept.source.head.index != asked.index:
            raise FsError(Fault.NOT_FOUND, f"no snapshot at {asked.index} is kept here any more")
        kept.users += 1
        try:
            after = asked.after
            begun, sent = trio.current_time(), 0
            while True:
                piece, last = await self._piece(asked.group, kept.source, after)
                kept.used_at = trio.current_time()
                sent += len(piece)
                for transfer in self.sending.values():
                    if transfer.group == asked.group:
                        transfer.bytes = max(transfer.bytes, sent)
                yield piece
                if not last:
                    return
                after = last
                await trio.sleep_until(begun + sent / self._bytes_per_s)
        finally:
            kept.users -= 1
            kept.close_if_done()

    async def _piece(self, number: GroupId, source: Source, after: bytes) -> tuple[bytes, bytes]:
        try:
            return await trio.to_thread.run_sync(source.piece, after)
        except FsError as error:
            group = self._node.groups.get(number)
            if error.fault is Fault.CORRUPT and group is not None:
                self._node.damaged(group, error)  # another one can lead, and give it
            raise

    async def _forget_unused(self) -> None:
        while True:
            await trio.sleep(KEPT_S / 20)
            for group, kept in list(self._kept.items()):
                if not kept.users and trio.current_time() - kept.used_at > KEPT_S:
                    del self._kept[group]
                    kept.retire()

    # -- who lacks entries

    async def _on_offer(self, body: bytes, call: Call) -> bytes:
        require_node(call)
        offer = _decoded(body, Offer)
        if offer.cluster != self._cluster:
            raise FsError(
                Fault.INVALID, f"node {offer.source} is of another cluster, or was left behind"
            )
        group = self._node.groups.get(offer.group)
        if group is None:
            raise FsError(Fault.NOT_FOUND, f"group {offer.group} is not on this node")
        if offer.group in self._receiving:
            raise FsError(Fault.BUSY, "a snapshot of this group is on its way here already")
        if group.machine.applied < group.raft.log.base:
            raise FsError(Fault.BUSY, "a snapshot of this group is just taking its place")
        if offer.term < group.raft.term:
            raise FsError(Fault.NOT_LEADER, f"node {offer.source} led in a term that is over")
        if offer.head.index > group.raft.log.committed:
            self._receiving.add(offer.group)
            try:
                await self._fetch(group, offer)
            finally:
                self._receiving.discard(offer.group)
        self._node.arrived(
            group, InstallSnapshot(offer.source, self._node.number, offer.term, offer.head)
        )
        return b""

    async def _fetch(self, group: Group, offer: Offer) -> None:
        sink = self._sinks.get(offer.group)
        if sink is None or sink.head != offer.head:
            if sink is not None:
                del self._sinks[offer.group]
                sink.abandon()
            sink = self._sinks[offer.group] = self._make_sink(group, offer.head)
        progress = self.received[offer.group] = Transfer(
            offer.group, offer.source, offer.head.index
        )
        try:
            await self._fetch_all(sink, offer, progress)
        finally:
            del self.received[offer.group]

    async def _fetch_all(self, sink: Sink, offer: Offer, progress: Transfer) -> None:
        failures = 0
        while not sink.is_whole:
            before = sink.last_key
            try:
                await self._fetch_some(sink, offer, progress)
            except FsError as error:
                failures = 0 if sink.last_key != before else failures + 1
                if failures > RETRIES_MAX or error.fault in (
                    Fault.NOT_FOUND, Fault.NO_SPACE, Fault.DEVICE,
                ):  # fmt: skip
                    del self._sinks[offer.group]
                    sink.abandon()
                    raise
                log.info("a snapshot from node %d: %s", offer.source, error)
                await trio.sleep(RETRY_S)
        del self._sinks[offer.group]

    async def _fetch_some(self, sink: Sink, offer: Offer, progress: Transfer) -> None:
        asked = msgspec.msgpack.encode(Fetch(offer.group, offer.head.index, sink.last_key))
        async with self._client.stream(
            offer.address, SERVICE, FETCH, asked, deadline_s=FETCH_S
        ) as pieces:
            async for piece in pieces:
                progress.bytes += len(piece)
                if await trio.to_thread.run_sync(sink.take, piece):
                    return


def _decoded(body: bytes, form: type[T]) -> T:
    """Raises INVALID."""
    try:
        return msgspec.msgpack.decode(body, type=form)
    except msgspec.MsgspecError as error:
        raise FsError(Fault.INVALID, f"not a request: {error}") from None


def require_node(call: Call) -> None:
    """With TLS, only nodes may ask for this.  Raises DENIED."""
    if call.identity is not None and call.identity.kind != NODE:
        raise FsError(
            Fault.DENIED, f"{call.identity.name} shows a client's certificate, a node's is needed"
        )
