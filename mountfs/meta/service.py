"""What a metaserver answers its clients: commands in the log, queries from the leader's state.

Commands that come together go through the log together; nobody waits here for the disk but by being
called back.
"""

import logging
from collections.abc import Callable
from typing import Any, Final

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.inline import leave
from mountfs.meta import keys
from mountfs.meta.machine import MetaMachine
from mountfs.meta.ops.nodes import NodeRecord, all_nodes
from mountfs.meta.ops.session import EndSession, OpenSession
from mountfs.meta.protocol import (
    Cluster,
    Method,
    Opened,
    decode_propose,
    decode_read,
    encode,
)
from mountfs.meta.safe_mode import SafeMode
from mountfs.raft.driver import Group, Node
from mountfs.wire.connection import Body
from mountfs.wire.frames import Parts
from mountfs.wire.service import Peer
from mountfs.wire.stream import Later

log = logging.getLogger(__name__)

SESSION_TTL_MS: Final = 60_000
"""Unless a node is told otherwise."""
SESSIONS_MAX: Final = 10_000


class MetaService:
    """The handler of a `wire` service, on one server of the group of the metadata."""

    def __init__(
        self,
        node: Node,
        group: Group,
        machine: MetaMachine,
        safe_mode: SafeMode,
        session_ttl_ms: int = SESSION_TTL_MS,
    ) -> None:
        self._node = node
        self._group = group
        self._machine = machine
        self._safe_mode = safe_mode
        self._ttl_ms = session_ttl_ms
        self._heard: dict[int, float] = {}
        """Sessions, and when they were last heard of, in milliseconds; only while we lead."""
        self._sequence = 0
        self.commands = 0
        self.queries = 0

    async def handle(self, peer: Peer, method: int, body: Body) -> Parts | Later:
        if method == Method.PROPOSE:
            return self._propose(body)
        if method == Method.READ:
            return await self._read(body)
        if method == Method.RENEW:
            self._require_leader()
            self._hear(_number(body))
            return b""
        if method == Method.CLUSTER:
            return encode(self.cluster())
        if method == Method.OPEN_SESSION:
            return await self._open_session(peer, body)
        if method == Method.END_SESSION:
            await leave()
            number = _number(body)
            await self.order(EndSession(number))
            self._heard.pop(number, None)
            return b""
        raise FsError(Fault.NOT_IMPLEMENTED, f"a metaserver has no method {method}")

    def cluster(self) -> Cluster:
        nodes = tuple(all_nodes(self._machine.replica.machine.tree))
        return Cluster(self._group.raft.leader, nodes)

    def node_of(self, number: int) -> NodeRecord | None:
        tree = self._machine.replica.machine.tree
        row = tree.get(keys.node(number))
        return None if row is None else msgspec.msgpack.decode(row, type=NodeRecord)

    async def order(self, command: Any) -> Any:
        """A command of the cluster itself, through the log."""
        command.check()
        asked = self._machine.ask(0, 0, 0, command)
        return await self._group.wait_propose(self._machine.encoded(asked), asked)

    # -- sessions

    def began_to_lead(self) -> None:
        """Nobody is ended for what a leader before us has not told us."""
        now = self._node.now()
        self._heard = {number: now for number in self._machine.replica.machine.sessions}

    def silent_sessions(self) -> list[int]:
        """Those that have not been heard of for too long."""
        now = self._node.now()
        sessions = self._machine.replica.machine.sessions
        for number in sessions:
            self._heard.setdefault(number, now)
        for number in self._heard.keys() - sessions:
            del self._heard[number]
        return [number for number, heard in self._heard.items() if now - heard > self._ttl_ms]

    def _hear(self, session: int) -> None:
        if session not in self._machine.replica.machine.sessions:
            raise FsError(Fault.SESSION_ENDED, f"session {session} has ended")
        self._heard[session] = self._node.now()

    async def _open_session(self, peer: Peer, body: Body) -> bytes:
        about = msgspec.msgpack.decode(body, type=str)
        await leave()
        self._require_leader()
        if len(self._machine.replica.machine.sessions) >= SESSIONS_MAX:
            raise FsError(Fault.BUSY, f"there are {SESSIONS_MAX} sessions; end some of them first")
        number = await self.order(OpenSession(about))
        self._heard[number] = self._node.now()
        return encode(Opened(number, self._ttl_ms, self._machine.now()))

    # -- commands and queries

    def _propose(self, body: Body) -> Parts | Later:
        asked = decode_propose(body)
        asked.command.check()
        group = self._group
        if not group.is_leader:
            self._require_leader()
        self._hear(asked.session)
        machine = self._machine.replica.machine
        known, reply = machine.reply_to(asked.session, asked.sequence)
        if known:  # it was asked before, and the answer was lost
            if isinstance(reply, FsError):
                raise reply
            return encode(reply)
        self._safe_mode.require_writable()
        self.commands += 1
        subject = self._machine.ask(asked.session, asked.sequence, asked.answered, asked.command)
        later = Later()

        def done(reply: object) -> None:
            if isinstance(reply, FsError):
                later.refuse(reply)
            else:
                later.answer(encode(reply))

        group.propose(self._machine.encoded(subject), done, subject)
        return later

    async def _read(self, body: Body) -> bytes:
        asked = decode_read(body)
        if not self._group.read_now():
            await leave()
            await self._group.wait_read()
        if asked.session:
            self._hear(asked.session)
        self.queries += 1
        return encode(asked.query.read(self._machine.replica.machine.tree))

    def _require_leader(self) -> None:
        self._group.raft.state.require_leader()


def _number(body: Body) -> int:
    try:
        return msgspec.msgpack.decode(body, type=int)
    except msgspec.MsgspecError as error:
        raise FsError(Fault.INVALID, f"not the number of a session: {error}") from None


Answer = Callable[[object], None]
