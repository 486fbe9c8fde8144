"""How long a server takes: what is concluded from answers, and from reads that were not waited out.

A read that was cancelled because another server was quicker has taken *at least* so long.  To leave
it out would make a slow server look quick, for just its slow answers are missing; to count it as an
answer would make it look as quick as the patience of who asked.  So both kinds are kept apart, and
figures are of the product-limit estimate (Kaplan and Meier, 1958): what was cut off counts as long
as it was waited for, and after that is thought to go on as those do that were waited out.

Latencies are counted in steps of a fourth of an octave, so a figure is up to 19 % too high, never
too low.  Noting one is on the path of every read: it is an addition, and figures follow behind.
"""

from math import log2
from typing import Final

STEPS: Final = 4
"""To an octave."""
LEAST_MS: Final = 1 / 64
OCTAVES: Final = 20
"""From LEAST_MS to 16 s; what is outside counts with the first step or the last."""

_LAST: Final = STEPS * OCTAVES - 1
_ORIGIN: Final = -STEPS * log2(LEAST_MS)
_EDGE: Final = [LEAST_MS * 2 ** ((step + 1) / STEPS) for step in range(_LAST + 1)]
"""The greatest latency of each step."""
_MIDDLE: Final = [LEAST_MS * 2 ** ((step + 0.5) / STEPS) for step in range(_LAST + 1)]

_EVERY: Final = 16
"""Figures are concluded anew after so many samples; while there are fewer, after each."""
_TRACE: Final = 1 / 32
"""Less than this of a sample is nothing."""
_EXACT: Final = 1e-9
"""Sums of parts of samples differ by less from what they should be."""


class Latency:
    """Of one server, for reads of one kind.  Times are in ms."""

    __slots__ = (
        "_answered",
        "_cut_off",
        "_fade_ms",
        "_until_concluded",
        "_window",
        "fades_at",
        "mean_ms",
        "p50_ms",
        "p95_ms",
        "samples",
    )

    samples: float
    """How much is known; older samples count for a part.  0, or at least 1."""
    mean_ms: float
    """As `p50_ms` and `p95_ms`: 0 when nothing is known.  Where most was cut off, the least that it
    can be.
    """
    fades_at: float
    """When `fade` is to be called."""

    def __init__(self, window: int, fade_ms: float, now: float) -> None:
        """At most `window` samples are kept; after `fade_ms` each counts half."""
        self._window = window
        self._fade_ms = fade_ms
        self.fades_at = now + fade_ms
        self.forget()

    def forget(self) -> None:
        self._answered = [0.0] * (_LAST + 1)
        self._cut_off = [0.0] * (_LAST + 1)
        self._until_concluded = 1
        self.samples = self.mean_ms = self.p50_ms = self.p95_ms = 0.0

    def note(self, took_ms: float, *, answered: bool = True) -> bool:
        """A read was answered after so long, or was not and is no longer waited for.  Returns
        whether the figures have changed.
        """
        step = _step(took_ms)
        if answered:
            self._answered[step] += 1
        else:
            self._cut_off[step] += 1
        self.samples += 1
        self._until_concluded -= 1
        if self._until_concluded:
            return False
        if self.samples >= self._window:
            self._scale(0.5)
        self._conclude()
        return True

    def fade(self, now: float) -> None:
        """Some time has passed: what is known counts less."""
        periods = 1 + int((now - self.fades_at) / self._fade_ms)
        self.fades_at += periods * self._fade_ms
        if self.samples:
            self._scale(0.5 ** min(periods, 100))
            self._conclude()

    def _scale(self, factor: float) -> None:
        for counts in (self._answered, self._cut_off):
            for step, count in enumerate(counts):
                if count:
                    counts[step] = count * factor if count * factor >= _TRACE else 0.0
        self.samples = sum(self._answered) + sum(self._cut_off)
        if self.samples < 1:
            self.forget()

    def _conclude(self) -> None:
        self._until_concluded = _EVERY if self.samples > _EVERY else 1
        left = self.samples
        """Samples that took at least so long."""
        open_share = 1.0
        """Of all reads, those that are thought not to be answered yet."""
        mean = p50 = p95 = longest = 0.0
        for step, (answered, cut_off) in enumerate(zip(self._answered, self._cut_off, strict=True)):
            if not answered and not cut_off:
                continue
            longest = _EDGE[step]
            if answered:
                share = open_share * min(answered / left, 1.0)
                mean += share * _MIDDLE[step]
                open_share -= share
                if not p50 and open_share <= 0.5 + _EXACT:
                    p50 = longest
                if not p95 and open_share <= 0.05 + _EXACT:
                    p95 = longest
            left -= answered + cut_off
        self.mean_ms = mean + open_share * longest
        self.p50_ms = p50 or longest
        self.p95_ms = p95 or longest


def _step(took_ms: float) -> int:
    if took_ms <= LEAST_MS:
        return 0
    return min(int(STEPS * log2(took_ms) + _ORIGIN), _LAST)
