"""A metaserver of the simulation: answers as `meta/service.py`, and has the duties of a leader that
`meta/server.py` has.  What is decided is decided by the cores that those use too.
"""

from typing import Any

from mountfs.chunks.protocol import Method as Asked
from mountfs.errors import Fault, FsError
from mountfs.meta.asked import Asked as InLog
from mountfs.meta.command import Command
from mountfs.meta.membership_policy import wanted
from mountfs.meta.ops.nodes import NodeRecord, RemoveNode, all_nodes
from mountfs.meta.ops.reap import Orphans, Reap
from mountfs.meta.ops.session import EndSession, OpenSession
from mountfs.meta.ops.trash import DueTrash, EmptyTrash
from mountfs.meta.protocol import (
    Cluster,
    Method,
    Opened,
    Propose,
    decode_propose,
    decode_read,
    encode,
)
from mountfs.meta.reports import Report
from mountfs.meta.safe_mode import SafeMode
from mountfs.meta.session_watch import SessionWatch, kept_reply
from mountfs.meta.state_machine import StateMachine, encode_entry
from mountfs.raft.messages import NodeId
from mountfs.raft.progress import Flow
from mountfs.sim.leading import Leading
from mountfs.sim.leasing import Leasing, Link
from mountfs.sim.metadata import Metadata
from mountfs.sim.promises import Promises
from mountfs.sim.server import GONE, Answer, Server
from mountfs.sim.world import MS, World
from mountfs.types import SUPERUSER, Ino

DUTIES_US = 250 * MS
REAP_BATCH = 16
TRASH_MAX = 4
_FOR_EVER = (1 << 63) - 1
_NOT_LEADER = FsError(Fault.NOT_LEADER, "this server does not lead its group")


class MetaServer:
    def __init__(self, world: World, server: Server, promises: Promises, ttl_ms: int) -> None:
        self._world = world
        self.server = server
        self._promises = promises
        self._ttl_ms = ttl_ms
        self._watch = SessionWatch(ttl_ms)
        self._heard: dict[int, int] = {}
        """When sessions were really heard of."""
        self._led_since = 0
        self._latest = 0
        self.leasing: Leasing | None = None
        self.leading: Leading | None = None
        """What it does about bytes, if there are chunkservers."""
        server.on_leader = self._leadership
        world.after(DUTIES_US, self._duties)

    @property
    def up(self) -> bool:
        return self.server.up

    @property
    def life(self) -> int:
        return self.server.life

    @property
    def machine(self) -> StateMachine:
        found = self.server.machine
        assert isinstance(found, Metadata)
        return found.replica.machine

    def nodes(self) -> list[NodeRecord]:
        return list(all_nodes(self.machine.tree))

    # -- what clients ask

    def ask(self, method: int, body: bytes, answer: Answer, link: Link | None = None) -> None:
        """`answer` gets bytes, or an FsError; a crash may forget it.  `link`: on which it came."""
        server = self.server
        if not server.up:
            answer(GONE)
            return

        def run() -> None:
            try:
                self._handle(method, body, answer, link)
            except FsError as error:
                if error.fault is Fault.CORRUPT:
                    raise
                answer(error)

        server.when_running("client", run)

    def hear(self, report: Report, answer: Answer) -> None:
        """A chunkserver reports."""
        leading = self.leading
        assert leading is not None
        self.server.when_running("reports", lambda: leading.hear(report, answer))

    def _handle(self, method: int, body: bytes, answer: Answer, link: Link | None) -> None:
        leasing = self.leasing
        if leasing is not None:
            leasing.fresh()
        if method == Method.CLUSTER:
            answer(encode(Cluster(self.server.raft.leader, tuple(self.nodes()))))
        elif method == Method.PROPOSE:
            self._propose(body, answer)
        elif method == Method.READ:
            if leasing is None:
                self._read(body, answer)
            else:
                leasing.read(decode_read(body), None, answer)
        elif method == Method.LEASED_READ:
            assert leasing is not None
            leasing.read(decode_read(body), link, answer)
        elif method == Method.LEASED_PROPOSE:
            self._propose(body, answer, link)
        elif method in (Method.BEGIN, Method.HOLD):
            assert leasing is not None and link is not None
            (leasing.begin if method == Method.BEGIN else leasing.hold)(body, link, answer)
        elif method == Method.RENEW:
            self.server.raft.state.require_leader()
            self._renew(int.from_bytes(body, "big"), answer)
        elif method == Method.OPEN_SESSION:
            self.server.raft.state.require_leader()
            self._open_session(answer)
        elif method in (Asked.ALLOT, Asked.RETURN):
            assert self.leading is not None
            self.leading.ask(Asked(method), body, answer)
        else:
            assert method == Method.END_SESSION, method
            number = int.from_bytes(body, "big")
            self._promises.ending.setdefault(number, self._world.now)
            self.order(EndSession(number), lambda reply: answer(_encoded(reply)))

    def _propose(self, body: bytes, answer: Answer, link: Link | None = None) -> None:
        leasing = self.leasing
        asked = decode_propose(body)
        asked.command.check()
        self.server.raft.state.require_leader()
        self._hear(asked.session)
        known, reply = kept_reply(self.machine, asked.session, asked.sequence)
        if known:
            if leasing is None:
                answer(_encoded(reply))
            else:
                leasing.again(reply, link, answer)
            return
        if leasing is not None:
            leasing.propose(asked, link, answer)
            return
        if self.leading is not None and self.leading.seen.safe_mode.is_on:
            self._refuse(self.leading.seen.safe_mode, asked, answer)
            return
        self._order(asked.session, asked.sequence, asked.answered, asked.command, answer)

    def _refuse(self, safe_mode: SafeMode, asked: Propose, answer: Answer) -> None:
        def known_to_all(found: object) -> None:
            try:
                if isinstance(found, FsError):
                    raise found
                known, reply = kept_reply(self.machine, asked.session, asked.sequence)
                if known:
                    answer(_encoded(reply))
                    return
                safe_mode.require_writable()
                raise FsError(Fault.UNAVAILABLE, "safe mode has just ended")
            except FsError as refusal:
                answer(refusal)

        self.server.read(Orphans(0, 1), known_to_all)

    def _read(self, body: bytes, answer: Answer) -> None:
        asked = decode_read(body)

        def readable(found: object) -> None:
            if not isinstance(found, FsError) and not self._hear(asked.session):
                found = _ended(asked.session)
            answer(_encoded(found))

        if self.server.read_now():
            readable(self.server.look_up(asked.query))
        else:
            self.server.read(asked.query, readable)

    def _renew(self, session: int, answer: Answer) -> None:
        if self._hear(session):
            answer(b"")
            return

        def known(found: object) -> None:
            if isinstance(found, FsError) or self._hear(session):
                answer(found if isinstance(found, FsError) else b"")
            else:
                answer(_ended(session))

        self.server.read(Orphans(0, 1), known)

    def _open_session(self, answer: Answer) -> None:
        def opened(reply: object) -> None:
            if isinstance(reply, int):
                self._hear(reply)
                answer(encode(Opened(reply, self._ttl_ms, self._now())))
            else:
                answer(reply)

        self.order(OpenSession(caches=self.leasing is not None), opened)

    def _hear(self, session: int) -> bool:
        self._heard[session] = self._world.now
        return self._watch.hear(self.machine.sessions, session, self.server.clock())

    def hear_session(self, session: int) -> bool:
        """Returns whether there is such a session."""
        return self._hear(session)

    def end_session(self, number: int) -> None:
        self._promises.ending.setdefault(number, self._world.now)
        self.order(EndSession(number), _ignore)

    def propose(self, asked: InLog, answer: Answer) -> None:
        """`answer` gets the reply as it is."""
        data = encode_entry(
            asked.session, asked.sequence, asked.answered, asked.time, asked.command
        )
        self.server.propose(data, answer)

    def time(self) -> int:
        return self._now()

    def _now(self) -> int:
        clock_ns = self.server.clock() * 1_000_000
        self._latest = max(self._latest, clock_ns, self.machine.tree.counters.last_time)
        return self._latest

    def order(self, command: Command[Any], done: Answer) -> None:
        """A command of the cluster itself."""
        self._order(0, 0, 0, command, done, encoded=False)

    def _order(
        self,
        session: int,
        sequence: int,
        answered: int,
        command: Command[Any],
        answer: Answer,
        *,
        encoded: bool = True,
    ) -> None:
        data = encode_entry(session, sequence, answered, self._now(), command)
        done = (lambda reply: answer(_encoded(reply))) if encoded else answer
        self.server.propose(data, done)

    # -- what the leader does

    def _leadership(self) -> None:
        if self.leading is not None:
            self.leading.leadership()
        if self.leasing is not None:
            self.leasing.leadership()
        if self.server.raft.state.is_leader:
            self._led_since = self._world.now
            self._watch.began_to_lead(self.machine.sessions, self.server.clock())

    def _duties(self) -> None:
        self._world.after(DUTIES_US, self._duties)
        server = self.server
        if server.runs:
            server.when_running("duties", self._lead)

    def _lead(self) -> None:
        state = self.server.raft.state
        for duty in (
            self._end_silent_sessions,
            self._reap,
            self._empty_trash,
            self._tend_members,
        ):
            if self.server.up and state.is_leader and state.proven:
                duty()

    def _end_silent_sessions(self) -> None:
        server = self.server
        for number in self._watch.silent(self.machine.sessions, server.clock()):
            self._world.note(f"{server.node} ends session {number}, which is silent")
            since = max(self._heard.get(number, 0), self._led_since)
            if server.jumped_at < since:  # or else silence is what its clock says
                silent_us = int((self._world.now - since) * server.clock_rate) + 2 * MS
                self._promises.ends_for_silence(server.node, number, silent_us, self._ttl_ms * MS)
            self._promises.ending.setdefault(number, self._world.now)
            self.order(EndSession(number), _ignore)

    def _reap(self) -> None:
        machine = self.machine
        orphans = Orphans(None, REAP_BATCH).read(machine.tree)
        by_session: dict[int, list[Ino]] = {}
        for session, ino in orphans:
            if session not in machine.sessions:
                by_session.setdefault(session, []).append(ino)
        for session, inos in by_session.items():
            self._promises.reaped += len(inos)
            self.order(Reap(session, tuple(inos)), _ignore)

    def _empty_trash(self) -> None:
        """No time is proven here, so nothing is ever due: what is to go first goes when there is
        some.
        """
        found = DueTrash(_FOR_EVER, TRASH_MAX).read(self.machine.tree)
        if len(found) == TRASH_MAX:
            self.order(EmptyTrash(found[: TRASH_MAX // 2], SUPERUSER), _ignore)

    def _tend_members(self) -> None:
        raft = self.server.raft
        membership = raft.log.membership
        nodes = self.nodes()
        change = wanted(membership, nodes, self._is_ready)
        if change is not None:
            self.server.change(list(change[0]), list(change[1]))
            return
        if raft.log.membership_index > raft.log.committed:
            return
        for node in nodes:
            if node.leaving and node.number not in membership.everyone:
                self.order(RemoveNode(node.number), _ignore)

    def _is_ready(self, node: NodeId) -> bool:
        raft, config = self.server.raft, self.server.raft.state.config
        peer = raft.state.peers.get(node)
        return (
            peer is not None
            and peer.flow is Flow.REPLICATE
            and self.server.clock() - peer.heard < 2 * config.election_ms
            and raft.log.last_index - peer.match <= config.caught_up_entries
        )

    def is_alive(self, node: NodeId) -> bool:
        """Whether the leader has heard of a node lately."""
        if node == self.server.node:
            return True
        raft = self.server.raft
        peer = raft.state.peers.get(node)
        return (
            peer is not None
            and self.server.clock() - peer.heard < 2 * raft.state.config.election_ms
        )


def _encoded(reply: object) -> object:
    return reply if isinstance(reply, FsError) else encode(reply)


def _ended(session: int) -> FsError:
    return FsError(Fault.SESSION_ENDED, f"session {session} has ended")


def _ignore(reply: object) -> None:
    """Tried again at the next round if need be."""
