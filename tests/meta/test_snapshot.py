"""A copy of the metadata: in pieces, and put in place of the store whatever crashes meanwhile."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mountfs.errors import Fault, FsError
from mountfs.kv.leveldb import LevelStore
from mountfs.kv.memory import MemoryStore
from mountfs.meta import keys, snapshot
from mountfs.meta.machine import MetaMachine
from mountfs.meta.ops.make_root import MakeRoot
from mountfs.meta.ops.session import OpenSession
from mountfs.meta.snapshot import INCOMING, OUTGOING, Sink, Source, settle, take_place
from mountfs.raft.messages import Entry, EntryKind, Membership, NodeId, SnapshotHead, Term
from mountfs.types import LogIndex

MEMBERS = Membership((NodeId(1), NodeId(2), NodeId(3)))


def head(index: int, term: int = 1) -> SnapshotHead:
    return SnapshotHead(LogIndex(index), Term(term), MEMBERS)


OLD, NEW = head(10), head(500, 3)


def open_store(path: Path) -> LevelStore:
    return LevelStore(path, create=True)


def rows_of(at: SnapshotHead, count: int = 300) -> dict[bytes, bytes | None]:
    rows: dict[bytes, bytes | None] = {
        b"row %05d" % number: b"%d" % at.index * 20 for number in range(count)
    }
    rows[keys.HEAD] = msgspec.msgpack.encode(at)
    return rows


def make_store(path: Path, at: SnapshotHead) -> None:
    store = open_store(path)
    store.write(rows_of(at), sync=True)
    store.close()


def head_in(path: Path) -> SnapshotHead:
    store = open_store(path)
    try:
        stored = store.get(keys.HEAD)
        assert stored is not None
        found = msgspec.msgpack.decode(stored, type=SnapshotHead)
        assert dict(store.scan(b"row", b"rox")) == {
            key: value for key, value in rows_of(found).items() if key != keys.HEAD
        }
        return found
    finally:
        store.close()


def pieces(at: SnapshotHead) -> list[bytes]:
    store = MemoryStore()
    store.write(rows_of(at), sync=True)
    source = Source(at, store.view())
    found, after = [], b""
    while True:
        piece, after = source.piece(after)
        found.append(piece)
        if not after:
            return found


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "PIECE_BYTES", 1_000)


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[Sink]:
    sink = Sink(tmp_path, NEW, open_store)
    yield sink
    if not sink.is_whole:
        sink.abandon()
        assert not (tmp_path / INCOMING).exists()


# -- pieces


def test_all_rows_come_over(tmp_path: Path, sink: Sink) -> None:
    parts = pieces(NEW)
    assert len(parts) > 5
    assert [sink.take(part) for part in parts] == [False] * (len(parts) - 1) + [True]
    assert sink.is_whole
    assert head_in(tmp_path / INCOMING) == NEW


@pytest.mark.parametrize(
    "damage",
    [
        lambda piece: piece[:-1],
        lambda piece: piece[:-1] + bytes([piece[-1] ^ 1]),
        lambda piece: piece[:3] + bytes([piece[3] ^ 1]) + piece[4:],
        lambda piece: b"",
        lambda piece: b"\xc1",
        lambda piece: msgspec.msgpack.encode([0, [[b"a", b"b"]]]),
        lambda piece: msgspec.msgpack.encode([0, 7]),
    ],
)
def test_a_damaged_piece_is_refused_and_can_come_again(
    sink: Sink, damage: Callable[[bytes], bytes]
) -> None:
    first, second, *others = pieces(NEW)
    sink.take(first)
    before = sink.last_key
    with pytest.raises(FsError) as caught:
        sink.take(damage(second))
    assert caught.value.fault is Fault.CORRUPT
    assert sink.last_key == before
    for part in (second, *others):
        sink.take(part)
    assert sink.is_whole


def test_a_piece_that_comes_twice_or_too_early_is_refused(sink: Sink) -> None:
    first, second, *_ = pieces(NEW)
    sink.take(first)
    sink.take(second)
    for again in (first, second):
        with pytest.raises(FsError, match="wrong order") as caught:
            sink.take(again)
        assert caught.value.fault is Fault.CORRUPT


def test_a_copy_of_something_else_is_not_whole(sink: Sink) -> None:
    *parts, last = pieces(OLD)
    for part in parts:
        sink.take(part)
    with pytest.raises(FsError, match="came instead of") as caught:
        sink.take(last)
    assert caught.value.fault is Fault.CORRUPT
    assert not sink.is_whole


def test_a_copy_of_nothing_is_not_whole(sink: Sink) -> None:
    with pytest.raises(FsError):
        sink.take(pieces(NEW)[-1])
    assert not sink.is_whole


def test_what_is_whole_is_on_disk_with_its_name(
    tmp_path: Path, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log will say that the state is this: it must be there after a loss of power."""
    synced: list[Path] = []
    fsync = os.fsync

    def note(fd: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", note)
    for part in pieces(NEW):
        sink.take(part)
    assert tmp_path / INCOMING in synced
    assert tmp_path in synced


def test_a_new_copy_begins_anew(tmp_path: Path, sink: Sink) -> None:
    sink.take(pieces(NEW)[0])
    sink._store.close()  # as a crash leaves it
    again = Sink(tmp_path, NEW, open_store)
    assert again.last_key == b""
    for part in pieces(NEW):
        again.take(part)
    assert head_in(tmp_path / INCOMING) == NEW
    sink.is_whole = True


# -- crashes


class Crash(BaseException):
    pass


@contextmanager
def crash_before(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The process dies before it does the operation of this number on the disk."""
    done: list[str] = []

    def counted(name: str, does: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **named: Any) -> Any:
            if len(done) == step:
                raise Crash
            done.append(name)
            return does(*arguments, **named)

        return operation

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", counted("rename", os.rename))
        patch.setattr(os, "fsync", counted("fsync", os.fsync))
        patch.setattr(shutil, "rmtree", counted("rmtree", torn(shutil.rmtree, done, step)))
        yield done


def torn(rmtree: Callable[..., None], done: list[str], step: int) -> Callable[..., None]:
    """Removing a directory is many operations: it may end in the middle."""

    def remove(path: Path, **named: Any) -> None:
        if path.exists() and len(done) == step:
            next(iter(sorted(path.iterdir()))).unlink()
            raise Crash
        rmtree(path, **named)

    return remove


STEPS = range(10)


@pytest.mark.parametrize("with_leftover", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_a_crash_while_a_copy_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, with_leftover: bool
) -> None:
    """The log is behind the copy by then: after the crash the state is the copy."""
    store = tmp_path / "store"
    make_store(store, OLD)
    make_store(tmp_path / INCOMING, NEW)
    if with_leftover:
        make_store(tmp_path / OUTGOING, head(1))
    with crash_before(step, monkeypatch) as done:
        try:
            take_place(tmp_path, store)
        except Crash:
            pass
        else:
            assert step >= len(done)
    settle(tmp_path, store, NEW, open_store)
    assert head_in(store) == NEW
    assert sorted(one.name for one in tmp_path.iterdir()) == ["store"]


@pytest.mark.parametrize("second", STEPS)
@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_crash_while_a_crash_is_cleaned_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, second: int
) -> None:
    store = tmp_path / "store"
    make_store(store, OLD)
    make_store(tmp_path / INCOMING, NEW)
    for step, work in (
        (first, lambda: take_place(tmp_path, store)),
        (second, lambda: settle(tmp_path, store, NEW, open_store)),
    ):
        with crash_before(step, monkeypatch), suppress(Crash):
            work()
    settle(tmp_path, store, NEW, open_store)
    assert head_in(store) == NEW
    assert sorted(one.name for one in tmp_path.iterdir()) == ["store"]


@pytest.mark.parametrize("taken", [0, 1, 3, 100])
def test_a_crash_before_the_log_knows_leaves_the_state_as_it_was(
    tmp_path: Path, taken: int
) -> None:
    store = tmp_path / "store"
    make_store(store, OLD)
    arriving = Sink(tmp_path, NEW, open_store)
    for part in pieces(NEW)[:taken]:
        arriving.take(part)
    arriving._store.close()
    settle(tmp_path, store, OLD, open_store)
    assert head_in(store) == OLD
    assert sorted(one.name for one in tmp_path.iterdir()) == ["store"]


@pytest.mark.parametrize("left", ["CURRENT", "rubbish.ldb", "000003.log"])
def test_what_a_loss_of_power_left_of_a_copy_does_not_keep_a_node_from_starting(
    tmp_path: Path, left: str
) -> None:
    """A node that has just joined has no state yet, and its first copy was on its way."""
    store = tmp_path / "store"
    open_store(store).close()
    arriving = Sink(tmp_path, NEW, open_store)
    arriving.take(pieces(NEW)[0])
    arriving._store.close()
    if left != "CURRENT":
        (tmp_path / INCOMING / "CURRENT").unlink()
    (tmp_path / INCOMING / left).write_bytes(b"rubbish")
    settle(tmp_path, store, head(0, 0), open_store)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["store"]


# -- the machine


def machine_at(directory: Path) -> MetaMachine:
    directory.mkdir(exist_ok=True)
    return MetaMachine(directory, head(0, 0), open_store)


def do(machine: MetaMachine, index: int, command: Any) -> object:
    asked = machine.ask(0, 0, 0, command)
    data = machine.encoded(asked)
    return machine.apply(Entry(LogIndex(index), Term(1), EntryKind.COMMAND, data), None)


def checkpoint(machine: MetaMachine, at: SnapshotHead) -> None:
    begun = machine.begin_checkpoint(at)
    machine.replica.write_checkpoint(begun)
    machine.end_checkpoint(begun)


def test_a_machine_takes_over_the_state_of_another(tmp_path: Path) -> None:
    one, two = machine_at(tmp_path / "1"), machine_at(tmp_path / "2")
    do(one, 1, MakeRoot(0, 0))
    session = do(one, 2, OpenSession("me"))
    one.skip(LogIndex(3))
    checkpoint(one, head(3))
    told: list[str] = []
    two.on_installed = lambda: told.append("installed")
    source, sink = one.source(), two.sink(head(3))
    after = b""
    while not sink.is_whole:
        piece, after = source.piece(after)
        sink.take(piece)
    source.close()
    two.install(head(3))
    assert told == ["installed"]
    assert two.applied == 3 and two.stored == head(3)
    assert set(two.replica.machine.sessions) == {session}
    do(two, 4, OpenSession("you"))
    two.close()
    again = MetaMachine(tmp_path / "2", head(3), open_store)
    assert again.applied == 3  # what came after is in the log
    again.close()
    one.close()


def test_a_copy_whose_store_was_replaced_says_so(tmp_path: Path) -> None:
    """Somebody may still be fetching it."""
    machine = machine_at(tmp_path / "1")
    do(machine, 1, MakeRoot(0, 0))
    checkpoint(machine, head(1))
    source = machine.source()
    machine.replica.close()
    with pytest.raises(FsError) as caught:
        source.piece(b"")
    assert caught.value.fault is Fault.BUSY
    source.close()
