"""Nodes in one process: what they answer and write, and what they do when something breaks."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from driven import CONFIG, END_S, ONE, Answers, Commands, Here, a_cluster

from mountfs.errors import Fault, FsError
from mountfs.kv.journal import Journal
from mountfs.raft import driver
from mountfs.raft.driver import Node
from mountfs.raft.envelope import seal
from mountfs.raft.log_record import GroupId
from mountfs.raft.messages import (
    Append,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    InstallSnapshot,
    NodeId,
    SnapshotHead,
    Term,
)
from mountfs.raft.storage import Storage
from mountfs.types import KIB, LogIndex

MANY = [GroupId(number) for number in range(1, 101)]
NO_ROOM = FsError(Fault.NO_SPACE, "the disk is full")
BROKEN = FsError(Fault.DEVICE, "the disk is broken")


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncs happen in place: the clock would jump while a thread is at it."""
    monkeypatch.setattr(driver, "QUICK_SYNC_S", float("inf"))


def fault_of(answer: object) -> Fault | None:
    return answer.fault if isinstance(answer, FsError) else None


def same(lists: list[list[bytes]]) -> bool:
    return all(one == lists[0] for one in lists)


# -- proposals


async def test_each_proposal_is_answered_once_with_what_it_did(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with a_cluster(tmp_path) as cluster:
        leader = await cluster.leader()
        answers = Answers()
        for number in range(50):
            leader[ONE].propose(b"%d" % number, answers.of(number), subject=number)
        await cluster.until(lambda: len(answers.got) == 50)
        assert answers.got == {number: number for number in range(50)}
        assert await cluster.agree() == [b"%d" % number for number in range(50)]
        assert leader.machine().subjects == list(range(50))
        assert not leader[ONE].waiting


async def test_who_does_not_lead_refuses_and_says_who_does(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with a_cluster(tmp_path) as cluster:
        leader = await cluster.leader()
        await cluster.agree()
        other = cluster[leader.node.number % 3 + 1]
        with pytest.raises(FsError, match=f"node {leader.node.number} leads") as caught:
            await other[ONE].wait_propose(b"x")
        assert caught.value.fault is Fault.NOT_LEADER


async def test_one_sync_serves_all_proposals_that_wait(tmp_path: Path, autojump_clock: Any) -> None:
    async with a_cluster(tmp_path) as cluster:
        leader = await cluster.leader()
        await cluster.agree()
        answers = Answers()
        before = leader.node.figures.sync_s.count
        for number in range(500):
            leader[ONE].propose(b"x", answers.of(number))
        await cluster.until(lambda: len(answers.got) == 500)
        assert leader.node.figures.sync_s.count - before <= 2


async def test_a_hundred_groups_share_journal_syncs_and_envelopes(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with a_cluster(tmp_path, groups=MANY) as cluster:
        for group in MANY:
            await cluster.lead(1, group)
        for group in MANY:
            await cluster.agree(group)
        one = cluster[1]
        answers = Answers()
        syncs, sent = one.node.figures.sync_s.count, cluster.posted[1, 2]
        for group in MANY:
            one[group].propose(b"%d" % group, answers.of(group))
        await cluster.until(lambda: len(answers.got) == 100)
        assert answers.got == dict.fromkeys(MANY, 0)
        assert one.node.figures.sync_s.count - syncs <= 3
        assert cluster.posted[1, 2] - sent <= 6  # not one for each group
        for group in MANY:
            assert await cluster.agree(group) == [b"%d" % group]


async def test_what_was_proposed_to_a_leader_that_is_cut_off_is_refused_once(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with a_cluster(tmp_path) as cluster:
        old = await cluster.leader()
        await cluster.agree()
        cluster.isolate(old.node.number)
        answers = Answers()
        old[ONE].propose(b"lost", answers.of("lost"))
        old[ONE].read(answers.of("read"))  # before the lease ends: a lease answers it
        new = await cluster.leader(other_than=old.node.number)
        assert await new[ONE].wait_propose(b"kept") == 0
        await cluster.until(lambda: not old[ONE].is_leader)
        assert fault_of(answers.got["lost"]) is Fault.NOT_LEADER
        assert "read" in answers.got
        cluster.heal()
        assert await cluster.agree() == [b"kept"]
        assert not old[ONE].waiting and not old[ONE].readers


async def test_who_waits_may_be_cancelled(tmp_path: Path, autojump_clock: Any) -> None:
    async with a_cluster(tmp_path) as cluster:
        leader = await cluster.leader()
        await cluster.agree()
        cluster.isolate(leader.node.number)
        for wait in (lambda: leader[ONE].wait_propose(b"x"), leader[ONE].wait_read):
            with trio.move_on_after(0.01):
                await wait()
        cluster.heal()
        await leader[ONE].wait_propose(b"y")
        assert await cluster.agree() == [b"x", b"y"]
        assert not leader[ONE].readers


# -- reads


async def test_a_read_waits_until_the_state_is_new_enough(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with a_cluster(tmp_path) as cluster:
        leader = await cluster.leader()
        other = cluster[leader.node.number % 3 + 1]
        await cluster.agree()
        await leader[ONE].wait_propose(b"x")
        with trio.fail_after(END_S):
            await other[ONE].wait_read()
        assert other.machine().commands == [b"x"]


async def test_readers_are_refused_when_leadership_is_lost(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with a_cluster(tmp_path) as cluster:
        leader = await cluster.leader()
        await cluster.agree()
        cluster.isolate(leader.node.number)
        await trio.sleep(CONFIG.election_ms / 1000 * 0.95)  # the lease is over, but it still leads
        assert leader[ONE].is_leader and not leader[ONE].read_now()
        answers = Answers()
        leader[ONE].read(answers.of("read"))
        await cluster.until(lambda: answers.got)
        assert fault_of(answers.got["read"]) is Fault.NOT_LEADER
        assert not leader[ONE].readers and not leader[ONE].readable


async def test_a_read_of_a_follower_that_gets_no_answer_is_refused(
    tmp_path: Path, autojump_clock: Any
) -> None:
    """The question may be lost, or the answer: nobody must wait for it for ever."""
    async with a_cluster(tmp_path) as cluster:
        leader = await cluster.leader()
        other = cluster[leader.node.number % 3 + 1]
        await cluster.agree()
        cluster.cut.add((other.node.number, leader.node.number))
        with trio.fail_after(END_S), pytest.raises(FsError) as caught:
            await other[ONE].wait_read()
        assert caught.value.fault in (Fault.NOT_LEADER, Fault.UNAVAILABLE)
        assert not other[ONE].readers


# -- disks


async def test_a_full_disk_gives_leadership_away_and_goes_on_when_there_is_room(
    tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_cluster(tmp_path) as cluster:
        full = await cluster.leader()
        await cluster.agree()
        for number in range(5):
            await full[ONE].wait_propose(b"%d" % number)
        append = full.journal.append
        monkeypatch.setattr(full.journal, "append", raising(NO_ROOM))
        answers = Answers()
        full[ONE].propose(b"5", answers.of(5))
        new = await cluster.leader(other_than=full.node.number)
        for number in range(6, 30):
            await new[ONE].wait_propose(b"%d" % number)
        await cluster.until(lambda: answers.got)
        assert full.node.full is not None
        assert full.machine().commands == [b"%d" % number for number in range(5)]
        monkeypatch.setattr(full.journal, "append", append)
        assert await cluster.agree() == [b"%d" % number for number in range(30)]
        assert full.node.full is None and not full.node._unsaved
        await cluster.crash(full.node.number)  # and it is in this order on the disk
        again = cluster.start(full.node.number)
        assert await cluster.agree() == [b"%d" % number for number in range(30)]
        assert again.node.number == full.node.number


async def test_a_disk_that_has_no_room_for_the_last_entry_keeps_the_order(
    tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Now and then there is room, but not for all."""
    async with a_cluster(tmp_path, 1) as cluster:
        one = await cluster.leader()
        append, tried = one.journal.append, 0

        def sometimes(index: int, record: bytes) -> None:
            nonlocal tried
            tried += 1
            if tried % 3:
                raise NO_ROOM
            append(index, record)

        monkeypatch.setattr(one.journal, "append", sometimes)
        answers = Answers()
        for number in range(10):
            one[ONE].propose(b"%d" % number, answers.of(number))
            await trio.sleep(0.01)
        await cluster.until(lambda: len(answers.got) == 10)
        assert answers.got == {number: number for number in range(10)}


async def test_a_disk_that_fails_ends_the_node_and_the_others_go_on(
    tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_cluster(tmp_path) as cluster:
        for what in ("append", "sync"):
            broken = await cluster.leader()
            await cluster.agree()
            monkeypatch.setattr(broken.journal, what, raising(BROKEN))
            broken[ONE].propose(b"x", lambda answer: None)
            with trio.fail_after(END_S):
                await broken.ended.wait()
            assert isinstance(broken.error, BaseExceptionGroup)
            assert broken.error.exceptions == (BROKEN,)
            new = await cluster.leader(other_than=broken.node.number)
            await new[ONE].wait_propose(b"y")
            await cluster.crash(broken.node.number)
            cluster.start(broken.node.number)


async def test_a_disk_that_hangs_loses_leadership_and_answers_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "QUICK_SYNC_S", 0.0)  # all syncs in a thread
    async with a_cluster(tmp_path) as cluster:
        slow = await cluster.leader()
        await cluster.agree()
        go_on = threading.Event()
        sync = slow.journal.sync

        def hang() -> int:
            go_on.wait(END_S)
            return sync()

        monkeypatch.setattr(slow.journal, "sync", hang)
        try:
            answers = Answers()
            slow[ONE].propose(b"x", answers.of("x"))
            new = await cluster.leader(other_than=slow.node.number)
            await new[ONE].wait_propose(b"y")
            await cluster.until(lambda: answers.got)
            assert not slow[ONE].is_leader
        finally:
            go_on.set()
        assert await cluster.agree() == [b"x", b"y"]


async def test_what_needs_no_sync_does_not_keep_what_came_before_it_from_the_disk(
    tmp_path: Path, autojump_clock: Any
) -> None:
    """Of a hint how far the log is committed nobody waits for the sync; but what is in front of it
    in the queue does wait.
    """
    groups = [GroupId(1), GroupId(2)]
    async with a_cluster(tmp_path, groups=groups) as cluster:
        for group in groups:
            await cluster.lead(1, group)
            await cluster.agree(group)
        follower = cluster[2]
        cluster.isolate(2)
        term = follower[groups[1]].raft.term
        last = follower[groups[1]].raft.log.last_index
        many = [entry(last + at, term) for at in range(1, 2_001)]
        before = follower[groups[1]].raft.log.committed
        follower.node.received(NodeId(1), [seal([(groups[1], append(last, term, many, before))])])
        await trio.sleep(0.02)
        assert follower.journal.synced_index == follower.journal.last_index
        terms = [follower[group].raft.term for group in groups]
        last_of_1 = follower[groups[0]].raft.log.last_index
        one_more = append(last_of_1, terms[0], [entry(last_of_1 + 1, terms[0])], last_of_1)
        commit = Heartbeat(NodeId(1), NodeId(2), terms[1], LogIndex(last + 2_000), 1)
        follower.node.received(NodeId(1), [seal([(groups[0], one_more), (groups[1], commit)])])
        await trio.sleep(0.02)
        assert follower[groups[1]].machine.applied == last + 2_000
        assert follower.journal.synced_index >= follower.journal.last_index - 1
        assert follower[groups[0]].raft.log.saved == last_of_1 + 1


# -- machines


async def test_a_server_whose_copy_is_damaged_answers_nobody_and_others_go_on(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with a_cluster(tmp_path) as cluster:
        damaged = await cluster.leader()
        await cluster.agree()
        damaged.machine().failure = FsError(Fault.CORRUPT, "a table is damaged")
        answers = Answers()
        damaged[ONE].propose(b"x", answers.of("x"))
        damaged[ONE].propose(b"y", answers.of("y"))
        await cluster.until(lambda: damaged[ONE].failure)
        damaged[ONE].propose(b"z", answers.of("z"))
        damaged[ONE].read(answers.of("read"))
        assert not damaged[ONE].read_now()
        assert not damaged[ONE].is_leader
        await cluster.until(lambda: len(answers.got) == 4)
        assert {fault_of(answer) for answer in answers.got.values()} == {Fault.NOT_LEADER}
        new = await cluster.leader(other_than=damaged.node.number)
        assert await new[ONE].wait_propose(b"last") >= 1
        assert new.machine().commands in ([b"x", b"last"], [b"x", b"y", b"last"])
        assert not damaged[ONE].queue and not damaged[ONE].readers


async def test_a_group_that_is_stopped_answers_who_waits_and_writes_no_more(
    tmp_path: Path, autojump_clock: Any
) -> None:
    groups = [GroupId(1), GroupId(2)]
    async with a_cluster(tmp_path, groups=groups) as cluster:
        leader = await cluster.leader()
        await cluster.agree()
        stopped = leader[ONE]
        answers = Answers()
        stopped.propose(b"x", answers.of("x"))
        leader.node.stop(ONE)
        leader.node.storage.forget(ONE)
        stopped.propose(b"y", answers.of("y"))
        stopped.read(answers.of("read"))
        await cluster.until(lambda: len(answers.got) == 3)
        assert {fault_of(answer) for answer in answers.got.values()} == {Fault.NOT_LEADER}
        await trio.sleep(1)
        assert not leader.ended.is_set()
        assert (await cluster.leader(groups[1])) is not None


# -- bounds


async def test_a_command_that_fits_into_no_record_is_refused(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with a_cluster(tmp_path) as cluster:
        leader = await cluster.leader()
        with pytest.raises(FsError) as caught:
            await leader[ONE].wait_propose(bytes(leader.journal.record_bytes_max))
        assert caught.value.fault is Fault.TOO_BIG
        assert await leader[ONE].wait_propose(b"x") == 0
        assert await cluster.agree() == [b"x"]


async def test_what_waits_for_a_majority_has_a_bound(tmp_path: Path, autojump_clock: Any) -> None:
    async with a_cluster(tmp_path) as cluster:
        leader = await cluster.leader()
        await cluster.agree()
        cluster.isolate(leader.node.number)
        answers = Answers()
        for number in range(1_000):
            leader[ONE].propose(bytes(100 * KIB), answers.of(number))
            if number % 10 == 0:
                await trio.lowlevel.checkpoint()
        await cluster.until(lambda: len(answers.got) >= 300)
        assert {fault_of(answer) for answer in answers.got.values()} <= {
            Fault.UNAVAILABLE, Fault.NOT_LEADER,
        }  # fmt: skip
        assert leader[ONE].raft.state.uncommitted_bytes <= CONFIG.uncommitted_bytes_max


# -- messages


async def test_messages_from_somebody_else_or_for_somebody_else_are_not_heard(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with a_cluster(tmp_path) as cluster:
        leader = await cluster.leader()
        await cluster.agree()
        number = leader.node.number
        liar, other = (node for node in (1, 2, 3) if node != number)
        term = Term(leader[ONE].raft.term + 100)
        group = leader[ONE]
        for source, target in ((other, number), (liar, other)):
            message = Heartbeat(NodeId(source), NodeId(target), term, LogIndex(0), 1)
            leader.node.received(NodeId(liar), [seal([(ONE, message)])])
        stranger = Heartbeat(NodeId(liar), NodeId(number), term, LogIndex(0), 1)
        leader.node.received(NodeId(liar), [seal([(GroupId(99), stranger)])])
        head = SnapshotHead(LogIndex(10_000), term, cluster.membership)
        snapshot = InstallSnapshot(NodeId(liar), NodeId(number), term, head)
        leader.node.received(NodeId(liar), [seal([(ONE, snapshot)])])
        await trio.sleep(0.1)
        assert group.is_leader and group.raft.term < term


async def test_what_is_no_envelope_is_refused(tmp_path: Path, autojump_clock: Any) -> None:
    async with a_cluster(tmp_path, 1) as cluster:
        one = await cluster.leader()
        for body in (b"", b"\xff", b"GET / HTTP/1.1\r\n", seal([])[:-1]):
            with pytest.raises(FsError) as caught:
                one.node.received(NodeId(2), [body])
            assert caught.value.fault is Fault.INVALID


# -- snapshots


async def test_a_snapshot_takes_the_place_of_state_and_log(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with a_cluster(tmp_path) as cluster:
        leader = await cluster.leader()
        await cluster.agree()
        behind = cluster[leader.node.number % 3 + 1]
        cluster.isolate(behind.node.number)
        wanted: list[NodeId] = []
        leader.node.on_snapshot_wanted = lambda group, node: wanted.append(node)
        for number in range(20):
            await leader[ONE].wait_propose(b"%d" % number)
        applied = leader.machine().applied
        leader.node.storage.compact(ONE, leader[ONE].raft.log.head_at(applied))
        leader[ONE].raft.compacted(applied)
        cluster.heal()
        await cluster.until(lambda: wanted)
        head = leader[ONE].raft.log.head_at(applied)
        behind.machine().snapshots[head.index] = list(leader.machine().commands)
        term = leader[ONE].raft.term
        me = behind.node.number
        behind.node.arrived(behind[ONE], InstallSnapshot(leader.node.number, me, term, head))
        leader[ONE].raft.snapshot_sent(me, whole=True, now=leader.node.now())
        await leader[ONE].wait_propose(b"after")
        assert await cluster.agree() == [*(b"%d" % number for number in range(20)), b"after"]
        assert behind.node.storage.groups[ONE].base == head


# -- crashes


async def test_a_node_that_crashes_goes_on_where_its_disk_is(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with a_cluster(tmp_path) as cluster:
        told: list[bytes] = []
        for turn in range(6):
            leader = await cluster.leader()
            for number in range(5):
                command = b"%d.%d" % (turn, number)
                await leader[ONE].wait_propose(command)
                told.append(command)
            victim = leader.node.number if turn % 2 else leader.node.number % 3 + 1
            await cluster.crash(victim)
            if turn % 3 == 0:
                await cluster.leader()
            cluster.start(victim)
        assert await cluster.agree() == told


async def test_all_nodes_crash_at_once_and_nothing_that_was_told_is_lost(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with a_cluster(tmp_path) as cluster:
        leader = await cluster.leader()
        told = [b"%d" % number for number in range(10)]
        for command in told:
            await leader[ONE].wait_propose(command)
        for number in (1, 2, 3):
            await cluster.crash(number)
        for number in (1, 2, 3):
            cluster.start(number)
        await cluster.leader()
        assert await cluster.agree() == told


async def test_the_log_is_a_good_one_at_every_moment(
    tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the directory after each write is what a crash leaves there: it opens, and terms,
    votes and what is committed only grow.
    """
    images: list[Path] = []
    (tmp_path / "images").mkdir()
    async with a_cluster(tmp_path) as cluster:
        leader = await cluster.leader()
        await cluster.agree()
        watched = cluster[leader.node.number % 3 + 1]
        write = watched.journal.append

        def append_and_copy(index: int, record: bytes) -> None:
            write(index, record)
            image = tmp_path / "images" / str(len(images))
            shutil.copytree(tmp_path / str(watched.node.number), image)
            images.append(image)

        monkeypatch.setattr(watched.journal, "append", append_and_copy)
        for turn in range(3):
            for number in range(3):
                await (await cluster.leader())[ONE].wait_propose(b"%d.%d" % (turn, number))
            here = await cluster.leader()
            await cluster.lead(here.node.number % 3 + 1)
        commands = await cluster.agree()
    assert len(images) > 10
    before = HardState()
    for image in images:
        journal = Journal(image, segment_bytes=256 * KIB, keep_spare=0)
        storage = Storage(journal)
        hard = storage.groups[ONE].hard
        assert (hard.term, hard.committed) >= (before.term, before.committed)
        if hard.term == before.term and before.vote:
            assert hard.vote == before.vote
        before = hard
        machine = Commands()
        node = Node(watched.node.number, storage, Silent(), CONFIG)
        group = node.start(ONE, machine)
        node._go_on()
        assert group.failure is None
        assert machine.commands == commands[: len(machine.commands)]
        journal.close()


class Silent:
    def send(self, node: NodeId, body: bytes) -> None:
        pass


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise error

    return fail


def entry(index: int, term: int, data: bytes = b"x") -> Entry:
    return Entry(LogIndex(index), Term(term), EntryKind.COMMAND, data)


def append(after: int, term: Term, entries: list[Entry], committed: int) -> Append:
    """From node 1 to node 2, behind an entry of the same term."""
    return Append(
        NodeId(1), NodeId(2), term, LogIndex(after), term, tuple(entries), LogIndex(committed)
    )


# -- logs that cannot be read back


def damage(here: Here) -> None:
    """Entries that are not in memory any more cannot be read."""

    def read(start: int, stop: int, bytes_max: int) -> list[Entry]:
        raise FsError(Fault.CORRUPT, f"entry {start} of the log is damaged")

    log: Any = here.node.storage.groups[ONE]
    log.read = read


UNCACHED = msgspec.structs.replace(CONFIG, cached_bytes_max=0)


async def test_a_leader_that_cannot_read_what_a_follower_lacks_is_replaced(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with a_cluster(tmp_path, config=UNCACHED) as cluster:
        damaged = await cluster.leader()
        await cluster.agree()
        behind = next(number for number in cluster.here if number != damaged.node.number)
        cluster.isolate(behind)
        for command in (b"a", b"b"):
            await damaged[ONE].wait_propose(command)
        damage(damaged)
        cluster.heal()
        await cluster.until(lambda: damaged[ONE].failure)
        new = await cluster.leader(other_than=damaged.node.number)
        assert await new[ONE].wait_propose(b"c") == 2
        await cluster.until(lambda: cluster[behind].machine().commands == [b"a", b"b", b"c"])


async def test_a_proposal_to_a_log_that_cannot_be_read_may_have_been_taken(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with a_cluster(tmp_path, config=UNCACHED) as cluster:
        damaged = await cluster.leader()
        await cluster.agree()
        damage(damaged)
        damaged[ONE].raft.state.peers[next(iter(damaged[ONE].raft.state.peers))].next = LogIndex(1)
        answers = Answers()
        damaged[ONE].propose(b"a", answers.of("a"))
        await cluster.until(lambda: answers.got)
        assert fault_of(answers.got["a"]) is Fault.NOT_LEADER  # to be asked again elsewhere
        assert damaged[ONE].failure is not None
