"""The metadata, far away: a session with whoever leads.

Elections, crashes and lost connections are not seen here but as time.  A command is sent with the
session's next sequence number, and again with the same one until it is answered: it acts once.  Who
waits may be cancelled at any time, and then does not know whether it acted.

A session that has ended (we were silent for too long, or somebody evicted us) is followed by
another one.  What it held is gone: `on_new_session` is told before anything is asked in the new
one.  Questions are asked again there, and so are commands that surely have not acted.  Others fail
with SESSION_ENDED: those that may have acted, and those that belong to what the old session had.
"""

import contextlib
import logging
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import msgspec
import trio

from mountfs.errors import Fault, FsError
from mountfs.inline import leave
from mountfs.meta.command import Command, Query
from mountfs.meta.lock_waiting import PATIENCE_S
from mountfs.meta.locks import Lock
from mountfs.meta.ops.lock import ReleaseLock, TakeLock
from mountfs.meta.ops.nodes import NodeRecord
from mountfs.meta.ops.read import Opened as FileOpened
from mountfs.meta.ops.read import Opening
from mountfs.meta.ops.reap import Reap
from mountfs.meta.ops.slices import Discard
from mountfs.meta.ops.write import Write
from mountfs.meta.protocol import (
    ROLE,
    Answer,
    AwaitLock,
    Changed,
    Cluster,
    KeepBack,
    LocksTold,
    Method,
    Opened,
    Propose,
    Read,
    decode_reply,
    encode,
)
from mountfs.meta.retry import (
    ATTEMPT_S,
    RENEWS_PER_TTL,
    Backoff,
    Route,
    Session,
    SessionOver,
    Verdict,
    judge,
)
from mountfs.types import Ino
from mountfs.wire.connection import Body, Disconnected
from mountfs.wire.frames import Hello, Parts
from mountfs.wire.stream import Client, Handler, Later, connect

log = logging.getLogger(__name__)

R = TypeVar("R")
Address = tuple[str, int]

FIND_S: Final = 2.5
"""So long each node may take to say who leads."""
WATCH_S: Final = 0.5
PROBE_S: Final = 1.5
"""A leader that answers nothing for `WATCH_S` is asked whether it is there, and has so long to say
so: a machine that is gone breaks no connection.
"""
LEARN_S: Final = 1.0
FEW: Final = 3
"""A cluster with fewer nodes may be about to grow: it is asked often who is there."""
AGREE_S: Final = 0.3
"""When one of the nodes that were named has answered, the others have so long to contradict it."""
OPEN_S: Final = 30.0
"""Who begins is told when there is no cluster, `soft` or not."""
SETTLE_S: Final = 2.0
"""Who is cancelled while a lock is being taken still waits so long to hear whether it was."""
AGAIN_S: Final = 5.0
"""Between attempts at a new session, where the cluster does not want us."""
OF_ITS_SESSION: Final = (Discard, ReleaseLock, Reap, TakeLock, Write)
"""Commands that mean nothing in another session: locks and files without a name are gone with it,
and bytes from before its end must not come over those that others have written since.
"""
NO_CLUSTER: Final = bytes(16)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    cluster: bytes = NO_CLUSTER
    """Which cluster is meant; zeros: whoever answers."""
    soft_s: float | None = None
    """Give up with TIMED_OUT after so long; None: never (who waits can be killed)."""
    ssl_context: Callable[[], ssl.SSLContext] | None = None
    server_hostname: str | None = None
    about: str = ""
    caches: bool = False
    """Keep what is read, under leases: see `vfs/leased_meta.py`."""


class Router:
    """Connections to the nodes of a cluster; knows who leads."""

    def __init__(self, nursery: trio.Nursery, seeds: Sequence[Address], options: Options) -> None:
        self._nursery = nursery
        self._options = options
        self._seeds = list(seeds)
        self._route: Route[Address] = Route(self._seeds)
        self.nodes: tuple[NodeRecord, ...] = ()
        self._without_metadata: set[Address | None] = set()
        """They do not know who leads."""
        self.own_copies = False
        """Some files are to have another number of copies than others."""
        self.retention = False
        """Some file has retention, or had it once, or is to get it from its tree."""
        self.leader_number = 0
        """Who led when we last asked; 0: nobody."""
        self._links: dict[Address, Client] = {}
        self._connecting: dict[Address, trio.Lock] = {}
        self._finding = trio.Lock()
        self.on_push: Handler | None = None
        """Answers what the leader asks us."""
        self._cluster = options.cluster
        """Once somebody has answered, it is theirs: other machines may come to have an address."""
        self.problem = ""
        """Why nobody is found that leads."""

    def forget(self, link: Client) -> None:
        """It does not lead, or does not answer."""
        leader = self._route.leader
        if leader is not None and self._links.get(leader) is link:
            self._route.leader = None

    def leader_now(self) -> Client | None:
        leader = self._route.leader
        if leader is not None:
            link = self._links.get(leader)
            if link is not None and link.why is None and link.leaving is None:
                return link
        return None

    async def leader(self) -> Client:
        """A connection to who leads.  Raises NOT_LEADER when nobody is found at the moment, and
        what a node said that does not want us.
        """
        found = self.leader_now()
        if found is not None:
            return found
        async with self._finding:
            found = self.leader_now()
            if found is None:
                if self._cluster == NO_CLUSTER:
                    await self._agree()
                found = await self._find()
                self._cluster = found.peer.cluster
            return found

    async def _agree(self) -> None:
        """No certificate says which cluster is meant: those that were named must be of one.
        Raises INVALID.
        """
        found: dict[bytes, list[str]] = {}

        async def ask(address: Address) -> None:
            with contextlib.suppress(Disconnected, FsError):  # `_find` says it
                cluster = (await self._link(address)).peer.cluster
                found.setdefault(cluster, []).append(_name(address))
                scope.deadline = min(scope.deadline, trio.current_time() + AGREE_S)

        with trio.move_on_after(FIND_S) as scope:
            async with trio.open_nursery() as nursery:
                for address in self._seeds:
                    nursery.start_soon(ask, address)
        if len(found) > 1:
            told = "; ".join(f"{', '.join(who)} of {one.hex()}" for one, who in found.items())
            raise FsError(
                Fault.INVALID, f"these nodes are of different clusters: {told}; name those of one"
            )
        for cluster in found:
            self._cluster = cluster

    async def _find(self) -> Client:
        """Ask all that are known, all at once: the first that names a leader who is there wins."""
        problems: dict[Address, str] = {}
        refused: list[FsError] = []
        found: list[Client] = []

        async def ask(address: Address) -> None:
            try:
                with trio.fail_after(FIND_S):
                    link = await self._leader_by(address)
            except Disconnected as error:
                problems[address] = str(error)
            except trio.TooSlowError:
                problems[address] = f"{_name(address)}: no answer within {FIND_S} s"
            except FsError as error:
                problems[address] = str(error)
                if error.fault is not Fault.NOT_LEADER:
                    refused.append(error)
            else:
                found.append(link)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for address in self._route.candidates(random.shuffle):
                if address not in self._without_metadata:
                    nursery.start_soon(ask, address)
        if found:
            self.problem = ""
            return found[0]
        self.problem = "; ".join(problems.values())
        if refused and len(refused) == len(problems):
            raise FsError(refused[0].fault, self.problem)
        raise FsError(Fault.NOT_LEADER, f"nobody leads the cluster now ({self.problem})")

    async def _leader_by(self, address: Address) -> Client:
        """Who leads by what one node says.  Raises NOT_LEADER, Disconnected, what a node says that
        does not want us.
        """
        link = await self._link(address)
        cluster = msgspec.msgpack.decode(await link.call(Method.CLUSTER), type=Cluster)
        leader, problem = self.learn(cluster)
        if leader is None:
            raise FsError(Fault.NOT_LEADER, f"{_name(address)}: {problem}")
        if leader != address:
            link = await self._link(leader)
        self._route.leader = leader
        return link

    @property
    def leader_record(self) -> NodeRecord | None:
        """Of who led when we last asked."""
        return next((node for node in self.nodes if node.number == self.leader_number), None)

    def numbers_of(self, role: str) -> Callable[[], list[int]]:
        """Who has a role, as far as is known at the time."""
        return lambda: [node.number for node in self.nodes if role in node.roles]

    async def link_to(self, number: int) -> Client:
        """A connection to one node.  Raises UNAVAILABLE for one that is not known; Disconnected."""
        address = self._route.known.get(number)
        if address is None:
            raise FsError(Fault.UNAVAILABLE, f"nobody says where node {number} is")
        return await self._link(address)

    def learn(self, cluster: Cluster) -> tuple[Address | None, str]:
        """(who leads, and if nobody, why not)"""
        self.leader_number = cluster.leader
        self.own_copies |= cluster.own_copies
        self.retention |= cluster.retention
        if cluster.nodes:  # or it has only just joined
            self.nodes = cluster.nodes
            doors = (node.door for node in self.nodes if not node.has_metadata)
            self._without_metadata = set(map(address_of, doors))
        known = {node.number: address_of(node.door) for node in cluster.nodes}
        return self._route.heard(
            cluster.leader, {number: found for number, found in known.items() if found is not None}
        )

    async def _pushed(self, link: Client, method: int, body: Body) -> Parts | Later:
        if self.on_push is None:
            raise FsError(Fault.NOT_IMPLEMENTED, f"a client has no method {method}")
        return await self.on_push(link, method, body)

    async def _link(self, address: Address) -> Client:
        async with self._connecting.setdefault(address, trio.Lock()):
            link = self._links.get(address)
            if link is not None and link.why is None and link.leaving is None:
                return link
            options = self._options
            about = options.about or socket.gethostname()
            link = await connect(
                self._nursery,
                address,
                Hello(cluster=self._cluster, role=ROLE, name=about),
                ssl_context=options.ssl_context() if options.ssl_context else None,
                server_hostname=options.server_hostname,
                on_push=self._pushed,
            )
            self._links[address] = link
            return link


class RemoteMeta:
    """A `Meta`; use `remote_meta`."""

    def __init__(self, router: Router, options: Options) -> None:
        self.router = router
        self._options = options
        self.session = 0
        self.ttl_ms = 60_000
        self._session = Session()
        self._is_over = trio.Event()
        """The session has ended.  Replaced when another one begins."""
        self._is_open = trio.Event()
        """There is a session.  Replaced when it ends."""
        self._leaves = False
        """We end it ourselves, and want no other."""
        self.on_new_session: list[Callable[[int], None]] = []
        """Told the number of a session that has ended, when another one has begun.  They must not
        wait: nothing is asked in the new one before they return.
        """
        self._latest = 0
        self.calls = 0
        self.attempts = 0
        self._waiting: dict[int, Client] = {}
        """Attempts that are not answered yet, by their number."""

    def now(self) -> int:
        self._latest = max(time.time_ns(), self._latest)
        return self._latest

    @property
    def ended(self) -> FsError | None:
        """Why there is no session at the moment, if there is none."""
        return self._session.ended

    async def propose(self, command: Command[R]) -> R:
        """Raises SESSION_ENDED where nobody knows whether it acted, and for what means nothing in
        another session.
        """
        answer = await self._propose(Method.PROPOSE, command)
        return decode_reply(command, answer)  # type: ignore[no-any-return]

    async def propose_leased(self, command: Command[R]) -> tuple[Changed, R]:
        """With what the answer says of our leases."""
        answer = await self._propose(Method.LEASED_PROPOSE, command)
        found = msgspec.msgpack.decode(answer, type=Changed)
        return found, decode_reply(command, found.reply)

    async def _propose(self, method: int, command: Command[Any]) -> Body:
        command.check()
        while True:
            session = self._session
            if session.ended is not None and not isinstance(command, OF_ITS_SESSION):
                session = await self._next_session()
            sequence, answered = session.begin()
            try:
                body = encode(Propose(session.number, sequence, answered, command))
                return await self._ask(method, body, session.number)
            except SessionOver as error:
                if error.unsure or isinstance(command, OF_ITS_SESSION):
                    raise
            finally:
                # Whoever is cancelled does not ask again, so the answer need not be kept.
                session.done(sequence)

    async def read(self, query: Query[R]) -> R:
        answer = await self._read(Method.READ, query)
        return decode_reply(query, answer)  # type: ignore[no-any-return]

    async def read_leased(self, query: Query[Any]) -> tuple[int, Any]:
        """(what the answer says of our leases, it; or NOT_FOUND, which may be believed as well)"""
        answer = await self._read(Method.LEASED_READ, query)
        flags, rest = answer[0], answer[1:]
        if flags & Answer.ABSENT:
            return flags, FsError(Fault.NOT_FOUND, bytes(rest).decode(errors="replace").strip())
        return flags, decode_reply(query, rest)

    @property
    def answered(self) -> int:
        """All commands of the session up to this one are answered."""
        return self._session.answered

    async def keep_back(self, ino: Ino) -> tuple[int, FileOpened]:
        """(what the answer says of our leases, what is to be known of a file that is written)"""
        while True:
            session = self._session
            if session.ended is not None:
                session = await self._next_session()
            with contextlib.suppress(SessionOver):
                asked = KeepBack(session.number, ino)
                answer = await self._ask(Method.KEEP_BACK, encode(asked), session.number)
                return answer[0], decode_reply(Opening(ino), answer[1:])

    async def _read(self, method: int, query: Query[Any]) -> Body:
        while True:
            session = self._session
            if session.ended is not None:
                session = await self._next_session()
            with contextlib.suppress(SessionOver):
                return await self._ask(method, encode(Read(session.number, query)), session.number)

    async def take_lock(self, ino: Ino, lock: Lock, *, waits: bool) -> Lock | None:
        command, session = TakeLock(ino, lock, waits), self._session
        if lock.owner.session != session.number:
            raise SessionOver(f"session {lock.owner.session} has ended", unsure=False)
        sequence, answered = session.begin()
        body = encode(Propose(session.number, sequence, answered, command))
        try:
            try:
                answer = await self._ask(Method.PROPOSE, body, session.number)
            except trio.Cancelled:
                # A lock that nobody knows of would be held until the file is closed.
                with trio.move_on_after(SETTLE_S, shield=True) as settled:
                    answer = await self._ask(Method.PROPOSE, body, session.number)
                if settled.cancelled_caught:
                    raise
        finally:
            session.done(sequence)
        return decode_reply(command, answer)  # type: ignore[no-any-return]

    async def await_lock(self, ino: Ino, lock: Lock) -> None:
        soft_s = self._options.soft_s
        patience_s = PATIENCE_S if soft_s is None else min(PATIENCE_S, soft_s / 2)
        called = False
        while not called:
            asked = AwaitLock(lock.owner.session, ino, lock, int(patience_s * 1000))
            answer = await self._ask(Method.AWAIT_LOCK, encode(asked), asked.session)
            called = msgspec.msgpack.decode(answer, type=bool)

    async def session_now(self) -> int:
        """Raises TIMED_OUT if `soft`."""
        return (await self._next_session()).number

    async def locks(self, ino: Ino) -> LocksTold:
        answer = await self._ask(Method.LOCKS, encode(ino))
        return msgspec.msgpack.decode(answer, type=LocksTold)

    # -- the session

    async def open_session(self) -> None:
        asked = (self._options.about, self._options.caches)
        answer = await self._ask(Method.OPEN_SESSION, encode(asked))
        opened = msgspec.msgpack.decode(answer, type=Opened)
        before, session = self.session, Session()
        session.opened(opened.session)
        self._session, self.session, self.ttl_ms = session, opened.session, opened.ttl_ms
        self._latest = max(self._latest, opened.time)
        if before:
            log.warning("session %d has taken the place of session %d", opened.session, before)
            for told in self.on_new_session:
                told(before)
        self._is_over = trio.Event()
        self._is_open.set()

    async def end_session(self) -> None:
        """With what patience the caller's scope has."""
        self._leaves = True
        if self.session and self.ended is None:
            await self._ask(Method.END_SESSION, encode(self.session))

    async def keep_session(self) -> None:
        """Let the cluster know that we are here, until cancelled."""
        while True:
            await trio.sleep(self.ttl_ms / 1000 / RENEWS_PER_TTL)
            if self.ended is not None:
                continue
            with contextlib.suppress(FsError):
                await self._ask(Method.RENEW, encode(self.session), self.session)
                # All whom we know may be replaced one day, and those who come must be known then.
                await self._learn()

    async def follow_session(self) -> None:
        """Begin another session when one has ended, until cancelled."""
        while True:
            await self._is_over.wait()
            problem = ""
            while self.ended is not None:
                try:
                    await self.open_session()
                except FsError as error:
                    if problem != str(error):
                        log.error("there is no new session: %s", error)
                    problem = str(error)
                    await trio.sleep(AGAIN_S)

    async def _next_session(self) -> Session:
        """Raises TIMED_OUT if `soft`."""
        await leave()
        soft_s = self._options.soft_s
        with trio.move_on_after(float("inf") if soft_s is None else soft_s):
            while self._session.ended is not None:
                await self._is_open.wait()
            return self._session
        raise FsError(Fault.TIMED_OUT, f"no new session with the cluster within {soft_s} s")

    def _over(self, error: FsError, session: int) -> None:
        """Session `session` has ended: perhaps one before ours."""
        if session != self.session or not self._session.over(error) or self._leaves:
            return
        log.error("%s: locks and what was not written are lost with it", error)
        self._is_open = trio.Event()
        self._is_over.set()

    async def _learn(self) -> None:
        answer = await self._ask(Method.CLUSTER, b"")
        self.router.learn(msgspec.msgpack.decode(answer, type=Cluster))

    async def learn_soon(self) -> None:
        """While so few are known that they may all be gone before the next renewal."""
        while True:
            await trio.sleep(LEARN_S)
            if len(self.router.nodes) < FEW:
                with contextlib.suppress(FsError):
                    await self._learn()

    async def watch_leader(self) -> None:
        """Notice a leader that is gone without a word, until cancelled."""
        before: set[int] = set()
        while True:
            await trio.sleep(WATCH_S)
            slow = before & self._waiting.keys()
            before = set(self._waiting)
            for link in {self._waiting[number] for number in slow}:
                with trio.move_on_after(PROBE_S) as probe:
                    with contextlib.suppress(Disconnected, FsError):
                        await link.call(Method.CLUSTER)
                if probe.cancelled_caught:
                    link.close(f"no answer within {PROBE_S} s")

    async def ask_leader(self, method: int, body: bytes) -> Body:
        """What else a leader answers, by what is built on the metadata.  It may act more than once.
        Raises as `read`, and UNAVAILABLE when the leader says that it cannot be done now.
        """
        if self._session.ended is not None:
            raise self._session.ended
        return await self._ask(method, body, self.session, answers=(Fault.UNAVAILABLE,))

    async def _ask(
        self, method: int, body: bytes, session: int = 0, answers: Collection[Fault] = ()
    ) -> Body:
        """The answer, however often it takes; `session` is the one that is asked in.  Raises what
        is an answer, as `answers` are besides others; SessionOver; TIMED_OUT if `soft`.
        """
        self.calls += 1
        await leave()
        soft_s = self._options.soft_s
        if soft_s is None:
            return await self._ask_for_ever(method, body, session, answers)
        with trio.move_on_after(soft_s):
            return await self._ask_for_ever(method, body, session, answers)
        raise FsError(
            Fault.TIMED_OUT, f"no answer from the cluster within {soft_s} s: {self.router.problem}"
        )

    async def _ask_for_ever(
        self, method: int, body: bytes, session: int, answers: Collection[Fault]
    ) -> Body:
        unsure = False
        link = self.router.leader_now()
        if link is not None:
            # Nearly always the first attempt is the last.
            try:
                return await self._attempt(link, method, body)
            except Disconnected as error:
                self.router.forget(link)
                unsure = error.sent
            except FsError as error:
                if error.fault in answers:
                    raise
                self._judge(error, link, session, unsure)
                unsure = True
        backoff = Backoff()
        while True:
            link = None
            try:
                link = await self.router.leader()
                return await self._attempt(link, method, body)
            except Disconnected as error:
                if link is not None:
                    self.router.forget(link)
                    unsure |= error.sent
            except FsError as error:
                if error.fault in answers:
                    raise
                self._judge(error, link, session, unsure)
                unsure |= link is not None
            await trio.sleep(backoff.pause_s(random.random()))

    async def _attempt(self, link: Client, method: int, body: bytes) -> Body:
        self.attempts += 1
        if method == Method.AWAIT_LOCK:  # it may take its time, and that says nothing of the leader
            with trio.move_on_after(PATIENCE_S + PROBE_S):
                return await link.call(method, body)
            raise Disconnected(f"no answer within {PATIENCE_S + PROBE_S} s", sent=True)
        number = self.attempts
        self._waiting[number] = link
        try:
            with trio.move_on_after(ATTEMPT_S):
                return await link.call(method, body)
        finally:
            del self._waiting[number]
        raise Disconnected(f"no answer within {ATTEMPT_S} s", sent=True)

    def _judge(self, error: FsError, link: Client | None, session: int, unsure: bool) -> None:
        """Return if it is to be asked again; raise the answer."""
        verdict = judge(error.fault)
        if verdict is Verdict.OVER:
            self._over(error, session)
            detail = f"{error}; whether this was done before nobody knows" if unsure else str(error)
            raise SessionOver(detail, unsure=unsure)
        if verdict is Verdict.ANSWER:
            raise error
        if link is not None and verdict is Verdict.ELSEWHERE:
            self.router.forget(link)


@asynccontextmanager
async def remote_meta(seeds: Sequence[Address], options: Options) -> AsyncIterator[RemoteMeta]:
    """A session with the cluster that is found at `seeds`, kept while the block lasts."""
    async with trio.open_nursery() as nursery:
        meta = RemoteMeta(Router(nursery, seeds, options), options)
        with trio.move_on_after(OPEN_S) as waited:
            await meta.open_session()
        if waited.cancelled_caught:
            raise FsError(
                Fault.TIMED_OUT,
                f"the cluster does not answer within {OPEN_S:g} s: {meta.router.problem}",
            )
        nursery.start_soon(meta.keep_session)
        nursery.start_soon(meta.follow_session)
        nursery.start_soon(meta.watch_leader)
        nursery.start_soon(meta.learn_soon)
        try:
            yield meta
        finally:
            with trio.move_on_after(2, shield=True):
                try:
                    await meta.end_session()
                except FsError as error:
                    log.warning("the session ends by itself later: %s", error)
            nursery.cancel_scope.cancel()


PORT_MAX: Final = 65_535


def address_of(text: str) -> Address | None:
    host, _, port = text.rpartition(":")
    is_port = port.isascii() and port.isdigit() and int(port) <= PORT_MAX
    return (host.strip("[]"), int(port)) if is_port else None


def _name(address: Address) -> str:
    return f"{address[0]}:{address[1]}"
