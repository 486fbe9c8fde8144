"""rename(2), renameat2(2)."""

import pytest

from mountfs.errors import Fault
from mountfs.meta.ops.link import Link
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.meta.ops.rename import EXCHANGE, NOREPLACE, Rename
from mountfs.meta.ops.rmdir import Rmdir
from mountfs.types import ROOT, SUPERUSER, Cred


@pytest.fixture
def rename(machine):
    def rename(old, new, flags=0, cred=SUPERUSER):
        return machine.do(Rename(*machine.place(old), *machine.place(new), flags, cred))

    return rename


def test_a_file_changes_its_name_and_directory(machine, rename):
    ino = machine.make("d/", "a")
    assert rename("a", "d/b") == 0
    assert machine.paths() == {"d/", "d/b"}
    assert machine.ino("d/b") == ino


def test_a_moved_directory_keeps_the_links_of_its_subdirectories(machine, rename):
    machine.make("a/", "a/x/", "a/y/", "b/")
    rename("a", "b/c")
    assert machine.stat("b/c").nlink == 4
    assert machine.stat("b").nlink == 3
    assert machine.stat("").nlink == 3
    machine.do(Rmdir(machine.ino("b/c"), b"x", SUPERUSER))
    assert machine.stat("b/c").nlink == 3


def test_the_file_in_the_way_becomes_an_orphan(machine, rename):
    over = machine.make("a", "b")
    assert rename("a", "b") == over
    assert machine.paths() == {"b"}
    assert machine.stat(over).nlink == 0


def test_a_file_in_the_way_with_another_name_is_not_lost(machine, rename):
    machine.make("a", "b")
    machine.do(Link(machine.ino("b"), ROOT, b"c", SUPERUSER))
    assert rename("a", "b") == 0
    assert machine.stat("c").nlink == 1


def test_two_names_of_one_file_both_stay(machine, rename):
    machine.do(Link(machine.make("a"), ROOT, b"b", SUPERUSER))
    assert rename("a", "b") == 0
    assert machine.paths() == {"a", "b"}


def test_over_an_empty_directory(machine, rename):
    machine.make("a/", "a/x/", "b/")
    over = machine.ino("b")
    assert rename("a", "b") == over
    assert machine.paths() == {"b/", "b/x/"}
    assert machine.stat("").nlink == 3


def test_over_a_non_empty_directory_is_refused(machine, rename, fails):
    machine.make("a/", "b/", "b/file")
    with fails(Fault.NOT_EMPTY):
        rename("a", "b")
    assert machine.paths() == {"a/", "b/", "b/file"}


def test_directories_and_files_do_not_replace_each_other(machine, rename, fails):
    machine.make("d/", "a")
    with fails(Fault.IS_DIRECTORY):
        rename("a", "d")
    with fails(Fault.NOT_DIRECTORY):
        rename("d", "a")


def test_a_directory_does_not_move_into_itself(machine, rename, fails):
    machine.make("a/", "a/b/", "a/b/c/")
    for new in ("a/x", "a/b/x", "a/b/c/x", "a/b"):
        with fails(Fault.INVALID):
            rename("a", new)


def test_noreplace_refuses_a_taken_name_even_of_the_same_file(machine, rename, fails):
    machine.do(Link(machine.make("a"), ROOT, b"b", SUPERUSER))
    with fails(Fault.EXISTS):
        rename("a", "b", NOREPLACE)
    rename("a", "c", NOREPLACE)
    assert machine.paths() == {"b", "c"}


def test_exchange_swaps_a_file_and_a_directory(machine, rename):
    machine.make("one/", "two/", "one/file", "two/dir/", "two/dir/x/")
    file, directory = machine.ino("one/file"), machine.ino("two/dir")
    assert rename("one/file", "two/dir", EXCHANGE) == 0
    assert machine.paths() == {"one/", "two/", "one/file/", "one/file/x/", "two/dir"}
    assert (machine.ino("two/dir"), machine.ino("one/file")) == (file, directory)
    assert machine.stat("one").nlink == 3
    assert machine.stat("two").nlink == 2
    assert machine.stat(directory).nlink == 3


def test_exchange_needs_both_names(machine, rename, fails):
    machine.make("a")
    with fails(Fault.NOT_FOUND):
        rename("a", "b", EXCHANGE)


def test_exchange_with_an_ancestor_is_refused(machine, rename, fails):
    machine.make("a/", "a/b/", "a/b/c/")
    with fails(Fault.INVALID):
        rename("a/b/c", "a", EXCHANGE)
    with fails(Fault.INVALID):
        rename("a", "a/b/c", EXCHANGE)


def test_an_exchanged_name_keeps_its_place_in_the_listing(machine, rename):
    machine.make("a", "b", "c")
    before = list(machine.listing(ROOT))
    rename("a", "c", EXCHANGE)
    assert list(machine.listing(ROOT)) == before


def test_flags_do_not_mix_and_unknown_ones_are_refused(fails):
    for flags in (NOREPLACE | EXCHANGE, 4):
        with fails(Fault.INVALID):
            Rename(ROOT, b"a", ROOT, b"b", flags, SUPERUSER).check()


def test_sticky_directories_protect_the_moved_and_the_replaced(machine, rename, fails):
    alice, bob = Cred(1, 1), Cred(2, 2)
    machine.make("tmp/", "free/", mode=0o1777)
    machine.make("tmp/alice", cred=alice)
    machine.make("tmp/bob", cred=bob)
    with fails(Fault.NOT_PERMITTED):
        rename("tmp/alice", "tmp/other", cred=bob)
    with fails(Fault.NOT_PERMITTED):
        rename("tmp/bob", "tmp/alice", cred=bob)
    rename("tmp/alice", "tmp/other", cred=alice)


def test_who_moves_a_directory_elsewhere_must_be_able_to_write_it(machine, rename, fails):
    machine.make("a/", "b/", mode=0o777)
    machine.do(Mkdir(machine.ino("a"), b"d", 0o555, 0, SUPERUSER))
    with fails(Fault.DENIED):
        rename("a/d", "b/d", cred=Cred(1, 1))
    rename("a/d", "a/e", cred=Cred(1, 1))  # its ".." stays


def test_who_exchanges_directories_must_be_able_to_write_both(machine, rename, fails):
    machine.make("a/", "b/", "a/d/", mode=0o777)
    machine.do(Mkdir(machine.ino("b"), b"d", 0o555, 0, SUPERUSER))
    with fails(Fault.DENIED):
        rename("a/d", "b/d", EXCHANGE, cred=Cred(1, 1))
