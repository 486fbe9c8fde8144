"""What a mount may believe: answers that a recall has overtaken are not."""

from mountfs.meta.leases import Item
from mountfs.meta.records import Attributes, Inode
from mountfs.types import Ino
from mountfs.vfs.known import NO_INO, Known

DIRECTORY, FILE, OTHER = Ino(1), Ino(2), Ino(3)


def attributes(ino: Ino, size: int = 0) -> Attributes:
    inode = Inode()
    for field in Inode.__slots__:
        if field != "packed":
            setattr(inode, field, 0)
    inode.ino, inode.size, inode.mode = ino, size, 0o100644
    return inode.attributes()


def test_attributes_are_known_until_they_are_recalled() -> None:
    known = Known()
    known.learn(attributes(FILE), known.mark())
    assert known.attributes(FILE) == attributes(FILE)
    known.recall([Item(FILE, (), False)])
    assert known.attributes(FILE) is None
    assert FILE in known.held  # the lease goes on: what is asked from now on may be believed
    known.learn(attributes(FILE, 5), known.mark())
    assert known.attributes(FILE) == attributes(FILE, 5)


def test_an_answer_that_a_recall_has_overtaken_is_not_believed() -> None:
    known = Known()
    asked = known.mark()
    known.recall([Item(FILE, (), False)])
    known.learn(attributes(FILE), asked)
    assert known.attributes(FILE) is None
    known.learn_name(DIRECTORY, b"name", FILE, asked)
    assert known.child(DIRECTORY, b"name") == FILE  # nothing was heard of the directory


def test_a_recalled_name_is_unknown_and_the_others_are_not() -> None:
    known = Known()
    mark = known.mark()
    known.learn_name(DIRECTORY, b"one", FILE, mark)
    known.learn_name(DIRECTORY, b"two", NO_INO, mark)
    known.recall([Item(DIRECTORY, (b"one",), False)])
    assert known.child(DIRECTORY, b"one") is None
    assert known.child(DIRECTORY, b"two") == NO_INO


def test_of_a_directory_that_was_listed_whole_it_is_known_what_is_not_there() -> None:
    known = Known()
    mark = known.mark()
    listing = [
        (1, DIRECTORY, 4, b".", Attributes(b"")),
        (2, DIRECTORY, 4, b"..", Attributes(b"")),
        (10, FILE, 8, b"one", attributes(FILE)),
        (11, OTHER, 8, b"two", attributes(OTHER)),
    ]
    known.learn_listing(DIRECTORY, 0, 2, listing, mark)
    assert known.child(DIRECTORY, b"three") is None  # there may be more
    assert known.next_position(DIRECTORY) == 11
    known.learn_listing(DIRECTORY, 11, 2, [], mark)
    assert known.child(DIRECTORY, b"three") == NO_INO
    assert known.child(DIRECTORY, b"two") == OTHER
    assert known.attributes(OTHER) == attributes(OTHER)
    known.recall([Item(DIRECTORY, (b"three",), False)])
    assert known.child(DIRECTORY, b"three") is None
    assert known.child(DIRECTORY, b"four") is None


def test_a_listing_in_which_something_changed_is_not_whole() -> None:
    known = Known()
    mark = known.mark()
    known.learn_listing(DIRECTORY, 0, 1, [(10, FILE, 8, b"one", attributes(FILE))], mark)
    known.recall([Item(DIRECTORY, (b"new",), False)])
    known.learn_listing(DIRECTORY, 10, 1, [], known.mark())
    assert not known.is_complete(DIRECTORY)


def test_everything_can_be_forgotten_and_what_was_asked_before_too() -> None:
    known = Known()
    asked = known.mark()
    known.learn(attributes(FILE), asked)
    known.forget()
    assert known.count == 0
    known.learn(attributes(FILE), asked)
    assert known.attributes(FILE) is None


def test_a_lease_that_is_had_again_is_another_one() -> None:
    known = Known()
    known.hold(FILE)
    first = known.held[FILE]
    known.hold(FILE)
    assert known.held[FILE] == first
    known.recall([Item(FILE, (), True)])
    known.hold(FILE)
    assert known.held[FILE] != first
    second = known.held[FILE]
    known.forget()
    known.hold(FILE)
    assert known.held[FILE] not in (first, second)


def test_answers_are_not_believed_while_a_command_of_ours_is_under_way() -> None:
    known = Known()
    known.begin([FILE, DIRECTORY])
    known.begin([FILE])
    known.learn(attributes(FILE), known.mark())
    known.learn_name(DIRECTORY, b"name", FILE, known.mark())
    assert known.attributes(FILE) is None
    assert known.child(DIRECTORY, b"name") is None
    assert known.is_untouched(FILE, known.mark())
    known.end([FILE, DIRECTORY])
    known.learn(attributes(FILE), known.mark())
    known.learn_name(DIRECTORY, b"name", FILE, known.mark())
    assert known.attributes(FILE) is None
    assert known.child(DIRECTORY, b"name") == FILE
    known.end([FILE])
    known.learn(attributes(FILE), known.mark())
    assert known.attributes(FILE) == attributes(FILE)
