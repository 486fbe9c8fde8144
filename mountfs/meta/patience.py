"""How long a node may be silent until others get what it has, and all the times that go with that.

An operator says one number (`mountfs node --heal-after`).  Whoever wants to wait for less than
usual is not to wait for the rest as if nothing had been said; whoever wants to wait for longer, for
machines that take an hour to start, has no reason to wait for anything else.
"""

from typing import Final

from mountfs.meta.fleet import FleetConfig
from mountfs.meta.healing_config import HealingConfig

GRACE_S_MIN: Final = 10.0
"""Twice what makes a node silent: a report that is late, or an election, must not do it."""
GRACE_S_MAX: Final = 7 * 86_400.0

FLOORS_MS: Final = {
    "steady_ms": 10_000,
    "slow_ms": 15_000,
    "settle_ms": 3_000,
    "differ_ms": 10_000,
    "open_short_ms": 5_000,
    "rest_ms": 2_000,
    "retry_ms": 2_000,
    "repair_ms": 60_000,
}
"""However impatient somebody is: reports come once a second, and deletions take several."""


def patience(grace_s: float) -> tuple[FleetConfig, HealingConfig]:
    """For a time of grace of GRACE_S_MIN to GRACE_S_MAX seconds."""
    assert GRACE_S_MIN <= grace_s <= GRACE_S_MAX, grace_s
    usual, healing = FleetConfig(), HealingConfig()
    share = min(grace_s * 1_000 / usual.grace_ms, 1.0)

    def scaled(config: FleetConfig | HealingConfig, name: str) -> int:
        before: int = getattr(config, name)
        return max(round(before * share), min(FLOORS_MS[name], before))

    return (
        FleetConfig(
            grace_ms=round(grace_s * 1_000),
            steady_ms=scaled(usual, "steady_ms"),
            slow_ms=scaled(usual, "slow_ms"),
        ),
        HealingConfig(
            settle_ms=scaled(healing, "settle_ms"),
            differ_ms=scaled(healing, "differ_ms"),
            open_short_ms=scaled(healing, "open_short_ms"),
            rest_ms=scaled(healing, "rest_ms"),
            retry_ms=scaled(healing, "retry_ms"),
            repair_ms=scaled(healing, "repair_ms"),
        ),
    )
