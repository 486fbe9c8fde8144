"""Majorities, against counting by hand."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountfs.raft.messages import Membership, NodeId
from mountfs.raft.quorum import Outcome, agreed, election, needed

NODES = [NodeId(number) for number in range(1, 8)]
voters = st.sets(st.sampled_from(NODES), min_size=1).map(sorted).map(tuple)
memberships = st.builds(Membership, voters, st.one_of(st.just(()), voters))


def is_quorum(membership: Membership, nodes: set[NodeId]) -> bool:
    """By the definition: more than half of each."""
    sides = [side for side in (membership.voters, membership.outgoing) if side]
    return all(2 * len(nodes.intersection(side)) > len(side) for side in sides)


@pytest.mark.parametrize(("voters", "majority"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4)])
def test_more_than_half_are_needed(voters: int, majority: int) -> None:
    assert needed(voters) == majority


@given(memberships, st.lists(st.integers(0, 5), min_size=7, max_size=7))
def test_agreed_is_the_greatest_value_that_a_quorum_has(
    membership: Membership, found: list[int]
) -> None:
    values = dict(zip(NODES, found, strict=True))
    expected = max(
        value
        for value in range(6)
        if is_quorum(membership, {node for node in NODES if values[node] >= value})
    )
    assert agreed(membership, values.__getitem__, nothing=0) == expected


@given(memberships, st.dictionaries(st.sampled_from(NODES), st.booleans()))
def test_an_election_is_won_or_lost_as_soon_as_nothing_can_change_that(
    membership: Membership, votes: dict[NodeId, bool]
) -> None:
    open_ = [node for node in NODES if node not in votes]
    ends = {
        is_quorum(
            membership,
            {
                *(node for node, granted in votes.items() if granted),
                *(node for node, granted in zip(open_, rest, strict=True) if granted),
            },
        )
        for rest in product((False, True), repeat=len(open_))
    }
    expected = {
        (True,): Outcome.WON,
        (False,): Outcome.LOST,
        (False, True): Outcome.PENDING,
    }[tuple(sorted(ends))]
    assert election(membership, votes) is expected


@given(memberships, st.sets(st.sampled_from(NODES)), st.sets(st.sampled_from(NODES)))
def test_two_quorums_have_a_server_in_common(
    membership: Membership, one: set[NodeId], other: set[NodeId]
) -> None:
    """What all of Raft rests on (paper 5.4.3); also with a quorum of one side alone in a change."""
    if is_quorum(membership, one) and is_quorum(membership, other):
        assert one & other
    for side in (membership.voters, membership.outgoing):
        if is_quorum(membership, one) and side and is_quorum(Membership(side), other):
            assert one & other


def test_nobody_wins_where_nobody_votes() -> None:
    nobody = Membership(())
    assert agreed(nobody, lambda node: 9, nothing=0) == 0
    assert election(nobody, {NodeId(1): True}) is not Outcome.WON
