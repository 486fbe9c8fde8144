"""A mount of the simulation that keeps what it reads, under leases.

What it believes and learns is decided by what the real one has (`vfs/known.py`, `vfs/learning.py`);
when it begins anew and renews is as in `vfs/leased_meta.py`.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.meta.leases import Item
from mountfs.meta.ops.read import GetAttr, Lookup
from mountfs.meta.protocol import (
    Answer,
    Begin,
    Changed,
    Hold,
    Method,
    Propose,
    Read,
    decode_reply,
    encode,
)
from mountfs.meta.retry import Session
from mountfs.sim.leasing import Link
from mountfs.sim.mount import Mount
from mountfs.sim.work import Op
from mountfs.sim.world import MS, S
from mountfs.vfs.known import NO_INO, Known
from mountfs.vfs.learning import learn_answer, learn_changes, learn_refusal

RENEWS_PER_TTL = 4
MARGIN = 0.1
"""As the real one: clocks do not run alike."""
PATIENCE_US = 2 * S
BURST_US = 300 * MS
"""Of each second."""
_changed = msgspec.msgpack.Decoder(Changed).decode


class LeasedMount(Mount):
    """`late_us`: about how long it takes until what is recalled is forgotten."""

    late_us = 1 * MS
    slow_us = 1 * MS
    """About how long it takes then until it says so: the kernel forgets after us."""
    look_us = 100 * MS
    """Between looks at what is known."""
    bursts = False
    """All mounts change things at the same time, and in between they learn what there is."""
    deaf = 0.0
    """How often it never answers a recall."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.known = Known()
        self.valid_until = 0.0
        """By our own clock."""
        self.clock_rate = 1 + self._random.uniform(-0.04, 0.02)
        self._link: Link | None = None
        self._ttl_us = 0
        self._round = 0
        """Each time it begins anew."""
        self.hits = 0
        self.begun = 0

    def _clock(self) -> float:
        return self._world.now * self.clock_rate

    # -- leases

    def _opened_session(self, session: Session) -> None:
        self._begin(session)
        self._look_again(session)

    def _look_again(self, session: Session) -> None:
        """A program that looks only at what is known here, also when nobody answers."""
        pause = int(self._random.expovariate(1 / self.look_us))
        self._world.after(pause, lambda: self._awake(lambda: self._look(session)))

    def _look(self, session: Session) -> None:
        if session.ended is not None or session is self._leaving or self._world.now >= self._ends:
            return
        op = self._work.looks(self._random, f"m{self.number}")
        found = self._from_cache(op.asks)
        if found is not None:
            self._work.begun(op)
            self._answer_from_cache(op, found)
        self._look_again(session)

    def _answer_from_cache(self, op: Op, found: Any) -> None:
        self.hits += 1
        for call in op.calls:
            call.called = self._world.now
        self._work.answered(op, found, self._world.now)

    def _forget_all(self) -> None:
        self.valid_until = 0.0
        self._link = None
        self.known.forget()

    def _begin(self, session: Session) -> None:
        """Have leases with who leads, on one connection."""
        self._round += 1
        this = self._round
        self._forget_all()
        target = self._route.leader
        if session.ended is not None or self._world.now >= self._ends + 4 * S:
            return
        if target is None:
            self._find(lambda node: self._lead_by(node))
            self._later(100 * MS, this, lambda: self._begin(session))
            return
        # What is asked meanwhile may come before it or after.
        pause = self._random.choice((0, 0, 20)) * MS
        self._later(pause, this, lambda: self._send_begin(session, target, this))

    def _lead_by(self, node: Any) -> None:
        if node is not None:
            self._route.leader = node

    def _send_begin(self, session: Session, target: Any, this: int) -> None:
        link = self._doors.link(self.number, target)
        link.pushed = lambda items, done: self._pushed(link, items, done)
        sent = self._clock()

        def answered(answer: Any) -> None:
            if this != self._round:
                return
            if isinstance(answer, FsError):
                if self._route.leader == target:
                    self._route.leader = None
                self._later(
                    self._random.randrange(20, 200) * MS, this, lambda: self._begin(session)
                )
                return
            self._ttl_us = msgspec.msgpack.decode(answer, type=int) * MS
            # What was asked before the leader had our BEGIN is not covered any more.
            self.known.forget()
            self._link = link
            self.begun += 1
            self._good_until(sent)
            self._hold_later(session, link, this)

        self._call(target, Method.BEGIN, encode(Begin(session.number)), answered, link)

    def _call(
        self, target: Any, method: int, body: bytes, done: Callable[[Any], None], link: Link
    ) -> None:
        waits = True

        def once(answer: Any) -> None:
            nonlocal waits
            if waits:
                waits = False
                done(answer)

        gone = FsError(Fault.UNAVAILABLE, "no answer")
        self._doors.call(
            self.number,
            target,
            method,
            body,
            lambda answer: self._awake(lambda: once(answer)),
            link,
        )
        self._world.after(PATIENCE_US, lambda: self._awake(lambda: once(gone)))

    def _hold_later(self, session: Session, link: Link, this: int) -> None:
        self._later(self._ttl_us // RENEWS_PER_TTL, this, lambda: self._hold(session, link, this))

    def _hold(self, session: Session, link: Link, this: int) -> None:
        if session.ended is not None or link.is_broken:
            self._begin(session)
            return
        sent = self._clock()

        def answered(answer: Any) -> None:
            if this != self._round:
                return
            if isinstance(answer, FsError):
                self._begin(session)
                return
            self._renewed(session, answer[0], sent)
            if this == self._round:
                self._hold_later(session, link, this)

        body = encode(Hold(session.number, session.answered))
        self._call(link.node, Method.HOLD, body, answered, link)

    def _later(self, us: int, this: int, happens: Callable[[], None]) -> None:
        def then() -> None:
            if this == self._round:
                happens()

        self._world.after(us, lambda: self._awake(then))

    def _renewed(self, session: Session, flags: int, sent: float) -> None:
        if session is not self.session:
            return
        if flags & Answer.BEGIN:
            if self._link is not None:
                self._begin(session)
        elif flags & Answer.RENEWED and self._link is not None:
            self._good_until(sent)

    def _good_until(self, sent: float) -> None:
        self.valid_until = max(self.valid_until, sent + self._ttl_us * (1 - MARGIN))

    def _pushed(self, link: Link, items: tuple[Item, ...], done: Callable[[], None]) -> None:
        if self._random.random() < self.deaf:
            return
        late = int(self._random.expovariate(1 / self.late_us))
        slow = int(self._random.expovariate(1 / self.slow_us))

        def forget() -> None:
            if link is self._link:
                self.known.recall(items)
            self._world.after(slow, lambda: self._awake(done))

        self._world.after(late, lambda: self._awake(forget))

    # -- the session

    def _over(self, session: Session, error: FsError) -> None:
        super()._over(session, error)
        if session is self.session:
            self._forget_all()

    def _end(self, session: Session) -> None:
        self._round += 1
        self._forget_all()
        super()._end(session)

    # -- programs

    def _begin_next(self, session: Session) -> None:
        now = self._world.now
        if self.bursts and now % S > BURST_US:
            op = self._work.looks(self._random, f"m{self.number}")
        else:
            op = self._work.next(self._random, f"m{self.number}", session.number)
        for call in op.calls:
            call.called = now
        number = self._work.begun(op)
        self.stuck[number] = op
        if op.is_command:
            self._propose(session, number, op)
            return
        found = self._from_cache(op.asks)
        if found is not None:
            del self.stuck[number]
            self._answer_from_cache(op, found)
            self._answered()
            self._pause(session)
            return
        self._read(session, number, op)

    def _from_cache(self, asks: Any) -> Any:
        if self._clock() >= self.valid_until:
            return None
        known = self.known
        if isinstance(asks, GetAttr):
            return known.attributes(asks.ino)
        if isinstance(asks, Lookup):
            child = known.child(asks.parent, asks.name)
            if child == NO_INO:
                return FsError(Fault.NOT_FOUND)
            return None if child is None else known.attributes(child)
        return None

    def _read(self, session: Session, number: int, op: Op) -> None:
        mark, sent = self.known.mark(), self._clock()

        def begun() -> None:
            nonlocal mark, sent
            mark, sent = self.known.mark(), self._clock()

        def done(answer: Any) -> None:
            if not isinstance(answer, FsError):
                flags, found = answer[0], answer[1:]
                reply: Any
                if flags & Answer.ABSENT:
                    reply = answer = FsError(Fault.NOT_FOUND)
                else:
                    reply, answer = decode_reply(op.asks, found), found
                if session is self.session and session.ended is None:
                    learn_answer(self.known, op.asks, flags, reply, mark)
                    self._renewed(session, flags, sent)
            self._done(session, number, op, answer)

        body = encode(Read(session.number, op.asks))
        self._ask(session, Method.LEASED_READ, body, done, op.calls, begun)

    def _propose(self, session: Session, number: int, op: Op) -> None:
        sequence, answered = session.begin()
        self._promises.sent(number, session.number, sequence)
        body = encode(Propose(session.number, sequence, answered, op.asks))
        mark, sent = self.known.mark(), self._clock()

        def done(answer: Any) -> None:
            session.done(sequence)
            if not isinstance(answer, FsError):
                told = _changed(answer)
                answer = bytes(told.reply)
                if session is self.session and session.ended is None:
                    reply = decode_reply(op.asks, answer)
                    learn_changes(self.known, op.asks, told, reply, mark)
                    self._renewed(session, told.flags, sent)
            elif session is self.session:
                learn_refusal(self.known, op.asks, answer.fault)
            if session.ended is None:
                self._promises.acknowledged(session.number, sequence, answer)
            self._done(session, number, op, answer)

        self._ask(session, Method.LEASED_PROPOSE, body, done)
