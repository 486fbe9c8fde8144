"""How long things take in a simulated cluster that would take minutes or hours in a real one."""

import msgspec

from mountfs.meta.fleet import FleetConfig
from mountfs.meta.healing_config import HealingConfig
from mountfs.sim.world import MS


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """Microseconds."""

    report_us: int = 250 * MS
    scrub_us: int = 300 * MS
    """From one volume of a disk to the next."""
    attempt_us: int = 500 * MS
    """How long one answer is waited for."""
    straggler_us: int = 200 * MS
    """When one replica has taken a slice, the others have so long."""
    long_us: int = 1_500 * MS
    """For calls that move bytes."""
    avoid_us: int = 1_500 * MS
    """How long a mount does without a node that has failed it."""
    repair_us: int = 200 * MS
    tidy_us: int = 400 * MS
    delete_us: int = 300 * MS
    collect_us: int = 80 * MS
    grace_us: int = 1_500 * MS
    """A slice that no file refers to is left alone for so long."""
    reserved_us: int = 1_000 * MS
    """Names are used within that time, or not at all."""


FLEET = FleetConfig(
    silent_ms=700, grace_ms=2_000, steady_ms=1_500, slow_ms=1_000, room_bytes=1 << 20
)
HEALING = HealingConfig(
    settle_ms=500,
    differ_ms=1_000,
    open_short_ms=1_500,
    repair_ms=3_000,
    forgotten_ms=1_500,
    rest_ms=300,
    retry_ms=300,
    retry_max_ms=1_500,
)
