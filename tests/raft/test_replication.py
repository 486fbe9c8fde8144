"""The log becomes the same everywhere, and what a quorum has is committed: paper 5.3, 5.4.2 and
figures 2, 7 and 8; thesis 10.2.1 on batches and pipelines.
"""

import msgspec
import pytest
from group import CONFIG, Group, entry

from mountfs.errors import Fault, FsError
from mountfs.raft.config import Config
from mountfs.raft.log import ENTRY_OVERHEAD_BYTES
from mountfs.raft.messages import (
    Append,
    AppendReply,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    NodeId,
    Term,
)
from mountfs.raft.progress import Flow
from mountfs.raft.state import Role
from mountfs.types import LogIndex

ELECTION = CONFIG.election_ms


def limits(**changes: int) -> Config:
    return msgspec.structs.replace(CONFIG, **changes)


def append(
    group: Group, prev: tuple[int, int], entries: list[Entry], committed: int = 0, term: int = 9
) -> AppendReply:
    """Server 2 sends this to server 1; returns the answer."""
    group.step(
        Append(
            NodeId(2),
            NodeId(1),
            Term(term),
            LogIndex(prev[0]),
            Term(prev[1]),
            tuple(entries),
            LogIndex(committed),
        )
    )
    (reply,) = group.drop(AppendReply, source=1)
    assert isinstance(reply, AppendReply)
    return reply


def terms(group: Group, node: int) -> list[int | None]:
    log = group[node].log
    return [log.term(LogIndex(index)) for index in range(log.base + 1, log.last_index + 1)]


# -- a follower's side (figure 2, AppendEntries)


def test_entries_are_refused_when_the_one_before_does_not_match() -> None:
    """Figure 2, AppendEntries 2; paper 5.3, the consistency check."""
    group = Group(1, 2, 3, terms={1: [1, 1, 2]})
    for prev in ((3, 3), (4, 2), (2, 2)):
        assert append(group, prev, [entry(prev[0] + 1, 9)]).rejected
    assert terms(group, 1) == [1, 1, 2]


def test_an_entry_that_conflicts_goes_with_all_that_follow_it() -> None:
    """Figure 2, AppendEntries 3 and 4."""
    group = Group(1, 2, 3, terms={1: [1, 1, 2, 2, 2]})
    reply = append(group, (2, 1), [entry(3, 3), entry(4, 3)])
    assert (reply.rejected, reply.index) == (False, 4)
    assert terms(group, 1) == [1, 1, 3, 3]


def test_entries_that_are_there_already_take_nothing_away() -> None:
    """Figure 2, AppendEntries 3: only "if an existing entry conflicts".  A late message must not
    cut what came after it.
    """
    group = Group(1, 2, 3, terms={1: [1, 1, 1, 1]})
    reply = append(group, (1, 1), [entry(2, 1)])
    assert (reply.rejected, reply.index) == (False, 2)
    assert terms(group, 1) == [1, 1, 1, 1]


def test_what_matches_is_confirmed_and_no_more() -> None:
    """Of the entries behind, the leader may know nothing."""
    group = Group(1, 2, 3, terms={1: [1, 1, 1, 1]})
    assert append(group, (2, 1), []).index == 2


def test_commits_go_no_further_than_the_last_new_entry() -> None:
    """Figure 2, AppendEntries 5: min(leaderCommit, index of last new entry)."""
    group = Group(1, 2, 3, terms={1: [1, 1, 1, 2, 2]})
    append(group, (1, 1), [entry(2, 1)], committed=5)
    assert group[1].log.committed == 2
    append(group, (2, 1), [entry(3, 9), entry(4, 9)], committed=3)
    assert group[1].log.committed == 3


def test_commits_do_not_go_back() -> None:
    group = Group(1, 2, 3, terms={1: [1, 1, 1]})
    append(group, (3, 1), [], committed=3)
    append(group, (3, 1), [], committed=1)
    group.step(Heartbeat(NodeId(2), NodeId(1), Term(9), LogIndex(1), 1))
    assert group[1].log.committed == 3


def test_what_is_committed_is_applied_in_order_and_once() -> None:
    """Figure 2, all servers: "if commitIndex > lastApplied"."""
    group = Group(1, 2, 3)
    append(group, (0, 0), [entry(at, 1, b"%d" % at) for at in (1, 2, 3)], committed=2)
    append(group, (1, 1), [entry(at, 1, b"%d" % at) for at in (2, 3)], committed=3)
    append(group, (2, 1), [entry(at, 1, b"%d" % at) for at in (3,)], committed=3)
    assert group.servers[1].commands == [b"1", b"2", b"3"]


def test_a_message_from_before_the_commit_index_is_answered_with_that() -> None:
    group = Group(1, 2, 3, terms={1: [1, 1, 1]})
    append(group, (3, 1), [], committed=3)
    reply = append(group, (0, 0), [entry(1, 1)])
    assert (reply.rejected, reply.index) == (False, 3)


def test_entries_are_confirmed_when_they_are_on_disk() -> None:
    """Figure 2: log[] is persistent, "updated on stable storage before responding"."""
    group = Group(1, 2, 3)
    group.hold(1)
    group.step(
        Append(NodeId(2), NodeId(1), Term(1), LogIndex(0), Term(0), (entry(1, 1),), LogIndex(0))
    )
    assert group.find(AppendReply) == []
    group.release(1)
    assert len(group.find(AppendReply)) == 1


def test_nothing_is_applied_that_is_not_on_ones_own_disk() -> None:
    """The state must not be ahead of the log after a crash."""
    group = Group(1, 2, 3)
    append(group, (0, 0), [entry(1, 1, b"a")])
    group.hold(1)
    group.step(
        Append(NodeId(2), NodeId(1), Term(9), LogIndex(1), Term(1), (entry(2, 9),), LogIndex(2))
    )
    assert group[1].log.committed == 2
    assert group.servers[1].commands == [b"a"]
    group.release(1)
    assert group.servers[1].commands == [b"a", b""]


@pytest.mark.parametrize(
    ("mine", "prev", "hint"),
    [
        ([], (5, 3), (0, 0)),
        ([1, 1, 1], (5, 3), (3, 1)),  # too short: the end
        ([1, 1, 4, 4, 4], (5, 3), (2, 1)),  # the whole of term 4 is none of the leader's
        ([1, 2, 2, 2, 4], (5, 3), (4, 2)),
        ([4, 4], (2, 3), (0, 0)),
        ([1, 3, 3, 5], (4, 4), (3, 3)),
    ],
)
def test_a_refusal_says_where_the_logs_may_agree(
    mine: list[int], prev: tuple[int, int], hint: tuple[int, int]
) -> None:
    """Paper 5.3: one AppendEntries "for each term with conflicting entries"."""
    group = Group(1, 2, 3, terms={1: mine})
    reply = append(group, prev, [])
    assert (reply.rejected, reply.index) == (True, prev[0])
    assert (reply.hint_index, reply.hint_term) == hint


# -- a leader's side


def test_a_leader_never_changes_its_own_log() -> None:
    """Figure 3, leader append-only."""
    group = Group(1, 2, 3, terms={1: [1, 2, 2], 2: [1, 1, 1, 1], 3: [1, 2]})
    group.elect(1)
    assert terms(group, 1) == terms(group, 2) == [1, 2, 2, 3]
    assert group[1].log.cuts == 0


@pytest.mark.parametrize(
    "log",
    [
        [1, 1, 1, 4, 4, 5, 5, 6, 6],  # a: lacks one
        [1, 1, 1, 4],  # b: lacks many
        [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],  # c: one too many
        [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],  # d: a term too many
        [1, 1, 1, 4, 4, 4, 4],  # e: both
        [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],  # f: both, of two terms
        [],
        [2] * 30,
    ],
    ids=[*"abcdef", "empty", "foreign"],
)
def test_figure_7(log: list[int]) -> None:
    """Whatever a follower has, it becomes what the leader has, in few messages (paper 5.3)."""
    leader = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]
    group = Group(1, 2, 3, terms={1: leader, 2: log, 3: leader})
    group[1].state.term = Term(7)  # of the election of term 8, that the figure begins with
    group.isolate(2)
    group.elect(1)
    group.heal()
    group.lines.clear()
    group.run(300)
    assert terms(group, 2) == [*leader, 8]
    refused = [line for line in group.lines if line.startswith("2 -> 1") and "not after" in line]
    assert len(refused) <= 3  # terms that differ, and the first guess


def test_an_entry_is_committed_when_a_majority_has_it_on_disk() -> None:
    """Paper 5.3 and figure 2, leaders: N with a majority of matchIndex[i] >= N."""
    group = Group(1, 2, 3, 4, 5)
    group.elect(1)
    index = group.propose(1, b"x")
    group.deliver(Append)
    group.deliver(AppendReply, source=2)
    assert group[1].log.committed == index - 1
    group.deliver(AppendReply, source=3)
    assert group[1].log.committed == index


def test_a_leader_counts_itself_when_its_own_disk_has_it() -> None:
    """Thesis 10.2.1: it writes while the followers do, and may be the last."""
    group = Group(1, 2, 3, 4, 5)
    group.elect(1)
    group.hold(1)
    index = group.propose(1, b"x")
    group.deliver(Append, target=2)
    group.deliver(Append, target=3)
    group.deliver(AppendReply)
    assert group[1].log.committed == index - 1  # two of five
    group.release(1)
    assert group[1].log.committed == index


def test_an_entry_can_be_committed_before_the_leaders_own_disk_has_it() -> None:
    """Thesis 10.2.1."""
    group = Group(1, 2, 3)
    group.elect(1)
    group.hold(1)
    index = group.propose(1, b"x")
    group.settle()
    assert group[1].log.committed == index
    assert group.servers[1].commands == []
    group.release(1)
    assert group.servers[1].commands == [b"x"]


def test_entries_of_earlier_terms_are_not_committed_by_counting() -> None:
    """Paper 5.4.2, figure 8 (c): an old entry on a majority may still be lost; one of the leader's
    own term takes it along.
    """
    group = Group(1, 2, 3, 4, 5, terms={1: [1, 2], 2: [1, 2], 3: [1], 4: [1], 5: [1]})
    group.pass_time(2 * ELECTION, 1)
    for _ in range(4):
        group.deliver()
        if group[1].role is Role.LEADER:
            break
    (first,) = {one.entries for one in group.drop(Append, target=3)}
    assert [one.term for one in first] == [3]
    group.drop(Append)
    raft = group[1]
    for node in (2, 3):  # both have the entry of term 2 at index 2, and not the new one
        group.step(AppendReply(NodeId(node), NodeId(1), raft.term, LogIndex(2)))
    assert raft.log.committed == 0
    for node in (2, 3):
        group.step(AppendReply(NodeId(node), NodeId(1), raft.term, LogIndex(3)))
    assert raft.log.committed == 3


def test_a_new_leader_appends_an_entry_of_its_term() -> None:
    """Paper 8: a blank no-op entry, for what earlier leaders left."""
    group = Group(1, 2, 3, terms={node: [1, 1] for node in (1, 2, 3)})
    group.elect(1)
    assert [one.kind for one in group.servers[1].applied][-1] is EntryKind.EMPTY
    assert group[1].log.committed == 3


def test_followers_learn_of_commits_by_the_next_message() -> None:
    group = Group(1, 2, 3)
    group.elect(1)
    group.propose(1, b"x")
    group.settle()
    group.pass_time(100, 1)
    group.settle()
    assert group.servers[2].commands == group.servers[3].commands == [b"x"]


def test_a_follower_that_lacks_entries_is_not_told_that_they_are_committed() -> None:
    """A heartbeat has no consistency check: its commit index is what the peer is known to have."""
    group = Group(1, 2, 3)
    group.elect(1)
    group.isolate(3)
    group.propose(1, b"x")
    group.settle()
    group.heal()
    group.pass_time(100, 1)
    for one in group.messages(Heartbeat, target=3):
        assert isinstance(one, Heartbeat)
        assert one.committed == 1


def test_lost_messages_are_sent_again() -> None:
    """Paper 5.3: "the leader retries AppendEntries RPCs indefinitely"."""
    group = Group(1, 2, 3)
    group.elect(1)
    for lost in (Append, AppendReply):
        group.propose(1, b"x")
        for _ in range(3):
            group.drop(lost)
            group.deliver()
        group.drop()
        group.run(300)
        assert group[2].log.last_index == group[1].log.last_index == group[1].log.committed


@pytest.mark.parametrize("lost", [Append, AppendReply])
def test_a_lost_probe_is_sent_again(lost: type) -> None:
    group = Group(1, 2, 3, terms={1: [1, 1, 1], 2: [1], 3: [1, 1, 1]})
    group.isolate(2)
    group.elect(1)
    group.heal()
    for _ in range(3):
        group.pass_time(100, 1)
        group.settle(Heartbeat, HeartbeatReply)
        if lost is AppendReply:
            group.deliver(Append)
        assert group.drop(lost)
    assert group[1].state.peers[NodeId(2)].flow is Flow.PROBE
    group.run(300)
    assert terms(group, 2) == terms(group, 1)


def test_messages_that_come_twice_and_in_any_order_do_no_harm() -> None:
    group = Group(1, 2, 3)
    group.elect(1)
    for number in range(8):
        group.propose(1, b"%d" % number)
    sent = group.drop(Append)
    group.post(*sent, *reversed(sent), *sent)
    group.settle()
    group.run(300)
    expected = [b"%d" % number for number in range(8)]
    assert [group.servers[node].commands for node in (1, 2, 3)] == [expected] * 3


def test_a_follower_that_lost_what_it_had_not_confirmed_gets_it_again() -> None:
    """A restart with a shorter log, while the leader goes on as if nothing had happened."""
    group = Group(1, 2, 3)
    group.elect(1)
    group.hold(2)
    for _ in range(5):
        group.propose(1, b"x")
    group.settle()
    group.crash(2)
    group.start(2)
    assert group[2].log.last_index == 1
    group.propose(1, b"y")
    group.run(300)
    assert group.servers[2].commands == [b"x"] * 5 + [b"y"]


def test_the_commit_index_on_disk_may_be_ahead_of_the_log() -> None:
    """It is a hint: what is not there is not applied."""
    group = Group(1, 2, 3, terms={1: [1, 1]})
    image = group.servers[1].image
    image.hard = msgspec.structs.replace(image.hard, committed=LogIndex(9))
    group.crash(1)
    group.start(1)
    assert group[1].log.committed == 2
    assert len(group.servers[1].applied) == 2


# -- refusals


def test_only_a_leader_takes_proposals() -> None:
    group = Group(1, 2, 3)
    group.elect(1)
    group.run(100)
    with pytest.raises(FsError, match="node 1 leads") as refused:
        group.propose(2, b"x")
    assert refused.value.fault is Fault.NOT_LEADER


def test_too_much_that_is_not_committed_is_refused() -> None:
    group = Group(1, 2, 3, config=limits(uncommitted_bytes_max=1_000))
    group.elect(1)
    for _ in range(5):
        group.propose(1, b"x" * (200 - ENTRY_OVERHEAD_BYTES))
    with pytest.raises(FsError) as refused:
        group.propose(1, b"x")
    assert refused.value.fault is Fault.BUSY
    group.settle()
    group.propose(1, b"x")


def test_who_leads_again_counts_from_nothing() -> None:
    """What it had proposed before is another leader's business."""
    group = Group(1, 2, 3, config=limits(uncommitted_bytes_max=1_000))
    group.elect(1)
    group.isolate(1)
    group.propose(1, b"x" * 900)
    group.run(2 * ELECTION)
    group.heal()
    group.run(2 * ELECTION)
    assert group.leader != 1
    group.transfer(group.leader, 1)
    group.settle()
    assert group.leader == 1
    group.propose(1, b"y" * 900)


def test_one_proposal_may_be_larger_than_the_limit() -> None:
    group = Group(1, 2, 3, config=limits(uncommitted_bytes_max=10))
    group.elect(1)
    group.propose(1, b"x" * 100)
    with pytest.raises(FsError):
        group.propose(1, b"x")


def test_what_is_applied_late_makes_no_room_twice() -> None:
    """The bound is on what is not committed.  Entries that were committed, and are only now handed
    out to be applied, must not be counted against newer ones.
    """
    group = Group(1, 2, 3, config=limits(uncommitted_bytes_max=1_000, apply_bytes_max=1))
    group.elect(1)
    size = 1_000 - ENTRY_OVERHEAD_BYTES
    raft = group[1]
    group.propose(1, b"a" * size)
    group.deliver(Append)
    for reply in group.drop(AppendReply):
        raft.step(reply, group.now)  # committed, and nobody has asked for `ready` yet
    assert raft.log.committed == raft.log.last_index
    raft.propose([b"b" * size], group.now)
    group.pump(1)
    with pytest.raises(FsError):
        raft.propose([b"c" * size], group.now)


def test_what_an_earlier_leader_left_makes_no_room() -> None:
    group = Group(1, 2, 3, config=limits(uncommitted_bytes_max=1_000, apply_bytes_max=1))
    for server in group.servers.values():
        server.image.entries = [entry(at, 1, b"x" * 500) for at in range(1, 5)]
        group.crash(server.node)
        group.start(server.node)
    group.pass_time(2 * ELECTION, 1)
    while group[1].role is not Role.LEADER:
        group.deliver()
    raft = group[1]
    raft.propose([b"a" * 900], group.now)
    group.pump(1)
    group.deliver(Append, target=2)
    group.drop(AppendReply)
    # The first entry of the term is confirmed, and with it all of the earlier ones are committed.
    group.step(AppendReply(NodeId(2), NodeId(1), raft.term, LogIndex(5)))
    assert raft.log.committed == 5
    with pytest.raises(FsError):
        raft.propose([b"b" * 900], group.now)


# -- batches and pipelines (thesis 10.2.1)


def test_what_waits_goes_in_one_message() -> None:
    group = Group(1, 2, 3)
    group.elect(1)
    group.propose(1, *[b"x"] * 100)
    sent = group.messages(Append, target=2)
    assert [len(one.entries) for one in sent if isinstance(one, Append)] == [100]


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({"append_entries_max": 4}, [4, 4, 2]),
        ({"append_bytes_max": 3 * (10 + ENTRY_OVERHEAD_BYTES)}, [3, 3, 3, 1]),
        ({"append_bytes_max": 1}, [1] * 10),  # one at least
    ],
)
def test_messages_are_bounded(changes: dict[str, int], sizes: list[int]) -> None:
    group = Group(1, 2, 3, config=limits(**changes))
    group.elect(1)
    group.propose(1, *[b"x" * 10] * 10)
    sent = group.messages(Append, target=2)
    assert [len(one.entries) for one in sent if isinstance(one, Append)] == sizes


def test_the_next_message_leaves_before_the_last_is_answered() -> None:
    group = Group(1, 2, 3)
    group.elect(1)
    for _ in range(5):
        group.propose(1, b"x")
    assert len(group.find(Append, target=2)) == 5


def test_while_a_peer_is_probed_one_message_is_under_way() -> None:
    group = Group(1, 2, 3)
    group.elect(1)
    group[1].unreachable(NodeId(2), group.now)
    for _ in range(5):
        group.propose(1, b"x")
    assert len(group.find(Append, target=2)) == 1
    group.settle()
    assert group[2].log.last_index == group[1].log.last_index


def test_the_window_is_bounded_in_messages() -> None:
    group = Group(1, 2, 3, config=limits(inflight_messages_max=3))
    group.elect(1)
    for _ in range(10):
        group.propose(1, b"x")
    assert len(group.find(Append, target=2)) == 3
    group.deliver(Append, target=2)
    group.deliver(AppendReply, source=2)
    assert len(group.find(Append, target=2)) > 0
    group.settle()
    assert group[2].log.last_index == 11


def test_the_window_is_bounded_in_bytes() -> None:
    """Each entry counts for `ENTRY_OVERHEAD_BYTES` beside its data, as in all bounds."""
    group = Group(1, 2, 3, config=limits(inflight_bytes_max=400))
    group.elect(1)
    for _ in range(10):
        group.propose(1, b"x" * (100 - ENTRY_OVERHEAD_BYTES))
    assert len(group.find(Append, target=2)) == 4
    group.settle()
    assert group[2].log.last_index == 11


def test_heartbeats_do_not_widen_the_window() -> None:
    """A peer that answers heartbeats, but is slow to confirm, gets no more than the window."""
    group = Group(1, 2, 3, config=limits(inflight_messages_max=3, append_entries_max=1))
    group.elect(1)
    group.hold(2)
    group.propose(1, *[b"x"] * 100)
    group.settle()
    assert group[2].log.last_index == 4
    for _ in range(20):
        group.pass_time(100, 1)
        group.settle()
    assert group[2].log.last_index == 4
    assert group[1].state.peers[NodeId(2)].inflight == 3
    group.release(2)
    group.settle()
    assert group[2].log.last_index == 101


def test_a_full_window_that_was_lost_is_found_out() -> None:
    group = Group(1, 2, 3, config=limits(inflight_messages_max=3))
    group.elect(1)
    for _ in range(10):
        group.propose(1, b"x")
    group.drop(target=2)
    group.run(300)
    assert group[2].log.last_index == 11


@pytest.mark.parametrize("window", [3, 100])
def test_what_was_lost_and_is_no_longer_in_the_log_is_found_out(window: int) -> None:
    group = Group(1, 2, 3, config=limits(inflight_messages_max=window))
    group.elect(1)
    group.isolate(2)
    for _ in range(10):
        group.propose(1, b"x")
    group.settle()
    group.heal()
    group.compact(1, 11)
    group.propose(1, b"x")
    group.settle()
    group.compact(1, 12)
    group.run(300)
    assert list(group.servers[1].wanted) == [2]


def test_probes_are_not_repeated_faster_than_heartbeats() -> None:
    """Rounds of heartbeats for reads may be many; their answers must not make a peer whose disk is
    slow get the same batch again and again.
    """
    group = Group(1, 2, 3)
    group.elect(1)
    group[1].unreachable(NodeId(2), group.now)
    group.hold(2)
    group.propose(1, b"x" * 1_000)
    group.lines.clear()
    for request in range(50):
        group.read(1, request)
        group.settle()
        group.now += 1
    assert len(group.servers[1].answers) == 50
    assert sum(line.startswith("1 -> 2: term 1 append") for line in group.lines) <= 2
    group.release(2)
    group.run(300)
    assert group[2].log.last_index == 2


def test_a_peer_that_cannot_be_reached_is_probed() -> None:
    group = Group(1, 2, 3)
    group.elect(1)
    group.propose(1, b"x")
    group.drop(target=2)
    group[1].unreachable(NodeId(2), group.now)
    peer = group[1].state.peers[NodeId(2)]
    assert (peer.flow, peer.inflight, peer.next) == (Flow.PROBE, 0, 2)
    group.run(300)
    assert peer.flow is Flow.REPLICATE
    assert group.servers[2].commands == [b"x"]


def test_a_late_answer_ends_no_probe() -> None:
    """Only what answers the probe, or says more, shows that the pipeline may run again: otherwise
    each late answer has the whole window sent anew.
    """
    group = Group(1, 2, 3)
    group.elect(1)
    for _ in range(5):
        group.propose(1, b"x")
    group.settle()
    raft = group[1]
    raft.unreachable(NodeId(2), group.now)
    for _ in range(5):
        group.propose(1, b"y")
    group.drop()
    group.step(AppendReply(NodeId(2), NodeId(1), raft.term, LogIndex(3)))
    assert raft.state.peers[NodeId(2)].flow is Flow.PROBE
    assert group.find(Append, target=2) == []
    group.run(300)
    assert group[2].log.last_index == 11


def test_a_dead_peer_costs_a_bounded_window() -> None:
    group = Group(1, 2, 3, config=limits(inflight_messages_max=4))
    group.elect(1)
    group.crash(3)
    for _ in range(100):
        group.propose(1, b"x")
        group.run(100)
    assert group[1].state.peers[NodeId(3)].inflight <= 4
