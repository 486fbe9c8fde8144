"""Leases of a metaserver of the simulation: what `meta/service.py` and `meta/lease_keeper.py` do
with the desk that they have too.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.meta.asked import Asked
from mountfs.meta.lease_desk import LeaseDesk, tell
from mountfs.meta.leases import Item, Leases, Recall, Wait
from mountfs.meta.ops.reap import Orphans
from mountfs.meta.ops.session import EndSession
from mountfs.meta.protocol import Answer, Begin, Changed, Hold, Propose, Read, encode
from mountfs.sim.checks import Broken
from mountfs.sim.server import Answer as Told
from mountfs.sim.world import MS, World
from mountfs.types import Ino

if TYPE_CHECKING:
    from mountfs.sim.metaserver import MetaServer

LOOK_MS = 100
ENDS_WITHIN = 2.5
"""A recall is over after so many times as long as leases are good, whatever its session does."""
SLACK = 64
"""Leases that come with one answer."""
_NOT_LEADER = FsError(Fault.NOT_LEADER, "this server does not lead its group")


class Link:
    """A connection of a mount with a server, as both see it."""

    def __init__(self, mount: int, node: int) -> None:
        self.mount = mount
        self.node = node
        self.is_broken = False
        self.pushed: Callable[[tuple[Item, ...], Callable[[], None]], None] = lambda *_: None
        """The mount is to forget, and then calls back."""


class Asking:
    """Who gets the reply of a command in the log."""

    def __init__(self, subject: Asked, told: Told) -> None:
        self.subject = subject
        self._told = told

    def __call__(self, reply: object) -> None:
        self._told(reply)


Push = Callable[[Link, tuple[Item, ...], Callable[[], None]], None]


class Tepid(Leases):
    """To which no directory is hot: all meet in it, and what leases promise holds there, too."""

    def _warm(self, ino: Ino, now: float) -> bool:
        return False


class Leasing:
    def __init__(
        self,
        world: World,
        meta: "MetaServer",
        push: Push,
        ttl_ms: int,
        held_max: int,
        *,
        is_tepid: bool,
    ) -> None:
        self._world = world
        self._meta = meta
        self._server = meta.server
        self._push = push
        self._ttl_ms = ttl_ms
        self._held_max = held_max
        self._is_tepid = is_tepid
        self._life = 0
        self._pumps = False
        self._looks: dict[int, int] = {}
        """How often each wait was looked at."""
        self.desk: LeaseDesk[Link]
        self.recalls = 0
        self._begin_life()
        world.after(LOOK_MS * MS, self._look_later)

    def _begin_life(self) -> None:
        """Leases are in no log: who starts knows of none."""
        self._life = self._server.life
        self.desk = LeaseDesk(self._server.clock, self._ttl_ms, self._held_max)
        if self._is_tepid:
            self.desk.leases = Tepid(self._ttl_ms, self._held_max)
        self.desk.on_more = self._more

    def fresh(self) -> None:
        """To be called first by all that comes from outside."""
        if self._life != self._server.life:
            self._begin_life()

    def leadership(self) -> None:
        self.fresh()
        self._looks.clear()
        if self._server.raft.state.is_leader:
            self.desk.lead(self._meta.machine.caching)
        else:
            self.desk.lead_no_more()

    # -- questions

    def begin(self, body: bytes, link: Link, answer: Told) -> None:
        asked = msgspec.msgpack.decode(body, type=Begin)

        def proven() -> None:
            self.desk.begin(asked.session, link, asked.writes)
            answer(encode(self._ttl_ms))

        self._prove(asked.session, answer, proven)

    def hold(self, body: bytes, link: Link, answer: Told) -> None:
        asked = msgspec.msgpack.decode(body, type=Hold)

        def proven() -> None:
            flags = self.desk.flags(asked.session, link)
            if not flags & Answer.BEGIN:
                self.desk.leases.has_told(asked.session, asked.told)
            answer(bytes((flags,)))

        self._prove(asked.session, answer, proven)

    def _prove(self, session: int, answer: Told, proven: Callable[[], None]) -> None:
        """That we lead, and that there is such a session."""

        def known(found: object) -> None:
            if isinstance(found, FsError):
                answer(found)
            elif not self._server.raft.state.is_leader:  # who follows holds nothing back
                answer(_NOT_LEADER)
            elif not self._meta.hear_session(session):
                answer(FsError(Fault.SESSION_ENDED, f"session {session} has ended"))
            else:
                proven()

        if self._server.read_now():
            known(None)
        else:
            self._server.read(Orphans(0, 1), known)

    def read(self, asked: Read, link: Link | None, answer: Told) -> None:
        def again() -> None:
            self._prove(asked.session, answer, proven)

        def proven() -> None:
            desk = self.desk
            if not desk.is_settled:
                desk.leases.when_settled(again)
                return
            tree = self._meta.machine.tree
            seen: set[Ino] = set()
            tree.seen = seen
            try:
                found = self._server.look_up(asked.query)
            finally:
                tree.seen = None
            wait = desk.in_the_way(asked.session, seen)
            if wait is not None:
                _over(wait, again)
            elif link is None:
                answer(found if isinstance(found, FsError) else encode(found))
            else:
                flags = desk.answer(asked.session, link, seen)
                if flags & Answer.GRANTED:
                    self._check_granted(asked.session)
                answer(_leased(flags, found))

        again()

    # -- commands

    def propose(self, asked: Propose, link: Link | None, answer: Told) -> None:
        meta, desk, life = self._meta, self.desk, self._life
        subject = Asked(
            asked.session, asked.sequence, asked.answered, meta.time(), asked.command,
            caches=link is not None,
        )  # fmt: skip

        def told(reply: object) -> None:
            if not self._server.raft.state.is_leader:
                answer(_NOT_LEADER)
            elif isinstance(reply, FsError):
                answer(reply)
            elif link is None:
                answer(encode(reply))
            elif subject.is_again:
                answer(encode(Changed(Answer.UNKNOWN, (), msgspec.Raw(encode(reply)))))
            else:
                flags = desk.flags(asked.session, link)
                if subject.is_granted and flags & Answer.RENEWED:
                    flags |= Answer.GRANTED
                answer(encode(Changed(flags, subject.changes, msgspec.Raw(encode(reply)))))

        def done(reply: object) -> None:
            if life != self._server.life or not self._server.up:
                answer(reply)  # the connection is gone
            else:
                desk.when_over(subject.waits, lambda: told(reply))

        def go() -> None:
            meta.propose(subject, Asking(subject, done))

        if desk.is_settled:
            go()
        else:
            desk.leases.when_settled(go)

    def again(self, reply: object, link: Link | None, answer: Told) -> None:
        """A command that has acted before."""

        def told() -> None:
            if not self._server.raft.state.is_leader:
                answer(_NOT_LEADER)
            elif isinstance(reply, FsError):
                answer(reply)
            elif link is None:
                answer(encode(reply))
            else:
                answer(encode(Changed(Answer.UNKNOWN, (), msgspec.Raw(encode(reply)))))

        self.desk.when_known(told)

    def applied(self, asked: Any, seen: set[Ino], committed: dict[bytes, bytes | None]) -> None:
        self.fresh()
        server = self._server
        if server.raft.state.is_leader:
            who = server.answering
            self.desk.applied(who.subject if isinstance(who, Asking) else asked, seen, committed)

    def evict(self, session: int) -> None:
        """As an operator does."""
        desk = self.desk

        def end() -> None:
            if self._server.raft.state.is_leader:
                self._meta.end_session(session)

        def settled() -> None:
            wait = desk.leases.let_go(session, self._server.clock())
            if wait is None:
                end()
            else:
                _over(wait, end)

        if desk.is_settled:
            settled()
        else:
            desk.leases.when_settled(settled)

    # -- what the keeper's tasks do

    def _more(self) -> None:
        if not self._pumps:
            self._pumps = True
            self._world.after(0, lambda: self._server.when_running("leases", self._pump))

    def _pump(self) -> None:
        self._pumps = False
        self.fresh()
        desk = self.desk
        tell(desk.leases.look(self._server.clock()))
        outbox, desk.leases.outbox = desk.leases.outbox, []
        for recall in outbox:
            self._recall(recall)
        for session in sorted(desk.leases.lost):
            self._meta.order(EndSession(session), lambda reply: None)

    def _recall(self, recall: Recall) -> None:
        desk, life = self.desk, self._life
        link = desk.peer(recall.session)
        if link is None or link.is_broken:
            return
        self.recalls += 1
        desk.leases.sent(recall, self._server.clock())

        def answered() -> None:
            if life == self._server.life and desk.peer(recall.session) is link:
                tell(desk.leases.answered(recall))

        self._push(link, recall.items, lambda: self._server.when_running("client", answered))

    def _look_later(self) -> None:
        self._world.after(LOOK_MS * MS, self._look_later)
        self._pumps = False
        if self._server.runs:
            self._server.when_running("leases", self._pump)
            if self._server.up and self._server.raft.state.is_leader:
                self._check()

    # -- what is promised

    def _check(self) -> None:
        node, leases = self._server.node, self.desk.leases
        waits = leases.waits()
        self._looks = {number: self._looks.get(number, 0) + 1 for number in waits}
        for number, looks in self._looks.items():
            if looks * LOOK_MS > ENDS_WITHIN * self._ttl_ms + 1_000:
                raise Broken(
                    "recalls end", f"{node} waits for {waits[number].left} in recall {number}"
                )
        for session, count in leases.told().items():
            if count > 2 * self._held_max + SLACK:
                raise Broken("leases are bounded", f"{node}: session {session} has {count}")

    def _check_granted(self, session: int) -> None:
        """Who has more leases than he may have is being asked for some."""
        leases = self.desk.leases
        count = leases.told().get(session, 0)
        if count > self._held_max and not any(
            session in wait.left and not wait.holds_back for wait in leases.waits().values()
        ):
            raise Broken(
                "leases are bounded",
                f"{self._server.node}: session {session} has {count}, and none is recalled",
            )


def _over(wait: Wait, then: Callable[[], None]) -> None:
    if wait.left:
        wait.then.append(then)
    else:
        then()


def _leased(flags: int, found: object) -> object:
    if not isinstance(found, FsError):
        return bytes((flags,)) + encode(found)
    if found.fault is not Fault.NOT_FOUND:
        return found
    return bytes((flags | Answer.ABSENT,)) + str(found).encode()
