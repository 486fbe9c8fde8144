"""A `Meta` that answers from what it knows, as long as it has leases on it.

To the filesystem it looks as the metadata of the cluster does.  It keeps names and attributes,
learns whole directories when several of their names are asked for, and forgets what the leader
recalls; `on_recall` has the door make the kernel forget it too, and only then the leader hears that
it is forgotten.

Leases are tied to one connection to who leads.  When there is another one, everything is forgotten,
and then `begin` says so.  They are good until `valid_until`; who comes too late to renew them has
none.
"""

import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import msgspec
import trio

from mountfs.errors import Fault, FsError
from mountfs.inline import leave
from mountfs.meta.client import RemoteMeta
from mountfs.meta.command import Command, Query
from mountfs.meta.leases import Item
from mountfs.meta.locks import Lock
from mountfs.meta.ops.read import GetAttr, Lookup, Opened, ReadDir
from mountfs.meta.protocol import Answer, Begin, Hold, LocksTold, Method, Recalled, encode
from mountfs.meta.records import Attributes
from mountfs.meta.retry import Backoff
from mountfs.types import Ino
from mountfs.vfs.known import NO_INO, Known
from mountfs.vfs.learning import (
    doubt,
    learn_answer,
    learn_changes,
    learn_refusal,
    may_change,
)
from mountfs.wire.connection import Body, Disconnected
from mountfs.wire.frames import Parts
from mountfs.wire.stream import Client

log = logging.getLogger(__name__)

R = TypeVar("R")

RENEWS_PER_TTL: Final = 4
MARGIN: Final = 0.1
"""This part of the time that leases are good for is given away: clocks do not run alike, and the
kernel is to have forgotten when the time is over.
"""
ANSWER_S: Final = 2.0
LOOK_S: Final = 0.2
LISTED_AFTER: Final = 2
"""When so many names of a directory have been asked for that are not known, it is listed."""
LISTED_ROWS: Final = 512
LISTED_MAX: Final = 16_384
"""Of a directory larger than that, single names are asked for."""
LOOKED_MAX: Final = 4_096

Forget = Callable[[Sequence[Item]], Awaitable[None]]


async def _nobody(items: Sequence[Item]) -> None:
    return


def _boot_time() -> float:
    """Seconds, and also those for which the machine sleeps: leases run out meanwhile."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeasedMeta:
    """`remote`: with `Options.caches`.  Somebody must `run` it."""

    def __init__(self, remote: RemoteMeta, clock: Callable[[], float] = _boot_time) -> None:
        self.remote = remote
        self.known = Known()
        self.on_recall: Forget = _nobody
        """Make the door forget this, and return when it has."""
        self.on_forget: Callable[[Sequence[Ino]], Awaitable[None]] = self._nothing
        """Make the door forget everything; these inodes are those that we had leases on."""
        self.on_touched: Callable[[Sequence[Item]], None] = lambda items: None
        """Told at once that others have changed this."""
        self.on_valid: Callable[[float], None] = lambda seconds: None
        """Told for how many seconds our leases are good from now on."""
        self._clock = clock
        self.on_give_up: Callable[[Ino], Awaitable[None]] = self._nothing_kept_back
        """Give what was written to a file, and kept back, to the metadata."""
        self.is_kept_back: Callable[[Ino], bool] = lambda ino: False
        """Whether something of it is."""
        self._writes: set[Ino] = set()
        """Files of which we may keep back what is written."""
        self.valid_until = 0.0
        self._ttl_s = 0.0
        self._link: Client | None = None
        self._anew = trio.Event()
        self._looked: dict[Ino, int] = {}
        """How many names of a directory were asked for; -1: it is too large to be listed."""
        self._listing: set[Ino] = set()
        self.asking: Callable[[], set[int]] = set
        """Requests of the door that are not answered yet; a number is not used again."""
        self._telling: tuple[int, int, set[int]] = (0, 0, set())
        """A session, the commands of it that were answered at a time, what was asked then."""
        self._told_up_to = 0
        self.hits = 0
        self.misses = 0
        self.recalls = 0
        self.begun = 0
        remote.router.on_push = self._pushed
        remote.on_new_session.append(self._has_new_session)

    @staticmethod
    async def _nothing_kept_back(ino: Ino) -> None:
        return

    @staticmethod
    async def _nothing(inos: Sequence[Ino]) -> None:
        return

    # -- as a `Meta`

    @property
    def session(self) -> int:
        return self.remote.session

    @session.setter
    def session(self, number: int) -> None:
        self.remote.session = number

    def now(self) -> int:
        return self.remote.now()

    async def take_lock(self, ino: Ino, lock: Lock, *, waits: bool) -> Lock | None:
        return await self.remote.take_lock(ino, lock, waits=waits)

    async def await_lock(self, ino: Ino, lock: Lock) -> None:
        await self.remote.await_lock(ino, lock)

    async def session_now(self) -> int:
        return await self.remote.session_now()

    async def locks(self, ino: Ino) -> LocksTold:
        return await self.remote.locks(ino)

    def __getattr__(self, name: str) -> Any:
        """All that has nothing to do with leases."""
        return getattr(self.remote, name)

    async def read(self, query: Query[R]) -> R:
        kind = type(query)
        if kind is Lookup:
            return await self._lookup(query)  # type: ignore[arg-type, return-value]
        if kind is GetAttr:
            found = self.attributes(query.ino)  # type: ignore[attr-defined]
            if found is not None:
                self.hits += 1
                return found  # type: ignore[return-value]
        mark = self.known.mark()
        flags, answer = await self._ask(query)
        if isinstance(answer, FsError):
            raise answer
        learn_answer(self.known, query, flags, answer, mark)
        return answer  # type: ignore[no-any-return]

    async def propose(self, command: Command[R]) -> R:
        known = self.known
        mark = known.mark()
        sent = self._clock()
        changing = may_change(known, command)
        known.begin(changing)
        try:
            answer, reply = await self.remote.propose_leased(command)
        except FsError as error:
            if error.fault is Fault.TIMED_OUT:  # nobody knows what it has done
                await self.forget()
            learn_refusal(known, command, error.fault)
            raise
        except trio.Cancelled:
            doubt(known, command)
            raise
        finally:
            known.end(changing)
        made = learn_changes(known, command, answer, reply, mark)
        if made is not None:
            self._writes.add(made)
        self._renewed(answer.flags, sent)
        return reply

    def _has_new_session(self, before: int) -> None:
        """Leases were those of the session before."""
        self.valid_until = 0.0
        self._writes.clear()
        self.known.forget()
        self._anew.set()

    # -- what may be believed

    @property
    def is_valid(self) -> bool:
        return self._clock() < self.valid_until

    def lease(self, ino: Ino) -> int:
        """The number of the lease that we have on it; 0: we have none."""
        return self.known.held.get(ino, 0) if self.is_valid else 0

    def attributes(self, ino: Ino) -> Attributes | None:
        return self.known.attributes(ino) if self.is_valid else None

    def child(self, parent: Ino, name: bytes) -> Ino | None:
        """NO_INO: there is no such name.  None: that is not known."""
        return self.known.child(parent, name) if self.is_valid else None

    # -- what is kept back

    def keeps_back(self, ino: Ino) -> bool:
        """Whether what is written to a file may be kept back."""
        return ino in self._writes and self.is_valid

    async def keep_back(self, ino: Ino) -> Opened:
        """Ask for it; `keeps_back` says whether we were heard."""
        mark = self.known.mark()
        sent = self._clock()
        flags, opened = await self.remote.keep_back(ino)
        self._renewed(flags, sent)
        if flags & Answer.GRANTED:
            self.known.learn(opened.attributes, mark)
        if flags & Answer.WRITES and self.known.is_untouched(ino, mark):
            self._writes.add(ino)
        return opened

    async def _give_up(self, ino: Ino) -> None:
        self._writes.discard(ino)
        try:
            await self.on_give_up(ino)
        except FsError as error:  # who has written it is told by fsync or close
            log.warning("inode %d: what was kept back is not taken: %s", ino, error)

    # -- asking

    async def _ask(self, query: Query[Any]) -> tuple[int, Any]:
        self.misses += 1
        sent = self._clock()
        flags, answer = await self.remote.read_leased(query)
        self._renewed(flags, sent)
        return flags, answer

    async def _lookup(self, query: Lookup) -> Attributes:
        parent, name = query.parent, query.name
        if not query.cred.checked or name in (b".", b".."):
            _, answer = await self._ask(query)
            if isinstance(answer, FsError):
                raise answer
            return answer  # type: ignore[no-any-return]
        found = self._known_name(parent, name)
        if found is not None:
            return found
        if self._is_worth_listing(parent):
            await self._list(parent)
            found = self._known_name(parent, name)
            if found is not None:
                return found
        mark = self.known.mark()
        flags, answer = await self._ask(query)
        learn_answer(self.known, query, flags, answer, mark)
        if isinstance(answer, FsError):
            raise answer
        return answer  # type: ignore[no-any-return]

    def _known_name(self, parent: Ino, name: bytes) -> Attributes | None:
        """Raises NOT_FOUND if it is known that there is no such name."""
        child = self.child(parent, name)
        if child is None:
            return None
        if child == NO_INO:
            self.hits += 1
            raise FsError(Fault.NOT_FOUND)
        found = self.known.attributes(child)
        if found is not None:
            self.hits += 1
        return found

    def _is_worth_listing(self, parent: Ino) -> bool:
        if parent in self._listing or self.known.is_complete(parent):
            return False
        asked = self._looked.pop(parent, 0)
        if asked >= 0:
            asked += 1
        if len(self._looked) >= LOOKED_MAX:
            del self._looked[next(iter(self._looked))]
        self._looked[parent] = asked
        return asked >= LISTED_AFTER and self.lease(parent) > 0

    async def _list(self, parent: Ino) -> None:
        """Learn the next part of a directory."""
        self._listing.add(parent)
        try:
            after = self.known.next_position(parent)
            mark = self.known.mark()
            query = ReadDir(parent, after, LISTED_ROWS, True)
            flags, answer = await self._ask(query)
            if isinstance(answer, FsError):
                return
            learn_answer(self.known, query, flags, answer, mark)
            rounds = self._looked.get(parent, 0) - LISTED_AFTER + 1
            if not flags & Answer.GRANTED or rounds * LISTED_ROWS >= LISTED_MAX:
                self._looked[parent] = -1
        finally:
            self._listing.discard(parent)

    # -- the leader

    async def _pushed(self, link: Client, method: int, body: Body) -> Parts:
        if method != Method.RECALL:
            raise FsError(Fault.NOT_IMPLEMENTED, f"a client has no method {method}")
        try:
            items = msgspec.msgpack.decode(body, type=Recalled).items
        except msgspec.MsgspecError as error:
            raise FsError(Fault.INVALID, f"no recall: {error}") from None
        if link is not self._link:
            return b""  # we have forgotten all that it has granted
        self.recalls += 1
        self.known.recall(items)
        self.on_touched([item for item in items if not item.is_own])
        await leave()
        for item in items:
            if item.gives_up_writing:
                await self._give_up(item.ino)
                self.known.touch(item.ino)
        await self.on_recall(items)
        return b""

    async def run(self) -> None:
        """Have leases, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_at_the_time)
            await self._have_leases()

    async def _look_at_the_time(self) -> None:
        """Leases that have run out are to be forgotten at once."""
        while True:
            left = self.valid_until - self._clock()
            if left <= 0 and self.known.held:
                log.info("leases have run out: the leader has not been heard of")
                await self.forget()
            await trio.sleep(left if left > 0 else LOOK_S)

    async def _have_leases(self) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._hold_leases()
                backoff = Backoff()
            except (Disconnected, FsError, trio.TooSlowError) as error:
                log.debug("leases: %s", error)
                await trio.sleep(backoff.pause_s(random.random()))

    async def _hold_leases(self) -> None:
        link = await self.remote.router.leader()
        await self.forget()
        sent = self._clock()
        self._anew = trio.Event()
        with trio.fail_after(ANSWER_S):
            try:
                self._writes = set(filter(self.is_kept_back, self._writes))
                begin = Begin(self.session, tuple(self._writes))
                answer = await link.call(Method.BEGIN, encode(begin))
            except FsError as error:
                if error.fault is Fault.NOT_LEADER:
                    self.remote.router.forget(link)
                raise
        self._ttl_s = msgspec.msgpack.decode(answer, type=int) / 1000
        # What was asked before the leader had our BEGIN, and answered, is not covered any more.
        self.known.forget()
        self._link = link
        self.begun += 1
        self._good_until(sent)
        try:
            while not self._anew.is_set():
                with trio.move_on_after(self._ttl_s / RENEWS_PER_TTL):
                    await _first(self._anew, link.closed)
                if link.why is not None:
                    self.remote.router.forget(link)
                    return
                await self._renew(link)
        finally:
            self._link = None

    async def _renew(self, link: Client) -> None:
        sent = self._clock()
        with trio.fail_after(self._ttl_s):
            try:
                asked = Hold(self.session, self._told())
                flags = (await link.call(Method.HOLD, encode(asked)))[0]
            except FsError as error:
                if error.fault is Fault.NOT_LEADER:
                    self.remote.router.forget(link)
                raise
        self._renewed(flags, sent)

    def _told(self) -> int:
        """Whoever asked for our commands up to this one has the answer: those requests of the door
        are over that there were when it came.
        """
        session, told, asking = self._telling
        asking &= self.asking()
        if session != self.session:
            self._told_up_to = 0
        elif not asking:
            self._told_up_to = told
        if session != self.session or not asking:
            self._telling = (self.session, self.remote.answered, self.asking())
        return self._told_up_to

    def _renewed(self, flags: int, sent: float) -> None:
        if flags & Answer.BEGIN:
            self._anew.set()
        elif flags & Answer.RENEWED and self._link is not None:
            self._good_until(sent)

    def _good_until(self, sent: float) -> None:
        until = sent + self._ttl_s * (1 - MARGIN)
        if until > self.valid_until:
            self.valid_until = until
            self.on_valid(until - self._clock())

    async def forget(self) -> None:
        """Everything, here and in the kernel."""
        self.valid_until = 0.0
        self.on_valid(0.0)
        held = list(self.known.held)
        self.known.forget()
        self._looked.clear()
        await self.on_forget(held)


async def _first(*events: trio.Event) -> None:
    """Return when one of them is set."""
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(wait, event)
