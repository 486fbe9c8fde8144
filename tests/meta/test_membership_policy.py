"""Who should vote: what must hold whatever machines come, go, lag and leave."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountfs.meta.membership_policy import VOTERS_MAX, wanted, why_not_to_remove
from mountfs.meta.ops.nodes import NodeRecord
from mountfs.raft.messages import Membership, NodeId

NUMBERS = st.integers(1, 12)


def node(number: int, leaving: bool = False) -> NodeRecord:
    return NodeRecord(number, f"n{number}", "", "", 0, f"d{number}", ("meta",), leaving)


def ids(*numbers: int) -> tuple[NodeId, ...]:
    return tuple(NodeId(number) for number in numbers)


@st.composite
def clusters(draw: st.DrawFn) -> tuple[Membership, list[NodeRecord], set[int]]:
    """(who counts, the records, which learners have caught up)"""
    voters = draw(st.sets(NUMBERS, min_size=1, max_size=5))
    learners = draw(st.sets(NUMBERS)) - voters
    others = draw(st.sets(NUMBERS))
    everyone = sorted(voters | learners | others)
    gone = draw(st.sets(st.sampled_from(everyone)))
    forgotten = draw(st.sets(st.sampled_from(everyone))) - voters
    nodes = [node(one, one in gone) for one in everyone if one not in forgotten]
    ready = draw(st.sets(st.sampled_from(everyone)))
    return Membership(ids(*sorted(voters)), (), ids(*sorted(learners))), nodes, ready


@given(clusters())
def test_a_step(cluster: tuple[Membership, list[NodeRecord], set[int]]) -> None:
    now, nodes, ready = cluster
    change = wanted(now, nodes, lambda one: one in ready)
    leaving = {one.number for one in nodes if one.leaving}
    staying = {one.number for one in nodes} - leaving
    if change is None:
        return
    voters, learners = change
    assert voters, "there is always somebody who votes"
    assert not set(voters) & set(learners)
    assert {*voters, *learners} == staying
    assert set(voters) - set(now.voters) <= ready & set(now.learners) - leaving
    assert set(now.voters) & staying <= set(voters)  # nobody loses the vote but by leaving
    assert set(voters) & set(now.voters), "somebody knows what was agreed on"
    came = set(voters) - set(now.voters)
    assert len(voters) <= max(VOTERS_MAX, len(now.voters))
    if came:
        assert len(voters) % 2 == 1, "nobody comes to make them even"
    if len(voters) % 2 == 0:  # stuck: there is nobody who could make them odd
        able = ready & set(now.learners) & staying - set(voters)
        assert not able or len(voters) >= VOTERS_MAX


@given(clusters())
def test_it_comes_to_rest(cluster: tuple[Membership, list[NodeRecord], set[int]]) -> None:
    """Step after step, each of them carried out, and everybody caught up."""
    now, nodes, _ = cluster
    for _ in range(len(nodes) + 2):
        change = wanted(now, nodes, lambda one: True)
        if change is None:
            break
        now = Membership(change[0], (), change[1])
    else:
        raise AssertionError(now)
    staying = sorted(one.number for one in nodes if not one.leaving)
    if not set(now.voters) & set(staying):
        return  # all who vote are to leave: that is for people
    assert set(now.everyone) == set(staying)
    assert len(now.voters) % 2 == 1 or len(now.voters) == len(staying)
    assert len(now.voters) >= min(VOTERS_MAX, len(staying) - 1 + len(staying) % 2)


@given(clusters())
def test_nothing_is_wanted_in_the_middle_of_a_change(
    cluster: tuple[Membership, list[NodeRecord], set[int]],
) -> None:
    now, nodes, ready = cluster
    joint = Membership(now.voters, now.voters, now.learners)
    assert wanted(joint, nodes, lambda one: one in ready) is None


@given(clusters(), st.sets(NUMBERS))
def test_who_may_be_removed_leaves_a_majority_that_answers(
    cluster: tuple[Membership, list[NodeRecord], set[int]], alive: set[int]
) -> None:
    now, nodes, _ = cluster
    leaving = {one.number for one in nodes if one.leaving}
    for one in now.everyone:
        if why_not_to_remove(one, now, lambda number: number in alive, leaving - {one}) is None:
            rest = set(now.voters) - {one} - (leaving if one in now.voters else set())
            assert one not in now.voters or len(rest & alive) > len(rest) // 2


@given(clusters(), st.sets(NUMBERS))
def test_who_leaves_and_has_something_left_follows_and_does_not_vote(
    cluster: tuple[Membership, list[NodeRecord], set[int]], keeping: set[int]
) -> None:
    now, nodes, ready = cluster
    change = wanted(now, nodes, lambda one: one in ready, keeping=keeping)
    without = wanted(now, nodes, lambda one: one in ready)
    leaving = {one.number for one in nodes if one.leaving}
    if change is not None:
        voters, learners = change
        assert voters == (now.voters if without is None else without[0])
        assert set(learners) & leaving == keeping & leaving
        assert not set(voters) & leaving


def test_who_has_no_metadata_counts_for_nothing() -> None:
    slices_only = msgspec.structs.replace(node(4), roles=("chunk",))
    nodes = [node(1), node(2), slices_only]
    assert wanted(Membership(ids(1)), nodes, lambda one: True) == (ids(1), ids(2))
    assert wanted(Membership(ids(1), (), ids(2)), nodes, lambda one: True) is None


@pytest.mark.parametrize(
    ("voters", "learners", "leaving", "becomes"),
    [
        ((1,), (), (), None),
        ((1,), (2,), (), None),  # two voters would tolerate no more than one
        ((1,), (2, 3), (), ((1, 2, 3), ())),
        ((1, 2, 3), (4,), (), None),
        ((1, 2, 3), (4, 5), (), ((1, 2, 3, 4, 5), ())),
        ((1, 2, 3, 4, 5), (6, 7), (), None),
        ((1, 2, 3), (4,), (2,), ((1, 3, 4), ())),  # at once: it is not even in between
        ((1, 2, 3), (), (3,), ((1, 2), ())),
        ((1,), (), (1,), None),
    ],
)
def test_examples(
    voters: tuple[int, ...],
    learners: tuple[int, ...],
    leaving: tuple[int, ...],
    becomes: tuple[tuple[int, ...], tuple[int, ...]] | None,
) -> None:
    now = Membership(ids(*voters), (), ids(*learners))
    nodes = [node(one, one in leaving) for one in (*voters, *learners)]
    assert wanted(now, nodes, lambda one: True) == becomes
