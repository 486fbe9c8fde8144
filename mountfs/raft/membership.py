"""Who counts, changed while everybody works (paper 6).

A change of voters goes through a joint membership: from the moment it is in the log, every decision
needs a majority of the old and one of the new voters, so that there is no moment at which two
majorities could decide apart.  Once it is committed, the leader appends the new membership alone.
New voters are learners first: they hold up nobody while they catch up (thesis 4.2.1).
"""

from mountfs.errors import Fault, FsError
from mountfs.raft import election, reads, replication
from mountfs.raft.messages import NOBODY, EntryKind, Membership, NodeId, encode_membership
from mountfs.raft.state import State


def change(state: State, voters: frozenset[NodeId], learners: frozenset[NodeId]) -> None:
    """Begin to make these the members.

    Raises NOT_LEADER; INVALID for what could never be; BUSY while another change is under way, or
    a new voter has not caught up.
    """
    state.require_leader()
    now = state.membership
    _check(voters, learners)
    if now.is_joint or state.log.membership_index > state.log.committed:
        raise FsError(Fault.BUSY, "the members are being changed; try again when that is done")
    if not state.proven:
        raise FsError(Fault.BUSY, "the leader was only just elected; try again")
    for node in sorted(voters.difference(now.voters)):
        _require_caught_up(state, node)
    if voters == frozenset(now.voters):
        _enter(state, Membership(now.voters, (), tuple(sorted(learners))))
    else:
        _enter(state, Membership(tuple(sorted(voters)), now.voters, tuple(sorted(learners))))


def _check(voters: frozenset[NodeId], learners: frozenset[NodeId]) -> None:
    if not voters:
        raise FsError(Fault.INVALID, "a group needs at least one voter")
    if both := voters & learners:
        raise FsError(Fault.INVALID, f"node {min(both)} cannot be voter and learner at once")
    if min(voters | learners) <= NOBODY:
        raise FsError(Fault.INVALID, "nodes are numbered from 1 on")


def _require_caught_up(state: State, node: NodeId) -> None:
    peer = state.peers.get(node)
    if peer is None:
        raise FsError(Fault.INVALID, f"node {node} must be a learner before it can be a voter")
    behind = state.log.last_index - peer.match
    if behind > state.config.caught_up_entries:
        raise FsError(
            Fault.BUSY, f"node {node} lacks {behind} entries; it can be a voter when it has them"
        )


def _enter(state: State, membership: Membership) -> None:
    """A membership is in force as soon as it is in the log."""
    reads.forget_lease(state)  # those who promised not to elect another may not be those who count
    index = replication.append(state, EntryKind.MEMBERSHIP, [encode_membership(membership)])
    assert state.log.membership_index == index, (state.log.membership_index, index)
    replication.track_peers(state, index)
    replication.broadcast(state)


def committed(state: State) -> None:
    """Something was committed: go on with a change, or leave."""
    log = state.log
    if log.membership_index > log.committed:
        return
    now = state.membership
    if now.is_joint:
        _enter(state, Membership(now.voters, (), now.learners))
    elif state.node not in now.voters:
        _leave(state)


def _leave(state: State) -> None:
    """We have led the others to a membership without us (paper 6): the best of them may stand at
    once.
    """
    voters = [peer for node, peer in state.peers.items() if node in state.membership.voters]
    best = max(voters, key=lambda peer: (peer.match, -peer.node))
    replication.call_election(state, best)
    election.follow(state, state.term, NOBODY)
