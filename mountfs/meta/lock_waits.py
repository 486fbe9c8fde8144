"""Who waits for which lock, as the server that leads knows it: whose turn it is, and who would wait
for himself.

A lock is part of the replicated state; that somebody waits for one is not.  Who waits has a place
in the queue of the file, is called when the way is free, and then asks for the lock like everybody
else.  Another leader knows of nobody: all ask again, and every circle is found again by the one who
closes it.

Order: among those who want what excludes one another, first come, first served.  Linux promises no
order; without one, a stream of readers would starve a writer for ever.  But nobody hangs for the
sake of order alone.  A process that holds something on the file already is not held back, nor is
one for whom those before it wait, and everybody else only for YIELD_MS: behind a lock that is free
there may be a program that waits for another one to get it, too, and nobody can know.  Who asks
without waiting is not held back at all: fcntl(2) and flock(2) owe the lock if nobody holds it.

Circles are found for record locks, as in Linux, and over all mounts.  (The kernel does not tell a
FUSE filesystem which of them are open file description locks: a circle of these is refused, too.)

No I/O.  Times are milliseconds of a clock that does not go back.
"""

from collections.abc import Callable
from typing import Final, TypeVar

from mountfs.errors import Fault, FsError
from mountfs.meta.locks import POSIX, Lock, Locks, Owner, conflict, conflicts
from mountfs.types import Ino

K = TypeVar("K")

YIELD_MS: Final = 5_000.0
"""So long who could have a lock lets those go first who came before."""
KEEP_MS: Final = 2_000.0
"""So long a place is kept for who was called, or told to ask again."""
WAITERS_MAX: Final = 16_384
SESSION_WAITERS_MAX: Final = 4_096


class Waiter:
    """A place in a queue."""

    __slots__ = ("called", "came", "free_since", "ino", "left", "lock")

    def __init__(self, ino: Ino, lock: Lock, now: float) -> None:
        self.ino = ino
        self.lock = lock
        self.came = now
        self.called = False
        """It may try to take the lock."""
        self.free_since: float | None = None
        """Since when nothing but the order is in its way."""
        self.left: float | None = None
        """Since when nobody listens who could be called.  None: somebody does."""

    @property
    def waits(self) -> bool:
        return self.left is None and not self.called


class LockWaits:
    """`held` says which locks are held on a file; none, where there is no such file."""

    def __init__(self, held: Callable[[Ino], Locks]) -> None:
        self._held = held
        self._queues: dict[Ino, list[Waiter]] = {}
        """In the order in which they came.  Invariant: none is empty."""
        self._owners: dict[Owner, list[Waiter]] = {}
        self._sessions: dict[int, int] = {}
        """How many places each session has."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def of(self, ino: Ino) -> list[Waiter]:
        """Who waits for a lock on a file, and who was called and has not taken it yet."""
        return list(self._queues.get(ino, ()))

    def count(self, session: int) -> int:
        """How many places a session has."""
        return self._sessions.get(session, 0)

    def turn_of_another(self, ino: Ino, lock: Lock, now: float) -> Lock | None:
        """What somebody waits for who goes before who asks for `lock` now."""
        queue = self._queues.get(ino)
        if queue is None:
            return None
        own = next((waiter for waiter in queue if waiter.lock == lock), None)
        if own is not None and own.called:
            return None
        before = self._before(ino, lock, own, now)
        return None if before is None else before.lock

    def ask(self, ino: Ino, lock: Lock, now: float) -> Waiter:
        """Wait for `lock`, at the place that was kept, or else at the end.  If the way is free, who
        asks is called at once.  Raises DEADLOCK, NO_LOCKS.
        """
        self._forget_absent(ino, now)
        waiter = next(
            (one for one in self.of(ino) if one.lock == lock and one.left is not None), None
        )
        if waiter is None:
            waiter = self._enter(ino, lock, now)
        waiter.left, waiter.called = None, False
        self._look(waiter, now)
        if waiter.waits and self._closes_a_circle(waiter):
            self._remove(waiter)
            raise FsError(Fault.DEADLOCK)
        return waiter

    def leave(self, waiter: Waiter, now: float) -> None:
        """Who waited was answered: the place is kept for a while."""
        if waiter.left is None:
            waiter.left = now

    def give_up(self, waiter: Waiter, now: float) -> list[Waiter]:
        """Who waited does not want it any more.  Returns whom to call for that."""
        if waiter not in self._queues.get(waiter.ino, ()):
            return []
        self._remove(waiter)
        return self.changed(waiter.ino, now)

    def taken(self, ino: Ino, lock: Lock) -> None:
        """Somebody has it: if he waited for it, he does not any more."""
        found = [waiter for waiter in self.of(ino) if waiter.lock == lock]
        if found:
            self._remove(min(found, key=lambda waiter: waiter.waits))

    def changed(self, ino: Ino, now: float) -> list[Waiter]:
        """Other locks are held on a file than before.  Returns whom to call."""
        if ino not in self._queues:
            return []
        self._forget_absent(ino, now)
        found = []
        for waiter in self.of(ino):
            if waiter.waits:
                self._look(waiter, now)
                if waiter.called:
                    found.append(waiter)
        return found

    def session_ended(self, session: int, now: float) -> tuple[list[Waiter], list[Waiter]]:
        """Returns who waited in it, and whom to call now that its locks are gone."""
        ended = [
            waiter
            for queue in self._queues.values()
            for waiter in queue
            if waiter.lock.owner.session == session
        ]
        for waiter in ended:
            self._remove(waiter)
        called = [waiter for ino in list(self._queues) for waiter in self.changed(ino, now)]
        return ended, called

    def clear(self) -> list[Waiter]:
        """We do not lead any more.  Returns who waited."""
        found = [waiter for queue in self._queues.values() for waiter in queue]
        self._queues.clear()
        self._owners.clear()
        self._sessions.clear()
        self._count = 0
        return found

    # -- whose turn it is

    def _look(self, waiter: Waiter, now: float) -> None:
        """Call who waits, if it is his turn."""
        ino, lock = waiter.ino, waiter.lock
        if conflict(self._held(ino), lock) is not None:
            waiter.free_since = None
            return
        if waiter.free_since is None:
            waiter.free_since = now
        patient = now - waiter.free_since < YIELD_MS
        waiter.called = not patient or self._before(ino, lock, waiter, now) is None

    def _before(self, ino: Ino, lock: Lock, own: Waiter | None, now: float) -> Waiter | None:
        """Who goes before `lock`, whose own place is `own` (None: at the end)."""
        for other in self._queues.get(ino, ()):
            if other is own:
                return None
            if other.left is not None and now - other.left > KEEP_MS:
                continue
            if conflict((other.lock,), lock) is None or self._waits_for(other, lock.owner):
                continue
            return None if self._has_a_share(ino, lock) else other
        return None

    def _has_a_share(self, ino: Ino, lock: Lock) -> bool:
        """Whether the process that wants `lock` holds something on the file already."""
        owner = lock.owner
        return any(
            held.flavor == lock.flavor
            and held.owner.session == owner.session
            and (held.owner == owner or (held.pid == lock.pid and lock.pid != 0))
            for held in self._held(ino)
        )

    # -- circles

    def _closes_a_circle(self, waiter: Waiter) -> bool:
        return waiter.lock.flavor == POSIX and self._waits_for(waiter, waiter.lock.owner)

    def _waits_for(self, waiter: Waiter, owner: Owner) -> bool:
        """Whether somebody waits for a lock of `owner`, or for one who does, and so on."""
        ways = self._in_the_way(waiter)
        seen: set[Owner] = set()
        while ways:
            holder = ways.pop()
            if holder == owner:
                return True
            if holder in seen:
                continue
            seen.add(holder)
            for other in self._owners.get(holder, ()):
                if other.waits and other.lock.flavor == POSIX:
                    ways += self._in_the_way(other)
        return False

    def _in_the_way(self, waiter: Waiter) -> list[Owner]:
        return [lock.owner for lock in conflicts(self._held(waiter.ino), waiter.lock)]

    # -- places

    def _enter(self, ino: Ino, lock: Lock, now: float) -> Waiter:
        session = lock.owner.session
        if self._sessions.get(session, 0) >= SESSION_WAITERS_MAX:
            raise FsError(
                Fault.NO_LOCKS, f"session {session} waits for {SESSION_WAITERS_MAX:,} locks already"
            )
        if self._count >= WAITERS_MAX:
            raise FsError(Fault.NO_LOCKS, f"{WAITERS_MAX:,} locks are waited for already")
        waiter = Waiter(ino, lock, now)
        self._queues.setdefault(ino, []).append(waiter)
        self._owners.setdefault(lock.owner, []).append(waiter)
        self._sessions[session] = self._sessions.get(session, 0) + 1
        self._count += 1
        return waiter

    def _remove(self, waiter: Waiter) -> None:
        _take_out(self._queues, waiter.ino, waiter)
        _take_out(self._owners, waiter.lock.owner, waiter)
        session = waiter.lock.owner.session
        self._sessions[session] -= 1
        if not self._sessions[session]:
            del self._sessions[session]
        self._count -= 1
        assert self._count >= 0

    def _forget_absent(self, ino: Ino, now: float) -> None:
        """Places are not kept for ever."""
        for waiter in self.of(ino):
            if waiter.left is not None and now - waiter.left > KEEP_MS:
                self._remove(waiter)


def _take_out(lists: dict[K, list[Waiter]], key: K, waiter: Waiter) -> None:
    found = lists[key]
    found.remove(waiter)
    if not found:
        del lists[key]
