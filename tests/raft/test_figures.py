"""What is counted, and what is told of it."""

from hypothesis import given
from hypothesis import strategies as st

from mountfs.raft.figures import SECONDS, Figures, Spread


@given(st.lists(st.floats(0, 20), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_the_bound_that_enough_values_do_not_exceed(
    values: list[float], share: float
) -> None:
    spread = Spread(SECONDS)
    for value in values:
        spread.note(value)
    assert spread.count == len(values)
    bound = spread.quantile(share)
    within = sum(value <= (bound if bound is not None else float("inf")) for value in values)
    assert within >= share * len(values)
    if bound is not None and bound != SECONDS[0]:
        lower = SECONDS[SECONDS.index(bound) - 1]
        assert sum(value <= lower for value in values) < share * len(values)


def test_of_nothing_there_is_no_quantile() -> None:
    assert Spread(SECONDS).quantile(0.5) is None


def test_figures_are_told_by_name() -> None:
    figures = Figures()
    figures.proposals = 3
    figures.sync_s.note(0.003)
    told = figures.told()
    assert told["proposals"] == 3
    assert told["sync_s_p50"] == 0.004
    assert told["commit_s_p99"] is None
