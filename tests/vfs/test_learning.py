"""What a mount knows after commands of its own."""

import msgspec

from mountfs.errors import Fault
from mountfs.meta.ops.read import GetAttr, Lookup, ReadDir
from mountfs.meta.ops.undelete import Restored, Undelete, UndeleteIn
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.protocol import Answer, Changed
from mountfs.types import ROOT, SUPERUSER, Ino
from mountfs.vfs.known import NO_INO, Known
from mountfs.vfs.learning import doubt, learn_answer, learn_changes, learn_refusal
from tests.vfs.test_known import attributes

FILE = Ino(20)


def knowing() -> Known:
    known = Known()
    known.learn(attributes(FILE), known.mark())
    return known


def test_what_may_have_been_unlinked_is_not_known_any_more() -> None:
    known = knowing()
    known.learn_name(ROOT, b"a", FILE, known.mark())
    doubt(known, Unlink(ROOT, b"a", SUPERUSER))
    assert known.attributes(FILE) is None
    assert known.child(ROOT, b"a") is None
    assert FILE in known.held


def test_nothing_is_known_after_a_command_on_a_name_that_may_have_been_any_file() -> None:
    known = knowing()
    mark = known.mark()
    doubt(known, Unlink(ROOT, b"a", SUPERUSER))
    assert known.attributes(FILE) is None
    assert FILE in known.held, "the leader tells us of its changes"
    known.learn(attributes(FILE), mark)
    assert known.attributes(FILE) is None, "it was asked before"


def test_names_that_come_back_are_not_known_to_be_absent_any_more() -> None:
    for command in (
        Undelete(ROOT, b"a", 0, ROOT, b"a", SUPERUSER),
        UndeleteIn(((ROOT, b""),), 5, SUPERUSER),
    ):
        known = knowing()
        known.learn(attributes(ROOT), known.mark())
        known.learn_name(ROOT, b"a", NO_INO, known.mark())
        assert known.child(ROOT, b"a") == NO_INO
        reply = Restored(((ROOT, b"a"),), 0, 0, ())
        answer = Changed(Answer.GRANTED, (ROOT, FILE), msgspec.Raw())
        learn_changes(known, command, answer, reply, known.mark())
        assert known.child(ROOT, b"a") is None
        doubt(known, command)
        assert known.attributes(FILE) is None


def test_a_refusal_is_believed_more_than_what_was_known() -> None:
    known = knowing()
    known.learn_name(ROOT, b"a", FILE, known.mark())
    known.learn_name(ROOT, b"b", NO_INO, known.mark())
    learn_refusal(known, Unlink(ROOT, b"b", SUPERUSER), Fault.NOT_FOUND)
    assert known.child(ROOT, b"b") == NO_INO
    learn_refusal(known, Unlink(ROOT, b"a", SUPERUSER), Fault.NOT_FOUND)
    assert known.child(ROOT, b"a") is None
    learn_refusal(known, Unlink(ROOT, b"b", SUPERUSER), Fault.IS_DIRECTORY)
    assert known.child(ROOT, b"b") is None


def test_an_answer_without_a_lease_is_believed_more_than_what_was_known() -> None:
    """It tells of a command of ours whose own answer is still on its way."""
    known = knowing()
    known.learn_name(ROOT, b"a", NO_INO, known.mark())
    learn_answer(known, GetAttr(FILE), 0, attributes(FILE), known.mark())
    assert known.attributes(FILE) == attributes(FILE), "it said the same"
    learn_answer(known, Lookup(ROOT, b"a", SUPERUSER), 0, attributes(FILE, 7), known.mark())
    assert known.attributes(FILE) is None
    assert known.child(ROOT, b"a") is None
    known.learn_listing(ROOT, 0, 10, [], known.mark())
    assert known.child(ROOT, b"a") == NO_INO
    learn_answer(known, ReadDir(ROOT, 0, 10, True), 0, [], known.mark())
    assert known.child(ROOT, b"a") is None
