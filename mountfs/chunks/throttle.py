"""A limit of bytes per second that can be changed while it is in use.  Knows no clock."""

from typing import Final

WAIT_MIN_S: Final = 0.001
BURST_S: Final = 1.0
"""What was not used for so long may be used at once."""


class Throttle:
    """A bucket that fills at `rate` bytes per second; 0: there is no limit.

    Who finds something in it may take as much as it wants, and the others wait until that is made
    up for: so what is large passes, too, and the rate holds on the average.

    >>> bucket = Throttle(100.0)
    >>> bucket.take(500, 0.0), bucket.take(1, 0.0), bucket.take(1, 5.0)
    (0.0, 4.0, 0.0)
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._level = 0.0
        """Bytes; negative: so many were taken before their time."""
        self._at: float | None = None
        """When that was so, in seconds."""

    def take(self, size: int, now: float) -> float:
        """Take `size` bytes; or, if it is not the time yet, nothing: then the result is how many
        seconds it will be, as far as is known now.
        """
        if self.rate <= 0:
            self._level, self._at = 0.0, now
            return 0.0
        burst = self.rate * BURST_S
        if self._at is None:
            self._level, self._at = burst, now
        self._level = min(self._level + (now - self._at) * self.rate, burst)
        self._at = now
        if self._level < 0:
            return max(-self._level / self.rate, WAIT_MIN_S)
        self._level -= size
        return 0.0
