"""Sums of directories are kept for all of them, whatever happens to them."""

from typing import Any

import pytest

from mountfs.meta import book, keys
from mountfs.meta.accounts import Accounts
from mountfs.meta.ops.link import Link
from mountfs.meta.ops.quota import Below, Owners
from mountfs.meta.ops.reap import Reap
from mountfs.meta.ops.rename import EXCHANGE, Rename
from mountfs.meta.ops.rmdir import Rmdir
from mountfs.meta.ops.tmpfile import Tmpfile
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.quota import Kind
from mountfs.meta.records import ino_of
from mountfs.types import BLOCK_BYTES, KIB, ROOT, SUPERUSER, Cred


def below(machine: Any, path: str) -> tuple[int, int, int]:
    found: tuple[int, int, int] = machine.ask(Below(machine.ino(path)))
    return found


def sums_rows(machine: Any) -> set[int]:
    """The directories that have some, gone or not."""
    return {
        int.from_bytes(key[:8], "big")
        for key in machine.rows()
        if key[:8] != bytes(8) and key[8] == keys.SUMS
    }


def test_all_that_lies_below_is_counted_at_every_height(machine: Any) -> None:
    machine.make("a/", "a/b/", "a/b/c/", "a/file")
    file = machine.make("a/b/c/file")
    machine.write(file, (0, bytes(20 * KIB)), slices=True)
    assert below(machine, "a/b/c") == (20 * KIB, 1, 0)
    assert below(machine, "a/b") == (20 * KIB, 1, 1)
    assert below(machine, "a") == (20 * KIB, 2, 2)
    assert below(machine, "") == (20 * KIB, 2, 3)


def test_a_directory_takes_its_sums_along(machine: Any) -> None:
    machine.make("a/", "a/x/", "a/x/y/", "b/", "b/c/")
    machine.write(machine.make("a/x/y/file"), (0, b"x"))
    machine.do(Rename(machine.ino("a"), b"x", machine.ino("b/c"), b"x", 0, SUPERUSER))
    assert below(machine, "a") == (0, 0, 0)
    assert below(machine, "b") == (BLOCK_BYTES, 1, 3)
    machine.make("b/c/x/y/later")
    assert below(machine, "b/c") == (BLOCK_BYTES, 2, 2)


def test_a_removed_directory_is_charged_until_the_last_file_in_it_is_closed(machine: Any) -> None:
    file = machine.make("a/", "a/b/", "a/b/c/", "a/b/c/file")
    machine.write(file, (0, b"x"))
    b, c = machine.ino("a/b"), machine.ino("a/b/c")
    machine.do(Unlink(c, b"file", SUPERUSER))
    machine.do(Rmdir(b, b"c", SUPERUSER))
    machine.do(Rmdir(machine.ino("a"), b"b", SUPERUSER))
    assert below(machine, "a") == (BLOCK_BYTES, 1, 2)
    machine.do(Reap(machine.session, (b, c)))
    assert below(machine, "a") == (BLOCK_BYTES, 1, 0)
    assert {b, c} <= sums_rows(machine)
    machine.do(Rename(ROOT, b"a", ROOT, b"moved", 0, SUPERUSER))
    machine.checkpoint()
    machine.restart()
    assert machine.violations() == []
    machine.do(Reap(machine.session, (file,)))
    assert below(machine, "moved") == (0, 0, 0)
    assert not {b, c} & sums_rows(machine)


def test_what_is_charged_to_a_removed_directory_moves_with_the_one_above(machine: Any) -> None:
    machine.make("z/")
    file = machine.make("a/", "a/b/", "a/b/file")
    b = machine.ino("a/b")
    machine.do(Unlink(b, b"file", SUPERUSER))
    machine.do(Rmdir(machine.ino("a"), b"b", SUPERUSER))
    machine.do(Reap(machine.session, (b,)))
    machine.do(Rename(ROOT, b"a", machine.ino("z"), b"a", 0, SUPERUSER))
    assert below(machine, "z") == (0, 1, 1)
    machine.do(Reap(machine.session, (file,)))
    assert below(machine, "z") == (0, 0, 1)


def test_a_file_and_its_directory_can_go_at_once(machine: Any) -> None:
    file = machine.make("a/", "a/file")
    directory = machine.ino("a")
    machine.do(Unlink(directory, b"file", SUPERUSER))
    machine.do(Rmdir(ROOT, b"a", SUPERUSER))
    machine.do(Reap(machine.session, (directory, file)))
    assert sums_rows(machine) == {ROOT}
    assert below(machine, "") == (0, 0, 0)


def test_a_file_with_several_names_is_charged_to_the_first_of_their_directories(
    machine: Any,
) -> None:
    a, b = machine.make("a/"), machine.make("b/")
    file = machine.make("b/1")
    for directory, name in ((b, b"2"), (a, b"3"), (a, b"4"), (ROOT, b"5")):
        machine.do(Link(file, directory, name, SUPERUSER))

    def homes() -> list[int]:
        return [machine.ask(Below(directory))[1] for directory in (ROOT, a, b)]

    assert homes() == [1, 0, 0]
    for directory, name, expected in (
        (ROOT, b"5", [1, 1, 0]),
        (a, b"3", [1, 1, 0]),
        (a, b"4", [1, 0, 1]),
        (b, b"1", [1, 0, 1]),
    ):
        machine.do(Unlink(directory, name, SUPERUSER))
        assert homes() == expected
        assert machine.violations() == []
    assert not any(key[8] == keys.PLACE for key in machine.rows())
    machine.do(Rename(b, b"2", a, b"2", 0, SUPERUSER))
    assert homes() == [1, 1, 0]


def test_a_file_is_exchanged_for_the_directory_that_becomes_its_home(machine: Any) -> None:
    d, p = machine.make("d/"), machine.make("p/")
    machine.do(Rename(ROOT, b"d", p, b"d", 0, SUPERUSER))
    file = machine.make("file")
    machine.do(Link(file, d, b"x", SUPERUSER))
    assert [below(machine, path) for path in ("", "p")] == [(0, 1, 2), (0, 0, 1)]
    exchange = Rename(p, b"d", ROOT, b"file", EXCHANGE, SUPERUSER)
    machine.do(exchange)
    assert [below(machine, path) for path in ("", "p", "file")] == [(0, 1, 2), (0, 0, 0), (0, 1, 0)]
    machine.do(exchange)
    assert [below(machine, path) for path in ("", "p")] == [(0, 1, 2), (0, 0, 1)]


def test_owners_that_have_nothing_are_forgotten(machine: Any) -> None:
    who = Cred(7, 8, (), True)
    file = machine.make("file", cred=who)
    machine.write(file, (0, b"x"))
    assert machine.ask(Owners(Kind.USER, 7, 9)) == ((7, BLOCK_BYTES, 1),)
    assert machine.ask(Owners(Kind.GROUP, 8, 9)) == ((8, BLOCK_BYTES, 1),)
    machine.checkpoint()
    machine.do(Unlink(ROOT, b"file", SUPERUSER))
    machine.do(Reap(machine.session, (file,)))
    assert machine.ask(Owners(Kind.USER, 7, 9)) == ()
    machine.checkpoint()
    machine.restart()
    assert machine.ask(Owners(Kind.GROUP, 8, 9)) == ()


def test_memory_is_bounded_and_nothing_that_changed_is_lost(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book, "_KNOWN_MAX", 8)
    for number in range(40):
        machine.make(f"d{number}/", f"d{number}/file")
    machine.state.tree.accounts.loose_rows()
    sums = machine.state.tree.accounts._sums
    assert len(sums.changed) == 41
    machine.checkpoint()
    assert not sums.changed
    for number in range(40):
        machine.make(f"d{number}/other")
        if number % 4 == 0:
            machine.checkpoint()
    assert len(sums.known) <= 8
    assert below(machine, "") == (0, 80, 40)
    assert below(machine, "d3") == (0, 2, 0)


def test_an_abandoned_checkpoint_loses_no_sums(machine: Any) -> None:
    machine.make("d/", "d/1")
    machine.state.freeze()
    machine.make("d/2")
    machine.overlay.unfreeze()
    machine.checkpoint()
    machine.restart()
    assert below(machine, "d") == (0, 2, 0)


def test_a_refused_command_changes_no_account(machine: Any, fails: Any) -> None:
    machine.make("d/", "d/1")
    tree = machine.state.tree
    before = tree.accounts.loose_rows()
    with pytest.raises(RuntimeError):
        with_bug(machine)
    assert tree.accounts.loose_rows() == before


def with_bug(machine: Any) -> None:
    """A command that fails after it has changed something."""
    tree = machine.state.tree
    tree.begin(tree.stamp)
    try:
        tree.edit(machine.ino("d/1")).uid = 5
        raise RuntimeError
    finally:
        tree.abort()


def test_accounts_are_the_same_after_they_were_stored(machine: Any) -> None:
    machine.make("d/", "d/1", cred=Cred(5, 6, (), True))
    machine.checkpoint()
    stored = Accounts(machine.overlay)
    assert stored.owners(Kind.USER) == [0, 5]
    assert stored.use(Kind.TREE, ROOT) == (0, 2)


def test_a_file_that_gets_a_name_again_leaves_the_removed_directory(machine: Any) -> None:
    machine.make("a/", "a/b/")
    b = machine.ino("a/b")
    file = ino_of(machine.do(Tmpfile(b, 0o600, 0, SUPERUSER)))
    machine.do(Rmdir(machine.ino("a"), b"b", SUPERUSER))
    machine.do(Reap(machine.session, (b,)))
    assert below(machine, "a") == (0, 1, 0)
    machine.do(Link(file, ROOT, b"named", SUPERUSER))
    assert below(machine, "a") == (0, 0, 0)
    assert b not in sums_rows(machine)
