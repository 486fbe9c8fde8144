"""Snapshots in place of a log that is gone: paper 7."""

import msgspec
import pytest
from group import CONFIG, Group, entry, members

from mountfs.raft.messages import (
    Append,
    AppendReply,
    Entry,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Membership,
    NodeId,
    SnapshotHead,
    Term,
)
from mountfs.raft.progress import Flow
from mountfs.raft.state import Role
from mountfs.types import LogIndex

ELECTION = CONFIG.election_ms
RETRY = CONFIG.snapshot_retry_ms


def head(index: int, term: int, *voters: int) -> SnapshotHead:
    return SnapshotHead(
        LogIndex(index), Term(term), Membership(tuple(NodeId(one) for one in voters or (1, 2, 3)))
    )


def install(group: Group, what: SnapshotHead, term: int = 9) -> None:
    """Server 1 is told by server 2 that a snapshot has arrived."""
    group.step(InstallSnapshot(NodeId(2), NodeId(1), Term(term), what))


def confirmed(group: Group) -> int:
    """What server 1 has, by its own words."""
    (reply,) = group.drop(AppendReply, source=1)
    assert isinstance(reply, AppendReply)
    assert not reply.rejected
    return reply.index


def lagging() -> Group:
    """1 leads; 3 lacks what is no longer in the log."""
    group = Group(1, 2, 3)
    group.elect(1)
    group.isolate(3)
    for _ in range(10):
        group.propose(1, b"x")
    group.settle()
    group.compact(1, 8)
    group.heal()
    group.run(300)
    assert list(group.servers[1].wanted) == [3]
    return group


# -- a follower's side (figure 13, InstallSnapshot)


def test_a_snapshot_takes_the_place_of_the_whole_log() -> None:
    """Figure 13, 7 and 8: discard the entire log, take the membership of the snapshot."""
    group = Group(1, 2, 3, terms={1: [1, 1, 2]})
    install(group, head(10, 5, 1, 2, 4))
    log = group[1].log
    assert (log.base, log.last_index, log.last_term, log.committed) == (10, 10, 5, 10)
    assert (log.applied, log.applying) == (10, 10)
    assert members(log.membership) == "1 2 4"
    assert confirmed(group) == 10


def test_a_snapshot_of_what_is_there_keeps_what_follows() -> None:
    """Figure 13, 6: "retain log entries following it"."""
    group = Group(1, 2, 3, terms={1: [1, 1, 2, 2, 2]})
    install(group, head(3, 2))
    log = group[1].log
    assert (log.base, log.last_index, log.committed) == (0, 5, 3)
    assert confirmed(group) == 3


def test_a_snapshot_at_an_entry_of_another_term_drops_what_follows() -> None:
    group = Group(1, 2, 3, terms={1: [1, 1, 2, 2, 2]})
    install(group, head(3, 3))
    assert (group[1].log.base, group[1].log.last_index) == (3, 3)


def test_an_old_snapshot_changes_nothing() -> None:
    """It may have been overtaken; what is committed stays."""
    group = Group(1, 2, 3)
    install(group, head(10, 5))
    assert confirmed(group) == 10
    install(group, head(7, 5))
    assert confirmed(group) == 10
    assert group[1].log.base == 10


def test_a_snapshot_of_an_earlier_term_is_refused() -> None:
    """Figure 13, 1."""
    group = Group(1, 2, 3, terms={1: [6]})
    install(group, head(10, 5), term=5)
    assert group[1].log.base == 0
    (reply,) = group.messages(AppendReply, source=1)
    assert reply.term == 6


def test_a_snapshot_is_confirmed_when_it_is_on_disk() -> None:
    group = Group(1, 2, 3)
    group.hold(1)
    install(group, head(10, 5))
    assert group.find(AppendReply) == []
    group.crash(1)
    group.start(1)
    assert group[1].log.base == 0
    install(group, head(10, 5))
    assert confirmed(group) == 10
    group.crash(1)
    group.start(1)
    assert (group[1].log.base, group[1].log.applied) == (10, 10)


def test_entries_that_follow_a_snapshot_go_on_from_there() -> None:
    group = Group(1, 2, 3)
    install(group, head(10, 5))
    group.step(
        Append(
            NodeId(2),
            NodeId(1),
            Term(9),
            LogIndex(10),
            Term(5),
            (entry(11, 9, b"x"),),
            LogIndex(11),
        )
    )
    assert group.servers[1].commands == [b"x"]


def test_a_snapshot_may_arrive_while_entries_are_applied() -> None:
    """`Ready` may be asked for again before `applied` is said, and a snapshot stepped meanwhile:
    when the old entries are done, that is no news.
    """
    group = Group(1, 2, 3)
    raft = group[1]
    message = Append(
        NodeId(2), NodeId(1), Term(9), LogIndex(0), Term(0), (entry(1, 9),), LogIndex(1)
    )
    raft.step(message, 0)
    save = raft.ready().save
    assert save is not None
    raft.saved(save)
    (handed,) = raft.ready().committed
    assert isinstance(handed, Entry)
    raft.step(InstallSnapshot(NodeId(2), NodeId(1), Term(9), head(10, 9)), 0)
    raft.ready()
    raft.applied(handed.index)
    assert raft.log.applied == 10


def test_a_snapshot_may_arrive_while_the_log_is_shortened() -> None:
    group = Group(1, 2, 3, terms={1: [1, 1, 1]})
    group.step(Append(NodeId(2), NodeId(1), Term(9), LogIndex(3), Term(1), (), LogIndex(3)))
    install(group, head(10, 5))
    group[1].compacted(LogIndex(2))
    assert (group[1].log.base, group[1].log.last_index) == (10, 10)


# -- a leader's side


def test_a_peer_that_lacks_what_is_gone_gets_a_snapshot() -> None:
    """Paper 7: "when the leader has already discarded the next log entry that it needs"."""
    group = lagging()
    sent = group.send_snapshot(1, 3)
    assert sent.index == group[1].log.applied
    group.settle()
    assert group[3].log.base == sent.index
    group.propose(1, b"y")
    group.run(300)
    assert group.servers[3].commands == [b"y"]
    assert group[1].state.peers[NodeId(3)].flow is Flow.REPLICATE


def test_nothing_is_sent_to_a_peer_while_its_snapshot_is_under_way() -> None:
    group = lagging()
    group.propose(1, b"y")
    group.run(300)
    group.pass_time(100, 1)
    assert group.find(Append, target=3) == []
    assert list(group.servers[1].wanted) == [3]  # once


def test_a_snapshot_that_failed_is_sent_again_later() -> None:
    group = lagging()
    group.send_snapshot(1, 3, whole=False)
    failed = group.now
    group.propose(1, b"y")
    group.run(RETRY - 100)
    assert not group.servers[1].wanted
    group.run(300)
    assert list(group.servers[1].wanted) == [3]
    assert group.now - failed >= RETRY
    group.send_snapshot(1, 3)
    group.run(300)
    assert group[3].log.last_index == group[1].log.last_index


def test_a_snapshot_whose_answer_was_lost_is_found_out() -> None:
    group = lagging()
    group.send_snapshot(1, 3)
    assert group.drop(AppendReply, source=3)
    group.run(300)
    peer = group[1].state.peers[NodeId(3)]
    assert (peer.flow, peer.match) == (Flow.REPLICATE, group[1].log.last_index)


def test_a_snapshot_that_is_said_to_be_there_and_is_not_is_sent_again() -> None:
    """The target crashed with it."""
    group = lagging()
    group.hold(3)
    group.send_snapshot(1, 3)
    group.crash(3)
    group.start(3)
    group.run(300)
    assert list(group.servers[1].wanted) == [3]


def test_an_answer_that_overtakes_the_end_of_the_transfer() -> None:
    """The target confirms before the sender's shell says that the transfer has ended."""
    group = lagging()
    raft = group[1]
    install_ = InstallSnapshot(raft.node, NodeId(3), raft.term, raft.log.head_at(raft.log.applied))
    group.step(install_)
    group.settle()
    peer = raft.state.peers[NodeId(3)]
    assert peer.flow is Flow.REPLICATE
    raft.snapshot_sent(NodeId(3), whole=True, now=group.now)
    assert peer.flow is Flow.REPLICATE


def test_who_no_longer_leads_sends_no_snapshot() -> None:
    """The leader is deposed before anybody asked for `ready`: a snapshot would be sent in the name
    of a term that another one leads.
    """
    group = Group(1, 2, 3)
    group.elect(1)
    group.isolate(3)
    group.propose(1, b"x")
    group.settle()
    group.compact(1, 2)
    group.heal()
    raft = group[1]
    group.pass_time(100, 1)
    group.deliver(Heartbeat, target=3)
    (reply,) = group.drop(HeartbeatReply, source=3)
    raft.step(reply, group.now)
    for one in raft.ready().now:  # the empty Append: refused, as 3 has nothing
        assert isinstance(one, Append)
    raft.step(AppendReply(NodeId(3), NodeId(1), raft.term, LogIndex(2), True), group.now)
    raft.step(AppendReply(NodeId(2), NodeId(1), Term(7), LogIndex(0), True), group.now)
    assert raft.role is Role.FOLLOWER
    assert raft.ready().snapshots == ()


def test_a_learner_without_anything_gets_a_snapshot() -> None:
    group = Group(1, spares=[2])
    group.elect(1)
    for _ in range(10):
        group.propose(1, b"x")
    group.compact(1, 8)
    group.change(1, [1], [2])
    group.run(300)
    group.send_snapshot(1, 2)
    group.run(300)
    assert members(group[2].log.membership) == "1 + 2"
    group.change(1, [1, 2], [])
    group.run(300)
    assert members(group[2].log.membership) == "1 2"


def test_a_snapshot_in_the_middle_of_a_change_says_so() -> None:
    """Paper 7: "the snapshot also includes the latest configuration in the log as of last included
    index": a joint one too.
    """
    group = Group(1, 2, 3, spares=[4])
    group.elect(1)
    group.change(1, [1, 2, 3], [4])
    group.run(300)
    group.isolate(3)
    group.change(1, [1, 2, 4], [])
    group.deliver(Append)
    group.deliver(AppendReply)
    group.drop()
    joint = group[1].log.membership_index - 1
    assert group[1].log.applied == joint
    group.compact(1, joint)
    assert members(group[1].log.head_at(LogIndex(joint)).membership) == "1 2 4 | 1 2 3"
    group.crash(1)
    group.start(1)
    assert members(group[1].log.membership_at(LogIndex(joint))) == "1 2 4 | 1 2 3"


def test_the_log_is_compacted_without_a_change_of_meaning() -> None:
    group = Group(1, 2, 3, terms={1: [1, 1, 2, 2, 2, 4]})
    group.step(Append(NodeId(2), NodeId(1), Term(9), LogIndex(6), Term(4), (), LogIndex(6)))
    group.compact(1, 4)
    log = group[1].log
    assert [log.term(LogIndex(index)) for index in range(3, 8)] == [None, 2, 2, 4, None]
    assert (log.last_index, log.last_term) == (6, 4)
    group.compact(1, 6)
    assert (log.term(LogIndex(6)), log.last_term) == (4, 4)


def test_a_candidate_with_nothing_but_a_snapshot_wins_by_it() -> None:
    """Paper 5.4.1 with the last index and term of a snapshot."""
    group = Group(1, 2, 3)
    group.elect(1)
    group.propose(1, b"x")
    group.run(300)
    for node in (1, 2, 3):
        group.compact(node, 2)
    group.crash(1)
    group.run(5 * ELECTION)
    assert group.leader != 0


def test_retries_are_per_peer() -> None:
    config = msgspec.structs.replace(CONFIG, snapshot_retry_ms=500)
    group = Group(1, learners=[2, 3], config=config)
    group.elect(1)
    group.isolate(2, 3)
    for _ in range(10):
        group.propose(1, b"x")
    group.compact(1, 8)
    group.heal()
    group.run(300)
    assert sorted(group.servers[1].wanted) == [2, 3]
    group.send_snapshot(1, 2, whole=False)
    group.send_snapshot(1, 3)
    group.run(300)
    assert group[3].log.last_index == group[1].log.last_index
    group.run(600)
    assert list(group.servers[1].wanted) == [2]


@pytest.mark.parametrize("further", [0, 5])
def test_the_log_may_be_shortened_while_a_snapshot_travels(further: int) -> None:
    group = lagging()
    for _ in range(further):
        group.propose(1, b"y")
    group.settle()
    raft = group[1]
    sent = raft.log.head_at(LogIndex(11))
    group.compact(1, raft.log.applied)
    group.servers[1].wanted.clear()
    group.step(InstallSnapshot(raft.node, NodeId(3), raft.term, sent))
    raft.snapshot_sent(NodeId(3), whole=True, now=group.now)
    group.run(300)
    if further:
        group.send_snapshot(1, 3)  # it came too late
    group.run(300)
    assert group[3].log.last_index == raft.log.last_index
