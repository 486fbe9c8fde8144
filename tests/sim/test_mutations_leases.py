"""The simulation finds mistakes with leases: each of these breaks one rule on purpose, and is
caught.
"""

from collections.abc import Callable
from typing import Any

import pytest

from mountfs.meta.lease_desk import LeaseDesk
from mountfs.meta.leases import Leases
from mountfs.sim.checks import Broken
from mountfs.sim.leased_mount import LeasedMount
from mountfs.sim.scenario import run
from mountfs.vfs.known import Known

Patch = pytest.MonkeyPatch


def acknowledges_before_others_have_forgotten(patch: Patch) -> None:
    patch.setattr(LeaseDesk, "when_over", lambda self, waits, then: then())


def answers_questions_from_what_is_held_back(patch: Patch) -> None:
    patch.setattr(Leases, "blocked", lambda self, seen, session: None)


def leads_without_waiting_for_the_leases_of_another(patch: Patch) -> None:
    patch.setattr(Leases, "is_settled", lambda self, now: True)


def believes_answers_that_a_recall_has_overtaken(patch: Patch) -> None:
    patch.setattr(Known, "is_fresh", lambda self, ino, mark: True)


def answers_at_once_what_is_asked_again(patch: Patch) -> None:
    """It acted before, and others may not have forgotten yet what it changed."""
    patch.setattr(LeaseDesk, "when_known", lambda self, then: then())


def tells_others_of_a_change_before_its_maker(patch: Patch) -> None:
    patch.setattr(Leases, "_note_unheard", lambda *_: None)


def waits_for_the_first_thing_in_the_way_alone(patch: Patch) -> None:
    """A command is answered from what it has seen once."""

    def first(self: Leases, seen: Any, session: int) -> Any:
        wait = self.blocked(seen, session)
        return [] if wait is None else [wait]

    patch.setattr(Leases, "all_blocking", first)


def takes_leases_for_over_too_early(patch: Patch) -> None:
    look = Leases.look
    patch.setattr(Leases, "look", lambda self, now: look(self, now + self.ttl_ms / 2))


def believes_longer_than_leases_are_good(patch: Patch) -> None:
    patch.setattr(
        LeasedMount,
        "_good_until",
        lambda self, sent: setattr(self, "valid_until", sent + 2 * self._ttl_us),
    )


def renews_the_leases_of_who_does_not_answer(patch: Patch) -> None:
    def hear(self: Leases, session: int, now: float) -> bool:
        holder = self._holders.get(session)
        if holder is not None:
            holder.heard = now
        return holder is not None

    patch.setattr(Leases, "hear", hear)


def grants_what_is_being_recalled(patch: Patch) -> None:
    """The recall is older than the lease, and its answer ends it."""
    patch.setattr(Leases, "_may_have", lambda self, seen, now: True)


def grants_with_the_answer_and_not_when_it_looked(patch: Patch) -> None:
    """What is changed until the answer is sent is recalled from nobody."""
    applied, when_over, hold = LeaseDesk.applied, LeaseDesk.when_over, Leases._hold
    late: list[Any] = []

    def looked(self: Any, asked: Any, seen: Any, committed: Any) -> None:
        late.clear()
        with pytest.MonkeyPatch.context() as at_once:
            at_once.setattr(Leases, "_hold", lambda _, *what: late.append(what))
            applied(self, asked, seen, committed)

    def over(self: Any, waits: Any, then: Any) -> None:
        granted = late[:]
        late.clear()

        def answered() -> None:
            for session, holder, ino in granted:
                if self.leases._holders.get(session) is holder and ino not in holder.inos:
                    hold(self.leases, session, holder, ino)
            then()

        when_over(self, waits, answered)

    patch.setattr(LeaseDesk, "applied", looked)
    patch.setattr(LeaseDesk, "when_over", over)


def ends_a_session_that_has_leases(patch: Patch) -> None:
    patch.setattr(Leases, "let_go", lambda self, session, now: None)


def bounds_nothing(patch: Patch) -> None:
    patch.setattr(Leases, "_recall_oldest", lambda self, session, holder: None)


LINEAR = "linearizability"

MUTATIONS: list[tuple[Callable[[Patch], None], str]] = [
    (acknowledges_before_others_have_forgotten, LINEAR),
    (answers_questions_from_what_is_held_back, LINEAR),
    (leads_without_waiting_for_the_leases_of_another, LINEAR),
    (believes_answers_that_a_recall_has_overtaken, LINEAR),
    (answers_at_once_what_is_asked_again, LINEAR),
    (tells_others_of_a_change_before_its_maker, LINEAR),
    (waits_for_the_first_thing_in_the_way_alone, LINEAR),
    (takes_leases_for_over_too_early, LINEAR),
    (believes_longer_than_leases_are_good, LINEAR),
    (renews_the_leases_of_who_does_not_answer, "recalls end"),
    (grants_what_is_being_recalled, LINEAR),
    (grants_with_the_answer_and_not_when_it_looked, LINEAR),
    (ends_a_session_that_has_leases, LINEAR),
    (bounds_nothing, "leases are bounded"),
]
"""What is broken, and which check finds it."""
SEEDS = 60


@pytest.mark.timeout(900)  # of a machine that has much else to do
@pytest.mark.parametrize(("mutation", "rule"), MUTATIONS)
def test_a_mistake_is_found(
    mutation: Callable[[Patch], None], rule: str, monkeypatch: Patch
) -> None:
    mutation(monkeypatch)
    found: set[str] = set()
    for seed in range(SEEDS):
        try:
            run(seed, seconds=10, kind="leases").run()
        except Broken as broken:
            found.add(broken.rule)
            if broken.rule == rule:
                return
    pytest.fail(f"{rule} was not broken in {SEEDS} runs; broken: {found or 'nothing'}")
