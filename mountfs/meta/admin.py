"""What operators and joining nodes ask of a metaserver, over gRPC.

Any node answers STATUS of itself; the rest is for the leader, and others say who that is.  With
TLS, a client's certificate is enough to look, and a node's is needed to change anything.
"""

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import trio

from mountfs.errors import Fault, FsError
from mountfs.meta.departures import Departures
from mountfs.meta.hearing import Told, require_sender
from mountfs.meta.ops.nodes import AddNode, MoveNode, NodeRecord, all_nodes
from mountfs.meta.reports import ReportReply
from mountfs.meta.server import MetaServer
from mountfs.raft.messages import Membership, NodeId
from mountfs.raft.snapshots import require_node
from mountfs.rpc.client import Client
from mountfs.rpc.server import Call, Server

log = logging.getLogger(__name__)

SERVICE: Final = "mountfs.Admin"
METHODS: Final = frozenset(
    {
        "Drain", "Evict", "Join", "Leader", "LeaveSafeMode", "Move", "Nodes", "Rejoin", "Remove",
        "Report", "SafeMode", "Sessions", "Status", "Transfer",
    }
)  # fmt: skip
MORE: Final = frozenset({"Balance", "Garbage", "Health"})
"""About bytes: answered by those who see to them, where the node leads (`Admin.register`)."""
JOIN_S: Final = 30.0
TRANSFER_S: Final = 5.0
LOOK_S: Final = 0.005


class Join(msgspec.Struct, frozen=True):
    """A machine wants to be a node."""

    name: str
    rpc: str
    door: str
    disk: str
    roles: tuple[str, ...]
    location: str = ""


class Rejoin(msgspec.Struct, frozen=True):
    """A node has lost what it knew, and must not count until it has it again."""

    number: int
    disk: str


class Joined(msgspec.Struct, frozen=True):
    """It is one."""

    cluster: str
    generation: int
    number: int
    membership: Membership
    nodes: tuple[NodeRecord, ...]


class Named(msgspec.Struct, frozen=True):
    """Concerns one node, by name or number."""

    node: str
    force: bool = False
    yes: bool = False
    """Even if something is lost for ever."""
    undo: bool = False


class Evict(msgspec.Struct, frozen=True):
    """A session is to be ended, if `yes`; otherwise it is only said what that would do."""

    session: int
    yes: bool = False


Answerer = Callable[[bytes, Call], Awaitable[Any]]


class Admin:
    def __init__(self, meta: MetaServer, server: Server, cluster: str, generation: int) -> None:
        self._meta = meta
        self._server = server
        self._departures = Departures(meta)
        self._cluster = cluster
        self._generation = generation
        self.more: Callable[[], dict[str, Any]] = dict
        """What else STATUS tells."""
        handlers: dict[str, Answerer] = {
            "Join": self._join,
            "Rejoin": self._rejoin,
            "Move": self._move,
            "Status": self._status,
            "Leader": self._leader,
            "Nodes": self._nodes,
            "Remove": self._remove,
            "Drain": self._drain,
            "Transfer": self._transfer,
            "SafeMode": self._safe_mode,
            "LeaveSafeMode": self._leave_safe_mode,
            "Report": self._report,
            "Sessions": self._sessions,
            "Evict": self._evict,
        }
        assert handlers.keys() == METHODS, handlers.keys() ^ METHODS
        for method, handler in handlers.items():
            server.register(SERVICE, method, _encoded(handler))

    def register(self, method: str, answer: Answerer) -> None:
        """Somebody above answers one of `MORE`, where this node leads."""
        assert method in MORE, method

        async def lead(body: bytes, call: Call) -> Any:
            self._meta.group.require_leader()
            await self._meta.group.wait_read()  # one that leads no more knows less than others
            return await answer(body, call)

        self._server.register(SERVICE, method, _encoded(lead))

    async def _join(self, body: bytes, call: Call) -> Joined:
        require_node(call)
        meta = self._meta
        asked = msgspec.msgpack.decode(body, type=Join)
        meta.group.require_leader()
        record = await meta.service.order(
            AddNode(asked.name, asked.rpc, asked.door, asked.disk, asked.roles, asked.location)
        )
        number = NodeId(record.number)
        if not record.has_metadata:
            return self._joined(number)
        # The leader's duties see to it.
        await _until(lambda: number in meta.group.raft.log.membership.everyone, JOIN_S)
        if number not in meta.group.raft.log.membership.everyone:
            raise FsError(
                Fault.TIMED_OUT, f"node {number} could not be made a member: is there a majority?"
            )
        return self._joined(number)

    async def _rejoin(self, body: bytes, call: Call) -> Joined:
        """A voter that has forgotten what it promised is harmless once the others have agreed, by a
        majority without it, that it is none.
        """
        require_node(call)
        meta = self._meta
        asked = msgspec.msgpack.decode(body, type=Rejoin)
        raft = meta.group.raft
        meta.group.require_leader()
        number = NodeId(asked.number)
        record = self._find(str(number))
        if record.disk != asked.disk:
            raise FsError(
                Fault.INVALID, f"node {record.name} (number {number}) has another disk than this"
            )
        if record.leaving:
            raise FsError(Fault.NOT_FOUND, f"node {record.name} was removed from the cluster")
        if number == meta.place.number:
            raise FsError(Fault.BUSY, f"node {number} leads: what asks here is a second one")

        def is_out() -> bool:
            log = raft.log
            return number not in log.membership.everyone and log.membership_index <= log.committed

        with meta.kept_out(number):
            out = await _until(lambda: is_out() or not meta.group.is_leader, JOIN_S)
            meta.group.require_leader()
            if not out:
                raise FsError(
                    Fault.TIMED_OUT,
                    f"the others could not agree to go on without node {record.name}: is there a "
                    "majority?  See: mountfs node list",
                )
            return self._joined(number)

    def _joined(self, number: NodeId) -> Joined:
        meta = self._meta
        nodes = tuple(all_nodes(meta.machine.replica.machine.tree))
        membership = meta.group.raft.log.membership
        return Joined(self._cluster, self._generation, number, membership, nodes)

    async def _move(self, body: bytes, call: Call) -> None:
        require_node(call)
        await self._meta.service.order(msgspec.msgpack.decode(body, type=MoveNode))

    async def _report(self, body: bytes, call: Call) -> ReportReply:
        require_node(call)
        meta = self._meta
        told = msgspec.msgpack.decode(body, type=Told)
        meta.group.require_leader()
        nodes = all_nodes(meta.machine.replica.machine.tree)
        require_sender(told, nodes, call.identity)
        return meta.hearing.take(told.report)

    async def _leader(self, body: bytes, call: Call) -> str:
        """Where whoever leads is asked, as far as this node knows; empty: it does not."""
        record = self._meta.service.node_of(self._meta.group.leader)
        return record.rpc if record is not None else ""

    async def _nodes(self, body: bytes, call: Call) -> Any:
        meta = self._meta
        meta.group.require_leader()
        await meta.group.wait_read()  # one that leads no more knows less than others
        membership = meta.group.raft.log.membership
        return [
            {
                **msgspec.to_builtins(_named(record)),
                "role": _role(NodeId(record.number), membership),
                "leader": record.number == meta.place.number,
                "alive": meta.is_alive(NodeId(record.number)),
                "lag": self._lag(NodeId(record.number)),
                "volumes_left": self._volumes_left(record),
            }
            for record in all_nodes(meta.machine.replica.machine.tree)
        ]

    def _volumes_left(self, record: NodeRecord) -> int | None:
        """On a node that is emptied.  None: it is none, or nobody knows yet."""
        if not record.is_emptied:
            return None
        return self._meta.chunkservers.kept_by(record.number)

    def _lag(self, node: NodeId) -> int | None:
        raft = self._meta.group.raft
        if node == self._meta.place.number:
            return 0
        peer = raft.state.peers.get(node)
        return None if peer is None else raft.log.last_index - peer.match

    async def _remove(self, body: bytes, call: Call) -> Any:
        require_node(call)
        asked = msgspec.msgpack.decode(body, type=Named)
        self._meta.group.require_leader()
        record = self._find(asked.node)
        holdings = await self._departures.remove(record, lost=asked.force, yes=asked.yes)
        return {**msgspec.to_builtins(_named(record)), "holdings": msgspec.to_builtins(holdings)}

    async def _drain(self, body: bytes, call: Call) -> Any:
        require_node(call)
        asked = msgspec.msgpack.decode(body, type=Named)
        self._meta.group.require_leader()
        record = self._find(asked.node)
        holdings = await self._departures.drain(record, undo=asked.undo)
        return {**msgspec.to_builtins(_named(record)), "holdings": msgspec.to_builtins(holdings)}

    async def _transfer(self, body: bytes, call: Call) -> Any:
        require_node(call)
        meta = self._meta
        asked = msgspec.msgpack.decode(body, type=Named)
        record = self._find(asked.node)
        begun = time.monotonic()
        meta.group.transfer(NodeId(record.number))
        if not await _until(lambda: meta.group.leader == record.number, TRANSFER_S):
            raise FsError(
                Fault.TIMED_OUT, f"node {record.name} did not take over within {TRANSFER_S:g} s"
            )
        return {"leader": record.number, "took_ms": round((time.monotonic() - begun) * 1000)}

    async def _sessions(self, body: bytes, call: Call) -> Any:
        meta = self._meta
        meta.group.require_leader()
        await meta.group.wait_read()  # one that leads no more knows less than others
        return [msgspec.to_builtins(told) for told in meta.service.sessions()]

    async def _evict(self, body: bytes, call: Call) -> Any:
        require_node(call)
        asked = msgspec.msgpack.decode(body, type=Evict)
        for told in await self._sessions(b"", call):
            if told["number"] == asked.session:
                if asked.yes:
                    log.warning("session %d (%s) is evicted", asked.session, told["about"])
                    await self._meta.service.end_session(asked.session)
                return {**told, "evicted": asked.yes}
        raise FsError(
            Fault.NOT_FOUND, f"there is no session {asked.session}; see: mountfs session list"
        )

    async def _safe_mode(self, body: bytes, call: Call) -> Any:
        self._meta.group.require_leader()
        return msgspec.to_builtins(self._meta.safe_mode.report())

    async def _leave_safe_mode(self, body: bytes, call: Call) -> Any:
        require_node(call)
        self._meta.group.require_leader()
        self._meta.safe_mode.leave()
        return msgspec.to_builtins(self._meta.safe_mode.report())

    async def _status(self, body: bytes, call: Call) -> Any:
        meta = self._meta
        raft, place = meta.group.raft, meta.place
        machine = meta.machine.replica.machine
        health, why = self._health()
        leader = meta.service.node_of(meta.group.leader)
        return {
            "cluster": self._cluster,
            "generation": self._generation,
            "node": place.number,
            "name": place.name,
            "rpc": place.rpc,
            "door": place.door,
            "health": health,
            "why": why,
            "role": raft.role.value,
            "roles": place.roles,
            "location": place.location,
            "leader": meta.group.leader,
            "leader_rpc": None if leader is None else leader.rpc,
            "nodes": [
                {"number": node.number, "name": node.name, "rpc": node.rpc}
                for node in all_nodes(machine.tree)
            ],
            "term": raft.term,
            "committed": raft.log.committed,
            "applied": machine.applied,
            "last_index": raft.log.last_index,
            "first_index": raft.log.base + 1,
            "stored": meta.machine.stored.index,
            "log_bytes": meta.journal.size_bytes,
            "voters": raft.log.membership.voters,
            "outgoing": raft.log.membership.outgoing,
            "learners": raft.log.membership.learners,
            "sessions": len(machine.sessions),
            "inodes": machine.tree.counters.inodes,
            "safe_mode": meta.safe_mode.is_on if meta.group.is_leader else None,
            "troubles": meta.troubles,
            "peers": {str(node): why for node, why in meta.links.problems.items()},
            "snapshots": {
                "sending": msgspec.to_builtins(list(meta.snapshots.sending.values())),
                "receiving": msgspec.to_builtins(list(meta.snapshots.received.values())),
            },
            "figures": meta.node.figures.told(),
            **self.more(),
        }

    def _health(self) -> tuple[str, str]:
        """One word, and the reason."""
        meta = self._meta
        raft = meta.group.raft
        if meta.group.failure is not None:
            return "damaged", str(meta.group.failure)
        if meta.node.full is not None:
            return "full", str(meta.node.full)
        if not meta.group.leader:
            return "leaderless", "no node is known to lead: is there a majority?"
        if meta.troubles:
            return "troubled", "; ".join(f"{name}: {why}" for name, why in meta.troubles.items())
        if meta.group.is_leader:
            if meta.safe_mode.is_on:
                return "safe mode", meta.safe_mode.report().why
            silent = [node for node in raft.log.membership.everyone if not meta.is_alive(node)]
            if silent:
                names = ", ".join(self._name(node) for node in sorted(silent))
                return "degraded", f"no answer from {names}"
        return "healthy", ""

    def _name(self, node: NodeId) -> str:
        record = self._meta.service.node_of(node)
        return f"node {node}" if record is None else f"node {record.name}"

    def _find(self, name: str) -> NodeRecord:
        nodes = all_nodes(self._meta.machine.replica.machine.tree)
        for node in nodes:
            if name in (node.name, str(node.number)):
                return node
        names = ", ".join(node.name for node in nodes)
        raise FsError(Fault.NOT_FOUND, f"there is no node {name}; there are: {names}")


async def _until(holds: Callable[[], bool], seconds: float) -> bool:
    """Wait for something that nobody tells us of."""
    for _ in range(int(seconds / LOOK_S)):
        if holds():
            return True
        await trio.sleep(LOOK_S)
    return holds()


class _Named(msgspec.Struct):
    """`NodeRecord` as an object with names, for JSON."""

    number: int
    name: str
    rpc: str
    door: str
    joined: int
    roles: tuple[str, ...]
    leaving: bool
    location: str
    disk: str
    draining: bool
    lost: bool


def _named(record: NodeRecord) -> _Named:
    return _Named(
        record.number,
        record.name,
        record.rpc,
        record.door,
        record.joined,
        record.roles,
        record.leaving,
        record.location,
        record.disk,
        record.draining,
        record.lost,
    )


def _role(node: NodeId, membership: Membership) -> str:
    if node in membership.voters:
        return "voter"
    if node in membership.outgoing:
        return "leaving voter"
    return "learner" if node in membership.learners else "no member"


def _encoded(
    handler: Callable[[bytes, Call], Awaitable[Any]],
) -> Callable[[bytes, Call], Awaitable[bytes]]:
    async def encoded(body: bytes, call: Call) -> bytes:
        try:
            return msgspec.msgpack.encode(await handler(body, call))
        except msgspec.ValidationError as error:
            raise FsError(Fault.INVALID, f"not a request: {error}") from None

    return encoded


async def ask(
    client: Client, addresses: list[str], method: str, body: object, *, deadline_s: float = 10.0
) -> Any:
    """Ask the leader, whom one of `addresses` knows or is.  Raises what it says."""
    return msgspec.msgpack.decode(
        await ask_raw(client, addresses, method, body, deadline_s=deadline_s)
    )


async def ask_raw(
    client: Client,
    addresses: list[str],
    method: str,
    body: object,
    *,
    deadline_s: float = 10.0,
    find_s: float | None = None,
) -> bytes:
    """`find_s`: how long to look for somebody who leads, if not until the deadline."""
    encoded = msgspec.msgpack.encode(body)
    begun = trio.current_time()
    until = begun + deadline_s

    async def call(address: str, method: str, body: bytes) -> bytes:
        patience_s = max(until - trio.current_time(), 1.0)
        return await client.call(address, SERVICE, method, body, deadline_s=patience_s)

    while True:
        problems: dict[str, FsError] = {}
        places = list(addresses)
        for address in places:  # it grows
            try:
                return await call(address, method, encoded)
            except FsError as error:
                if error.fault not in (Fault.NOT_LEADER, Fault.UNAVAILABLE, Fault.TIMED_OUT):
                    raise
                problems[address] = error
            if problems[address].fault is Fault.NOT_LEADER:
                with contextlib.suppress(FsError):
                    leader = msgspec.msgpack.decode(await call(address, "Leader", b""), type=str)
                    if leader and leader not in places:
                        places.append(leader)
        if trio.current_time() > min(until, begun + (deadline_s if find_s is None else find_s)):
            raise _nobody_leads(problems)
        await trio.sleep(0.2)


def _nobody_leads(problems: dict[str, FsError]) -> FsError:
    told = "; ".join(
        f"{address}: {str(error).removeprefix(f'{address}: ')}"
        for address, error in problems.items()
    )
    return FsError(
        next(reversed(problems.values())).fault,
        f"no node that leads the cluster answers: does a majority of its nodes run?  ({told})",
    )
