"""What a metaserver answers its clients: commands in the log, queries from the leader's state.

Commands that come together go through the log together; nobody waits here for the disk but by being
called back.
"""

import logging
from typing import Any, Final, TypeVar

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.inline import leave
from mountfs.meta import keys
from mountfs.meta.command import UNFIT, Command
from mountfs.meta.lease_keeper import LeaseKeeper
from mountfs.meta.leases import TTL_MS, Wait
from mountfs.meta.lock_waiting import PATIENCE_S, LockWaiting
from mountfs.meta.locks import Lock
from mountfs.meta.machine import MetaMachine
from mountfs.meta.ops.default_retention import CommitRetention
from mountfs.meta.ops.lock import ReleaseLock, TakeLock, locks_of_session
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.nodes import NodeRecord, all_nodes
from mountfs.meta.ops.read import Opening
from mountfs.meta.ops.reap import Orphans, Reap
from mountfs.meta.ops.retention import SetRetention
from mountfs.meta.ops.session import EndSession, OpenSession
from mountfs.meta.protocol import (
    Answer,
    Begin,
    Changed,
    Cluster,
    Hold,
    KeepBack,
    Method,
    Opened,
    Propose,
    Read,
    decode_await_lock,
    decode_propose,
    decode_read,
    encode,
)
from mountfs.meta.records import ino_of
from mountfs.meta.safe_mode import SafeMode
from mountfs.meta.session_watch import SessionWatch, kept_reply
from mountfs.raft.driver import Group, Node
from mountfs.types import Ino
from mountfs.wire.connection import Body
from mountfs.wire.frames import Parts
from mountfs.wire.service import Peer
from mountfs.wire.stream import Later

log = logging.getLogger(__name__)

F = TypeVar("F")

SESSION_TTL_MS: Final = 60_000
"""Unless a node is told otherwise."""
SESSIONS_MAX: Final = 10_000
UNNAMED_MAX: Final = 100_000
"""Files without a name that are counted of one session."""


class SessionTold(msgspec.Struct, frozen=True):
    """A session, for people."""

    number: int
    about: str
    """Who it is, as they say."""
    silent_ms: int
    """So long ago it was heard of."""
    locks: int
    """That it holds."""
    waits: int
    """Locks that it waits for."""
    unnamed: int
    """Files without a name that are kept for it."""


class MetaService:
    """The handler of a `wire` service, on one server of the group of the metadata."""

    def __init__(
        self,
        node: Node,
        group: Group,
        machine: MetaMachine,
        safe_mode: SafeMode,
        session_ttl_ms: int = SESSION_TTL_MS,
        lease_ttl_ms: int = TTL_MS,
    ) -> None:
        # Who has been silent for long enough to be ended has no leases any more.
        self.keeper = LeaseKeeper(node.now, self.end_session, min(lease_ttl_ms, session_ttl_ms))
        machine.on_changes = self._changed
        self._node = node
        self._group = group
        self._machine = machine
        self._safe_mode = safe_mode
        self._ttl_ms = session_ttl_ms
        self._watch = SessionWatch(session_ttl_ms)
        self.lock_waiting = LockWaiting(lambda: machine.replica.machine, node.now)
        self._sequence = 0
        self.commands = 0
        self.queries = 0

    async def handle(self, peer: Peer, method: int, body: Body) -> Parts | Later:
        if method == Method.PROPOSE:
            return self._propose(body)
        if method == Method.LEASED_READ:
            return await self._read_leased(peer, body)
        if method == Method.LEASED_PROPOSE:
            return self._propose(body, peer)
        if method == Method.READ:
            return await self._read(body)
        if method == Method.HOLD:
            return await self._hold(peer, _decoded(body, Hold))
        if method == Method.BEGIN:
            return await self._begin(peer, body)
        if method == Method.KEEP_BACK:
            return await self._keep_back(peer, body)
        if method == Method.RENEW:
            self._require_leader()
            return await self._renew(_number(body))
        if method == Method.CLUSTER:
            return encode(self.cluster())
        if method == Method.AWAIT_LOCK:
            return await self._await_lock(body)
        if method == Method.LOCKS:
            return await self._locks(body)
        if method == Method.OPEN_SESSION:
            return await self._open_session(peer, body)
        if method == Method.END_SESSION:
            await leave()
            await self._end(_number(body))  # who leaves believes nothing any more
            return b""
        raise FsError(Fault.NOT_IMPLEMENTED, f"a metaserver has no method {method}")

    def cluster(self) -> Cluster:
        tree = self._machine.replica.machine.tree
        counters = tree.counters
        retention = counters.retention or counters.default_retention
        nodes = tuple(all_nodes(tree))
        return Cluster(self._group.leader, nodes, counters.own_copies, retention)

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
        self.keeper.lead(self._machine.replica.machine.caching)
        self._watch.began_to_lead(self._machine.replica.machine.sessions, self._node.now())

    def lead_no_more(self) -> None:
        """Who waits here is to ask elsewhere."""
        self.keeper.lead_no_more()
        self.lock_waiting.end(FsError(Fault.NOT_LEADER, "another node leads now"))

    def applied(self, command: Command[Any], reply: object) -> None:
        """The state has changed."""
        if self.lock_waiting.any:
            self.lock_waiting.applied(command, reply)

    def silent_sessions(self) -> list[int]:
        """Those that have not been heard of for too long."""
        return self._watch.silent(self._machine.replica.machine.sessions, self._node.now())

    def sessions(self) -> list[SessionTold]:
        """Those that have not ended, as who leads knows them."""
        machine, now = self._machine.replica.machine, self._node.now()
        return [
            SessionTold(
                number,
                machine.about(number),
                int(self._watch.silent_ms(number, now) or 0),
                len(locks_of_session(machine.tree, number)),
                self.lock_waiting.count(number),
                len(Orphans(number, UNNAMED_MAX).read(machine.tree)),
            )
            for number in sorted(machine.sessions)
        ]

    async def end_session(self, number: int) -> None:
        """Whoever has it loses what it holds, once it believes nothing any more of what others may
        change then.
        """
        await self.keeper.let_go(number)
        await self._end(number)

    async def _end(self, number: int) -> None:
        await self.order(EndSession(number))
        self._watch.forget(number)

    def _hear(self, session: int) -> bool:
        sessions = self._machine.replica.machine.sessions
        return self._watch.hear(sessions, session, self._node.now())

    async def _renew(self, session: int) -> bytes:
        if not self._hear(session):
            # A leader before us may have opened it, and we have not applied that yet.
            if not self._group.read_now():
                await leave()
                await self._group.wait_read()
            if not self._hear(session):
                raise _ended(session)
        return b""

    async def _open_session(self, peer: Peer, body: Body) -> bytes:
        try:
            about, caches = msgspec.msgpack.decode(body, type=tuple[str, bool])
        except msgspec.MsgspecError as error:
            raise FsError(Fault.INVALID, f"not whom a session is about: {error}") from None
        await leave()
        self._require_leader()
        if len(self._machine.replica.machine.sessions) >= SESSIONS_MAX:
            raise FsError(Fault.BUSY, f"there are {SESSIONS_MAX} sessions; end some of them first")
        number = await self.order(OpenSession(about, caches))
        self._hear(number)
        return encode(Opened(number, self._ttl_ms, self._machine.now()))

    # -- leases

    async def _begin(self, peer: Peer, body: Body) -> bytes:
        """From now on it may have leases."""
        asked = _decoded(body, Begin)
        await self._prove(asked.session)
        self.keeper.begin(asked.session, peer, asked.writes)
        return encode(self.keeper.leases.ttl_ms)

    async def _keep_back(self, peer: Peer, body: Body) -> bytes:
        asked = _decoded(body, KeepBack)
        keeper = self.keeper
        while True:
            await self._prove(asked.session)
            wait: Wait | None
            if not keeper.is_settled:
                await leave()
                await keeper.settled()
                continue
            granted = keeper.keep_back(asked, peer)
            if isinstance(granted, Wait):
                wait = granted
            else:
                wait = keeper.blocked(asked.session, (asked.ino,))
            if wait is None:
                break
            await leave()
            await keeper.over(wait)
        found = self._answer(Read(asked.session, Opening(asked.ino)))
        flags = keeper.answer(asked.session, peer, (asked.ino,))
        if granted and flags & Answer.RENEWED:
            flags |= Answer.WRITES | Answer.GRANTED
        return bytes((flags,)) + found

    async def _hold(self, peer: Peer, asked: Hold) -> bytes:
        await self._prove(asked.session)
        flags = self.keeper.flags(asked.session, peer)
        if not flags & Answer.BEGIN:
            self.keeper.leases.has_told(asked.session, asked.told)
        return bytes((flags,))

    async def _prove(self, session: int) -> None:
        """That we lead, and that there is such a session."""
        await self._be_up_to_date()
        if not self._hear(session):
            raise _ended(session)

    def _changed(self, asked: Any, seen: set[Ino], committed: dict[bytes, bytes | None]) -> None:
        if self._group.is_leader:
            self.keeper.applied(asked, seen, committed)

    async def _read_leased(self, peer: Peer, body: Body) -> bytes:
        asked = decode_read(body)
        found, refused, seen = await self._look(asked)
        flags = self.keeper.answer(asked.session, peer, seen)
        if refused is None:
            return bytes((flags,)) + found
        if refused.fault is not Fault.NOT_FOUND:
            raise refused
        return bytes((flags | Answer.ABSENT,)) + str(refused).encode()

    # -- commands and queries

    def _propose(self, body: Body, peer: Peer | None = None) -> Parts | Later:
        """`peer`: who asks, if it keeps what it knows."""
        asked = decode_propose(body)
        group = self._group
        if not group.is_leader:
            self._require_leader()
        if not self._hear(asked.session) and not asked.session:
            raise _ended(asked.session)
        # One that we do not know may be new: whether it has ended, the log says.
        known, reply = kept_reply(self._machine.replica.machine, asked.session, asked.sequence)
        if known:
            return self._again(reply, peer)
        if isinstance(asked.command, Reap) and asked.command.session != asked.session:
            raise FsError(Fault.NOT_PERMITTED, "a session removes only files of its own")
        if isinstance(asked.command, (TakeLock, ReleaseLock)):
            turn = self._turn_of_another(asked)
            if turn is not None:
                return encode(turn)
        if self._safe_mode.is_on:
            return self._refused(asked, peer)
        if isinstance(asked.command, CommitRetention | SetRetention) and not self._machine.proven():
            raise FsError(Fault.UNAVAILABLE, "no majority of the metaservers tells the time yet")
        self._node.require_room()
        self.commands += 1
        subject = self._machine.ask(asked.session, asked.sequence, asked.answered, asked.command)
        subject.caches = peer is not None
        later = Later()
        keeper = self.keeper

        def done(reply: object) -> None:
            if subject.waits:
                keeper.when_over(subject.waits, lambda: told(reply))
            else:
                told(reply)

        def told(reply: object) -> None:
            if not group.is_leader:  # others lead, and may have promised otherwise
                reply = FsError(Fault.NOT_LEADER, "it was carried out, or will be: ask who leads")
            if isinstance(reply, FsError):
                later.refuse(reply)
            elif peer is None:
                later.answer(encode(reply))
            elif subject.is_again:
                later.answer(_unknown(reply))
            else:
                flags = keeper.flags(asked.session, peer)
                if subject.is_granted and flags & Answer.RENEWED:
                    flags |= Answer.GRANTED
                if isinstance(asked.command, Make) and reply[1] and flags & Answer.GRANTED:  # type: ignore[index]
                    made = KeepBack(asked.session, ino_of(reply[0]))  # type: ignore[index]
                    if keeper.keep_back(made, peer) is True:
                        flags |= Answer.WRITES
                later.answer(encode(Changed(flags, subject.changes, msgspec.Raw(encode(reply)))))

        def go() -> None:
            wait = keeper.kept_back(asked.session, _inodes_of(asked.command))
            if wait is not None:
                wait.then.append(go)
                return
            group.propose(self._machine.encoded(subject), done, subject)

        if keeper.is_settled:
            go()
        else:
            keeper.leases.when_settled(go)
        return later

    def _again(self, reply: object, peer: Peer | None, later: Later | None = None) -> Later:
        """The answer to a command that has acted before; others may not know of it yet."""
        answer = Later() if later is None else later

        def told() -> None:
            if not self._group.is_leader:
                answer.refuse(FsError(Fault.NOT_LEADER, "it was carried out: ask who leads"))
            elif isinstance(reply, FsError):  # it may be for what others have changed just now
                answer.refuse(reply)
            else:
                answer.answer(encode(reply) if peer is None else _unknown(reply))

        self.keeper.when_known(told)
        return answer

    def _turn_of_another(self, asked: Propose) -> Lock | None:
        """The reply to who would wait for a lock, where others go first."""
        command = asked.command
        owner = command.lock.owner if isinstance(command, TakeLock) else command.owner
        if owner.session != asked.session:
            raise FsError(Fault.NOT_PERMITTED, "a session locks only for itself")
        if not isinstance(command, TakeLock) or not command.waits or not self.lock_waiting.any:
            return None
        return self.lock_waiting.turn_of_another(command.ino, command.lock)

    def _refused(self, asked: Propose, peer: Peer | None) -> Later:
        """In safe mode, once it is known that no leader before us has taken it into the log: it is
        asked again, perhaps, and has acted.
        """
        later = Later()

        def known_to_all(error: FsError | None) -> None:
            try:
                if error is not None:
                    raise error
                machine = self._machine.replica.machine
                known, reply = kept_reply(machine, asked.session, asked.sequence)
                if known:
                    self._again(reply, peer, later)
                    return
                self._safe_mode.require_writable()
                raise FsError(Fault.UNAVAILABLE, "safe mode has just ended: ask again")
            except FsError as refusal:
                later.refuse(refusal)

        self._group.read(known_to_all)
        return later

    # -- locks

    async def _await_lock(self, body: Body) -> bytes:
        asked = decode_await_lock(body)
        await self._be_up_to_date()
        if not self._hear(asked.session):
            raise _ended(asked.session)
        patience_s = min(asked.patience_ms / 1000, PATIENCE_S)
        return encode(await self.lock_waiting.wait(asked.ino, asked.lock, patience_s))

    async def _locks(self, body: Body) -> bytes:
        try:
            ino = msgspec.msgpack.decode(body, type=Ino)
            keys.locks(ino)
        except (msgspec.MsgspecError, *UNFIT) as error:
            raise FsError(Fault.INVALID, f"not the number of an inode: {error}") from None
        await self._be_up_to_date()
        return encode(self.lock_waiting.told(ino))

    async def _be_up_to_date(self) -> None:
        """We lead, and have applied whatever those who led before us have."""
        self._require_leader()
        if not self._group.read_now():
            await leave()
            await self._group.wait_read()
            self._require_leader()

    async def _read(self, body: Body) -> bytes:
        found, refused, _ = await self._look(decode_read(body))
        if refused is not None:
            raise refused
        return found

    async def _look(self, asked: Read) -> tuple[bytes, FsError | None, set[Ino]]:
        """(the answer, or why there is none, the inodes that it tells of), once it may be told."""
        keeper, session = self.keeper, asked.session
        while True:
            await self._be_up_to_date()  # who follows could answer, but holds nothing back
            if session and not self._hear(session):
                raise _ended(session)
            if not keeper.is_settled:
                await leave()
                await keeper.settled()
                continue
            tree = self._machine.replica.machine.tree
            seen: set[Ino] = set()
            found, refused = b"", None
            tree.seen = seen
            try:
                found = self._answer(asked)
            except FsError as error:
                refused = error
            finally:
                tree.seen = None
            wait = keeper.in_the_way(session, seen)
            if wait is None:
                self.queries += 1
                return found, refused, seen
            await leave()
            await keeper.over(wait)

    def _answer(self, asked: Read) -> bytes:
        try:
            return encode(asked.query.read(self._machine.replica.machine.tree))
        except FsError as error:
            if error.fault is Fault.CORRUPT and self._node.damaged(self._group, error):
                self._require_leader()  # somebody else answers
            raise
        except UNFIT as error:
            raise FsError(
                Fault.INVALID,
                f"{type(asked.query).__name__} with numbers that make no sense: {error}",
            ) from error

    def _require_leader(self) -> None:
        self._group.require_leader()


def _inodes_of(command: Any) -> list[Ino]:
    """Those that a command names, whose bytes or attributes it is about."""
    found = (getattr(command, field, None) for field in ("ino", "source", "target"))
    return [Ino(ino) for ino in found if isinstance(ino, int)]


def _decoded(body: Body, form: type[F]) -> F:
    try:
        return msgspec.msgpack.decode(body, type=form)
    except msgspec.MsgspecError as error:
        raise FsError(Fault.INVALID, f"no {form.__name__}: {error}") from None


def _unknown(reply: object) -> bytes:
    return encode(Changed(Answer.UNKNOWN, (), msgspec.Raw(encode(reply))))


def _ended(session: int) -> FsError:
    return FsError(Fault.SESSION_ENDED, f"session {session} has ended")


def _number(body: Body) -> int:
    try:
        return msgspec.msgpack.decode(body, type=int)
    except msgspec.MsgspecError as error:
        raise FsError(Fault.INVALID, f"not the number of a session: {error}") from None
