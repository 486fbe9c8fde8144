"""The simulation finds mistakes: each of these breaks one rule on purpose, and is caught."""

from collections.abc import Callable
from typing import Any

import pytest

from mountfs.raft import core, election, membership, quorum, reads, replication
from mountfs.raft.log import Log
from mountfs.raft.messages import EntryKind, Membership, Vote, VoteReply
from mountfs.raft.state import State
from mountfs.sim.checks import Broken
from mountfs.sim.register import Registers
from mountfs.sim.scenario import Run

Patch = pytest.MonkeyPatch
SEEDS = 400
"""So many runs are enough for each of them, with much to spare."""


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


def forgets_its_vote_in_a_crash(patch: Patch) -> None:
    """Paper figure 2: persistent state."""
    take_save = core.Raft._take_save

    def without_vote(self: core.Raft) -> core.Save | None:
        save = take_save(self)
        if save is None or save.hard is None:
            return save
        hard = core.HardState(save.hard.term, core.NOBODY, save.hard.committed)
        return core.Save(hard, save.entries, save.snapshot, save.synced, save.last_index, save.cuts)

    patch.setattr(core.Raft, "_take_save", without_vote)
    # A server that was just started votes for nobody, which would hide it.
    patch.setattr(election, "hears_a_leader", lambda state: False)


def answers_before_the_disk_has_it(patch: Patch) -> None:
    """Paper figure 2: respond after stable storage was updated."""
    patch.setattr(core, "_PROMISES", ())


def counts_its_own_unsaved_entries(patch: Patch) -> None:
    """Thesis 10.2.1: the leader may write in parallel, but counts itself only afterwards."""
    append = Log.append

    def appended(self: Log, entries: Any) -> None:
        append(self, entries)
        self.saved = self.last_index

    patch.setattr(Log, "append", appended)
    patch.setattr(Log, "saved_to", lambda self, index, cuts: None)


def commits_earlier_terms_by_counting(patch: Patch) -> None:
    """Paper 5.4.2, figure 8."""

    def commit(state: State) -> None:
        log, peers = state.log, state.peers
        state.log.commit_to(
            quorum.agreed(
                state.membership,
                lambda node: log.saved if node == state.node else peers[node].match,
                nothing=log.committed,
            )
        )

    patch.setattr(replication, "commit", commit)


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
        if self.matches(prev_index, prev_term) and prev_index >= self.committed:
            if self.last_index > prev_index + len(entries):
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


def elects_another_while_a_lease_runs(patch: Patch) -> None:
    """Thesis 4.2.3 and 6.4.1: who hears a leader does not vote."""
    patch.setattr(election, "hears_a_leader", lambda state: False)


def keeps_its_lease_after_calling_an_election(patch: Patch) -> None:
    """Thesis 6.4.2."""
    call = replication.call_election

    def called(state: State, peer: Any) -> None:
        call(state, peer)
        state.leased = True

    patch.setattr(replication, "call_election", called)


def takes_an_old_snapshot(patch: Patch) -> None:
    """Paper 7: what it has is newer."""

    def on_snapshot(state: State, message: Any) -> bool:
        log = state.log
        log.committed = min(log.committed, message.head.index - 1)
        log.restore(message.head)
        return True

    patch.setattr(replication, "on_snapshot", on_snapshot)


def acts_twice_on_a_command_that_came_twice(patch: Patch) -> None:
    """Thesis 6.3."""
    apply = Registers.apply

    def applied(self: Registers, entry: Any) -> Any:
        self.last.clear()
        return apply(self, entry)

    patch.setattr(Registers, "apply", applied)


MUTATIONS: list[tuple[Callable[[Patch], None], set[str]]] = [
    (votes_twice_in_a_term, set()),
    (votes_for_a_log_that_lacks_entries, set()),
    (forgets_its_vote_in_a_crash, set()),
    (answers_before_the_disk_has_it, set()),
    (counts_its_own_unsaved_entries, set()),
    (commits_earlier_terms_by_counting, set()),
    (commits_what_the_leader_says_it_has, set()),
    (cuts_what_does_not_conflict, set()),
    (changes_voters_without_a_joint_membership, set()),
    (counts_only_the_new_voters_of_a_joint_membership, set()),
    (answers_reads_without_asking_anybody, set()),
    (reads_before_it_has_committed_in_its_term, set()),
    (believes_in_its_lease_for_ever, set()),
    (elects_another_while_a_lease_runs, set()),
    (keeps_its_lease_after_calling_an_election, set()),
    (takes_an_old_snapshot, set()),
    (acts_twice_on_a_command_that_came_twice, set()),
]
