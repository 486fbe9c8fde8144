"""Three metaservers and the trash: it outlives who leads, and ends when a majority says so."""

import time
from pathlib import Path

import trio
from servers import END_S, Servers, servers

from mountfs.meta.client import RemoteMeta
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.read import Lookup
from mountfs.meta.ops.trash import FindTrash, ListTrash, SetTrash
from mountfs.meta.ops.undelete import Undelete
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.proven_time import ProvenTime
from mountfs.meta.records import NS, ino_of
from mountfs.meta.trash import DAY_NS, Setting
from mountfs.types import ROOT, SUPERUSER

ROUNDS_S = 2.0
"""So long a leader who believes that something is due would have had."""


async def delete(meta: RemoteMeta, name: bytes) -> None:
    with trio.fail_after(END_S):
        await meta.propose(SetTrash(ROOT, Setting(1), SUPERUSER))
        await meta.propose(Make(ROOT, name, 0o100644, 0, 0, True, SUPERUSER))
        await meta.propose(Unlink(ROOT, name, SUPERUSER))


async def count(meta: RemoteMeta) -> int:
    with trio.fail_after(END_S):
        return len((await meta.read(ListTrash(ROOT, 0, 9))).found)


async def set_clocks(found: Servers, *ahead_ns: int) -> None:
    """As if the processes had started with these clocks, and have heard of each other since."""
    clocks = [one.meta.clocks for one in found.up]
    for one, own, ahead in zip(clocks, found.up, ahead_ns, strict=True):
        one.proven = ProvenTime(own.number, time.time_ns() + ahead, one.steady(), 0)
    leader = (await found.leader()).meta.clocks
    await found.until(lambda: len(leader.proven.ahead(leader.steady())) == len(found.up) - 1)


async def test_it_is_there_when_another_node_leads(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, found.mount() as meta:
        await delete(meta, b"file")
        leader = await found.leader()
        await found.kill(leader.number)
        assert await count(meta) == 1
        with trio.fail_after(END_S):
            (listed,) = await meta.read(FindTrash(ROOT, b"file", 0, 0, 9))
            await meta.propose(Undelete(ROOT, b"file", 0, ROOT, b"file", SUPERUSER))
            back = await meta.read(Lookup(ROOT, b"file", SUPERUSER))
        assert ino_of(back) == listed.entry.ino
        assert await count(meta) == 0


async def test_one_clock_that_is_ahead_removes_nothing_and_two_of_three_do(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, found.mount() as meta:
        await set_clocks(found, 0, 0, 0)
        await delete(meta, b"file")
        with trio.fail_after(END_S):
            (listed,) = await meta.read(FindTrash(ROOT, b"file", 0, 0, 9))
        assert abs(listed.entry.until - time.time_ns() - DAY_NS) < END_S * NS
        await set_clocks(found, 2 * DAY_NS, 0, 0)
        await trio.sleep(ROUNDS_S)
        assert await count(meta) == 1
        await set_clocks(found, 2 * DAY_NS, 0, 2 * DAY_NS)
        tree = (await found.leader()).meta.machine.replica.machine.tree
        await found.until(lambda: tree.counters.inodes == 1)
        assert await count(meta) == 0
