"""What a mount knows after commands of its own."""

from mountfs.meta.ops.unlink import Unlink
from mountfs.types import ROOT, SUPERUSER, Ino
from mountfs.vfs.known import Known
from mountfs.vfs.learning import doubt
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
