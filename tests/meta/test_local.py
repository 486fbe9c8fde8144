"""The metadata of one machine: what its log and its store hold after the process is gone."""

import copy
import time
from pathlib import Path

import pytest
import trio

from mountfs.errors import Fault, FsError
from mountfs.kv.journal import Journal
from mountfs.kv.memory import MemoryStore
from mountfs.meta.local import LocalMeta
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.meta.ops.read import Lookup
from mountfs.meta.ops.retention import Kept, SetRetention
from mountfs.meta.ops.session import Sessions
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.ops.write import Run, Write
from mountfs.meta.records import NS, ino_of
from mountfs.meta.replica import META_GROUP
from mountfs.meta.retention import Mode
from mountfs.raft.core import Save
from mountfs.raft.messages import Entry, EntryKind, Membership, NodeId, encode_membership
from mountfs.types import MIB, ROOT, SUPERUSER, LogIndex, SliceId, VolumeId

HOUR = 3_600 * NS


class Disk:
    """A store and a log, to be opened again and again."""

    def __init__(self, path: Path) -> None:
        self.store = MemoryStore()
        self.path = path
        self.bytes_are_there = True
        (path / "log").mkdir()

    def open(self) -> LocalMeta:
        log = Journal(self.path / "log", segment_bytes=MIB)
        meta = LocalMeta(
            self.store,
            log,
            bytes_present=lambda entry: self.bytes_are_there,
            cut_path=self.path / "cut",
        )
        meta.open_session()
        return meta


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def mkdir(meta: LocalMeta, name: bytes) -> None:
    meta.propose_now(Mkdir(ROOT, name, 0o755, 0, SUPERUSER))


async def names(meta: LocalMeta, *wanted: bytes) -> list[bytes]:
    found = []
    for name in wanted:
        try:
            await meta.read(Lookup(ROOT, name, SUPERUSER))
        except FsError as error:
            assert error.fault is Fault.NOT_FOUND
        else:
            found.append(name)
    return found


async def test_a_new_filesystem_survives_a_crash_before_its_first_checkpoint(disk: Disk) -> None:
    meta = disk.open()
    mkdir(meta, b"a")
    meta.sync_log()
    disk.store.crash()
    assert await names(disk.open(), b"a") == [b"a"]


async def test_what_was_proposed_survives_the_process(disk: Disk) -> None:
    meta = disk.open()
    checkpoint = meta.begin_checkpoint()
    mkdir(meta, b"a")
    meta.write_checkpoint(checkpoint, meta.logged)
    meta.end_checkpoint(checkpoint)
    mkdir(meta, b"b")
    assert await names(disk.open(), b"a", b"b") == [b"a", b"b"]


async def test_a_session_that_is_ended_in_order_leaves_nothing(disk: Disk) -> None:
    meta = disk.open()
    mkdir(meta, b"a")
    assert len(await meta.read(Sessions())) == 1
    meta.end_session()
    assert await meta.read(Sessions()) == ()
    assert await names(disk.open(), b"a") == [b"a"]


async def test_the_log_ends_before_an_entry_whose_bytes_are_missing(disk: Disk) -> None:
    meta = disk.open()
    attributes, _ = meta.propose_now(Make(ROOT, b"file", 0o100644, 0, 0, True, SUPERUSER))
    run = Run(0, 100_000, 0, SliceId(1), VolumeId(1))
    meta.propose_now(Write(ino_of(attributes), (run,), 1, False))
    mkdir(meta, b"later")
    disk.bytes_are_there = False
    again = disk.open()
    # In this test nothing before it is there either: what counts is that the rest is a prefix,
    assert await names(again, b"file", b"later") in ([], [b"file"])
    assert again.cut > 0
    assert (disk.path / "cut").stat().st_size > 0  # and that nothing was thrown away


def test_missing_log_segments_are_not_taken_for_a_new_filesystem(disk: Disk) -> None:
    meta = disk.open()
    mkdir(meta, b"a")
    checkpoint = meta.begin_checkpoint()
    meta.write_checkpoint(checkpoint, meta.logged)
    meta.end_checkpoint(checkpoint)
    for segment in (disk.path / "log").iterdir():
        segment.unlink()
    with pytest.raises(FsError) as caught:
        disk.open()
    assert caught.value.fault is Fault.BAD_HOME


def checkpoint(meta: LocalMeta) -> None:
    begun = meta.begin_checkpoint()
    meta.write_checkpoint(begun, meta.logged)
    meta.end_checkpoint(begun)


def test_missing_tables_are_not_taken_for_a_new_filesystem(disk: Disk) -> None:
    meta = disk.open()
    mkdir(meta, b"a")
    checkpoint(meta)
    checkpoint(meta)
    disk.store = MemoryStore()
    with pytest.raises(FsError, match="tables") as caught:
        disk.open()
    assert caught.value.fault is Fault.BAD_HOME


async def test_a_store_that_lost_its_last_checkpoint_is_brought_up_to_date(disk: Disk) -> None:
    meta = disk.open()
    mkdir(meta, b"a")
    checkpoint(meta)
    before = copy.deepcopy(disk.store)
    mkdir(meta, b"b")
    checkpoint(meta)
    mkdir(meta, b"c")
    disk.store = before
    assert await names(disk.open(), b"a", b"b", b"c") == [b"a", b"b", b"c"]


async def test_a_log_from_its_begin_on_is_all_that_is_needed(disk: Disk) -> None:
    mkdir(disk.open(), b"a")
    disk.store = MemoryStore()
    assert await names(disk.open(), b"a") == [b"a"]


def test_the_home_of_one_of_several_machines_is_not_for_one(disk: Disk) -> None:
    meta = disk.open()
    three = encode_membership(Membership((NodeId(1), NodeId(2), NodeId(3))))
    storage, index = meta._storage, LogIndex(meta.applied + 1)
    entry = Entry(index, meta._term, EntryKind.MEMBERSHIP, three)
    storage.save(META_GROUP, Save(None, (entry,), None, True, index, 0))
    with pytest.raises(FsError, match=r"nodes 1, 2, 3.*mountfs node") as caught:
        disk.open()
    assert caught.value.fault is Fault.BAD_HOME


@pytest.mark.parametrize("set_to", [-10 * HOUR, 10 * HOUR])
async def test_setting_the_clock_of_a_running_machine_frees_nothing(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, set_to: int
) -> None:
    meta = disk.open()
    real = time.time_ns
    made, _ = meta.propose_now(Make(ROOT, b"a", 0o100644, 0, 0, True, SUPERUSER))
    ino = ino_of(made)
    meta.propose_now(SetRetention(ino=ino, mode=Mode.COMPLIANCE, duration=HOUR, cred=SUPERUSER))
    monkeypatch.setattr(time, "time_ns", lambda: real() + set_to)
    with pytest.raises(FsError) as raised:
        meta.propose_now(Unlink(ROOT, b"a", SUPERUSER))
    assert raised.value.fault is Fault.NOT_PERMITTED
    retention, now = await meta.read(Kept(ino))
    assert 0 < retention.until - now <= HOUR


async def test_a_machine_that_starts_with_an_earlier_clock_goes_on_from_where_it_was(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = disk.open()
    real = time.time_ns
    made, _ = meta.propose_now(Make(ROOT, b"a", 0o100644, 0, 0, True, SUPERUSER))
    ino = ino_of(made)
    meta.propose_now(SetRetention(ino=ino, mode=Mode.COMPLIANCE, duration=NS // 2, cred=SUPERUSER))
    monkeypatch.setattr(time, "time_ns", lambda: real() - 10 * HOUR)
    meta = disk.open()
    retention, before = await meta.read(Kept(ino))
    assert retention.until - NS // 2 <= before
    deadline = time.monotonic() + 10
    while True:
        try:
            meta.propose_now(Unlink(ROOT, b"a", SUPERUSER))
            break
        except FsError as error:
            assert error.fault is Fault.NOT_PERMITTED
            assert time.monotonic() < deadline
            await trio.sleep(0.01)
