"""Which time is known for certain, whatever some clocks say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountfs.meta.proven_time import FRESH_NS, ProvenTime, majority_says
from mountfs.meta.records import NS

NOW = 1_800_000_000 * NS
YEAR = 365 * 86_400 * NS
THREE = ((1, 2, 3), ())


def clock(wall: int = NOW, proven: int = 0, steady: int = 0) -> ProvenTime:
    return ProvenTime(1, wall, steady, proven)


def test_alone_the_time_is_that_of_the_start_and_what_has_gone_by() -> None:
    assert clock().now(((1,), ()), 5 * NS) == NOW + 5 * NS
    assert clock().own(5 * NS) == NOW + 5 * NS


def test_a_clock_that_was_set_back_before_the_start_goes_on_from_what_was_proven() -> None:
    assert clock(NOW - YEAR, proven=NOW).now(((1,), ()), 5 * NS) == NOW + 5 * NS


@pytest.mark.parametrize("wrong", [1, 2, 3])
@pytest.mark.parametrize("error", [YEAR, -YEAR])
def test_one_wrong_clock_of_three_changes_nothing(wrong: int, error: int) -> None:
    found = clock(NOW + (error if wrong == 1 else 0))
    for node in (2, 3):
        found.hear(node, NOW + (error if wrong == node else 0), 0)
    assert found.now(THREE, NS) == NOW + NS
    apart = {node for node, ahead in found.ahead(NS).items() if abs(ahead) > NS}
    assert apart == ({2, 3} if wrong == 1 else {wrong})


def test_a_wrong_clock_frees_nothing_while_another_machine_is_away() -> None:
    ahead = clock(NOW + YEAR)
    ahead.hear(2, NOW, 0)
    assert ahead.now(THREE, NS) == NOW + NS
    right = clock()
    right.hear(2, NOW + YEAR, 0)
    assert right.now(THREE, NS) == NOW + NS


def test_without_a_majority_nothing_is_known() -> None:
    found = clock()
    assert found.now(THREE, 0) == 0
    found.hear(4, NOW, 0)  # it does not vote
    assert found.now(THREE, 0) == 0
    found.hear(2, NOW, 0)
    assert found.now(THREE, 0) == NOW
    assert found.now(((1, 2, 3, 4, 5), ()), 0) == NOW  # three of five


def test_what_was_heard_long_ago_counts_no_more() -> None:
    found = clock()
    found.hear(2, NOW, 0)
    assert found.now(THREE, FRESH_NS) == NOW + FRESH_NS
    assert found.now(THREE, FRESH_NS + 1) == 0
    assert found.wants((1, 2, 3), 70 * NS, 60 * NS) == [2, 3]
    found.hear(2, NOW + 70 * NS, 70 * NS)
    assert found.wants((1, 2, 3), 71 * NS, 60 * NS) == [3]


def test_while_members_change_both_sets_have_to_say_so() -> None:
    found = clock()
    for node, told in ((2, NOW), (3, NOW), (4, NOW - YEAR), (5, NOW - YEAR)):
        found.hear(node, told, 0)
    assert found.now(((1, 2, 3), ()), 0) == NOW
    assert found.now(((1, 2, 3), (1, 4, 5)), 0) == NOW - YEAR
    assert found.now(((1, 2, 3), (1, 6, 7)), 0) == 0


@given(
    st.lists(st.integers(0, 100), min_size=1, max_size=7),
    st.integers(0, 7),
    st.lists(st.integers(0, 1_000), max_size=3),
)
def test_no_minority_of_clocks_makes_it_later(
    right: list[int], away: int, wrong: list[int]
) -> None:
    voters = len(right) + away + len(wrong)
    said = majority_says([*right, *wrong], voters)
    if len(wrong) <= (voters - 1) // 2 and said is not None:
        assert said <= max(right)
    assert said is None or len([one for one in (*right, *wrong) if one >= said]) * 2 > voters
