"""Who leads (paper 5.2, 5.4.1): at most one in a term, and only one that has all that is committed.

Three things keep elections rare. A server asks first whether it would win (pre-vote, thesis 9.6).
One that hears a leader does not vote (thesis 4.2.3).  A leader that a quorum does not hear steps
down (thesis 6.2).
"""

from mountfs.raft import quorum, reads, replication, rest
from mountfs.raft.messages import (
    NOBODY,
    EntryKind,
    NodeId,
    Term,
    TimeoutNow,
    Vote,
    VoteReply,
)
from mountfs.raft.quorum import Outcome
from mountfs.raft.state import Role, State
from mountfs.types import LogIndex


def tick(state: State) -> None:
    """Time has passed: does anything follow?"""
    if state.resting:
        return
    if state.is_leader:
        _lead_on(state)
    elif state.now >= state.deadline:
        if may_stand(state):
            campaign(state, pre=True)
        else:
            state.reset_deadline()  # a learner waits to be heard of


def may_stand(state: State) -> bool:
    """A voter may; and who was one, until the membership without it is known to be committed: its
    log may be the only one that can win (thesis 4.2.2).  It does not count itself then.
    """
    log = state.log
    return log.membership.votes(state.node) or log.membership_at(log.committed).votes(state.node)


def _lead_on(state: State) -> None:
    if state.now - quorum_heard(state) > state.config.election_ms:
        follow(state, state.term, NOBODY)
        return
    if state.transferee and state.now >= state.transfer_deadline:
        state.transferee = NOBODY
    if state.now >= state.heartbeat_at:
        if rest.may_begin(state):
            reads.begin_round(state, rest=True)
            rest.begin(state)
            return
        reads.begin_round(state)
    replication.retry_snapshots(state)


def quorum_heard(state: State) -> int:
    """Since when not all of a quorum have been heard: the latest time at which a quorum had."""
    peers = state.peers
    return quorum.agreed(
        state.membership,
        lambda node: state.now if node == state.node else peers[node].heard,
        nothing=0,
    )


# -- the three roles


def follow(state: State, term: Term, leader: NodeId) -> None:
    """Be a follower: of a later term, of a leader that was found, or after a lost election."""
    assert term >= state.term, (term, state.term)
    if term > state.term:
        state.term, state.vote = term, NOBODY
    elif leader:
        assert state.leader in (NOBODY, leader), (term, state.leader, leader)
    if state.role is not Role.FOLLOWER or leader != state.leader or state.resting:
        state.reset_deadline()
    state.resting = False
    state.role, state.leader = Role.FOLLOWER, leader
    state.votes = {}
    state.peers = {}
    state.transferee = NOBODY
    state.snapshots = []  # they would go out in the name of a term that is not ours to lead
    state.uncommitted.clear()
    state.uncommitted_bytes = 0
    reads.give_up(state)


def campaign(state: State, *, pre: bool, called: bool = False) -> None:
    """Stand for election; with `pre`, only ask who would vote for us."""
    assert not state.is_leader
    assert may_stand(state), state.membership
    if not pre:
        state.term, state.vote = Term(state.term + 1), state.node
    state.role = Role.PRE_CANDIDATE if pre else Role.CANDIDATE
    state.leader = NOBODY
    state.votes = {state.node: True}
    state.reset_deadline()
    reads.give_up(state)
    log = state.log
    term = Term(state.term + 1) if pre else state.term
    for node in sorted({*state.membership.voters, *state.membership.outgoing} - {state.node}):
        state.send(Vote(state.node, node, term, log.last_index, log.last_term, pre, called))
    _count(state)


def _count(state: State) -> None:
    outcome = quorum.election(state.membership, state.votes)
    if outcome is Outcome.LOST:
        follow(state, state.term, NOBODY)
    elif outcome is Outcome.WON:
        if state.role is Role.PRE_CANDIDATE:
            campaign(state, pre=False)
        else:
            _lead(state)


def _lead(state: State) -> None:
    state.role, state.leader = Role.LEADER, state.node
    state.active_at = state.now
    state.votes = {}
    state.peers = {}
    state.leased = True
    state.rounds_sent = []
    replication.track_peers(state, LogIndex(state.log.last_index + 1))
    replication.append(state, EntryKind.EMPTY, [b""])
    reads.begin_round(state)


# -- messages


def on_vote(state: State, message: Vote) -> None:
    """Paper 5.2 and 5.4.1.  For a pre-vote the term is only a question, and nothing changes."""
    if message.pre:
        free = message.term > state.term
    else:
        assert message.term == state.term, (message.term, state.term)
        # The term may have come to us by another message than a vote, just after we heard the
        # leader of the one before: its lease rests on us all the same (thesis 4.2.3, 6.4.1).
        bound = bool(state.leader) or (hears_a_leader(state) and not message.called)
        free = state.vote == message.source or (not state.vote and not bound)
    granted = free and state.log.is_behind(message.last_index, message.last_term)
    if granted and not message.pre:
        state.vote = message.source
        state.reset_deadline()
    # A pre-vote is granted for the term asked about; a refusal says which term we are in.
    term = message.term if granted else state.term
    state.send(VoteReply(state.node, message.source, term, granted, message.pre))


def hears_a_leader(state: State) -> bool:
    """Whether there is no reason to elect another one (thesis 4.2.3)."""
    if state.is_leader:
        return state.now - quorum_heard(state) < state.config.election_ms
    return state.now - state.leader_heard < state.config.election_ms


def on_vote_reply(state: State, message: VoteReply) -> None:
    asked = Role.PRE_CANDIDATE if message.pre else Role.CANDIDATE
    if state.role is not asked:
        return
    if message.pre and message.granted and message.term != state.term + 1:
        return  # of an earlier question
    state.votes.setdefault(message.source, message.granted)
    _count(state)


def on_timeout_now(state: State, message: TimeoutNow) -> None:
    """The leader wants us to take over: no pre-vote, for it knows better than we (thesis 3.10)."""
    if state.role is Role.FOLLOWER and state.membership.votes(state.node):
        campaign(state, pre=False, called=True)
