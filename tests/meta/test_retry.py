"""What a client decides about asking again."""

import pytest

from mountfs.errors import Fault, FsError
from mountfs.meta.retry import (
    RETRY_FIRST_S,
    RETRY_MAX_S,
    Backoff,
    Route,
    Session,
    Verdict,
    judge,
)

ENDED = FsError(Fault.SESSION_ENDED, "session 1 has ended")


def test_who_does_not_lead_is_not_asked_again() -> None:
    assert judge(Fault.NOT_LEADER) is Verdict.ELSEWHERE
    assert judge(Fault.UNAVAILABLE) is Verdict.AGAIN


def test_a_session_that_has_ended_is_over() -> None:
    assert judge(Fault.SESSION_ENDED) is Verdict.OVER


def test_every_other_refusal_is_an_answer() -> None:
    others = set(Fault) - {Fault.NOT_LEADER, Fault.UNAVAILABLE, Fault.SESSION_ENDED}
    assert {judge(fault) for fault in others} == {Verdict.ANSWER}


def test_commands_are_numbered_from_one_on() -> None:
    session = Session()
    session.opened(7)
    assert [session.begin()[0] for _ in range(3)] == [1, 2, 3]


def test_replies_are_kept_from_the_oldest_command_on_that_waits() -> None:
    session = Session()
    assert [session.begin() for _ in range(3)] == [(1, 1), (2, 1), (3, 1)]
    session.done(2)
    assert session.begin() == (4, 1)  # the first still waits
    session.done(1)
    assert session.begin() == (5, 3)


def test_nothing_begins_in_a_session_that_is_over() -> None:
    session = Session()
    assert session.over(ENDED)
    assert not session.over(FsError(Fault.SESSION_ENDED, "again"))  # the first reason stays
    with pytest.raises(FsError, match="session 1 has ended"):
        session.begin()


def test_pauses_grow_to_a_bound() -> None:
    backoff = Backoff()
    pauses = [backoff.pause_s(1.0) for _ in range(10)]
    assert pauses[:3] == [RETRY_FIRST_S, 2 * RETRY_FIRST_S, 4 * RETRY_FIRST_S]
    assert pauses[-1] == RETRY_MAX_S


def test_chance_takes_up_to_half_of_a_pause_away() -> None:
    assert Backoff().pause_s(0.0) == RETRY_FIRST_S / 2


def _as_they_come(found: object) -> None:
    pass


def test_whoever_is_known_is_asked_who_leads_each_once() -> None:
    route = Route(["seed", "one"])
    route.heard(0, {1: "one", 2: "two"})
    assert route.candidates(_as_they_come) == ["one", "two", "seed"]


def test_the_order_of_asking_is_left_to_chance() -> None:
    assert Route(["a", "b", "c"]).candidates(lambda found: found.reverse()) == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("leader", "where", "problem"),
    [
        (2, "two", ""),
        (0, None, "knows of nobody who leads"),
        (3, None, "says node 3 leads, but not where"),
    ],
)
def test_a_node_says_who_leads(leader: int, where: str | None, problem: str) -> None:
    assert Route(["seed"]).heard(leader, {1: "one", 2: "two"}) == (where, problem)


def test_a_node_that_has_only_just_joined_takes_no_knowledge_away() -> None:
    route = Route(["seed"])
    route.heard(0, {1: "one", 2: "two"})
    assert route.heard(2, {}) == ("two", "")
    assert route.candidates(_as_they_come) == ["one", "two", "seed"]


def test_a_node_is_found_where_it_was_heard_to_be_last() -> None:
    route = Route(["seed"])
    route.heard(0, {1: "one"})
    assert route.heard(1, {1: "moved"}) == ("moved", "")
