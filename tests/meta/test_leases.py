"""Leases: who is asked to forget what, and who waits for it."""

from collections.abc import Sequence
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from mountfs.meta.leases import COOL_FIRST_MS, HOT_RECALLS, Leases, Recall, Wait
from mountfs.types import Ino

A, B, C = 1, 2, 3
DIRECTORY, FILE = Ino(10), Ino(20)
TTL = 6_000


def leases(*sessions: int, held_max: int = 1_000) -> Leases:
    found = Leases(TTL, held_max)
    for session in sessions:
        found.begin(session, 0)
    return found


def sent(found: Leases, now: float = 0) -> list[Recall]:
    recalls, found.outbox = found.outbox, []
    for recall in recalls:
        found.sent(recall, now)
    return recalls


def changed(found: Leases, session: int, ino: Ino, *names: bytes, now: float = 0) -> Wait:
    wait = found.changed(session, {ino: names}, now)
    assert wait is not None
    return wait


def test_a_change_waits_for_others_who_have_a_lease_and_for_nobody_else() -> None:
    found = leases(A, B, C)
    assert found.grant(A, [DIRECTORY], 0)
    assert found.grant(B, [DIRECTORY], 0)
    wait = changed(found, B, DIRECTORY, b"new")
    assert wait.left == {A}
    (recall,) = sent(found)
    assert (recall.session, recall.items[0].ino, recall.items[0].names) == (A, DIRECTORY, (b"new",))
    over: list[str] = []
    wait.then.append(lambda: over.append("over"))
    for then in found.answered(recall):
        then()
    assert over == ["over"]
    assert found.changed(C, {FILE: ()}, 0) is None


def test_what_is_held_back_is_told_to_nobody() -> None:
    found = leases(A, B, C)
    found.grant(A, [FILE], 0)
    wait = changed(found, B, FILE)
    assert found.blocked({FILE}, B) is wait
    assert found.blocked({FILE}, C) is wait
    assert found.blocked({DIRECTORY}, C) is None
    assert found.blocked({FILE}, A) is wait, "others beside A would believe what they knew"
    assert not found.grant(A, [FILE], 0)
    assert not found.grant(C, [FILE], 0)
    (recall,) = sent(found)
    found.answered(recall)
    assert found.blocked({FILE}, C) is None
    assert found.grant(C, [FILE], 0)


def test_who_has_forgotten_names_keeps_the_lease_on_the_directory() -> None:
    found = leases(A, B)
    found.grant(A, [DIRECTORY], 0)
    changed(found, B, DIRECTORY, b"one")
    (recall,) = sent(found)
    assert not recall.items[0].is_whole
    found.answered(recall)
    assert changed(found, B, DIRECTORY, b"two").left == {A}


def test_what_changes_often_is_granted_to_nobody_for_a_while() -> None:
    found = leases(A, B)
    for _ in range(HOT_RECALLS):
        assert found.grant(A, [DIRECTORY], 0)
        changed(found, B, DIRECTORY, b"name")
        (recall,) = sent(found)
        found.answered(recall)
    assert recall.items[0].is_whole
    assert not found.grant(A, [DIRECTORY], 0)
    assert found.changed(B, {DIRECTORY: (b"name",)}, 0) is None
    assert found.grant(A, [DIRECTORY], COOL_FIRST_MS)


def test_a_lease_of_who_is_silent_runs_out_and_not_before() -> None:
    found = leases(A, B)
    found.grant(A, [FILE], 0)
    found.hear(A, 1_000)
    wait = changed(found, B, FILE, now=2_000)
    over: list[str] = []
    wait.then.append(lambda: over.append("over"))
    assert found.look(1_000 + TTL) == []
    for then in found.look(1_000 + TTL + 1):
        then()
    assert over == ["over"]
    assert not found.has_begun(A)


def test_who_does_not_answer_a_recall_is_not_renewed_for_ever() -> None:
    found = leases(A, B)
    found.grant(A, [FILE], 0)
    changed(found, B, FILE)
    sent(found, 0)
    assert found.hear(A, TTL / 2)
    assert not found.hear(A, TTL / 2 + 1)
    assert found.look(TTL + TTL / 2 + 1) is not None
    assert not found.has_begun(A)


def test_who_begins_anew_has_nothing_and_owes_nothing() -> None:
    found = leases(A, B)
    found.grant(A, [FILE], 0)
    wait = changed(found, B, FILE)
    over: list[str] = []
    wait.then.append(lambda: over.append("over"))
    (recall,) = sent(found)
    for then in found.begin(A, 10):
        then()
    assert over == ["over"]
    assert found.grant(A, [FILE], 10)
    found.answered(recall)  # of before: it must not take the new lease away
    assert changed(found, B, FILE).left == {A}


def test_a_new_leader_waits_for_those_who_may_have_leases_of_the_last_one() -> None:
    found = Leases(TTL)
    found.lead([A, B], 100)
    settled: list[str] = []
    assert not found.is_settled(100)
    found.when_settled(lambda: settled.append("settled"))
    assert found.begin(A, 200) == []
    for then in found.begin(B, 300):
        then()
    assert settled == ["settled"]
    assert found.is_settled(300)


def test_a_new_leader_waits_no_longer_than_leases_are_good() -> None:
    found = Leases(TTL)
    found.lead([A], 100)
    found.when_settled(lambda: None)
    assert found.look(99 + TTL) == []
    assert len(found.look(100 + TTL)) == 1


def test_leases_are_bounded_and_the_oldest_go() -> None:
    found = leases(A, B, held_max=32)
    for ino in range(1, 34):
        found.grant(A, [Ino(ino)], 0)
    (recall,) = sent(found)
    assert [item.ino for item in recall.items] == [1, 2, 3]
    assert found.blocked({Ino(1)}, B) is None  # nothing has changed
    assert not found.grant(A, [Ino(1)], 0)  # what is granted now would be taken away with the rest
    found.answered(recall)
    assert found.told() == {A: 30, B: 0}
    assert found.changed(B, {Ino(1): ()}, 0) is None


def test_who_leads_no_more_lets_all_go_that_wait() -> None:
    found = leases(A, B)
    found.grant(A, [FILE], 0)
    wait = changed(found, B, FILE)
    wait.then.append(lambda: None)
    assert len(found.lead_no_more()) == 1
    assert found.blocked({FILE}, C) is None


def test_who_keeps_bytes_back_is_asked_for_them_before_anybody_is_answered() -> None:
    found = leases(A, B)
    assert found.grant_writing(A, FILE) is True
    assert found.kept_back([FILE], A) is None
    wait = found.kept_back([DIRECTORY, FILE], B)
    assert wait is not None
    assert found.kept_back([FILE], B) is wait  # once is enough
    assert found.grant_writing(A, FILE) is False  # he is giving it up
    (recall,) = sent(found)
    assert (recall.session, recall.items[0].gives_up_writing) == (A, True)
    found.answered(recall)
    assert found.kept_back([FILE], B) is None
    assert found.grant(B, [FILE], 0)


def test_nobody_believes_anything_of_a_file_that_another_keeps_bytes_of() -> None:
    found = leases(A, B)
    found.grant(B, [FILE], 0)
    wait = found.grant_writing(A, FILE)
    assert isinstance(wait, Wait)
    assert not found.grant(B, [FILE], 0)
    (recall,) = sent(found)
    found.answered(recall)
    assert found.grant_writing(A, FILE) is True


def test_who_keeps_bytes_back_and_is_silent_is_not_passed_over_but_ended() -> None:
    found = leases(A, B)
    found.grant_writing(A, FILE)
    wait = found.kept_back([FILE], B)
    assert wait is not None
    over: list[str] = []
    wait.then.append(lambda: over.append("over"))
    sent(found)
    assert found.look(TTL + 1) == []
    assert found.lost == {A}
    for then in found.drop(A):
        then()
    assert over == ["over"]
    assert found.grant_writing(B, FILE) is True


def test_who_begins_anew_keeps_what_it_has_bytes_of_and_is_asked_again() -> None:
    found = leases(A, B)
    found.grant_writing(A, FILE)
    found.grant_writing(A, DIRECTORY)
    wait = found.kept_back([FILE], B)
    sent(found)
    assert found.begin(A, 10, [FILE]) == []
    assert found.kept_back([DIRECTORY], B) is None
    assert found.kept_back([FILE], B) is wait
    (again,) = sent(found)
    over: list[str] = []
    assert wait is not None
    wait.then.append(lambda: over.append("over"))
    for then in found.answered(again):
        then()
    assert over == ["over"]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("grant"), st.integers(1, 3), st.integers(1, 4)),
        st.tuples(st.just("change"), st.integers(1, 3), st.integers(1, 4)),
        st.tuples(st.just("answer"), st.integers(0, 7), st.just(0)),
        st.tuples(st.just("begin"), st.integers(1, 3), st.just(0)),
        st.tuples(st.just("wait"), st.integers(1, 4_000), st.just(0)),
    ),
    max_size=60,
)


@given(steps)
def test_nobody_believes_what_an_acknowledged_change_has_made_untrue(
    steps: Sequence[tuple[str, int, int]],
) -> None:
    """A model of three sessions: what each believes it has a lease on, and since which change."""
    found = leases(A, B, C)
    now = 0.0
    version: dict[int, int] = {}
    believes: dict[int, dict[int, int]] = {A: {}, B: {}, C: {}}
    until = {A: float(TTL), B: float(TTL), C: float(TTL)}
    recalls: list[Recall] = []

    def acknowledged(ino: int, number: int, changer: int) -> None:
        """The change of `ino` that made it `number` is answered."""
        for session, known in believes.items():
            if session != changer and now < until[session] and ino in known:
                assert known[ino] >= number, (session, ino, known, number)

    for what, one, two in steps:
        if what == "grant":
            if found.hear(one, now):
                until[one] = now + TTL
            if found.blocked({Ino(two)}, one) is None and found.grant(one, [Ino(two)], now):
                believes[one][two] = version.get(two, 0)
        elif what == "change":
            version[two] = number = version.get(two, 0) + 1
            if two in believes[one]:
                believes[one][two] = number
            wait = found.changed(one, {Ino(two): ()}, now)
            recalls += sent(found, now)
            if wait is None:
                acknowledged(two, number, one)
            else:
                wait.then.append(partial(acknowledged, two, number, one))
        elif what == "answer" and recalls:
            recall = recalls.pop(one % len(recalls))
            for item in recall.items:
                believes[recall.session].pop(item.ino, None)
            for then in found.answered(recall):
                then()
        elif what == "begin":
            believes[one].clear()
            for then in found.begin(one, now):
                then()
            until[one] = now + TTL
        elif what == "wait":
            now += one
            for then in found.look(now):
                then()


def test_nobody_hears_of_a_change_before_those_who_made_it() -> None:
    found = leases(A, B)
    found.grant(A, [DIRECTORY], 0)
    assert found.changed(A, {DIRECTORY: (b"new",)}, 0, sequence=7) is None, "nobody else has it"
    assert found.blocked({DIRECTORY}, A) is None
    wait = found.blocked({DIRECTORY}, B)
    assert wait is not None
    assert wait.left == {A}
    (recall,) = sent(found)
    assert recall.items[0].names == (b"new",)
    assert recall.items[0].is_own
    assert found.blocked({DIRECTORY}, B) is wait, "it is asked once"
    found.answered(recall)
    assert found.blocked({DIRECTORY}, B) is None


def test_who_says_that_it_knows_what_it_did_is_not_asked() -> None:
    found = leases(A, B)
    found.grant(A, [DIRECTORY, FILE], 0)
    found.changed(A, {FILE: ()}, 0, sequence=7)
    found.changed(A, {DIRECTORY: (b"new",)}, 0, sequence=8)
    found.has_told(A, 7)
    assert found.blocked({FILE}, B) is None
    assert found.blocked({DIRECTORY}, B) is not None


def test_an_answer_does_not_count_for_what_was_changed_after_the_question() -> None:
    found = leases(A, B)
    found.grant(A, [DIRECTORY], 0)
    found.changed(A, {DIRECTORY: (b"one",)}, 0, sequence=1)
    assert found.blocked({DIRECTORY}, B) is not None
    (recall,) = sent(found)
    found.changed(A, {DIRECTORY: (b"two",)}, 0, sequence=2)
    found.answered(recall)
    assert found.blocked({DIRECTORY}, B) is not None


def test_what_a_session_that_is_gone_has_changed_may_be_heard() -> None:
    found = leases(A, B)
    found.grant(A, [DIRECTORY], 0)
    found.changed(A, {DIRECTORY: (b"new",)}, 0, sequence=7)
    found.drop(A)
    assert found.blocked({DIRECTORY}, B) is None


def test_a_lease_of_an_answer_that_is_not_sent_yet_is_recalled() -> None:
    found = leases(A, B)
    assert found.new(A, [FILE]) == [FILE]
    found.grant(A, [FILE], 0)
    assert changed(found, B, FILE).left == {A}


def test_who_is_to_be_ended_gets_no_leases_and_has_none_when_he_has_begun_anew() -> None:
    found = leases(A, B)
    found.grant(A, [FILE], 0)
    wait = found.let_go(A, 0)
    assert wait is not None
    assert not found.has_begun(A), "he is told to begin anew"
    assert not found.hear(A, 1)
    assert sent(found) == [], "there is no answer that would say it"
    changed(found, B, FILE)
    found.begin(A, 1)
    assert not wait.left
    assert not found.has_begun(A)
    assert found.changed(B, {FILE: ()}, 1) is None


def test_who_is_to_be_ended_and_does_not_answer_has_no_leases_when_they_have_run_out() -> None:
    found = leases(A, B)
    found.grant(A, [FILE], 0)
    wait = found.let_go(A, 0)
    assert wait is not None
    found.hear(A, TTL - 1)
    found.look(TTL)
    assert wait.left == {A}
    found.look(TTL + 1)
    assert not wait.left
    assert found.let_go(A, TTL + 1) is None


def test_who_gives_nothing_back_gets_twice_as_much_and_is_asked_once() -> None:
    found = leases(A, held_max=16)
    granted = [found.grant(A, [Ino(number)], 0) for number in range(1, 100)]
    assert granted.count(True) == 33
    (recall,) = sent(found)
    assert len(recall.items) > 1
    found.answered(recall)
    assert found.grant(A, [Ino(200)], 0)


def test_who_hears_of_one_thing_that_a_command_has_changed_may_expect_the_other() -> None:
    found = leases(A, B)
    other = Ino(11)
    found.grant(A, [other], 0)
    found.changed(A, {DIRECTORY: (b"from",), other: (b"to",)}, 0, sequence=7)
    assert found.blocked({DIRECTORY}, B) is not None, "A has no lease there, but on the other"
    (recall,) = sent(found)
    assert {item.ino: item.names for item in recall.items} == {
        DIRECTORY: (b"from",),
        other: (b"to",),
    }
    found.answered(recall)
    assert found.blocked({DIRECTORY, other}, B) is None
