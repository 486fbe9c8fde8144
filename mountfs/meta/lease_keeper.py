"""Leases, as who leads keeps them: who is connected, what is sent to whom, what has to wait.

What it decides is in `leases.py`.  Here are the connections of sessions, the tasks that ask them
to forget, and those who wait for an answer until others have.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, Final

import trio

from mountfs.errors import FsError
from mountfs.meta import keys
from mountfs.meta.leases import TTL_MS, Done, Leases, Recall, Wait
from mountfs.meta.machine import Asked
from mountfs.meta.ops.lock import ReleaseLock, TakeLock
from mountfs.meta.ops.session import EndSession
from mountfs.meta.ops.slices import Discard, Reclaimed, Rewrite, Settle
from mountfs.meta.ops.touch import Touch
from mountfs.meta.protocol import Answer, KeepBack, Method, Recalled, encode
from mountfs.types import Ino
from mountfs.wire.connection import Disconnected
from mountfs.wire.service import Peer

log = logging.getLogger(__name__)

LOOK_S: Final = 0.1
UNSEEN: Final = (Discard, Reclaimed, ReleaseLock, Rewrite, Settle, TakeLock, Touch)
"""Commands that change nothing that a lease is about: where bytes lie but not which, locks, and
times of access, which others may see late.
"""


class LeaseKeeper:
    """`now`: milliseconds that only grow; `end_session` ends one, durably.  Somebody must `run`
    it.
    """

    def __init__(
        self,
        now: Callable[[], float],
        end_session: Callable[[int], Awaitable[None]],
        ttl_ms: int = TTL_MS,
    ) -> None:
        self.leases = Leases(ttl_ms)
        self._end_session = end_session
        self._ending: set[int] = set()
        self._now = now
        self._peers: dict[int, Peer] = {}
        self._wake = trio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                with trio.move_on_after(LOOK_S):
                    await self._wake.wait()
                self._wake = trio.Event()
                _tell(self.leases.look(self._now()))
                outbox, self.leases.outbox = self.leases.outbox, []
                for recall in outbox:
                    nursery.start_soon(self._recall, recall)
                for session in self.leases.lost - self._ending:
                    self._ending.add(session)
                    nursery.start_soon(self._end, session)

    async def _end(self, session: int) -> None:
        """It does not give up what it has kept back: then it must not come later."""
        log.warning("session %d is silent, and has bytes that others ask for: it is ended", session)
        try:
            await self._end_session(session)
        except FsError as error:
            log.warning("session %d could not be ended: %s", session, error)
        finally:
            self._ending.discard(session)

    async def _recall(self, recall: Recall) -> None:
        """If nothing comes of it, the leases run out."""
        peer = self._peers.get(recall.session)
        if peer is None or peer.why is not None:
            return
        self.leases.sent(recall, self._now())
        with trio.move_on_after(2 * self.leases.ttl_ms / 1000):
            try:
                await peer.push(Method.RECALL, encode(Recalled(recall.items)))
            except (Disconnected, FsError) as error:
                log.info("session %d has not forgotten what it was to: %s", recall.session, error)
                return
            if self._peers.get(recall.session) is peer:
                _tell(self.leases.answered(recall))

    # -- who leads, and who is there

    def lead(self, sessions: Iterable[int]) -> None:
        self._peers.clear()
        self.leases.lead(sessions, self._now())

    def lead_no_more(self) -> None:
        self._peers.clear()
        _tell(self.leases.lead_no_more())

    def begin(self, session: int, peer: Peer, writes: Iterable[Ino]) -> None:
        self._peers[session] = peer
        _tell(self.leases.begin(session, self._now(), writes))
        self._wake.set()

    async def let_go(self, session: int) -> None:
        """Return when it has no leases any more, and gets none: it is told to begin anew, or they
        run out.
        """
        await self.settled()
        wait = self.leases.let_go(session, self._now())
        if wait is not None:
            await self.over(wait)

    def end(self, session: int) -> None:
        self._peers.pop(session, None)
        _tell(self.leases.drop(session))

    def flags(self, session: int, peer: Peer) -> int:
        """How the leases of who asks stand."""
        if self._peers.get(session) is not peer or not self.leases.has_begun(session):
            return Answer.BEGIN
        return Answer.RENEWED if self.leases.hear(session, self._now()) else 0

    # -- questions

    @property
    def is_settled(self) -> bool:
        return self.leases.is_settled(self._now())

    async def settled(self) -> None:
        if self.is_settled:
            return
        event = trio.Event()
        self.leases.when_settled(event.set)
        await event.wait()

    async def over(self, wait: Wait) -> None:
        if not wait.left:  # by now
            return
        event = trio.Event()
        wait.then.append(event.set)
        await event.wait()

    def answer(self, session: int, peer: Peer, seen: Collection[Ino]) -> int:
        """The flags of an answer that tells of these inodes."""
        flags = self.flags(session, peer)
        if flags & Answer.RENEWED and self.leases.grant(session, seen, self._now()):
            flags |= Answer.GRANTED
        return flags

    def in_the_way(self, session: int, seen: Collection[Ino]) -> Wait | None:
        """What an answer that tells of these inodes has to wait for."""
        wait = self.kept_back(session, seen)
        return self.blocked(session, seen) if wait is None else wait

    def blocked(self, session: int, seen: Collection[Ino]) -> Wait | None:
        """The same, but only for what has changed already."""
        wait = self.leases.blocked(seen, session)
        if wait is not None:
            self._wake.set()
        return wait

    def kept_back(self, session: int, inos: Iterable[Ino]) -> Wait | None:
        """The same, but only for what others have not told us yet."""
        wait = self.leases.kept_back(inos, session)
        if wait is not None:
            self._wake.set()
        return wait

    def keep_back(self, asked: KeepBack, peer: Peer) -> bool | Wait:
        """Whether who asks may keep back what he writes, or what he has to wait for first."""
        if self._peers.get(asked.session) is not peer:
            return False
        found = self.leases.grant_writing(asked.session, asked.ino)
        if isinstance(found, Wait):
            self._wake.set()
        return found

    # -- commands

    def applied(self, asked: Any, seen: set[Ino], committed: dict[bytes, bytes | None]) -> None:
        """A command has taken effect: have others forget what is not so any more, and note what its
        answer has to wait for.
        """
        command = asked.command
        if type(command) is EndSession:
            self.end(command.number)
        changes = {} if type(command) in UNSEEN else _changes(committed)
        leases, session, now = self.leases, asked.session, self._now()
        waits = []
        wait = leases.blocked(seen, session)
        if wait is not None:
            waits.append(wait)
        is_granted, new = False, []
        if type(asked) is Asked and asked.caches:
            # Now, and not when it is answered: what is changed until then has to be recalled.
            told = {*seen, *changes}
            new = leases.new(session, told)
            is_granted = leases.grant(session, told, now)
        if changes:
            wait = leases.changed(session, changes, now, asked.sequence)
            if wait is not None:
                waits.append(wait)
                if is_granted and leases.cool(session, new, now):
                    is_granted = False
        if waits:
            self._wake.set()
        if type(asked) is Asked:
            asked.waits = tuple(waits)
            asked.changes = tuple(changes)
            asked.is_granted = is_granted

    def when_over(self, waits: Iterable[Wait], then: Done) -> None:
        """`then`, once none of `waits` is left: at once, if there are none."""
        left = 1

        def one() -> None:
            nonlocal left
            left -= 1
            if not left:
                then()

        for wait in waits:
            if wait.left:
                left += 1
                wait.then.append(one)
        one()


def _changes(committed: dict[bytes, bytes | None]) -> dict[Ino, tuple[bytes, ...]]:
    """Inodes of which something has changed, and of directories the names."""
    changes: dict[Ino, tuple[bytes, ...]] = {}
    for key in committed:
        ino = keys.ino_of(key)
        if not ino:
            continue
        names = changes.get(ino, ())
        changes[ino] = (*names, key[9:]) if key[8] == keys.DENTRY else names
    return changes


def _tell(waiting: Iterable[Done]) -> None:
    for then in waiting:
        then()
