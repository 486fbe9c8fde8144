"""How the volumes of a cluster are: what `mountfs health` tells.  No I/O."""

from collections import Counter
from typing import Final

import msgspec

from mountfs.types import VolumeId

RATE_MS: Final = 60_000
"""A rate is measured over about so long."""


class Health(msgspec.Struct, frozen=True):
    looked: bool
    """Every volume has been looked at since the leader began."""
    volumes: int
    """As many as were there in the last whole round."""
    causes: dict[str, int]
    """How many volumes have what wrong with them, in words."""
    unreadable: tuple[VolumeId, ...]
    """Some of those of which no copy is there."""
    bytes_to_copy: int
    bytes_per_second: float
    """As measured; 0 while nothing is copied."""
    seconds_left: float | None
    """0: nothing is to be copied.  None: nobody can say."""
    under_way: tuple[str, ...]
    """Some of the tasks, in sentences."""
    stuck: dict[str, int]
    """Why nothing is done for so many volumes with something wrong, the most frequent reasons."""
    held_up: str
    """Why nothing is done at all; "": it is."""

    @property
    def is_well(self) -> bool:
        return self.looked and not self.causes


class Rate:
    """How many bytes are copied in a second, lately."""

    def __init__(self) -> None:
        self._new = 0
        self._bytes = 0.0
        """Of late; what is old counts less and less."""
        self._time = 0.0
        """In milliseconds, weighted in the same way."""
        self._at: float | None = None

    def add(self, count: int) -> None:
        self._new += count

    def is_working(self, now_ms: float, is_working: bool) -> None:
        """To be told regularly.  Time in which nothing is copied does not count."""
        gap = 0.0 if self._at is None else max(0.0, now_ms - self._at)
        self._at = now_ms
        if is_working or self._new:
            fading = max(0.0, 1 - gap / RATE_MS)
            self._bytes = self._bytes * fading + self._new
            self._time = self._time * fading + gap
            self._new = 0

    @property
    def per_second(self) -> float:
        return self._bytes * 1_000 / self._time if self._time else 0.0


def most_common(words: Counter[str], count: int) -> dict[str, int]:
    return dict(words.most_common(count))
