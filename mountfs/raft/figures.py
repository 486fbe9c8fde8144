"""What a node counts about its groups, since its start: for `mountfs status` and for metrics.

Counting is on the path of every commit, so it is a few additions and one search in a short list.
"""

from bisect import bisect_left
from typing import Final

import msgspec

SECONDS: Final = (
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.25, 0.5,
    1.0, 2.0, 4.0, 8.0,
)  # fmt: skip
COUNTS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 4_096)


class Spread:
    """How values are distributed: how many were at most each of `bounds`, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """By bound; the last has what is above all of them."""
        self.sum = 0.0

    def note(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """The bound that this share of the values does not exceed; None: there are no values, or it
        is above all bounds.

        >>> spread = Spread((1, 2, 4))
        >>> for value in (0.5, 1, 3, 3): spread.note(value)
        >>> spread.quantile(0.5), spread.quantile(0.9)
        (1, 4)
        """
        wanted = share * self.count
        so_far = 0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            so_far += count
            if so_far >= wanted and so_far:
                return bound
        return None


def _seconds() -> Spread:
    return Spread(SECONDS)


def _counts() -> Spread:
    return Spread(COUNTS)


class Figures(msgspec.Struct):
    elections_won: int = 0
    proposals: int = 0
    applied: int = 0
    batches: int = 0
    """Appends to the log; entries in them are `appended`."""
    appended: int = 0
    envelopes: int = 0
    messages: int = 0
    sent_bytes: int = 0
    usual_sync_s: float = 0.0
    """Of the last few syncs."""
    leaderless_s: Spread = msgspec.field(default_factory=_seconds)
    """How long a group knew of nobody who leads, each time."""
    commit_s: Spread = msgspec.field(default_factory=_seconds)
    """From a proposal until it has acted here."""
    apply_s: Spread = msgspec.field(default_factory=_seconds)
    """To take in what was committed at one time."""
    sync_s: Spread = msgspec.field(default_factory=_seconds)
    """To put on disk what was appended."""
    batch_entries: Spread = msgspec.field(default_factory=_counts)
    """Entries that were appended at one time."""

    def told(self) -> dict[str, float | int | None]:
        """For `mountfs status`: counters, and of each spread the median and the 99th percentile."""
        found: dict[str, float | int | None] = {}
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, Spread):
                found[f"{name}_p50"] = value.quantile(0.5)
                found[f"{name}_p99"] = value.quantile(0.99)
            else:
                found[name] = value
        return found
