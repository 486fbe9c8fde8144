"""Simulated time, what happens in it, and chance."""

import hashlib
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random

import msgspec

MS = 1_000
S = 1_000 * MS
"""Simulated time is counted in microseconds."""

_encode = msgspec.msgpack.Encoder().encode


class World:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(seed)
        """For what nobody wants to leave out: delays, losses, how long a disk takes."""
        self.now = 0
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._numbered = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self.naps: list[tuple[int, int]] = []
        """When clients ask for nothing (from, until)."""
        self.last: list[Callable[[], None]] = []
        """What is to be done when nothing will happen any more."""
        self.lines: list[str] | None = None
        """The trace in words, if somebody wants to read it."""

    def stream(self, name: str) -> Random:
        """A source of chance of its own: what is drawn from it changes no other choice."""
        return Random(f"{self.seed}/{name}")

    def after(self, delay: int, happens: Callable[[], None]) -> None:
        """What happens at the same time happens in the order in which it was asked for."""
        assert delay >= 0, delay
        self._numbered += 1
        heappush(self._events, (self.now + delay, self._numbered, happens))

    def nap(self) -> int:
        """For how long clients nap from now on; 0: they do not."""
        left = [until - self.now for start, until in self.naps if start <= self.now]
        return max(0, *left) if left else 0

    def run(self, until: int) -> None:
        events = self._events
        while events and events[0][0] <= until:
            self.now, _, happens = heappop(events)
            happens()
        self.now = until

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def note(self, line: str) -> None:
        """Something worth telling: a part of the trace."""
        self._digest.update(f"{self.now} {line}\n".encode())
        if self.lines is not None:
            self.lines.append(f"{self.now / S:9.4f} {line}")

    def note_message(self, message: msgspec.Struct) -> None:
        self._digest.update(b"%d %s" % (self.now, _encode(message)))
        if self.lines is not None:
            self.lines.append(f"{self.now / S:9.4f} {message}")

    @property
    def digest(self) -> str:
        """Two runs are the same if this is."""
        return self._digest.hexdigest()
