"""Who counts, changed while everybody works: paper 6, thesis 4.2."""

import msgspec
import pytest
from group import CONFIG, Group, members

from mountfs.errors import Fault, FsError
from mountfs.raft.messages import (
    Append,
    AppendReply,
    EntryKind,
    Heartbeat,
    NodeId,
    TimeoutNow,
    Vote,
    VoteReply,
)
from mountfs.raft.state import Role

ELECTION = CONFIG.election_ms


def grown() -> Group:
    """1, 2 and 3 vote, 1 leads, 4 and 5 are learners that have everything."""
    group = Group(1, 2, 3, spares=[4, 5])
    group.elect(1)
    group.change(1, [1, 2, 3], [4, 5])
    group.run(300)
    return group


def refused(fault: Fault, group: Group, voters: list[int], learners: list[int]) -> None:
    before = group[1].log.last_index
    with pytest.raises(FsError) as failure:
        group.change(1, voters, learners)
    assert failure.value.fault is fault
    assert group[1].log.last_index == before  # and nothing has changed


def known(group: Group, *nodes: int) -> list[str]:
    return [members(group[node].log.membership) for node in nodes]


# -- joint consensus (paper 6)


def test_a_change_goes_through_a_joint_membership() -> None:
    """Paper 6, figure 11: C-old,new, then C-new when that is committed."""
    group = grown()
    group.change(1, [1, 4, 5], [])
    assert known(group, 1) == ["1 4 5 | 1 2 3"]
    group.run(300)
    assert known(group, 1, 4, 5) == ["1 4 5"] * 3
    kinds = [one.kind for one in group.servers[4].applied if one.kind is EntryKind.MEMBERSHIP]
    assert len(kinds) == 3  # learners, both, new


def test_a_membership_is_in_force_when_it_is_in_the_log() -> None:
    """Paper 6: "a server always uses the latest configuration in its log, regardless of whether
    the entry is committed".
    """
    group = grown()
    group.change(1, [1, 4, 5], [])
    group.deliver(Append, target=2)
    assert group[2].log.committed < group[2].log.last_index
    assert known(group, 2) == ["1 4 5 | 1 2 3"]


@pytest.mark.parametrize(
    ("answering", "committed"),
    [
        ([2, 3], False),  # a majority of the old only
        ([4, 5], False),  # of the new only
        ([2, 4], True),
        ([3, 5], True),
    ],
)
def test_a_joint_membership_needs_both_majorities(answering: list[int], committed: bool) -> None:
    """Paper 6: "agreement (for elections and entry commitment) requires separate majorities"."""
    group = grown()
    group.change(1, [1, 4, 5], [])
    index = group[1].log.last_index
    for node in answering:
        group.deliver(Append, target=node)
        group.deliver(AppendReply, source=node)
    assert (group[1].log.committed >= index) is committed


@pytest.mark.parametrize(("others", "wins"), [([3], False), ([4, 5], False), ([3, 4], True)])
def test_an_election_under_a_joint_membership_needs_both_majorities(
    others: list[int], wins: bool
) -> None:
    group = grown()
    group.change(1, [2, 4, 5], [])
    for node in (2, 3, 4, 5):
        group.deliver(Append, target=node)
    group.drop()
    group.crash(1)
    for node in {3, 4, 5}.difference(others):
        group.isolate(node)
    group.pass_time(2 * ELECTION, 2)
    group.settle(Vote, VoteReply)
    assert (group[2].role is Role.LEADER) is wins


def test_a_membership_that_was_overwritten_no_longer_counts() -> None:
    """Paper 6: it is a log entry like others, and may be lost with its leader."""
    group = grown()
    group.isolate(1)
    group.change(1, [1, 4, 5], [])
    assert known(group, 1) == ["1 4 5 | 1 2 3"]
    group.elect(2)
    group.heal()
    group.run(300)
    assert known(group, 1, 2) == ["1 2 3 + 4 5"] * 2


def test_a_new_leader_goes_on_with_a_change() -> None:
    group = grown()
    group.change(1, [1, 4, 5], [])
    for node in (2, 3, 4, 5):
        group.deliver(Append, target=node)
    group.drop()
    group.crash(1)
    group.elect(4)
    group.run(300)
    assert known(group, 4, 5) == ["1 4 5"] * 2


def test_a_restart_finds_the_membership_in_the_log() -> None:
    group = grown()
    group.change(1, [1, 4, 5], [])
    group.deliver(Append)
    group.drop()
    group.crash(2)
    group.start(2)
    assert known(group, 2) == ["1 4 5 | 1 2 3"]


def test_one_change_at_a_time() -> None:
    group = grown()
    group.change(1, [1, 4, 5], [])
    refused(Fault.BUSY, group, [1, 2, 3], [])
    group.deliver(Append)
    group.deliver(AppendReply)
    assert known(group, 1) == ["1 4 5"]  # appended, and not committed yet
    refused(Fault.BUSY, group, [1, 2, 3], [])
    group.run(300)
    group.change(1, [1, 4], [])


def test_a_new_leader_changes_nothing_before_it_has_committed() -> None:
    """Thesis 4.1's bug of single-server changes: what an earlier leader began may not be known."""
    group = Group(1, 2, 3)
    group.pass_time(2 * ELECTION, 1)
    while group[1].role is not Role.LEADER:
        group.deliver()
    refused(Fault.BUSY, group, [1, 2], [])
    group.settle()
    group.change(1, [1, 2], [])


def test_requests_that_can_never_be_met_are_refused() -> None:
    group = grown()
    refused(Fault.INVALID, group, [], [1])
    refused(Fault.INVALID, group, [1, 2], [2])
    refused(Fault.INVALID, group, [1, 0], [])
    refused(Fault.INVALID, group, [1, 2, 3, 9], [])  # 9 is not even a learner


def test_only_a_leader_changes_members() -> None:
    group = grown()
    with pytest.raises(FsError) as failure:
        group.change(2, [2], [])
    assert failure.value.fault is Fault.NOT_LEADER


# -- learners (thesis 4.2.1)


def test_a_learner_gets_everything_and_counts_for_nothing() -> None:
    group = Group(1, 2, 3, learners=[4, 5])
    group.elect(1)
    group.isolate(2, 3)
    index = group.propose(1, b"x")
    group.settle()
    assert group[4].log.last_index == index
    assert group[1].log.committed < index
    group.heal()
    group.run(300)
    assert group.servers[4].commands == [b"x"]


def test_a_server_that_lacks_too_much_does_not_become_a_voter() -> None:
    group = Group(1, 2, 3, spares=[4], config=msgspec.structs.replace(CONFIG, caught_up_entries=10))
    group.elect(1)
    for _ in range(20):
        group.propose(1, b"x")
    group.settle()
    group.isolate(4)
    group.change(1, [1, 2, 3], [4])
    group.run(300)
    refused(Fault.BUSY, group, [1, 2, 3, 4], [])
    group.heal()
    group.run(300)
    group.change(1, [1, 2, 3, 4], [])
    group.run(300)
    assert known(group, 1, 4) == ["1 2 3 4"] * 2


def test_a_learner_comes_and_goes_without_a_joint_membership() -> None:
    group = grown()
    group.change(1, [1, 2, 3], [4])
    assert known(group, 1) == ["1 2 3 + 4"]
    assert NodeId(5) not in group[1].state.peers


def test_a_learner_that_was_dropped_gets_nothing_more() -> None:
    group = grown()
    group.change(1, [1, 2, 3], [4])
    group.settle()
    before = group[5].log.last_index
    group.propose(1, b"x")
    group.run(300)
    assert group[5].log.last_index == before


def test_a_voter_can_become_a_learner() -> None:
    group = grown()
    group.change(1, [1, 2], [3])
    assert known(group, 1) == ["1 2 | 1 2 3 + 3"]
    group.run(300)
    assert known(group, 1, 2, 3) == ["1 2 + 3"] * 3
    group.crash(1)
    group.run(5 * ELECTION)
    assert group[3].role is Role.FOLLOWER
    assert group[3].term == 1


# -- a leader that is removed (paper 6, thesis 4.2.2)


def test_a_leader_that_is_removed_leads_until_that_is_committed() -> None:
    """Paper 6: "it manages the cluster while it does not count itself in majorities"."""
    group = grown()
    group.change(1, [2, 3], [])
    group.deliver(Append)
    group.deliver(AppendReply)
    assert (group[1].role, known(group, 1)) == (Role.LEADER, ["2 3"])
    index = group[1].log.last_index
    group.deliver(Append, target=2)
    group.deliver(AppendReply, source=2)
    assert (group[1].role, group[1].log.committed) == (Role.LEADER, index - 1)  # one of two
    group.deliver(Append, target=3)
    group.deliver(AppendReply, source=3)
    assert (group[1].role, group[1].log.committed) == (Role.FOLLOWER, index)


def test_another_leads_at_once_when_a_leader_leaves() -> None:
    group = grown()
    group.change(1, [2, 3], [])
    before = group.now
    group.settle()
    assert group.now == before
    assert group.leader in (2, 3)
    group.propose(group.leader, b"x")
    group.run(300)
    assert group.servers[2].commands == group.servers[3].commands == [b"x"]


def test_a_leader_that_left_stays_quiet() -> None:
    group = grown()
    group.change(1, [2, 3], [])
    group.run(10 * ELECTION)
    assert group[1].role is Role.FOLLOWER
    assert group[group.leader].term == 2


def test_a_leader_that_becomes_a_learner_goes_on_following() -> None:
    group = grown()
    group.change(1, [2, 3], [1])
    group.run(300)
    group.propose(group.leader, b"x")
    group.run(300)
    assert group.servers[1].commands == [b"x"]


def test_removed_servers_do_not_disturb() -> None:
    """Paper 6, the third problem; thesis 4.2.3.  They may never learn that they were removed."""
    group = grown()
    group.change(1, [1, 2], [])
    group.run(20 * ELECTION)
    assert (group.leader, group[1].term) == (1, 1)
    assert group[3].role is not Role.CANDIDATE


def test_a_server_outside_its_own_latest_membership_still_stands() -> None:
    """Thesis 4.2.2: it "might still be needed until the C-new entry is committed".  The leader
    that has appended a membership without itself has the longest log, and nobody else may win
    under the joint one without its vote.
    """
    group = Group(1, spares=[2])
    group.elect(1)
    group.change(1, [1], [2])
    group.run(300)
    group.change(1, [2], [])
    group.deliver(Append)
    group.deliver(AppendReply)
    assert known(group, 1, 2) == ["2", "2 | 1"]
    group.drop()
    group.crash(1)
    group.start(1)
    group.run(8 * ELECTION)
    assert group.leader == 2
    assert known(group, 1, 2) == ["2", "2"]


def test_such_a_server_does_not_count_itself() -> None:
    """Thesis 4.2.2."""
    group = Group(1, 2, spares=[3])
    group.elect(1)
    group.change(1, [1, 2], [3])
    group.run(300)
    group.change(1, [2, 3], [])
    group.deliver(Append)
    group.deliver(AppendReply)
    group.drop()
    assert known(group, 1, 2, 3) == ["2 3", "2 3 | 1 2", "2 3 | 1 2"]
    group.crash(1)
    group.crash(3)
    group.start(1)
    group.run(8 * ELECTION)
    assert group.leader == 0  # 2 alone is no majority of 2 and 3
    group.start(3)
    group.run(8 * ELECTION)
    assert group.leader in (2, 3)


# -- sizes


def test_one_becomes_three_and_one_again() -> None:
    group = Group(1, spares=[2, 3])
    group.elect(1)
    group.propose(1, b"a")
    group.change(1, [1], [2, 3])
    group.run(300)
    group.change(1, [1, 2, 3], [])
    group.run(300)
    assert known(group, 1, 2, 3) == ["1 2 3"] * 3
    group.crash(1)
    group.run(5 * ELECTION)
    assert group.leader in (2, 3)
    leader = group.leader
    group.propose(leader, b"b")
    group.change(leader, [leader], [])
    group.run(300)
    group.crash(5 - leader)
    group.propose(leader, b"c")
    assert group.servers[leader].commands == [b"a", b"b", b"c"]
    assert group[leader].role is Role.LEADER


def test_all_voters_are_replaced_at_once() -> None:
    group = grown()
    group.change(1, [4, 5], [])
    group.run(5 * ELECTION)
    for node in (1, 2, 3):
        group.crash(node)
    group.run(5 * ELECTION)
    assert group.leader in (4, 5)
    group.propose(group.leader, b"x")
    group.run(300)
    assert group.servers[4].commands == group.servers[5].commands == [b"x"]


def test_nothing_is_decided_by_two_majorities_apart() -> None:
    """Paper 6, figure 10: the old and the new voters, cut off from each other in the middle."""
    group = Group(1, 2, 3, spares=[4, 5, 6])
    group.elect(1)
    group.change(1, [1, 2, 3], [4, 5, 6])
    group.run(300)
    group.change(1, [4, 5, 6], [])
    for node in (4, 5, 6):
        group.deliver(Append, target=node)
    group.drop()
    group.isolate(4, 5, 6)
    group.run(10 * ELECTION)
    leaders = [node for node in group.servers if group[node].role is Role.LEADER]
    committed = {group[node].log.committed for node in (4, 5, 6)}
    assert all(node <= 3 for node in leaders)  # 4, 5 and 6 need a majority of the old ones
    assert committed == {group[4].log.membership_index - 1}
    group.heal()
    group.run(10 * ELECTION)
    assert len({members(group[node].log.membership) for node in (4, 5, 6)}) == 1


def test_a_transfer_to_one_who_is_removed_meanwhile_ends() -> None:
    group = grown()
    group.isolate(3)
    group.transfer(1, 3)
    group.change(1, [1, 2], [])
    group.run(ELECTION + 200)
    assert known(group, 1) == ["1 2"]
    group.propose(1, b"x")
    group.run(300)
    assert group.servers[2].commands == [b"x"]
    assert group.find(TimeoutNow, Heartbeat, target=3) == []
