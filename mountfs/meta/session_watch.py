"""What who leads knows of the sessions: when each was heard of last, and which have fallen silent.

No I/O.  Times are milliseconds of a clock that neither goes back nor stands still.
"""

from collections.abc import Collection
from typing import Any

from mountfs.meta.state_machine import StateMachine

SLEPT = 2
"""Who has not looked for this part of a session's time has slept."""


class SessionWatch:
    """`sessions` is each time those that the state machine has."""

    def __init__(self, ttl_ms: int) -> None:
        self._ttl_ms = ttl_ms
        self._heard: dict[int, float] = {}
        self._looked: float | None = None

    def began_to_lead(self, sessions: Collection[int], now: float) -> None:
        """Nobody is ended for what a leader before us has not told us."""
        self._heard = dict.fromkeys(sessions, now)
        self._looked = now

    def hear(self, sessions: Collection[int], session: int, now: float) -> bool:
        """Returns whether there is such a session, as far as this state goes."""
        if session not in sessions:
            return False
        self._heard[session] = now
        return True

    def silent_ms(self, session: int, now: float) -> float | None:
        """How long ago it was heard of; None: nobody knows."""
        at = self._heard.get(session)
        return None if at is None else now - at

    def forget(self, session: int) -> None:
        self._heard.pop(session, None)

    def silent(self, sessions: Collection[int], now: float) -> list[int]:
        """Those that have not been heard of for too long.  To be asked much more often than that:
        if it was not, it is we who have slept, and everybody gets the whole time again.
        """
        if self._looked is not None and now - self._looked > self._ttl_ms / SLEPT:
            self._heard = dict.fromkeys(self._heard, now)
        self._looked = now
        heard = self._heard
        for number in sessions:
            heard.setdefault(number, now)
        for number in heard.keys() - sessions:
            del heard[number]
        return [number for number, at in heard.items() if now - at > self._ttl_ms]


def kept_reply(machine: StateMachine, session: int, sequence: int) -> tuple[bool, Any]:
    """(whether the command was carried out before, its reply then): the answer was lost, and it is
    asked again.  An FsError is what it was refused with.  Raises STALE where the session had the
    reply long ago.
    """
    return machine.reply_to(session, sequence)
