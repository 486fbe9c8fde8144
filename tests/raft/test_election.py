"""Who leads: paper 5.1, 5.2 and 5.4.1; thesis 4.2.2, 4.2.3, 6.2, 9.6 and 3.10."""

import pytest
from group import CONFIG, Group

from mountfs.errors import Fault, FsError
from mountfs.raft.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    NodeId,
    Term,
    TimeoutNow,
    Vote,
    VoteReply,
)
from mountfs.raft.state import Role
from mountfs.types import LogIndex

ELECTION = CONFIG.election_ms


def vote(source: int, target: int, term: int, last: tuple[int, int] = (9, 9), **more: bool) -> Vote:
    """RequestVote of a candidate whose log ends at `last`: (index, term)."""
    return Vote(
        NodeId(source), NodeId(target), Term(term), LogIndex(last[0]), Term(last[1]), **more
    )


def replies(group: Group, source: int) -> list[tuple[int, bool]]:
    """(term, granted) of the answers to votes that `source` has under way."""
    return [(one.term, one.granted) for one in group.messages(VoteReply, source=source)]


# -- terms (paper 5.1)


def test_a_later_term_makes_a_leader_a_follower() -> None:
    """Paper 5.1: "if a candidate or leader discovers that its term is out of date"."""
    group = Group(1, 2, 3)
    group.elect(1)
    group.step(AppendReply(NodeId(2), NodeId(1), Term(7), LogIndex(0), True))
    assert (group[1].role, group[1].term, group[1].leader) == (Role.FOLLOWER, 7, 0)


def test_a_message_of_an_earlier_term_changes_nothing() -> None:
    """Paper 5.1: "if a server receives a request with a stale term number, it rejects it"."""
    group = Group(1, 2, 3, terms={1: [3, 3]})
    group.step(Append(NodeId(2), NodeId(1), Term(2), LogIndex(2), Term(3), (), LogIndex(2)))
    assert (group[1].term, group[1].leader, group[1].log.committed) == (3, 0, 0)
    (reply,) = group.messages(AppendReply, source=1)
    assert (reply.term, reply.rejected) == (3, True)  # so that the old leader learns it


def test_a_vote_asked_for_in_an_earlier_term_is_not_given() -> None:
    """Figure 2, RequestVote 1.  Silence is a refusal too; a pre-vote is told which term it is."""
    group = Group(1, 2, 3, terms={1: [3, 3]})
    group.pass_time(ELECTION, 3)
    group.step(vote(2, 1, 2))
    assert group.messages(VoteReply, source=1) == []
    group.step(vote(2, 1, 2, pre=True))
    assert replies(group, 1) == [(3, False)]


# -- elections (paper 5.2)


def test_a_follower_that_hears_nothing_stands_after_one_to_two_timeouts() -> None:
    """Paper 5.2: "election timeouts are chosen randomly from a fixed interval"."""
    group = Group(1, 2, 3)
    for draw in (0, 1, ELECTION - 1):
        group.dice[1] = lambda n, draw=draw: draw
        group.crash(1)
        group.start(1)
        started = group.now
        assert group[1].wakes_at == started + ELECTION + draw
        group.pass_time(ELECTION + draw - 1, 1)
        assert group[1].role is Role.FOLLOWER
        group.pass_time(1, 1)
        assert group[1].role is Role.PRE_CANDIDATE


def test_the_timeout_is_drawn_anew_each_time() -> None:
    """Paper 5.2: "each candidate restarts its randomized election timeout at the start"."""
    group = Group(1, 2, 3)
    draws = iter([100, 500, 300])
    group.dice[1] = lambda n: next(draws)
    group.crash(1)
    group.start(1)
    group.pass_time(ELECTION + 100, 1)
    assert group[1].wakes_at == group.now + ELECTION + 500
    group.pass_time(ELECTION + 500, 1)
    assert group[1].wakes_at == group.now + ELECTION + 300


def test_whoever_hears_the_leader_does_not_stand() -> None:
    """Figure 2, followers: no election while AppendEntries come."""
    group = Group(1, 2, 3)
    group.elect(1)
    group.run(10 * ELECTION)
    assert (group.leader, group[1].term) == (1, 1)


def test_a_candidate_votes_for_itself_in_a_new_term() -> None:
    """Figure 2, candidates: increment currentTerm, vote for self, send RequestVote to all."""
    group = Group(1, 2, 3, terms={1: [4]})
    group.pass_time(2 * ELECTION, 1)
    group.settle(Vote)
    group.deliver(VoteReply)
    state = group[1].state
    assert (state.role, state.term, state.vote) == (Role.CANDIDATE, 5, 1)
    assert [one.target for one in group.messages(Vote, source=1)] == [2, 3]


def test_a_candidate_with_a_majority_leads_and_says_so_at_once() -> None:
    """Figure 2, leaders: "upon election: send initial empty AppendEntries"."""
    group = Group(1, 2, 3, 4, 5)
    group.pass_time(2 * ELECTION, 1)
    group.deliver(Vote)
    group.deliver(VoteReply)
    group.deliver(Vote)
    group.deliver(VoteReply, source=2)
    assert group[1].role is Role.CANDIDATE  # two of five
    group.deliver(VoteReply, source=3)
    assert group[1].role is Role.LEADER
    assert [one.target for one in group.messages(Heartbeat, source=1)] == [2, 3, 4, 5]


def test_one_vote_in_a_term_first_come_first_served() -> None:
    """Paper 5.2; figure 2, RequestVote 2."""
    group = Group(1, 2, 3)
    group.step(vote(2, 1, 1))
    group.step(vote(3, 1, 1))
    assert replies(group, 1) == [(1, True), (1, False)]
    group.step(vote(2, 1, 1))  # its answer was lost: it gets the same again
    assert replies(group, 1)[-1] == (1, True)


def test_a_vote_survives_a_crash() -> None:
    """Figure 2: votedFor is on disk before the answer leaves."""
    group = Group(1, 2, 3)
    group.step(vote(2, 1, 1))
    group.crash(1)
    group.start(1)
    group.pass_time(ELECTION, 2)
    group.step(vote(3, 1, 1))
    assert replies(group, 1) == [(1, True), (1, False)]


def test_a_vote_that_is_not_on_disk_is_not_sent() -> None:
    """Figure 2: "updated on stable storage before responding to RPCs"."""
    group = Group(1, 2, 3)
    group.hold(1)
    group.step(vote(2, 1, 1))
    assert replies(group, 1) == []
    group.crash(1)
    group.start(1)
    group.step(vote(3, 1, 1))
    assert replies(group, 1) == [(1, True)]


def test_a_candidates_own_vote_is_on_disk_before_it_asks() -> None:
    group = Group(1, 2, 3)
    group.pass_time(2 * ELECTION, 1)
    group.deliver(Vote)
    group.hold(1)
    group.settle()
    assert group[1].role is Role.CANDIDATE
    assert group.find(Vote) == []
    group.release(1)
    assert len(group.find(Vote)) == 2


def test_a_split_vote_ends_with_the_next_timeout() -> None:
    """Paper 5.2: "each candidate will time out and start a new election"."""
    group = Group(1, 2, 3, 4)
    group.pass_time(2 * ELECTION, 1, 2)
    group.deliver(Vote)
    group.deliver(VoteReply)
    group.deliver(Vote, source=1, target=3)  # 1 gets the vote of 3, 2 that of 4
    group.deliver(Vote, source=2, target=4)
    group.settle()
    assert [group[node].term for node in (1, 2)] == [1, 1]
    assert group.leader == 0
    group.run(3 * ELECTION)
    assert group.leader != 0
    assert group[group.leader].term == 2


def test_a_candidate_that_hears_the_leader_of_its_term_follows() -> None:
    """Paper 5.2: "the candidate recognizes the leader as legitimate"."""
    group = Group(1, 2, 3)
    group.pass_time(2 * ELECTION, 1, 2)
    group.deliver(Vote)
    group.deliver(VoteReply)
    assert [group[node].role for node in (1, 2)] == [Role.CANDIDATE] * 2
    group.deliver(Vote, source=1, target=3)
    group.deliver(VoteReply, source=3, target=1)
    group.deliver(Append, target=2)
    assert (group[2].role, group[2].leader) == (Role.FOLLOWER, 1)


def test_answers_of_an_earlier_election_do_not_count() -> None:
    group = Group(1, 2, 3)
    group.pass_time(2 * ELECTION, 1)
    group.deliver(Vote)
    group.deliver(VoteReply)  # candidate in term 1
    group.deliver(Vote)
    late = group.drop(VoteReply)
    group.pass_time(2 * ELECTION, 1)
    group.deliver(Vote)
    group.deliver(VoteReply)  # candidate in term 2
    group.drop()
    assert (group[1].role, group[1].term) == (Role.CANDIDATE, 2)
    group.post(*late)
    group.deliver()
    assert group[1].role is Role.CANDIDATE


def test_a_doubled_answer_counts_once() -> None:
    group = Group(1, 2, 3, 4, 5)
    group.pass_time(2 * ELECTION, 1)
    group.deliver(Vote)
    group.deliver(VoteReply)
    for _ in range(3):
        group.step(VoteReply(NodeId(2), NodeId(1), Term(1), True))
    assert group[1].role is Role.CANDIDATE


def test_the_votes_of_learners_and_strangers_count_for_nothing() -> None:
    """Thesis 4.2.1."""
    group = Group(1, 2, 3, learners=[4])
    group.pass_time(2 * ELECTION, 1)
    group.deliver(Vote)
    group.deliver(VoteReply)
    for node in (4, 9):
        group.step(VoteReply(NodeId(node), NodeId(1), Term(1), True))
    assert group[1].role is Role.CANDIDATE


def test_a_group_of_one_leads_by_itself() -> None:
    group = Group(1)
    group[1].campaign(group.now)
    group.pump(1)
    assert (group.leader, group[1].log.committed) == (1, 1)


def test_a_group_of_one_with_a_learner_that_is_down_leads_by_itself() -> None:
    group = Group(1, learners=[2])
    group.crash(2)
    group.elect(1)
    group.propose(1, b"x")
    group.run(10 * ELECTION)
    assert group[1].role is Role.LEADER
    assert group.servers[1].commands == [b"x"]


# -- the election restriction (paper 5.4.1)


@pytest.mark.parametrize(
    ("mine", "last", "granted"),
    [
        ([1, 1, 2], (3, 2), True),  # the same
        ([1, 1, 2], (4, 2), True),  # longer
        ([1, 1, 2], (2, 2), False),  # shorter
        ([1, 1, 2], (1, 3), True),  # a later term, if shorter
        ([1, 1, 2], (9, 1), False),  # an earlier term, if longer
        ([], (0, 0), True),
    ],
)
@pytest.mark.parametrize("pre", [False, True])
def test_votes_go_to_logs_that_lack_nothing(
    mine: list[int], last: tuple[int, int], granted: bool, pre: bool
) -> None:
    """Paper 5.4.1: "more up-to-date" is the later last term, then the longer log."""
    group = Group(1, 2, 3, terms={1: mine})
    group.pass_time(ELECTION, 2)
    group.step(vote(2, 1, 5, last, pre=pre))
    assert [granted_ for _, granted_ in replies(group, 1)] == [granted]


def test_a_refusal_does_not_spend_the_vote() -> None:
    group = Group(1, 2, 3, terms={1: [1, 1]})
    group.pass_time(ELECTION, 2)
    group.step(vote(2, 1, 5, (1, 1)))
    group.step(vote(3, 1, 5, (2, 1)))
    assert replies(group, 1) == [(5, False), (5, True)]


def test_only_a_granted_vote_puts_off_ones_own_candidacy() -> None:
    """Figure 2, followers: a timeout "without granting vote to candidate"."""
    group = Group(1, 2, 3, terms={1: [1, 1]})
    group.now = ELECTION
    before = group[1].wakes_at
    group.step(vote(2, 1, 5, (1, 1)))
    assert group[1].wakes_at == before
    group.step(vote(3, 1, 5, (2, 1)))
    assert group[1].wakes_at > before


# -- pre-vote (thesis 9.6)


def test_a_pre_vote_changes_nothing() -> None:
    group = Group(1, 2, 3)
    group.step(vote(2, 1, 7, pre=True))
    assert replies(group, 1) == [(7, True)]
    state = group[1].state
    assert (state.term, state.vote) == (0, 0)
    group.step(vote(3, 1, 7, pre=True))  # nor is it promised to one only
    assert replies(group, 1)[-1] == (7, True)


def test_a_server_that_was_cut_off_does_not_disturb_when_it_returns() -> None:
    """Thesis 9.6: its term has not grown."""
    group = Group(1, 2, 3)
    group.elect(1)
    group.isolate(3)
    group.run(20 * ELECTION)
    assert (group[3].role, group[3].term) == (Role.PRE_CANDIDATE, 1)
    group.heal()
    group.run(2 * ELECTION)
    assert (group.leader, group[1].term, group[3].leader) == (1, 1, 1)


def test_a_refused_pre_vote_brings_the_term_up_to_date() -> None:
    group = Group(1, 2, 3, terms={2: [5], 3: [5]})
    group.pass_time(2 * ELECTION, 1)
    group.deliver()
    group.deliver()
    assert (group[1].role, group[1].term) == (Role.FOLLOWER, 5)


def test_a_server_with_a_later_term_and_an_older_log_holds_up_nobody() -> None:
    """Its own elections fail, but those who can win learn its term."""
    group = Group(1, 2, 3, terms={1: [2, 2], 2: [2, 2], 3: [2]})
    group.isolate(2)
    group.step(vote(3, 3, 3))  # nothing: from itself
    group[3].state.term = Term(8)
    group.run(8 * ELECTION)
    assert group.leader == 1
    assert group[1].term > 8


def test_a_late_pre_vote_of_another_question_does_not_count() -> None:
    group = Group(1, 2, 3)
    group.pass_time(2 * ELECTION, 1)
    group.drop()
    group.step(VoteReply(NodeId(2), NodeId(1), Term(9), True, True))
    assert (group[1].role, group[1].term) == (Role.PRE_CANDIDATE, 0)


# -- leaders that do well are left alone (thesis 4.2.3)


@pytest.mark.parametrize("pre", [False, True])
@pytest.mark.parametrize("node", [1, 2])
def test_whoever_hears_a_leader_ignores_candidates(node: int, pre: bool) -> None:
    """Thesis 4.2.3: neither its term nor its vote; that holds for the leader itself too."""
    group = Group(1, 2, 3)
    group.elect(1)
    group.run(ELECTION)
    group.step(vote(3, node, 5, pre=pre))
    assert replies(group, node) == []
    assert (group[node].term, group.leader) == (1, 1)


def test_silence_for_an_election_timeout_is_enough() -> None:
    group = Group(1, 2, 3)
    group.elect(1)
    heard = group[2].state.leader_heard
    group.now = heard + ELECTION - 1
    group.step(vote(3, 2, 5))
    assert replies(group, 2) == []
    group.now = heard + ELECTION
    group.step(vote(3, 2, 5))
    assert replies(group, 2) == [(5, True)]


def test_a_server_that_has_just_heard_a_leader_keeps_its_vote_in_a_new_term_too() -> None:
    """Thesis 4.2.3, for the sake of leases (6.4.1): a term may become known by other messages than
    a vote, and that makes the promise to the leader no weaker.
    """
    group = Group(1, 2, 3)
    group.elect(1)
    group.run(200)
    group.step(VoteReply(NodeId(3), NodeId(2), Term(5), False, True))  # late, of a pre-vote
    assert (group[2].term, group[2].leader) == (5, 0)
    group.step(vote(3, 2, 5))
    assert (5, True) not in replies(group, 2)
    group.now += ELECTION
    group.step(vote(3, 2, 5))
    assert replies(group, 2)[-1] == (5, True)


def test_a_server_that_starts_again_keeps_its_vote_for_a_while() -> None:
    """It does not know whom it heard before it went down, and what lease rests on that."""
    group = Group(1, 2, 3)
    group.elect(1)
    group.crash(2)
    group.start(2)
    group.step(vote(3, 2, 1))  # of the term that it is in
    group.step(vote(3, 2, 5))
    assert [granted for _, granted in replies(group, 2) if granted] == []
    group.now += ELECTION
    group.step(vote(3, 2, 5))
    assert replies(group, 2)[-1] == (5, True)


def test_a_server_that_starts_again_does_not_stand_at_once_either() -> None:
    """`campaign` is for a group of one: others may have promised a leader to wait."""
    group = Group(1, 2, 3)
    group.elect(1)
    group.crash(2)
    group.start(2)
    group[2].campaign(group.now)
    group.pump(2)
    assert group[2].role is Role.FOLLOWER
    assert group.find(Vote) == []


def test_a_group_of_one_that_starts_again_leads_at_once() -> None:
    group = Group(1)
    group.elect(1)
    group.crash(1)
    group.start(1)
    group[1].campaign(group.now)
    group.pump(1)
    assert (group.leader, group[1].term) == (1, 2)


# -- a leader without followers steps down (thesis 6.2)


def test_a_leader_that_no_quorum_answers_steps_down() -> None:
    group = Group(1, 2, 3)
    group.elect(1)
    group.isolate(1)
    group.run(ELECTION)
    assert group[1].role is Role.LEADER
    group.run(200)
    assert (group[1].role, group[1].leader) == (Role.FOLLOWER, 0)
    with pytest.raises(FsError) as refused:
        group.propose(1, b"x")
    assert refused.value.fault is Fault.NOT_LEADER


def test_a_leader_that_a_quorum_answers_stays() -> None:
    group = Group(1, 2, 3, 4, 5)
    group.elect(1)
    group.isolate(4, 5)
    group.run(5 * ELECTION)
    assert (group.leader, group[1].term) == (1, 1)


def test_any_answer_shows_that_a_follower_is_there() -> None:
    group = Group(1, 2, 3)
    group.elect(1)
    for _ in range(30):
        group.propose(1, b"x")
        group.pass_time(100, 1)
        group.drop(Heartbeat, HeartbeatReply)
        group.settle()
    assert group[1].role is Role.LEADER


def test_learners_do_not_keep_a_leader() -> None:
    group = Group(1, 2, 3, learners=[4, 5])
    group.elect(1)
    group.isolate(2, 3)
    group.run(2 * ELECTION)
    assert group[1].role is Role.FOLLOWER


# -- who may stand


def test_learners_and_strangers_do_not_stand() -> None:
    """Thesis 4.2.1."""
    group = Group(1, 2, learners=[3], spares=[4])
    group.crash(1)
    group.crash(2)
    group.run(10 * ELECTION)
    for node in (3, 4):
        assert (group[node].role, group[node].term) == (Role.FOLLOWER, 0)
        group.step(TimeoutNow(NodeId(1), NodeId(node), Term(1)))
        group[node].campaign(group.now)
        assert group[node].role is Role.FOLLOWER


def test_a_learner_votes_if_it_is_asked() -> None:
    """Paper 6: servers listen to whoever asks; it may be a voter and not know it yet."""
    group = Group(1, 2, learners=[3])
    group.step(vote(1, 3, 1))
    assert replies(group, 3) == [(1, True)]


# -- leadership transfer (thesis 3.10)


def test_a_transfer_is_an_election_without_waiting() -> None:
    group = Group(1, 2, 3)
    group.elect(1)
    before = group.now
    group.transfer(1, 3)
    group.settle()
    assert (group.leader, group[3].term, group.now) == (3, 2, before)


def test_a_transfer_waits_until_the_target_has_everything() -> None:
    group = Group(1, 2, 3)
    group.elect(1)
    group.propose(1, b"x")
    group.transfer(1, 2)
    assert group.find(TimeoutNow) == []
    group.settle()
    assert group.leader == 2
    assert group.servers[2].commands == [b"x"]


def test_nothing_is_proposed_while_a_transfer_goes_on() -> None:
    group = Group(1, 2, 3)
    group.elect(1)
    group.transfer(1, 2)
    with pytest.raises(FsError) as refused:
        group.propose(1, b"x")
    assert refused.value.fault is Fault.BUSY


def test_a_transfer_that_fails_ends_after_an_election_timeout() -> None:
    group = Group(1, 2, 3)
    group.elect(1)
    group.isolate(2)
    group.transfer(1, 2)
    group.run(ELECTION)
    group.propose(1, b"x")
    group.settle()
    assert group.leader == 1
    assert group.servers[1].commands == [b"x"]


def test_a_transfer_to_one_who_cannot_lead_is_refused() -> None:
    group = Group(1, 2, 3, learners=[4])
    group.elect(1)
    for target in (4, 9):
        with pytest.raises(FsError) as refused:
            group.transfer(1, target)
        assert refused.value.fault is Fault.INVALID
    group.transfer(1, 1)  # it does
    group.propose(1, b"x")


def test_two_transfers_do_not_mix() -> None:
    group = Group(1, 2, 3)
    group.elect(1)
    group.transfer(1, 2)
    with pytest.raises(FsError) as refused:
        group.transfer(1, 3)
    assert refused.value.fault is Fault.BUSY


def test_a_late_call_to_stand_is_ignored() -> None:
    group = Group(1, 2, 3)
    group.elect(1)
    group.transfer(1, 2)
    (late,) = group.drop(TimeoutNow)
    group.run(ELECTION)
    group.elect(3)
    group.run(ELECTION)
    group.post(late)
    group.settle()
    assert (group.leader, group[2].role) == (3, Role.FOLLOWER)


def test_a_call_to_stand_that_comes_twice_counts_once() -> None:
    group = Group(1, 2, 3)
    group.elect(1)
    group.transfer(1, 2)
    group.post(*group.messages(TimeoutNow))
    group.settle()
    assert (group.leader, group[2].term) == (2, 2)
