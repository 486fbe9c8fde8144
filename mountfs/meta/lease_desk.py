"""Leases, as who leads deals in them: who is connected, what an answer may grant, what a command
makes untrue, and who waits for it.

What it decides is in `leases.py`; who sends and waits is `lease_keeper.py`.  No I/O.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Any, Final, Generic, TypeVar

from mountfs.meta import keys
from mountfs.meta.asked import Asked
from mountfs.meta.leases import HELD_MAX, TTL_MS, Done, Leases, Wait
from mountfs.meta.ops.lock import ReleaseLock, TakeLock
from mountfs.meta.ops.session import EndSession
from mountfs.meta.ops.slices import Discard, Reclaimed, Rewrite, Settle
from mountfs.meta.ops.touch import Touch
from mountfs.meta.protocol import Answer, KeepBack
from mountfs.types import Ino

P = TypeVar("P")
"""A connection: it is the same one or another."""

UNSEEN: Final = (Discard, Reclaimed, ReleaseLock, Rewrite, Settle, TakeLock, Touch)
"""Commands that change nothing that a lease is about: where bytes lie but not which, locks, and
times of access, which others may see late.
"""


class LeaseDesk(Generic[P]):
    """`now`: milliseconds that only grow."""

    def __init__(
        self, now: Callable[[], float], ttl_ms: int = TTL_MS, held_max: int = HELD_MAX
    ) -> None:
        self.leases = Leases(ttl_ms, held_max)
        self._now = now
        self._peers: dict[int, P] = {}
        self.on_more: Callable[[], None] = lambda: None
        """Called when there is something in the outbox."""

    # -- who leads, and who is there

    def lead(self, sessions: Iterable[int]) -> None:
        self._peers.clear()
        self.leases.lead(sessions, self._now())

    def lead_no_more(self) -> None:
        self._peers.clear()
        tell(self.leases.lead_no_more())

    def begin(self, session: int, peer: P, writes: Iterable[Ino]) -> None:
        self._peers[session] = peer
        tell(self.leases.begin(session, self._now(), writes))
        self.on_more()

    def end(self, session: int) -> None:
        self._peers.pop(session, None)
        tell(self.leases.drop(session))

    def peer(self, session: int) -> P | None:
        """The connection on which it has begun."""
        return self._peers.get(session)

    def flags(self, session: int, peer: P) -> int:
        """How the leases of who asks stand."""
        if self._peers.get(session) is not peer or not self.leases.has_begun(session):
            return Answer.BEGIN
        return Answer.RENEWED if self.leases.hear(session, self._now()) else 0

    # -- questions

    @property
    def is_settled(self) -> bool:
        return self.leases.is_settled(self._now())

    def answer(self, session: int, peer: P, seen: Collection[Ino]) -> int:
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
            self.on_more()
        return wait

    def kept_back(self, session: int, inos: Iterable[Ino]) -> Wait | None:
        """The same, but only for what others have not told us yet."""
        wait = self.leases.kept_back(inos, session)
        if wait is not None:
            self.on_more()
        return wait

    def keep_back(self, asked: KeepBack, peer: P) -> bool | Wait:
        """Whether who asks may keep back what he writes, or what he has to wait for first."""
        if self._peers.get(asked.session) is not peer:
            return False
        found = self.leases.grant_writing(asked.session, asked.ino)
        if isinstance(found, Wait):
            self.on_more()
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
        waits = leases.all_blocking(seen, session)
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
            self.on_more()
        if type(asked) is Asked:
            if not seen and not committed:  # not even its session was looked at: it acted before
                asked.is_again = True
                waits += leases.held_back()
            asked.waits = tuple(waits)
            asked.changes = tuple(changes)
            asked.is_granted = is_granted

    def when_known(self, then: Done) -> None:
        """`then`, once nobody believes any more what a command has changed that acted before:
        perhaps with a leader before us, and perhaps others are being asked to forget it.
        """
        if self.is_settled:
            self.when_over(self.leases.held_back(), then)
        else:
            self.leases.when_settled(lambda: self.when_known(then))

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


def tell(waiting: Iterable[Done]) -> None:
    for then in waiting:
        then()
