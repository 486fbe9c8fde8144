"""The times of healing, as one number of an operator makes them."""

import msgspec
import pytest

from mountfs.meta.fleet import FleetConfig
from mountfs.meta.healing_config import HealingConfig
from mountfs.meta.patience import FLOORS_MS, GRACE_S_MAX, GRACE_S_MIN, patience

USUAL_S = FleetConfig().grace_ms / 1_000


def test_who_says_what_is_usual_changes_nothing() -> None:
    assert patience(USUAL_S) == (FleetConfig(), HealingConfig())


def test_who_waits_longer_for_nodes_waits_no_longer_for_anything_else() -> None:
    fleet, healing = patience(GRACE_S_MAX)
    assert fleet == FleetConfig(grace_ms=7 * 86_400_000)
    assert healing == HealingConfig()


@pytest.mark.parametrize("grace_s", [GRACE_S_MIN, 30.0, 150.0])
def test_who_waits_less_waits_less_for_all_but_not_for_nothing(grace_s: float) -> None:
    fleet, healing = patience(grace_s)
    assert fleet.grace_ms == grace_s * 1_000
    assert fleet.silent_ms == FleetConfig().silent_ms, "reports come as before"
    now = msgspec.structs.asdict(fleet) | msgspec.structs.asdict(healing)
    before = msgspec.structs.asdict(FleetConfig()) | msgspec.structs.asdict(HealingConfig())
    for name, floor in FLOORS_MS.items():
        assert min(floor, before[name]) <= now[name] <= before[name], name
    assert now["settle_ms"] < before["settle_ms"]
    assert now["forgotten_ms"] == before["forgotten_ms"], "what is given up for good waits"
