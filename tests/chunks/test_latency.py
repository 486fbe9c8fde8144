"""What is concluded from latencies, some of which are only known in part."""

from math import ceil
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountfs.chunks.latency import LEAST_MS, OCTAVES, Latency

STEP = 2**0.25
"""A figure may be too high by this factor."""
MOST_MS = LEAST_MS * 2**OCTAVES


def latency(window: int = 1_000_000, fade_ms: float = 1_000) -> Latency:
    return Latency(window, fade_ms, 0)


def concluded(found: Latency) -> Latency:
    """Figures follow behind by a few samples: with these that make no difference they are there."""
    found.fade(0)
    return found


@given(st.lists(st.floats(LEAST_MS, MOST_MS), min_size=1, max_size=200))
def test_quantiles_are_those_of_the_answers_and_at_most_a_step_more(took: list[float]) -> None:
    found = latency()
    for ms in took:
        found.note(ms)
    concluded(found)
    took.sort()
    for figure, share in ((found.p50_ms, 0.5), (found.p95_ms, 0.95)):
        exact = took[ceil(share * len(took) - 1e-9) - 1]
        assert exact * 0.999 <= figure <= exact * STEP * 1.001
    mean = sum(took) / len(took)
    assert mean / STEP <= found.mean_ms <= mean * STEP


def test_of_nothing_nothing_is_known() -> None:
    found = latency()
    assert (found.samples, found.mean_ms, found.p50_ms, found.p95_ms) == (0, 0, 0, 0)


@pytest.mark.parametrize("share", [0.03, 0.06, 0.3])
def test_who_is_not_waited_out_does_not_look_quick(share: float) -> None:
    """Nobody waits longer than 4 ms but now and then: what is seen then speaks for the others."""
    random = Random(1)
    whole, seen, naive = latency(), latency(), latency()
    for _ in range(5_000):
        took = 200.0 if random.random() < share else random.uniform(0.5, 1.5)
        patience = 4.0 if random.random() < 0.8 else 1_000.0
        whole.note(took)
        seen.note(min(took, patience), answered=took <= patience)
        if took <= patience:
            naive.note(took)
    for found in (whole, seen, naive):
        concluded(found)
    assert seen.p95_ms == whole.p95_ms
    assert seen.mean_ms == pytest.approx(whole.mean_ms, rel=0.25)
    assert naive.mean_ms < 0.5 * whole.mean_ms


def test_who_is_never_waited_out_takes_at_least_as_long_as_was_waited() -> None:
    found = latency()
    for ms in (2, 4, 8):
        for _ in range(50):
            found.note(ms, answered=False)
    concluded(found)
    assert 8 <= found.p95_ms <= 8 * STEP
    assert 8 <= found.mean_ms <= 8 * STEP


def test_more_patience_finds_the_latency_that_less_has_not_seen() -> None:
    """Each time somebody waits for the 95th percentile, and for a little longer: it converges."""
    found = latency(window=64)
    for _ in range(2_000):
        patience = found.p95_ms + 0.5
        found.note(min(30.0, patience), answered=patience >= 30.0)
    assert 30 <= found.p95_ms <= 30 * STEP


def test_a_server_that_becomes_slow_is_known_as_such_within_the_window() -> None:
    found = latency(window=128)
    for _ in range(5_000):
        found.note(1)
    for _ in range(128):
        found.note(50)
    assert found.p50_ms >= 50
    assert found.samples <= 128


def test_samples_fade_with_time_and_are_forgotten_in_the_end() -> None:
    found = latency(fade_ms=1_000)
    for _ in range(64):
        found.note(8)
    found.fade(1_000)
    assert found.samples == 32
    assert 8 <= found.p95_ms <= 8 * STEP
    assert found.fades_at == 2_000
    found.fade(4_500)
    assert found.samples == 4
    assert found.fades_at == 5_000
    found.fade(1e12)
    assert (found.samples, found.p95_ms) == (0, 0)
    found.note(1)
    assert 1 <= found.p95_ms <= STEP, "what comes then counts as if nothing had been before"


def test_what_is_no_time_at_all_or_for_ever_is_counted_all_the_same() -> None:
    found = latency()
    for ms in (0.0, 1e-9, 1e12):
        found.note(ms)
    assert found.p50_ms <= LEAST_MS * STEP
    assert found.p95_ms == pytest.approx(MOST_MS)
