"""The simulation finds mistakes: each of these breaks one rule on purpose, and is caught.

Mistakes that chance would take hours to meet (a commit of an earlier term by counting, figure 8; a
vote that is forgotten in a crash; an election during a lease; an old snapshot) are made on purpose
against the rule tests in `tests/raft` instead.
"""

from collections.abc import Callable
from typing import Any

import pytest

from mountfs.raft import core, election, membership, quorum, reads, replication
from mountfs.raft.log import Log
from mountfs.raft.messages import Membership, Vote, VoteReply
from mountfs.raft.state import State
from mountfs.sim.checks import Broken
from mountfs.sim.register import Registers
from mountfs.sim.scenario import Run

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


MUTATIONS: list[tuple[Callable[[Patch], None], str, int, str]] = [
    (votes_twice_in_a_term, "votes", 60, "election safety"),
    (votes_for_a_log_that_lacks_entries, "votes", 60, "leader completeness"),
    (answers_before_the_disk_has_it, "any", 80, "leader completeness"),
    (counts_its_own_unsaved_entries, "any", 100, "leader completeness"),
    (commits_what_the_leader_says_it_has, "any", 80, "state machine safety"),
    (cuts_what_does_not_conflict, "any", 60, "leader completeness"),
    (changes_voters_without_a_joint_membership, "membership", 100, "leader completeness"),
    (counts_only_the_new_voters_of_a_joint_membership, "membership", 100, "leader completeness"),
    (answers_reads_without_asking_anybody, "reads", 60, "linearizability"),
    (reads_before_it_has_committed_in_its_term, "leaders", 80, "linearizability"),
    (believes_in_its_lease_for_ever, "reads", 80, "linearizability"),
    (keeps_its_lease_after_calling_an_election, "reads", 80, "linearizability"),
    (acts_twice_on_a_command_that_came_twice, "any", 60, "linearizability"),
]
"""What is broken, the kind of run that looks for it, how many seeds it may take, and which check
finds it (others may find it in other seeds).
"""


@pytest.mark.parametrize(("mutation", "kind", "seeds", "rule"), MUTATIONS)
def test_a_mistake_is_found(
    mutation: Callable[[Patch], None],
    kind: str,
    seeds: int,
    rule: str,
    monkeypatch: Patch,
) -> None:
    mutation(monkeypatch)
    found: set[str] = set()
    for seed in range(seeds):
        try:
            Run(seed, seconds=10, kind=kind).run()
        except Broken as broken:
            found.add(broken.rule)
            if broken.rule == rule:
                return
    pytest.fail(f"{rule} was not broken in {seeds} runs; broken: {found or 'nothing'}")
