"""The simulation finds mistakes: each of these breaks one rule on purpose, and is caught.

Mistakes that chance would take hours to meet (a commit of an earlier term by counting, figure 8; a
vote that is forgotten in a crash; an election during a lease; an old snapshot) are made on purpose
against the rule tests in `tests/raft` instead.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from mountfs.errors import Fault, FsError
from mountfs.meta import keys, state_machine
from mountfs.meta.ops import session
from mountfs.meta.ops.make import Make
from mountfs.meta.protocol import Method, Propose, decode_propose, encode
from mountfs.meta.retry import Session, Verdict, judge
from mountfs.meta.session_watch import SessionWatch
from mountfs.meta.state_machine import StateMachine
from mountfs.raft import core, election, membership, quorum, reads, replication, rest
from mountfs.raft.log import Log
from mountfs.raft.messages import Membership, Vote, VoteReply
from mountfs.raft.state import State
from mountfs.sim import transfer
from mountfs.sim.checks import Broken
from mountfs.sim.disk import Disk
from mountfs.sim.metaserver import MetaServer
from mountfs.sim.mount import Mount
from mountfs.sim.register import Registers
from mountfs.sim.scenario import run
from mountfs.sim.server import GONE
from mountfs.sim.world import MS
from mountfs.types import LogIndex

Patch = pytest.MonkeyPatch


def votes_twice_in_a_term(patch: Patch) -> None:
    """Paper 5.2: first come, first served."""

    def on_vote(state: State, message: Vote) -> None:
        granted = state.log.is_behind(message.last_index, message.last_term)
        term = message.term if granted else state.term
        state.send(VoteReply(state.node, message.source, term, granted, message.pre))

    patch.setattr(election, "on_vote", on_vote)


def votes_for_a_log_that_lacks_entries(patch: Patch) -> None:
    """Paper 5.4.1."""
    patch.setattr(Log, "is_behind", lambda self, index, term: True)


def answers_before_the_disk_has_it(patch: Patch) -> None:
    """Paper figure 2: respond after stable storage was updated."""
    patch.setattr(core, "_PROMISES", ())


def counts_its_own_unsaved_entries(patch: Patch) -> None:
    """Thesis 10.2.1: the leader may write in parallel, but counts itself only afterwards."""

    def commit(state: State) -> None:
        log, peers = state.log, state.peers
        index = quorum.agreed(
            state.membership,
            lambda node: log.last_index if node == state.node else peers[node].match,
            nothing=log.committed,
        )
        if log.term(index) == state.term:
            log.commit_to(index)

    def take_committed(self: Log, bytes_max: int) -> Any:
        saved, self.saved = self.saved, self.last_index
        try:
            return take(self, bytes_max)
        finally:
            self.saved = saved

    take = Log.take_committed
    patch.setattr(replication, "commit", commit)
    patch.setattr(Log, "take_committed", take_committed)


def commits_what_the_leader_says_it_has(patch: Patch) -> None:
    """Paper figure 2: min(leaderCommit, index of last new entry)."""
    on_append = replication.on_append

    def appended(state: State, message: Any) -> None:
        on_append(state, message)
        state.log.commit_to(min(message.committed, state.log.last_index))

    patch.setattr(replication, "on_append", appended)


def cuts_what_does_not_conflict(patch: Patch) -> None:
    """Paper 5.3: only conflicting entries are deleted; messages may be overtaken."""
    take = Log.take

    def taken(self: Log, prev_index: Any, prev_term: Any, entries: Any) -> Any:
        new = self.matches(prev_index, prev_term) and prev_index >= self.committed
        if new and self.last_index > prev_index + len(entries):
            self._cut(prev_index + 1)
        return take(self, prev_index, prev_term, entries)

    patch.setattr(Log, "take", taken)


def changes_voters_without_a_joint_membership(patch: Patch) -> None:
    """Paper 6: two majorities that share nobody."""
    enter = membership._enter

    def entered(state: State, new: Membership) -> None:
        enter(state, Membership(new.voters, (), new.learners))

    patch.setattr(membership, "_enter", entered)


def counts_only_the_new_voters_of_a_joint_membership(patch: Patch) -> None:
    """Paper 6: agreement needs a majority of both."""
    patch.setattr(Membership, "is_joint", property(lambda self: False))
    agreed, vote = quorum.agreed, quorum.election

    def new_only(found: Membership) -> Membership:
        return Membership(found.voters, (), found.learners)

    patch.setattr(
        quorum, "agreed", lambda m, value, nothing: agreed(new_only(m), value, nothing=nothing)
    )
    patch.setattr(quorum, "election", lambda m, votes: vote(new_only(m), votes))


def answers_reads_without_asking_anybody(patch: Patch) -> None:
    """Thesis 6.4: a leader may have been replaced without knowing it."""
    patch.setattr(State, "is_alone", property(lambda self: True))


def reads_before_it_has_committed_in_its_term(patch: Patch) -> None:
    """Paper 8: a new leader does not know yet what is committed."""
    patch.setattr(State, "proven", property(lambda self: True))


def believes_in_its_lease_for_ever(patch: Patch) -> None:
    """Thesis 6.4.1."""
    has_lease = reads.has_lease

    def believes(state: State) -> bool:
        now, state.now = state.now, 0
        try:
            return has_lease(state)
        finally:
            state.now = now

    patch.setattr(reads, "has_lease", believes)


def takes_resting_for_leading(patch: Patch) -> None:
    """A leader that rests may have been replaced (mountfs/raft/rest.py)."""
    has_lease = reads.has_lease
    wake = rest.wake

    def waked(state: State) -> None:
        if not (state.resting and state.is_leader):
            wake(state)

    patch.setattr(reads, "has_lease", lambda state: state.resting or has_lease(state))
    patch.setattr(rest, "wake", waked)


def keeps_its_lease_after_calling_an_election(patch: Patch) -> None:
    """Thesis 6.4.2."""
    call = replication.call_election

    def called(state: State, peer: Any) -> None:
        call(state, peer)
        state.leased = True

    patch.setattr(replication, "call_election", called)


def acts_twice_on_a_command_that_came_twice(patch: Patch) -> None:
    """Thesis 6.3."""
    apply = Registers.apply

    def applied(self: Registers, entry: Any) -> Any:
        self.last.clear()
        return apply(self, entry)

    patch.setattr(Registers, "apply", applied)


def replies_before_it_is_committed(patch: Patch) -> None:
    """Paper 5.3: the leader answers once a majority has the entry."""

    def take(self: Log, bytes_max: int) -> Any:
        if self.saved <= self.applying:
            return ()
        first = LogIndex(self.applying + 1)
        found = self.entries(first, LogIndex(self.saved + 1), bytes_max, self.saved)
        self.applying = found[-1].index
        return found

    patch.setattr(Log, "take_committed", take)


# -- mistakes of the metadata, its sessions and its clients


def forgets_replies_when_it_starts(patch: Patch) -> None:
    """Thesis 6.3: the replies are a part of the state, also of the stored one."""
    load = state_machine._load_replies

    def loaded(stored: bytes) -> Any:
        found = load(stored)
        found.kept.clear()
        return found

    patch.setattr(state_machine, "_load_replies", loaded)


def forgets_a_session_when_it_starts(patch: Patch) -> None:
    init = StateMachine.__init__

    def started(self: StateMachine, rows: Any) -> None:
        init(self, rows)
        if self._sessions:
            del self._sessions[max(self._sessions)]

    patch.setattr(StateMachine, "__init__", started)


def sends_snapshots_without_the_sessions(patch: Patch) -> None:
    piece = transfer.Source.piece
    first, last = keys.sessions()

    def without(self: Any, after: bytes) -> Any:
        rows = piece(self, after)
        left = [row for row in rows if not first <= row[0] < last]
        return left if left or not rows else without(self, rows[-1][0])

    patch.setattr(transfer.Source, "piece", without)


def leaves_out_a_row_when_a_transfer_goes_on(patch: Patch) -> None:
    passes = transfer._Transfer._passes

    def passed(self: Any) -> bool:
        ok = passes(self)
        if not ok and self._last_key:
            following = self._source.piece(self._last_key)
            self._last_key = following[0][0] if following else self._last_key
        return ok

    patch.setattr(transfer._Transfer, "_passes", passed)


def counts_a_torn_checkpoint_as_whole(patch: Patch) -> None:
    opened = Disk.open

    def whole(self: Disk) -> None:
        if self._torn is not None:
            self._torn = (self._torn[0], True)
        opened(self)

    patch.setattr(Disk, "open", whole)


def takes_damaged_entries_for_sound_ones(patch: Patch) -> None:
    def flip(self: Disk, start: int, stop: int) -> None:
        for index in self._damaged:
            if start <= index < stop and self.seen.base.index < index <= self.seen.last_index:
                at = index - self.seen.base.index - 1
                entry = self.seen.entries[at]
                self.seen.entries[at] = msgspec.structs.replace(entry, data=entry.data[:-1] + b"?")

    patch.setattr(Disk, "_verify", flip)


def promises_what_there_is_no_room_for(patch: Patch) -> None:
    save = Disk.save

    def saved(self: Disk, what: Any, written: Callable[[], None]) -> None:
        if self.full and what is not None:
            self.seen.write(what, len(what.entries))
            written()
        else:
            save(self, what, written)

    patch.setattr(Disk, "save", saved)


def asks_again_with_a_new_sequence(patch: Patch) -> None:
    """Thesis 6.3: the same number is what makes it the same command."""

    def propose(self: Any, session: Any, number: int, op: Any) -> None:
        if session.ended is not None:
            return
        sequence, answered = session.begin()
        self._promises.sent(number, session.number, sequence)
        body = encode(Propose(session.number, sequence, answered, op.asks))
        waits = True

        def done(answer: Any) -> None:
            nonlocal waits
            if not waits:
                return
            waits = False
            session.done(sequence)
            if not isinstance(answer, FsError) or judge(answer.fault) is Verdict.ANSWER:
                self._promises.acknowledged(session.number, sequence, answer)
                self._done(session, number, op, answer)
                return
            self._find(lambda leader: setattr(self._route, "leader", leader))
            self._world.after(100 * MS, lambda: propose(self, session, number, op))

        leader = self._route.leader or 1
        self._doors.call(self.number, leader, Method.PROPOSE, body, done)
        self._world.after(self._attempt_us, lambda: done(GONE))

    patch.setattr(Mount, "_propose", propose)


def says_too_early_that_replies_have_arrived(patch: Patch) -> None:
    """Those to earlier commands may still be on their way."""
    begin = Session.begin

    def began(self: Session) -> tuple[int, int]:
        sequence, _ = begin(self)
        return sequence, sequence

    patch.setattr(Session, "begin", began)


def ends_sessions_that_another_leader_has_heard(patch: Patch) -> None:
    """Who only just leads knows nothing of what others have heard."""

    def began(self: SessionWatch, sessions: Any, now: float) -> None:
        self._heard = dict.fromkeys(sessions, 0) | self._heard

    patch.setattr(SessionWatch, "began_to_lead", began)


def takes_a_session_that_it_does_not_know_yet_for_ended(patch: Patch) -> None:
    """A new leader may not have applied what began it."""
    propose = MetaServer._propose

    def proposed(self: MetaServer, body: bytes, answer: Any) -> None:
        if decode_propose(body).session not in self.machine.sessions:
            self.server.raft.state.require_leader()
            raise FsError(Fault.SESSION_ENDED, "it is not here")
        propose(self, body, answer)

    patch.setattr(MetaServer, "_propose", proposed)


def keeps_the_locks_of_a_session_that_ends(patch: Patch) -> None:
    patch.setattr(session, "drop_session", lambda tree, number: None)


def opens_a_file_that_must_not_be_there(patch: Patch) -> None:
    """open(2): O_EXCL."""
    apply = Make.apply

    def applied(self: Make, tree: Any, stamp: Any) -> Any:
        return apply(msgspec.structs.replace(self, exclusive=False), tree, stamp)

    patch.setattr(Make, "apply", applied)


ASSERTION = "an assertion of the product"

MUTATIONS: list[tuple[Callable[[Patch], None], str, range, str]] = [
    (votes_twice_in_a_term, "votes", range(60), "election safety"),
    (votes_for_a_log_that_lacks_entries, "votes", range(60), "leader completeness"),
    (answers_before_the_disk_has_it, "any", range(80), "leader completeness"),
    (counts_its_own_unsaved_entries, "any", range(100), "leader completeness"),
    (commits_what_the_leader_says_it_has, "any", range(80), "state machine safety"),
    (cuts_what_does_not_conflict, "any", range(60), "leader completeness"),
    (changes_voters_without_a_joint_membership, "membership", range(100), "leader completeness"),
    (
        counts_only_the_new_voters_of_a_joint_membership,
        "membership",
        range(70, 170),
        "leader completeness",
    ),
    (answers_reads_without_asking_anybody, "reads", range(60), "linearizability"),
    (reads_before_it_has_committed_in_its_term, "leaders", range(80), "linearizability"),
    (believes_in_its_lease_for_ever, "reads", range(80), "linearizability"),
    (keeps_its_lease_after_calling_an_election, "reads", range(80), "linearizability"),
    (takes_resting_for_leading, "reads", range(30, 90), "linearizability"),
    (acts_twice_on_a_command_that_came_twice, "any", range(60), "linearizability"),
    (replies_before_it_is_committed, "files", range(60), "leader completeness"),
    (forgets_replies_when_it_starts, "files", range(60), "exactly once"),
    (forgets_a_session_when_it_starts, "disks", range(60), "state machine safety"),
    (sends_snapshots_without_the_sessions, "snapshots", range(60), "state machine safety"),
    (leaves_out_a_row_when_a_transfer_goes_on, "snapshots", range(60), "state machine safety"),
    (counts_a_torn_checkpoint_as_whole, "disks", range(60), ASSERTION),  # accounts below 0
    (takes_damaged_entries_for_sound_ones, "disks", range(60), "log matching"),
    (promises_what_there_is_no_room_for, "disks", range(100), "leader completeness"),
    (asks_again_with_a_new_sequence, "files", range(60), "exactly once"),
    (says_too_early_that_replies_have_arrived, "files", range(60), "exactly once"),
    (ends_sessions_that_another_leader_has_heard, "sessions", range(60), "sessions"),
    (takes_a_session_that_it_does_not_know_yet_for_ended, "sessions", range(60), "sessions"),
    (keeps_the_locks_of_a_session_that_ends, "sessions", range(60), "invariants"),
    (opens_a_file_that_must_not_be_there, "files", range(60), "linearizability"),
]
"""What is broken, the kind of run that looks for it, the seeds that it may take, and which check
finds it (others may find it in other seeds).
"""


@pytest.mark.timeout(900)  # of a machine that has much else to do
@pytest.mark.parametrize(("mutation", "kind", "seeds", "rule"), MUTATIONS)
def test_a_mistake_is_found(
    mutation: Callable[[Patch], None],
    kind: str,
    seeds: range,
    rule: str,
    monkeypatch: Patch,
) -> None:
    mutation(monkeypatch)
    found: set[str] = set()
    for seed in seeds:
        try:
            run(seed, seconds=10, kind=kind).run()
        except Broken as broken:
            found.add(broken.rule)
            if broken.rule == rule:
                return
        except AssertionError:
            found.add(ASSERTION)
            if rule == ASSERTION:
                return
    pytest.fail(f"{rule} was not broken in {len(seeds)} runs; broken: {found or 'nothing'}")
