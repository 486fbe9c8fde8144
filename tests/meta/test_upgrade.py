"""A log of format 1 becomes the log of a group, whatever interrupts that."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from mountfs.kv.journal import Journal
from mountfs.kv.memory import MemoryStore
from mountfs.meta import keys
from mountfs.meta.command import Stamp
from mountfs.meta.local import LocalMeta
from mountfs.meta.ops.make_root import MakeRoot
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.meta.ops.read import Lookup
from mountfs.meta.replica import Replica
from mountfs.meta.state_machine import encode_entry
from mountfs.meta.upgrade import bring_to_format_2
from mountfs.types import MIB, ROOT, SUPERUSER


class Interrupted(Exception):
    pass


def old(path: Path, *, stored: int, logged: int) -> MemoryStore:
    """A home of format 1 with directories 1 to `logged`, of which the store has the first few."""
    store = MemoryStore()
    replica = Replica(store)
    replica.machine.tree.counters.format = 1
    machine = replica.machine
    machine.tree.begin(Stamp(0, 1_000, 0))
    MakeRoot(0, 0).apply(machine.tree, machine.tree.stamp)  # format 1 had no command for it
    machine.tree.commit()
    store.write(machine.freeze(), sync=True)
    replica.end_checkpoint()
    (path / "log").mkdir()
    with closing(Journal(path / "log", segment_bytes=MIB)) as journal:
        for index in range(1, logged + 1):
            command = Mkdir(ROOT, b"%d" % index, 0o755, 0, SUPERUSER)
            journal.append(index, encode_entry(0, index, index, 1_000 + index, command))
            if index <= stored:
                replica.machine.apply(index, 0, index, index, 1_000 + index, command)
    rows = replica.machine.freeze()
    store.write({key: value for key, value in rows.items() if key != keys.HEAD}, sync=True)
    return store


def further(path: Path, store: MemoryStore) -> None:
    with closing(Journal(path / "log", segment_bytes=MIB)) as journal:
        bring_to_format_2(store, journal, bytes_present=lambda entry: True, cut_path=path / "cut")


async def check(path: Path, store: MemoryStore, logged: int) -> None:
    for _ in range(2):
        with closing(Journal(path / "log", segment_bytes=MIB)) as journal:
            meta = LocalMeta(
                store, journal, bytes_present=lambda entry: True, cut_path=path / "cut"
            )
            for index in range(1, logged + 1):
                await meta.read(Lookup(ROOT, b"%d" % index, SUPERUSER))
            meta.open_session()


@pytest.mark.parametrize(("stored", "logged"), [(0, 0), (0, 5), (3, 9), (7, 7)])
async def test_nothing_is_lost(tmp_path: Path, stored: int, logged: int) -> None:
    store = old(tmp_path, stored=stored, logged=logged)
    further(tmp_path, store)
    await check(tmp_path, store, logged)


@pytest.mark.parametrize("where", ["restart", "append", "sync"])
@pytest.mark.parametrize("after", [False, True])
async def test_it_may_be_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, after: bool
) -> None:
    store = old(tmp_path, stored=3, logged=9)
    does: Callable[..., object] = getattr(Journal, where)

    def interrupted(*args: object) -> object:
        if after:
            does(*args)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(Journal, where, interrupted)
        patch.setattr(Journal, "close", Journal._close_files)
        with pytest.raises(Interrupted):
            further(tmp_path, store)
    store.crash()
    further(tmp_path, store)
    await check(tmp_path, store, 9)


async def test_entries_without_their_bytes_are_set_aside(tmp_path: Path) -> None:
    store = old(tmp_path, stored=3, logged=9)
    log = tmp_path / "log"
    (segment,) = (path for path in log.iterdir() if path.name.endswith("1.seg"))
    data = bytearray(segment.read_bytes())
    assert data[32:40] == (9).to_bytes(8, "little")  # it was closed
    with closing(Journal(log, segment_bytes=MIB)) as journal:
        journal.durable_before = 5
        bring_to_format_2(
            store, journal, bytes_present=lambda entry: False, cut_path=tmp_path / "cut"
        )
    assert (tmp_path / "cut").stat().st_size > 0
    await check(tmp_path, store, 5)
