"""Who waits for what when a command comes that has acted before."""

from mountfs.meta import keys
from mountfs.meta.asked import Asked
from mountfs.meta.lease_desk import LeaseDesk
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.meta.protocol import Answer
from mountfs.types import ROOT, SUPERUSER, Ino

A, B = 1, 2
TTL = 6_000
LINKS = {A: "connection of A", B: "connection of B"}
COMMAND = Mkdir(ROOT, b"a", 0o755, 0, SUPERUSER)


def desk(now: list[float]) -> LeaseDesk[str]:
    found: LeaseDesk[str] = LeaseDesk(lambda: now[0], TTL)
    for session in (A, B):
        found.begin(session, LINKS[session], ())
    return found


def mkdir(found: LeaseDesk[str], *, acts: bool = True) -> Asked:
    asked = Asked(A, 1, 1, 0, COMMAND, caches=True)
    committed: dict[bytes, bytes | None] = {keys.dentry(ROOT, b"a"): b""} if acts else {}
    found.applied(asked, {ROOT} if acts else set(), committed)
    return asked


def test_what_is_asked_again_is_not_answered_before_others_have_forgotten() -> None:
    found, over = desk([0.0]), []
    assert found.answer(B, LINKS[B], {ROOT}) & Answer.GRANTED
    assert mkdir(found).waits
    found.when_known(lambda: over.append("asked again"))
    again = mkdir(found, acts=False)  # it was in the log twice
    assert again.is_again
    found.when_over(again.waits, lambda: over.append("twice in the log"))
    assert over == []
    (recall,) = found.leases.outbox
    for then in found.leases.answered(recall):
        then()
    assert over == ["asked again", "twice in the log"]


def test_what_another_leader_has_done_is_told_when_leases_of_its_time_are_over() -> None:
    now = [0.0]
    found, over = desk(now), []
    found.lead([A, B])
    found.when_known(lambda: over.append("known"))
    found.begin(A, LINKS[A], ())
    assert over == []
    now[0] = TTL
    for then in found.leases.look(now[0]):
        then()
    assert over == ["known"]


def test_a_command_whose_changes_are_known_is_not_one_that_is_asked_again() -> None:
    found = desk([0.0])
    assert not mkdir(found).is_again
    refused = Asked(A, 2, 1, 0, COMMAND, caches=True)
    found.applied(refused, {Ino(1)}, {})
    assert not refused.is_again


def test_who_has_seen_what_its_maker_has_not_heard_of_waits_also_when_others_are_in_the_way() -> (
    None
):
    """A command looks once, and what is in the way then is all that its answer waits for."""
    found = desk([0.0])
    for session in (A, B):
        assert found.answer(session, LINKS[session], {ROOT}) & Answer.GRANTED
    made = mkdir(found)
    refused = Asked(B, 1, 1, 0, COMMAND, caches=True)
    found.applied(refused, {ROOT}, {})
    assert {one.session for one in found.leases.outbox} == {A, B}
    of_b, of_a = found.leases.outbox
    assert of_a.items[0].is_own
    over: list[str] = []
    found.when_over(made.waits, lambda: over.append("made"))
    found.when_over(refused.waits, lambda: over.append("refused"))
    for recall in (of_b, of_a):
        for then in found.leases.answered(recall):
            then()
        over.append("answered")
    assert over == ["made", "answered", "refused", "answered"]
