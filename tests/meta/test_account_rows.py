"""A state from before there were accounts gets them, whatever is in it, and always the same."""

from typing import Any

import msgspec
import pytest

from mountfs.kv.memory import MemoryStore
from mountfs.kv.overlay import Overlay
from mountfs.meta import account_rows, keys
from mountfs.meta.account_rows import make_account_rows
from mountfs.meta.invariants import violations
from mountfs.meta.limited import quota_row
from mountfs.meta.ops.link import Link
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.meta.ops.quota import SetQuota
from mountfs.meta.ops.rmdir import Rmdir
from mountfs.meta.ops.symlink import Symlink
from mountfs.meta.ops.trash import SetTrash
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.quota import Kind, Limits, Quota
from mountfs.meta.records import Counters, unpack_inode
from mountfs.meta.replica import Replica
from mountfs.meta.state_machine import StateMachine
from mountfs.meta.sums import NOBODY, Sums, Use
from mountfs.meta.trash import Setting
from mountfs.meta.tree import Tree
from mountfs.types import ROOT, SUPERUSER, Cred, Ino

ACCOUNTS = {keys.SUMS, keys.PLACE}
OF_ALL = {keys.USER_USE, keys.GROUP_USE}


def filled(machine: Any) -> dict[str, Ino]:
    machine.make("a/", "a/b/", "a/b/c/", "a/b/file", "d/", cred=Cred(0, 5, (), True))
    machine.write(machine.ino("a/b/file"), (0, b"x"))
    machine.do(Symlink(machine.ino("d"), b"s", b"target", Cred(3, 4, (), True)))
    linked = machine.make("d/linked")
    machine.write(linked, (0, bytes(20_000)), slices=True)
    machine.do(Link(linked, machine.ino("a/b"), b"1", SUPERUSER))
    machine.do(Link(linked, machine.ino("a/b"), b"2", SUPERUSER))
    single = machine.make("a/single")
    machine.do(Link(single, machine.ino("d"), b"gone", SUPERUSER))
    machine.do(Unlink(machine.ino("d"), b"gone", SUPERUSER))
    open_file = machine.make("d/open")
    machine.do(Unlink(machine.ino("d"), b"open", SUPERUSER))
    machine.do(Mkdir(ROOT, b"removed", 0o755, 0, SUPERUSER))
    removed = machine.ino("removed")
    machine.do(Rmdir(ROOT, b"removed", SUPERUSER))
    return {"linked": linked, "single": single, "open": open_file, "removed": removed}


def as_of_before(machine: Any, format: int, parents: dict[Ino, Ino]) -> MemoryStore:
    """What a program without accounts would have stored; it had files at home where they got their
    last name.
    """
    machine.checkpoint()
    store = MemoryStore()
    rows = dict(machine.store.scan(b"", b"\xff" * 16))
    for key in list(rows):
        kinds = OF_ALL if key[:8] == bytes(8) else ACCOUNTS
        if key[8] in kinds:
            del rows[key]
    for ino, parent in parents.items():
        inode = unpack_inode(rows[keys.inode(ino)])
        inode.parent = parent
        rows[keys.inode(ino)] = inode.pack()
    counters = msgspec.msgpack.decode(rows[keys.COUNTERS], type=Counters)
    counters.format, counters.counted = format, False
    rows[keys.COUNTERS] = msgspec.msgpack.encode(counters)
    store.write(rows, sync=True)
    return store


def stored(store: MemoryStore) -> dict[bytes, bytes]:
    return dict(store.scan(b"", b"\xff" * 16))


@pytest.mark.parametrize("format", [2, 3])
@pytest.mark.parametrize("batch", [1, 20_000])
def test_a_state_of_before_gets_the_accounts_that_it_lacks(
    machine: Any, monkeypatch: pytest.MonkeyPatch, format: int, batch: int
) -> None:
    monkeypatch.setattr(account_rows, "BATCH", batch)
    inos = filled(machine)
    parents = {inos["linked"]: machine.ino("d"), inos["single"]: machine.ino("d")}
    store = as_of_before(machine, format, parents)
    assert stored(store) != stored(machine.store)
    Replica(store)
    assert stored(store) == stored(machine.store)
    Replica(store)
    assert stored(store) == stored(machine.store)


@pytest.mark.parametrize("counts", [True, False])
def test_what_is_in_the_trash_is_counted_as_it_was(machine: Any, counts: bool) -> None:
    filled(machine)
    machine.do(SetTrash(ROOT, Setting(7, counts), SUPERUSER))
    machine.do(Unlink(machine.ino("a/b"), b"file", SUPERUSER))
    machine.make("t/", "t/u/", "t/u/f", "t/u/g")
    machine.write(machine.ino("t/u/f"), (0, b"x"))
    for name in (b"f", b"g"):
        machine.do(Unlink(machine.ino("t/u"), name, SUPERUSER))
        machine.do(SetTrash(ROOT, Setting(7, not counts), SUPERUSER))
    machine.do(Rmdir(machine.ino("t"), b"u", SUPERUSER))
    machine.do(Rmdir(ROOT, b"t", SUPERUSER))
    store = as_of_before(machine, 3, {})
    Replica(store)
    assert stored(store) == stored(machine.store)


def test_it_may_be_interrupted(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account_rows, "BATCH", 1)
    inos = filled(machine)
    store = as_of_before(machine, 3, {inos["linked"]: machine.ino("d")})
    write, left = store.write, 5

    def interrupted(*asked: Any, **more: Any) -> None:
        nonlocal left
        if left == 0:
            raise InterruptedError
        left -= 1
        write(*asked, **more)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write", interrupted)
        with pytest.raises(InterruptedError):
            make_account_rows(store)
    Replica(store)
    assert stored(store) == stored(machine.store)


def test_what_was_charged_to_a_directory_that_is_gone_is_charged_to_the_root(machine: Any) -> None:
    inos = filled(machine)
    store = as_of_before(machine, 3, {inos["open"]: Ino(99), inos["removed"]: Ino(99)})
    Replica(store)
    assert list(violations(Tree(Overlay(store)))) == []


def test_what_a_program_did_that_does_not_count_is_counted_afterwards(machine: Any) -> None:
    """A server of before may get a snapshot with accounts, and go on with it."""
    inos = filled(machine)
    machine.do(SetQuota(Kind.TREE, machine.ino("a"), Limits(hard_inodes=100)))
    machine.checkpoint()
    store = MemoryStore()
    rows = dict(machine.store.scan(b"", b"\xff" * 16))
    stale = {
        keys.sums(ROOT): Sums(NOBODY, 1, 2, 3).pack(),
        keys.sums(Ino(98)): Sums(ROOT, 1, 2, 3).pack(),
        keys.place(inos["single"], ROOT): (1).to_bytes(4, "little"),
        keys.use_of_user(0): Use(1, 2).pack(),
        keys.use_of_group(99): Use(1, 2).pack(),
        keys.quota(Kind.TREE, 98): quota_row(Quota(Limits(hard_inodes=1))),
    }
    counters = msgspec.msgpack.decode(rows[keys.COUNTERS], type=Counters)
    counters.counted = False
    store.write({**rows, **stale, keys.COUNTERS: msgspec.msgpack.encode(counters)}, sync=True)
    Replica(store)
    assert stored(store) == rows


def test_an_empty_store_is_left_alone() -> None:
    store = MemoryStore()
    make_account_rows(store)
    assert stored(store) == {}
    assert StateMachine(Overlay(store)).tree.counters.format == 4
