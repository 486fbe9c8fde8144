"""A group in which nothing happens costs nothing.

Heartbeats say that a leader lives, and so that nobody else need stand.  Where a node has many
groups, most of them idle, one sign of life for all of them is enough: that of the connection
between two nodes, which their shells watch anyway.  So a leader whose group is in order, and has
been left alone for a while, says with one last heartbeat that it rests, and sends no more; a
follower that lacks nothing stops its clock.

Whatever happens wakes them: a message, a proposal, a read, a change, or the shell, which says that
the connection with the leader's node, or with a follower's, is lost.  A server that has missed the
last heartbeat does not rest; it asks for votes in time, and that wakes the leader.

Nothing is promised while resting.  A lease has long ended, so reads ask for a round first, and a
leader that was replaced meanwhile finds out by that.
"""

from mountfs.raft.messages import NodeId
from mountfs.raft.progress import Flow
from mountfs.raft.state import NEVER, State


def may_begin(state: State) -> bool:
    """A leader: whether everybody has everything, and knows it, and nobody waits."""
    config, log = state.config, state.log
    if not config.rest_ms or state.now - state.active_at < config.rest_ms:
        return False
    if log.committed != log.last_index or log.membership.is_joint or not state.proven:
        return False
    if state.waiting or state.unproven or state.transferee:
        return False
    return all(
        peer.flow is Flow.REPLICATE
        and peer.match == log.last_index
        and peer.answered_round == state.round
        for peer in state.peers.values()
    )


def begin(state: State) -> None:
    state.resting = True
    state.heartbeat_at = state.deadline = NEVER


def follow(state: State) -> None:
    """The leader says that it rests."""
    if state.config.rest_ms and state.log.committed == state.log.last_index:
        state.resting = True
        state.deadline = NEVER


def wake(state: State) -> None:
    """Something has happened."""
    state.active_at = state.now
    if not state.resting:
        return
    state.resting = False
    if state.is_leader:
        state.heartbeat_at = state.now
        for peer in state.peers.values():  # nobody was asked to answer
            peer.heard = state.now
    else:
        state.leader_heard = state.now  # as far as we know
        state.reset_deadline()


def lost(state: State, node: NodeId) -> None:
    """The connection with a node is lost."""
    if not state.resting:
        return
    if state.is_leader:
        if node in state.peers:
            wake(state)
    elif node == state.leader:
        wake(state)
        state.leader_heard = state.now - state.config.election_ms
