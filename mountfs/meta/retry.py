"""How a client goes on when it is not answered, decided without I/O: whom to ask, when to ask
again, with which sequence, what an answer means, and when a session is over.

The client over `wire` and the simulation wait and send as this says.
"""

from collections.abc import Callable, Iterable, Mapping, MutableSequence
from enum import Enum
from typing import Final, Generic, TypeVar

from mountfs.errors import Fault, FsError

A = TypeVar("A")
"""Where a node is found."""

RETRY_FIRST_S: Final = 0.02
RETRY_MAX_S: Final = 0.5
ATTEMPT_S: Final = 10.0
"""An attempt that is not answered for so long is made again, perhaps elsewhere."""
RENEWS_PER_TTL: Final = 4


class Verdict(Enum):
    """What it means that a request was refused."""

    ANSWER = "answer"
    """The caller is to be told."""
    AGAIN = "again"
    """Nobody knows whether it acted, or it did not: ask again, after a pause."""
    ELSEWHERE = "elsewhere"
    """As AGAIN, and not there: another node leads."""
    OVER = "over"
    """The session has ended; nothing that is asked in it will be done."""


_VERDICTS: Final = {
    Fault.NOT_LEADER: Verdict.ELSEWHERE,
    Fault.UNAVAILABLE: Verdict.AGAIN,
    Fault.SESSION_ENDED: Verdict.OVER,
}


def judge(fault: Fault) -> Verdict:
    return _VERDICTS.get(fault, Verdict.ANSWER)


class SessionOver(FsError):
    """The session in which something was asked has ended."""

    def __init__(self, detail: str, *, unsure: bool) -> None:
        super().__init__(Fault.SESSION_ENDED, detail)
        self.unsure = unsure
        """It was asked before, and may have been carried out before the end."""


class Session:
    """The client's part of exactly once: which numbers its commands have, and what it still waits
    for.
    """

    def __init__(self) -> None:
        self.number = 0
        self.ended: FsError | None = None
        """The session is over: what was not written is lost."""
        self._sequence = 0
        self._open: dict[int, None] = {}
        """Sequences that are not answered yet, ascending."""

    def opened(self, number: int) -> None:
        self.number = number
        self._sequence = 0

    def begin(self) -> tuple[int, int]:
        """A command is to be sent: its sequence, for every attempt the same, and the one below
        which all are answered.  Raises SESSION_ENDED.
        """
        if self.ended is not None:
            raise self.ended
        self._sequence = sequence = self._sequence + 1
        self._open[sequence] = None
        return sequence, next(iter(self._open))

    @property
    def answered(self) -> int:
        """All commands up to this one are answered."""
        return next(iter(self._open), self._sequence + 1) - 1

    def done(self, sequence: int) -> None:
        """It is answered, or will not be asked again: the answer need not be kept for us."""
        del self._open[sequence]

    def over(self, error: FsError) -> bool:
        """Returns whether that is news."""
        if self.ended is not None:
            return False
        self.ended = error
        return True


class Backoff:
    """Pauses between attempts: soon at first, then less and less often."""

    def __init__(self) -> None:
        self._next_s = RETRY_FIRST_S

    def pause_s(self, chance: float) -> float:
        """How long now; `chance`, from 0 to 1, keeps clients apart that began together."""
        pause_s = self._next_s * (0.5 + chance / 2)
        self._next_s = min(self._next_s * 2, RETRY_MAX_S)
        return pause_s


class Route(Generic[A]):
    """Where the nodes of a cluster are, and which of them leads."""

    def __init__(self, seeds: Iterable[A]) -> None:
        self._seeds = list(seeds)
        self.known: Mapping[int, A] = {}
        """Nodes by their number, whoever has told us: one that has only just joined knows of nobody
        yet, and one that has been removed does not know who came later.
        """
        self.leader: A | None = None
        """Who leads, as far as we know: it is asked first."""

    def candidates(self, shuffle: Callable[[MutableSequence[A]], None]) -> list[A]:
        """Whom to ask who leads, one after the other."""
        found = list(dict.fromkeys([*self.known.values(), *self._seeds]))
        shuffle(found)
        return found

    def heard(self, leader: int, known: Mapping[int, A]) -> tuple[A | None, str]:
        """What one node says of the cluster: (who leads, and if nobody, why not)."""
        self.known = {**self.known, **known}
        if not leader:
            return None, "knows of nobody who leads"
        found = self.known.get(leader)
        if found is None:
            return None, f"says node {leader} leads, but not where"
        return found, ""
