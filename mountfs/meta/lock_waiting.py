"""Waiting for locks, where they are decided: at the server that leads, or in the mount that has the
metadata to itself.  Whoever waits sleeps until `lock_waits` calls him.
"""

from collections.abc import Callable
from typing import Any, Final

import trio

from mountfs.errors import Fault, FsError
from mountfs.inline import leave
from mountfs.meta.command import Command
from mountfs.meta.lock_waits import LockWaits, Waiter
from mountfs.meta.locks import Lock, Locks
from mountfs.meta.ops.lock import ReleaseLock, TakeLock, locks_of
from mountfs.meta.ops.reap import Reap
from mountfs.meta.ops.session import EndSession
from mountfs.meta.protocol import Holder, LocksTold
from mountfs.meta.state_machine import StateMachine
from mountfs.types import Ino

PATIENCE_S: Final = 4.0
"""Who waits is answered after so long, whatever the answer: so both sides know of each other."""


class _Call:
    """Somebody who listens."""

    __slots__ = ("error", "told")

    def __init__(self) -> None:
        self.told = trio.Event()
        self.error: FsError | None = None


class LockWaiting:
    """`machine`: the state; `now`: milliseconds of a clock that does not go back."""

    def __init__(self, machine: Callable[[], StateMachine], now: Callable[[], float]) -> None:
        self._machine = machine
        self._now = now
        self._waits = LockWaits(self._held)
        self._calls: dict[Waiter, _Call] = {}

    @property
    def any(self) -> bool:
        """Somebody waits, or has waited just now."""
        return len(self._waits) > 0

    def turn_of_another(self, ino: Ino, lock: Lock) -> Lock | None:
        """What somebody waits for who goes before who asks for `lock` now, and would wait."""
        return self._waits.turn_of_another(ino, lock, self._now())

    async def wait(self, ino: Ino, lock: Lock, patience_s: float) -> bool:
        """Until the lock may be tried for; False: so much time has passed.  Who asks again for the
        same lock has the same place.  Raises DEADLOCK, NO_LOCKS, NOT_LEADER, SESSION_ENDED.
        """
        await leave()
        waits = self._waits
        waiter = waits.ask(ino, lock, self._now())
        call = self._calls[waiter] = _Call()
        if waiter.called:
            call.told.set()
        try:
            with trio.move_on_after(patience_s):
                await call.told.wait()
        except BaseException:
            del self._calls[waiter]
            self._call(waits.give_up(waiter, self._now()))
            raise
        del self._calls[waiter]
        waits.leave(waiter, self._now())
        if call.error is not None:
            raise call.error
        return waiter.called

    def applied(self, command: Command[Any], reply: object) -> None:
        """The state has changed."""
        waits, now = self._waits, self._now()
        if isinstance(command, TakeLock):
            if reply is None:
                waits.taken(command.ino, command.lock)
                self._call(waits.changed(command.ino, now))  # some of another may be gone for it
        elif isinstance(command, ReleaseLock):
            self._call(waits.changed(command.ino, now))
        elif isinstance(command, Reap):
            for ino in command.inos:
                self._call(waits.changed(ino, now))
        elif isinstance(command, EndSession):
            ended, called = waits.session_ended(command.number, now)
            error = FsError(Fault.SESSION_ENDED, f"session {command.number} has ended")
            self._refuse(ended, error)
            self._call(called)

    def end(self, error: FsError) -> None:
        """Nobody is to wait here any more."""
        self._refuse(self._waits.clear(), error)

    def told(self, ino: Ino) -> LocksTold:
        """The locks on a file, for people.  Raises STALE."""
        machine, now = self._machine(), self._now()
        return LocksTold(
            tuple(
                Holder(lock, machine.about(lock.owner.session), 0)
                for lock in locks_of(machine.tree, ino)
            ),
            tuple(
                Holder(
                    waiter.lock, machine.about(waiter.lock.owner.session), int(now - waiter.came)
                )
                for waiter in self._waits.of(ino)
            ),
        )

    def count(self, session: int) -> int:
        """How many locks a session waits for."""
        return self._waits.count(session)

    def _held(self, ino: Ino) -> Locks:
        try:
            return locks_of(self._machine().tree, ino)
        except FsError as error:
            if error.fault is not Fault.STALE:
                raise
            return ()  # who tries for it will hear that it is gone

    def _call(self, waiters: list[Waiter]) -> None:
        for waiter in waiters:
            self._calls[waiter].told.set()

    def _refuse(self, waiters: list[Waiter], error: FsError) -> None:
        for waiter in waiters:
            call = self._calls.get(waiter)
            if call is not None:
                call.error = error
                call.told.set()
