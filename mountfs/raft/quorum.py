"""Majorities, of one membership or of two at once."""

from collections.abc import Callable, Mapping
from enum import Enum
from typing import TypeVar

from mountfs.raft.messages import Membership, NodeId

N = TypeVar("N", bound=int)


class Outcome(Enum):
    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def needed(voters: int) -> int:
    """How many of so many are a majority."""
    return voters // 2 + 1


def agreed(membership: Membership, value: Callable[[NodeId], N], *, nothing: N) -> N:
    """The greatest value that a quorum has reached; `nothing` where nobody votes.

    >>> agreed(Membership((1, 2, 3)), {1: 7, 2: 5, 3: 9}.__getitem__, nothing=0)
    7
    """
    found = _majority_has(membership.voters, value, nothing)
    if membership.outgoing:
        found = min(found, _majority_has(membership.outgoing, value, nothing))
    return found


def _majority_has(voters: tuple[NodeId, ...], value: Callable[[NodeId], N], nothing: N) -> N:
    if not voters:
        return nothing
    values = sorted(map(value, voters), reverse=True)
    return values[needed(len(voters)) - 1]


def election(membership: Membership, votes: Mapping[NodeId, bool]) -> Outcome:
    """How an election stands: won with a majority of each membership, lost when one is beyond
    reach.
    """
    outcomes = [_counted(membership.voters, votes)]
    if membership.outgoing:
        outcomes.append(_counted(membership.outgoing, votes))
    if Outcome.LOST in outcomes:
        return Outcome.LOST
    return Outcome.PENDING if Outcome.PENDING in outcomes else Outcome.WON


def _counted(voters: tuple[NodeId, ...], votes: Mapping[NodeId, bool]) -> Outcome:
    majority = needed(len(voters))
    granted = sum(votes.get(voter, False) for voter in voters)
    refused = sum(not votes.get(voter, True) for voter in voters)
    if granted >= majority:
        return Outcome.WON
    return Outcome.LOST if len(voters) - refused < majority else Outcome.PENDING
