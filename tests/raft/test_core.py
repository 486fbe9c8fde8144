"""The contract of `Ready`: what is saved, what may be sent before and what after, and in what order
it is said.
"""

from collections.abc import Sequence

import msgspec
import pytest
from group import CONFIG, Group, entry, has_work

from mountfs.errors import Fault, FsError
from mountfs.raft.messages import (
    Append,
    AppendReply,
    Entry,
    Heartbeat,
    HeartbeatReply,
    NodeId,
    ReadIndexReply,
    Term,
    TimeoutNow,
    Vote,
    VoteReply,
)
from mountfs.raft.state import Role
from mountfs.types import LogIndex

ELECTION = CONFIG.election_ms


def test_a_ready_says_each_thing_once() -> None:
    group = Group(1, 2, 3)
    group.elect(1)
    raft = group[1]
    raft.propose([b"x"], group.now)
    assert has_work(raft.ready())
    assert not has_work(raft.ready())


def test_nothing_says_a_term_that_is_not_on_disk() -> None:
    """After a crash we could be in that term again, and say something else."""
    group = Group(1)
    group.hold(1)
    group.pass_time(2 * ELECTION, 1)
    assert group[1].role is Role.LEADER
    assert group.mail == {}
    group = Group(1, learners=[2])
    group.hold(1)
    group.pass_time(2 * ELECTION, 1)
    assert group[1].role is Role.LEADER
    assert group.mail == {}
    group.release(1)
    assert group.find(Append, target=2)


def test_a_group_of_one_is_led_when_its_disk_says_so() -> None:
    group = Group(1)
    group.hold(1)
    group.pass_time(2 * ELECTION, 1)
    group.propose(1, b"x")
    group.read(1, 7)
    assert group.servers[1].commands == []
    assert group.servers[1].answers == {}
    group.crash(1)
    group.start(1)
    assert (group[1].term, group[1].log.last_index) == (0, 0)


def test_a_heartbeat_is_answered_without_the_disk() -> None:
    group = Group(1, 2, 3)
    group.elect(1)
    group.hold(2)
    group.propose(1, b"x")
    group.deliver(Append, target=2)
    group.pass_time(100, 1)
    group.deliver(Heartbeat, target=2)
    assert group.find(HeartbeatReply, source=2)
    assert group.find(AppendReply, source=2) == []


def test_entries_leave_before_the_leaders_own_disk_has_them() -> None:
    """Thesis 10.2.1."""
    group = Group(1, 2, 3)
    group.elect(1)
    group.hold(1)
    group.propose(1, b"x")
    assert len(group.find(Append)) == 2


def test_what_was_cut_is_not_taken_for_saved() -> None:
    """A save of entries that were cut meanwhile says nothing about those in their place."""
    group = Group(1, 2, 3)
    group.hold(1)

    def send(term: int, prev: tuple[int, int], *entries: Entry) -> None:
        group.step(
            Append(
                NodeId(2),
                NodeId(1),
                Term(term),
                LogIndex(prev[0]),
                Term(prev[1]),
                entries,
                LogIndex(0),
            )
        )

    send(1, (0, 0), entry(1, 1), entry(2, 1), entry(3, 1))
    send(2, (1, 1), entry(2, 2))
    group.save(1, 1)
    assert group[1].log.saved < 2
    group.save(1, 1)
    assert group[1].log.saved == 2
    assert [one.term for one in group.servers[1].image.entries] == [1, 2]


def test_a_crash_between_two_saves_leaves_the_first() -> None:
    group = Group(1, 2, 3)
    group.elect(1)
    group.hold(2)
    group.propose(1, b"a")
    group.deliver(Append, target=2)
    group.propose(1, b"b")
    group.deliver(Append, target=2)
    group.save(2, 1)
    group.crash(2)
    group.start(2)
    assert group[2].log.last_index == 2
    group.run(300)
    assert group.servers[2].commands == [b"a", b"b"]


def test_a_commit_index_alone_is_rarely_saved() -> None:
    """It is a hint, and rides along with entries."""
    group = Group(1, 2, 3)
    group.elect(1)
    group.propose(1, b"x")
    group.settle()
    group.pass_time(100, 1)
    group.settle()
    assert group[2].log.committed == 2
    assert group.servers[2].image.hard.committed == 1
    group.propose(1, b"y")
    group.settle()
    assert group.servers[2].image.hard.committed == 2


def test_a_save_of_the_commit_index_needs_no_sync() -> None:
    group = Group(1, 2, 3, terms={1: [1] * 2_000})
    group[1].step(
        Append(NodeId(2), NodeId(1), Term(1), LogIndex(2_000), Term(1), (), LogIndex(1_999)), 0
    )
    save = group[1].ready().save
    assert save is not None
    assert (save.synced, save.hard) == (False, group[1].state.hard)


def test_a_new_vote_is_synced() -> None:
    group = Group(1, 2, 3)
    group[1].step(Vote(NodeId(2), NodeId(1), Term(1), LogIndex(0), Term(0)), 0)
    ready = group[1].ready()
    assert ready.save is not None
    assert ready.save.synced
    assert (ready.now, len(ready.after)) == ((), 1)


def test_what_is_handed_out_to_apply_is_bounded() -> None:
    config = msgspec.structs.replace(CONFIG, apply_bytes_max=200)
    group = Group(1, 2, 3, terms={1: [1] * 10}, config=config)
    raft = group[1]
    raft.step(Append(NodeId(2), NodeId(1), Term(1), LogIndex(10), Term(1), (), LogIndex(10)), 0)
    sizes = []
    while found := raft.ready().committed:
        sizes.append(len(found))
        raft.applied(found[-1].index)
    assert sizes == [3, 3, 3, 1]


class BadDisk:
    """Entries cannot be read back."""

    def read(self, start: LogIndex, stop: LogIndex, bytes_max: int) -> Sequence[Entry]:
        raise FsError(Fault.CORRUPT, f"entry {start}")


def test_entries_that_cannot_be_read_cost_no_other_promise() -> None:
    """`ready` fails when what is committed cannot be read back.  Who calls it again must still be
    told to save what comes before the messages that promise it.
    """
    group = Group(1, 2, 3, terms={1: [1, 1]})
    raft = group[1]
    group.step(Append(NodeId(2), NodeId(1), Term(1), LogIndex(2), Term(1), (), LogIndex(1)))
    group.drop()
    good = raft.log._reader
    raft.log._reader = BadDisk()
    raft.step(
        Append(NodeId(2), NodeId(1), Term(1), LogIndex(2), Term(1), (entry(3, 1),), LogIndex(2)), 0
    )
    with pytest.raises(FsError):
        raft.ready()
    raft.log._reader = good
    ready = raft.ready()
    assert ready.save is not None
    assert [one.index for one in ready.save.entries] == [3]
    assert [type(one) for one in ready.after] == [AppendReply]


@pytest.mark.parametrize(
    "message",
    [
        TimeoutNow(NodeId(2), NodeId(1), Term(1)),
        HeartbeatReply(NodeId(2), NodeId(1), Term(1), 9),
        AppendReply(NodeId(2), NodeId(1), Term(1), LogIndex(9)),
        VoteReply(NodeId(2), NodeId(1), Term(1), True),
        ReadIndexReply(NodeId(2), NodeId(1), Term(1), 9, LogIndex(9)),
    ],
    ids=lambda message: type(message).__name__,
)
@pytest.mark.parametrize("node", [1, 2])
def test_messages_of_an_earlier_term_do_nothing(message: object, node: int) -> None:
    """Paper 5.1, for answers too.  1 leads in term 3, 2 follows."""
    group = Group(1, 2, 3, terms={one: [2] for one in (1, 2, 3)})
    group.elect(1)
    group.run(200)
    raft = group[node]
    before = (raft.role, raft.term, raft.log.committed, raft.state.hard)
    message = msgspec.structs.replace(message, source=NodeId(3), target=raft.node)
    raft.step(message, group.now)
    assert (raft.role, raft.term, raft.log.committed, raft.state.hard) == before
    assert not has_work(raft.ready())


def test_a_message_to_oneself_does_nothing() -> None:
    group = Group(1, 2, 3)
    group[1].step(Vote(NodeId(1), NodeId(1), Term(9), LogIndex(9), Term(9)), 0)
    assert (group[1].term, has_work(group[1].ready())) == (0, False)


def test_the_clock_does_not_go_back() -> None:
    group = Group(1, 2, 3)
    group[1].tick(500)
    group[1].tick(100)
    assert group[1].state.now == 500


def test_a_server_says_when_it_wants_to_be_woken() -> None:
    """Never at once again: that would be a busy loop."""
    awake = msgspec.structs.replace(CONFIG, rest_ms=0)
    group = Group(1, 2, 3, learners=[4], config=awake)
    for _ in range(100):
        group.now = min(group[node].wakes_at for node in group.servers)
        for node in group.servers:
            group.tick(node)
            assert group[node].wakes_at > group.now
        group.settle()
    assert group.leader != 0
