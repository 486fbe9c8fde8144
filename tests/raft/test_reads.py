"""Linearizable reads: paper 8; thesis 6.4 (read index) and 6.4.1 (leases)."""

import msgspec
import pytest
from group import CONFIG, Group

from mountfs.errors import Fault, FsError
from mountfs.raft.config import Config
from mountfs.raft.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    NodeId,
    ReadIndex,
    ReadIndexReply,
    Term,
    TimeoutNow,
    VoteReply,
)
from mountfs.raft.state import Role
from mountfs.types import LogIndex

ELECTION = CONFIG.election_ms
LEASES = msgspec.structs.replace(CONFIG, lease_reads=True)


def with_leader(config: Config = CONFIG, learners: tuple[int, ...] = ()) -> Group:
    group = Group(1, 2, 3, config=config, learners=learners)
    group.elect(1)
    group.run(100)
    return group


def answers(group: Group, node: int = 1) -> dict[int, list[LogIndex]]:
    return group.servers[node].answers


# -- read index (thesis 6.4)


def test_a_read_waits_for_a_round_of_heartbeats() -> None:
    """Thesis 6.4, step 3: "acknowledgments from a majority"."""
    group = with_leader()
    group.propose(1, b"x")
    group.settle()
    group.read(1, 7)
    assert answers(group) == {}
    group.settle()
    assert answers(group) == {7: [2]}


def test_an_answer_to_an_earlier_round_is_not_enough() -> None:
    """The leader must be known to have led after the read came."""
    group = with_leader()
    group.pass_time(100, 1)
    group.deliver(Heartbeat)
    early = group.drop(HeartbeatReply)
    group.read(1, 7)
    group.post(*early)
    group.deliver(HeartbeatReply)
    assert answers(group) == {}
    group.settle()
    assert answers(group) == {7: [1]}


def test_the_index_is_that_of_when_the_read_came() -> None:
    group = with_leader()
    group.read(1, 7)
    group.propose(1, b"x")
    group.settle(Append, AppendReply)
    group.settle()
    assert answers(group) == {7: [1]}


def test_reads_share_a_round() -> None:
    group = with_leader()
    before = group[1].state.round
    for request in range(100):
        group.read(1, request)
    group.settle()
    assert len(answers(group)) == 100
    assert group[1].state.round == before + 2  # that of the first, and one for all others


def test_a_read_behind_a_round_for_nobody_does_not_wait_for_the_next_heartbeat() -> None:
    """A round that is under way may be a mere heartbeat; what waits for the one after it goes on as
    soon as it ends.
    """
    group = with_leader()
    group.pass_time(100, 1)
    group.read(1, 7)
    group.settle()  # and no time passes
    assert answers(group) == {7: [1]}


def test_a_read_whose_round_was_lost_is_answered_with_the_next() -> None:
    group = with_leader()
    group.read(1, 7)
    group.read(1, 8)
    group.drop()
    group.run(300)
    assert answers(group) == {7: [1], 8: [1]}


def test_a_leader_that_was_replaced_answers_nothing() -> None:
    """Thesis 6.4: it does not know yet that there is another."""
    group = with_leader()
    group.isolate(1)
    group.elect(2)
    group.propose(2, b"x")
    group.settle()
    assert group[1].role is Role.LEADER
    group.read(1, 7)
    group.settle()
    assert answers(group) == {}
    group.heal()
    group.run(300)
    assert answers(group) == {7: []}  # to be asked again


def test_learners_do_not_confirm_a_leader() -> None:
    group = with_leader(learners=(4, 5))
    group.isolate(2, 3)
    group.read(1, 7)
    group.settle()
    assert answers(group) == {}


def test_a_new_leader_answers_when_it_has_committed_in_its_term() -> None:
    """Paper 8: before its no-op is committed it may not know what is."""
    group = Group(1, 2, 3, terms={node: [1, 1] for node in (1, 2, 3)})
    group.pass_time(2 * ELECTION, 1)
    while group[1].role is not Role.LEADER:
        group.deliver()
    group.read(1, 7)
    group.settle(Heartbeat, HeartbeatReply)
    assert answers(group) == {}
    group.settle()
    assert answers(group) == {7: [3]}


def test_a_group_of_one_answers_by_itself() -> None:
    group = Group(1, learners=[2])
    group.crash(2)
    group.elect(1)
    group.read(1, 7)
    assert answers(group) == {7: [1]}


def test_reads_are_bounded() -> None:
    group = with_leader(msgspec.structs.replace(CONFIG, reads_pending_max=3))
    for request in range(3):
        group.read(1, request)
    with pytest.raises(FsError) as refused:
        group.read(1, 9)
    assert refused.value.fault is Fault.BUSY
    group.settle()
    group.read(1, 9)
    group.settle()
    assert answers(group)[9] == [1]


# -- through a follower (thesis 6.4)


def test_a_follower_asks_its_leader() -> None:
    group = with_leader()
    group.propose(1, b"x")
    group.settle()
    group.read(2, 7)
    assert [one.target for one in group.messages(ReadIndex)] == [1]
    group.settle()
    assert answers(group, 2) == {7: [2]}


def test_without_a_leader_a_follower_says_so() -> None:
    group = Group(1, 2, 3)
    with pytest.raises(FsError) as refused:
        group.read(2, 7)
    assert refused.value.fault is Fault.NOT_LEADER


def test_who_does_not_lead_answers_no_follower() -> None:
    group = with_leader()
    group.step(ReadIndex(NodeId(3), NodeId(2), Term(1), 7))
    assert group.mail == {}


def test_an_answer_of_an_earlier_term_is_not_believed() -> None:
    group = with_leader()
    group.read(2, 7)
    group.settle(ReadIndex, Heartbeat, HeartbeatReply)
    (late,) = group.drop(ReadIndexReply)
    group.isolate(1)
    group.elect(3)
    group.step(late)
    assert answers(group, 2) == {}


# -- leases (thesis 6.4.1)


def test_with_a_lease_a_read_is_answered_at_once() -> None:
    group = with_leader(LEASES)
    group.read(1, 7)
    assert answers(group) == {7: [1]}


def test_a_lease_runs_from_when_the_round_was_sent_and_allows_for_drift() -> None:
    """Thesis 6.4.1: "start + election timeout / clock drift bound"."""
    group = with_leader(LEASES)
    group.pass_time(100, 1)
    sent = group.now
    group.now += 50  # the answers take their time
    group.settle()
    group.now = sent + ELECTION * 90 // 100 - 1
    group.read(1, 7)
    assert answers(group) == {7: [1]}
    group.now += 1
    group.read(1, 8)
    assert answers(group) == {7: [1]}
    group.settle()
    assert answers(group) == {7: [1], 8: [1]}


@pytest.mark.parametrize("drift", [0, 10, 50])
def test_the_lease_is_over_before_the_first_of_its_quorum_may_vote(drift: int) -> None:
    """With a clock that runs so much faster, as its owner sees it."""
    config = msgspec.structs.replace(LEASES, drift_percent=drift)
    assert config.lease_ms * 100 <= config.election_ms * (100 - drift)


def test_a_minoritys_answers_are_no_lease() -> None:
    group = Group(1, 2, 3, 4, 5, config=LEASES)
    group.elect(1)
    group.run(100)
    group.now += ELECTION * 9 // 10
    group.pass_time(0, 1)
    group.deliver(Heartbeat, target=2)
    group.deliver(HeartbeatReply, source=2)
    group.read(1, 7)
    assert answers(group) == {}


def test_answers_that_came_back_late_are_worth_little() -> None:
    """Not when they come counts, but when they were asked for."""
    group = with_leader(LEASES)
    group.pass_time(100, 1)
    group.deliver(Heartbeat)
    group.now += ELECTION * 9 // 10
    group.deliver(HeartbeatReply)
    group.read(1, 7)
    assert answers(group) == {}


def test_the_lease_can_be_turned_off() -> None:
    group = with_leader()
    group.read(1, 7)
    assert answers(group) == {}


def test_who_asked_another_to_take_over_has_no_lease() -> None:
    """Thesis 6.4.1: that election does not wait for the lease to run out."""
    group = with_leader(LEASES)
    group.transfer(1, 2)
    assert len(group.drop(TimeoutNow)) == 1
    group.run(2 * ELECTION)  # even long after: the call may still be on its way
    group.read(1, 7)
    assert answers(group) == {}
    group.settle()
    assert answers(group) == {7: [1]}


def test_those_who_begin_to_count_must_be_asked_first() -> None:
    """A lease under one membership is none under the next."""
    group = Group(1, 2, 3, spares=[4, 5], config=LEASES)
    group.elect(1)
    group.change(1, [1, 2, 3], [4, 5])
    group.run(300)
    group.read(1, 7)
    assert 7 in answers(group)
    group.change(1, [1, 4, 5], [])
    group.read(1, 8)
    assert 8 not in answers(group)
    group.settle()
    assert 8 in answers(group)


def test_no_other_leader_is_elected_while_a_lease_runs() -> None:
    """The leader is cut off from all but one; that one heard it last, and no candidate gets its
    vote, whatever else it hears.
    """
    group = Group(1, 2, 3, 4, 5, config=LEASES)
    group.elect(1)
    group.run(200)
    group.isolate(4, 5)
    group.run(3 * ELECTION)  # 4 and 5 stand in vain; 1, 2 and 3 hold a lease
    group.heal()
    group.cut = {(1, 4), (4, 1), (1, 5), (5, 1)}
    group[4].state.term = Term(3)  # from an election that they held once
    group.step(VoteReply(NodeId(4), NodeId(3), Term(3), False, True))
    group.step(VoteReply(NodeId(4), NodeId(5), Term(3), False, True))
    for _ in range(3):
        group[4].state.deadline = group.now
        group.tick(4)
        for _ in range(6):
            group.deliver(source=4)
            group.deliver(target=4)
    group.read(1, 7)
    assert answers(group) == {7: [1]}  # the lease runs, so
    assert group[4].role is not Role.LEADER


# -- memory


def test_rounds_are_forgotten_when_they_are_answered() -> None:
    group = with_leader()
    for request in range(100):
        group.read(1, request)
        group.run(100)
    assert len(group[1].state.rounds_sent) <= 2
    assert group[1].state.waiting == []


def test_a_group_of_one_does_not_collect_rounds() -> None:
    group = Group(1)
    group.elect(1)
    group.run(5_000)
    assert len(group[1].state.rounds_sent) <= 2


def test_a_leader_whose_learners_are_down_does_not_collect_rounds() -> None:
    group = Group(1, learners=[2])
    group.elect(1)
    group.crash(2)
    group.run(5_000)
    assert len(group[1].state.rounds_sent) <= 2


def test_a_round_that_is_answered_late_answers_no_read_after_it() -> None:
    """Replies may overtake each other."""
    group = with_leader()
    group.read(1, 1)
    group.deliver(Heartbeat)
    first = group.drop(HeartbeatReply)
    group.pass_time(100, 1)
    group.read(1, 2)
    group.deliver(Heartbeat)
    group.drop(HeartbeatReply)
    group.drop()
    group.post(*first)
    group.deliver(HeartbeatReply)
    assert answers(group) == {1: [1]}


def test_a_read_is_answered_when_nobody_else_is_left_to_confirm_it() -> None:
    """The others are removed while it waits for their answers."""
    group = Group(1, 2)
    group.elect(1)
    group.read(1, 7)
    group.drop(Heartbeat)
    group.change(1, [1])
    group.settle(Append, AppendReply)
    assert group[1].log.membership.voters == (1,)
    group.run(300)
    assert answers(group) == {7: [1]}


def test_a_read_that_was_asked_before_stepping_down_is_refused_once() -> None:
    group = with_leader()
    group.read(1, 7)
    group.step(AppendReply(NodeId(2), NodeId(1), Term(5), LogIndex(0), True))
    assert answers(group) == {7: []}
    group.run(ELECTION // 2)
    assert answers(group) == {7: []}
