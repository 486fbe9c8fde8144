"""A mount of the simulation: a session, kept alive, in which a few programs work.

What is asked again, of whom and when, is decided by the core that the real client uses.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.meta.leases import Item
from mountfs.meta.protocol import Cluster, Method, Opened, Propose, Read, decode_reply, encode
from mountfs.meta.retry import RENEWS_PER_TTL, Backoff, Route, Session, Verdict, judge
from mountfs.raft.messages import NodeId
from mountfs.sim.history import Call
from mountfs.sim.leasing import Link
from mountfs.sim.metaserver import MetaServer
from mountfs.sim.promises import Promises
from mountfs.sim.server import GONE
from mountfs.sim.work import Op, Work
from mountfs.sim.world import MS, S, World

Reply = Callable[[Any], None]
"""Called with bytes, or with an FsError."""


STALL_US = 200 * MS
"""Until a packet that was lost is sent again."""


class Doors:
    """How mounts reach the servers: connections, which break."""

    def __init__(self, world: World, servers: dict[NodeId, MetaServer]) -> None:
        self._world = world
        self._servers = servers
        self.delay_us = MS // 2
        self.breaking = 0.0
        """How many requests end with a connection that breaks, before or after they arrive."""
        self.straggling = 0.0
        """How many arrive when nobody waits for them any more."""
        self.losing = 0.0
        """How many recalls are lost."""
        self.stalling = 0.0
        """How many answers on a connection come late, and all behind them."""
        self._links: dict[tuple[int, NodeId], Link] = {}
        self._last: dict[tuple[int, NodeId], int] = {}
        """When what was said last on a connection arrives: nothing overtakes it."""
        self.cut: set[tuple[int, NodeId]] = set()
        """(mount, node) pairs between which nothing passes."""

    def link(self, mount: int, node: NodeId) -> Link:
        """The connection that there is, or a new one."""
        found = self._links.get((mount, node))
        if found is None or found.is_broken:
            found = self._links[mount, node] = Link(mount, node)
        return found

    def push(self, link: Link, items: tuple[Item, ...], answered: Callable[[], None]) -> None:
        """Something comes from a server unasked."""
        world, pair = self._world, (link.mount, NodeId(link.node))

        def back() -> None:
            if pair not in self.cut and not link.is_broken:
                late = world.chance(self.stalling)
                world.after(self._delay() + (STALL_US if late else 0), answered)

        def arrive() -> None:
            if pair not in self.cut and not link.is_broken:
                link.pushed(items, back)

        if not world.chance(
            self.losing
        ):  # it may overtake an answer: tasks take turns as they like
            world.after(self._delay(), arrive)

    def _in_order(self, pair: tuple[int, NodeId], arrive: Callable[[], None]) -> None:
        world = self._world
        at = max(world.now + self._delay(), self._last.get(pair, 0))
        if world.chance(self.stalling):
            at += STALL_US
        self._last[pair] = at
        world.after(at - world.now, arrive)

    def call(
        self,
        mount: int,
        node: NodeId,
        method: int,
        body: bytes,
        reply: Reply,
        link: Link | None = None,
    ) -> None:
        """`reply` gets bytes, an FsError or GONE, or is never called."""
        world = self._world
        delay = self._delay()
        if self.straggling and world.chance(self.straggling):
            delay *= 500
        breaks = world.random.random() if self.breaking else 1.0
        if breaks < self.breaking:
            if link is not None:
                link.is_broken = True
            world.after(delay, lambda: reply(GONE))
            if breaks < self.breaking / 2:
                return

        def arrive() -> None:
            server = self._servers.get(node)
            if (mount, node) in self.cut:
                return
            if server is None:
                world.after(self._delay(), lambda: reply(GONE))
            else:
                server.ask(method, body, answer, link)

        def answer(found: object) -> None:
            if (mount, node) in self.cut:
                return
            if link is not None:
                if not link.is_broken:
                    self._in_order((mount, node), lambda: reply(found))
            else:
                world.after(self._delay(), lambda: reply(found))

        world.after(delay, arrive)

    def _delay(self) -> int:
        return int(self._world.random.expovariate(1 / self.delay_us)) + 50


class Mount:
    """One session after the other: when one is over, the next begins, as if mounted again."""

    def __init__(
        self,
        world: World,
        doors: Doors,
        promises: Promises,
        number: int,
        seeds: list[NodeId],
        work: Work,
        *,
        programs: int,
        pause_ms: int,
        ends: int,
        answered: Callable[[], None],
        opened: Callable[[], None],
        stays_ms: int | None,
    ) -> None:
        """`stays_ms`: about how long it is mounted at a time; None: until its session ends."""
        self._world = world
        self._random: Random = world.stream(f"mount {number}")
        self._doors = doors
        self._promises = promises
        self.number = number
        self._work = work
        self._programs = programs
        self._pause_ms = pause_ms
        self._ends = ends
        self._answered = answered
        self._opened = opened
        self._stays_ms = stays_ms
        self._route: Route[NodeId] = Route(seeds)
        self.session = Session()
        self._attempt_us = self._random.choice((300, 1_000)) * MS
        """How long the answer to an attempt is waited for."""
        self.stopped_until = 0
        self.stuck: dict[int, Op] = {}
        """What is not answered yet, by its number."""
        self._working = 0
        """Programs that have not ended yet."""
        self._leaving: Session | None = None
        """The one that is to be unmounted."""
        self._asked = 0
        self._wanting: list[Callable[[NodeId | None], None]] = []
        """Who waits to hear who leads."""

    # -- the life of it

    def start(self) -> None:
        self._world.after(self._random.randrange(50 * MS), self._open)

    def stop(self, until: int) -> None:
        """As if all of the machine stood still."""
        self.stopped_until = until

    def _open(self) -> None:
        if self._world.now >= self._ends:
            return
        session = self.session = Session()

        def opened(answer: Any) -> None:
            if isinstance(answer, FsError):
                self._world.after(500 * MS, self._open)
                return
            found = msgspec.msgpack.decode(answer, type=Opened)
            session.opened(found.session)
            self._world.note(f"mount {self.number} has session {found.session}")
            self._renew(session, found.ttl_ms * MS // RENEWS_PER_TTL)
            self._working = self._programs
            for _ in range(self._programs):
                self._pause(session)
            if self._stays_ms is not None:
                stays = int(self._random.expovariate(1 / (self._stays_ms * MS)))
                self._world.after(stays, lambda: self._unmount(session))
            self._opened_session(session)
            self._opened()

        self._ask(session, Method.OPEN_SESSION, b"", opened)

    def _opened_session(self, session: Session) -> None:
        """It has begun."""

    def _unmount(self, session: Session) -> None:
        """No program begins anything any more; the last one ends the session."""
        if session is self.session:
            self._leaving = session

    def _end(self, session: Session) -> None:
        def ended(answer: Any) -> None:
            if session.over(FsError(Fault.SESSION_ENDED, "it was unmounted")):
                self._open()

        self._ask(session, Method.END_SESSION, session.number.to_bytes(8, "big"), ended)

    def _renew(self, session: Session, every_us: int) -> None:
        def renew() -> None:
            if session.ended is None and self._world.now < self._ends + 4 * S:
                body = session.number.to_bytes(8, "big")
                self._ask(session, Method.RENEW, body, renewed)

        def renewed(answer: Any) -> None:
            self._ask(session, Method.CLUSTER, b"", heard)

        def heard(answer: Any) -> None:
            if not isinstance(answer, FsError):
                self._heard(answer)
            self._renew(session, every_us)

        self._world.after(every_us, lambda: self._awake(renew))

    def _over(self, session: Session, error: FsError) -> None:
        if session.over(error):
            self._promises.told_that_it_has_ended(session.number)
            self._world.note(f"mount {self.number}: {error}")
            self._world.after(self._random.randrange(1, 1_000) * MS, self._open)

    def _awake(self, happens: Callable[[], None]) -> None:
        if self._world.now < self.stopped_until:
            self._world.after(self.stopped_until - self._world.now, lambda: self._awake(happens))
        else:
            happens()

    # -- programs

    def _pause(self, session: Session) -> None:
        pause = int(self._random.expovariate(1 / (self._pause_ms * MS)))
        self._world.after(pause, lambda: self._awake(lambda: self._next(session)))

    def _next(self, session: Session) -> None:
        if session.ended is not None or self._world.now >= self._ends:
            return
        if session is self._leaving:
            self._working -= 1
            if not self._working:
                self._end(session)
            return
        if (nap := self._world.nap()) > 0:
            self._world.after(nap, lambda: self._awake(lambda: self._next(session)))
            return
        self._begin_next(session)

    def _begin_next(self, session: Session) -> None:
        op = self._work.next(self._random, f"m{self.number}", session.number)
        for call in op.calls:
            call.called = self._world.now
        number = self._work.begun(op)
        self.stuck[number] = op
        if op.is_command:
            self._propose(session, number, op)
        else:
            body = encode(Read(session.number, op.asks))
            self._ask(
                session, Method.READ, body, lambda answer: self._done(session, number, op, answer),
                op.calls,
            )  # fmt: skip

    def _propose(self, session: Session, number: int, op: Op) -> None:
        sequence, answered = session.begin()
        self._promises.sent(number, session.number, sequence)
        body = encode(Propose(session.number, sequence, answered, op.asks))

        def done(answer: Any) -> None:
            session.done(sequence)
            if session.ended is None:
                self._promises.acknowledged(session.number, sequence, answer)
            self._done(session, number, op, answer)

        self._ask(session, Method.PROPOSE, body, done)

    def _done(self, session: Session, number: int, op: Op, answer: Any) -> None:
        del self.stuck[number]
        if session.ended is not None:
            return  # nobody knows whether it acted
        result = answer
        if not isinstance(answer, FsError):
            result = decode_reply(op.asks, answer)
        self._work.answered(op, result, self._world.now)
        self._answered()
        self._pause(session)

    # -- asking, until there is an answer

    def _ask(
        self,
        session: Session,
        method: int,
        body: bytes,
        done: Reply,
        reads: Sequence[Call] = (),
        begun: Callable[[], None] = lambda: None,
    ) -> None:
        """`done` gets what is an answer.  `reads`: calls that begin anew with each attempt, of
        which `begun` is told, too.
        """
        backoff = Backoff()
        waited_for = 0

        def attempt() -> None:
            nonlocal waited_for
            self._asked += 1
            this = waited_for = self._asked
            target = self._route.leader
            if target is None:
                self._find(found)
                return
            for call in reads:
                call.called = self._world.now
            begun()
            leased = method in (Method.LEASED_READ, Method.LEASED_PROPOSE)
            link = self._doors.link(self.number, target) if leased else None

            def answered(answer: Any) -> None:
                self._awake(lambda: judged(this, target, answer))

            self._doors.call(self.number, target, method, body, answered, link)
            self._world.after(self._attempt_us, lambda: answered(GONE))

        def found(node: NodeId | None) -> None:
            if node is not None:
                self._route.leader = node
                attempt()
            else:
                again()

        def judged(this: int, target: NodeId, answer: Any) -> None:
            nonlocal waited_for
            if this != waited_for:
                return  # nobody waits for it any more
            waited_for = 0
            if answer is GONE:
                self._forget(target)
                again()
            elif isinstance(answer, FsError):
                refused(target, answer)
            else:
                done(answer)

        def refused(target: NodeId, error: FsError) -> None:
            verdict = judge(error.fault)
            if verdict is Verdict.OVER:
                self._over(session, error)
            if verdict in (Verdict.OVER, Verdict.ANSWER):
                done(error)
                return
            if verdict is Verdict.ELSEWHERE:
                self._forget(target)
            again()

        def again() -> None:
            pause = int(backoff.pause_s(self._random.random()) * S)
            self._world.after(pause, lambda: self._awake(attempt))

        attempt()

    def _forget(self, node: NodeId) -> None:
        if self._route.leader == node:
            self._route.leader = None

    def _find(self, found: Callable[[NodeId | None], None]) -> None:
        """Who leads: asked of one node after the other, once for all who want to know."""
        self._wanting.append(found)
        if len(self._wanting) == 1:
            self._ask_next(self._route.candidates(self._random.shuffle))

    def _ask_next(self, candidates: list[NodeId]) -> None:
        if not candidates:
            self._found(None)
            return
        node = candidates.pop(0)
        waits = True

        def answered(answer: Any) -> None:
            nonlocal waits
            if not waits:
                return
            waits = False
            leader = None
            if not isinstance(answer, FsError):
                leader = self._heard(answer)
            if leader is None:
                self._ask_next(candidates)
            else:
                self._found(leader)

        def later(answer: Any) -> None:
            self._awake(lambda: answered(answer))

        self._doors.call(self.number, node, Method.CLUSTER, b"", later)
        self._world.after(self._attempt_us // 4, lambda: later(GONE))

    def _heard(self, answer: bytes) -> NodeId | None:
        """Who leads, as a node says."""
        cluster = _cluster(answer)
        known = {one.number: NodeId(one.number) for one in cluster.nodes if one.has_metadata}
        return self._route.heard(cluster.leader, known)[0]

    def _found(self, leader: NodeId | None) -> None:
        wanting, self._wanting = self._wanting, []
        for found in wanting:
            found(leader)


_cluster = msgspec.msgpack.Decoder(Cluster).decode
