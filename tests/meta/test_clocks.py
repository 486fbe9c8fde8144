"""Three metaservers whose clocks do not agree: what is retained stays so until a majority says that
its time is over.
"""

import time
from pathlib import Path
from typing import Any

import pytest
import trio
from servers import END_S, Running, Servers, servers

from mountfs.errors import Fault, FsError
from mountfs.meta.client import RemoteMeta
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.retention import Kept, SetRetention
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.proven_time import ProvenTime
from mountfs.meta.records import NS, ino_of
from mountfs.meta.retention import Mode
from mountfs.types import ROOT, SUPERUSER, Ino

HOUR = 3_600 * NS


def set_clock(server: Running, ahead: int) -> None:
    """As if the process had started with that clock."""
    clocks = server.meta.clocks
    own = server.number
    clocks.proven = ProvenTime(own, time.time_ns() + ahead, clocks.steady(), 0)


def proven(server: Running) -> int:
    return server.meta.clocks.now()


async def known(found: Servers) -> Running:
    """Who leads, and has heard from the others."""
    leader = await found.leader()
    clocks = leader.meta.clocks
    await found.until(lambda: len(clocks.proven.ahead(clocks.steady())) == len(found.up) - 1)
    return leader


async def keep(meta: RemoteMeta, name: bytes, until: int) -> Ino:
    with trio.fail_after(END_S):
        made, _ = await meta.propose(Make(ROOT, name, 0o100644, 0, 0, True, SUPERUSER))
        command = SetRetention(ino=ino_of(made), mode=Mode.COMPLIANCE, until=until, cred=SUPERUSER)
        await meta.propose(command)
    return ino_of(made)


async def is_kept(meta: Any, name: bytes) -> bool:
    try:
        with trio.fail_after(END_S):
            await meta.propose(Unlink(ROOT, name, SUPERUSER))
    except FsError as error:
        assert error.fault is Fault.NOT_PERMITTED, error
        return True
    return False


@pytest.mark.parametrize("who", ["leader", "follower"])
@pytest.mark.parametrize("ahead", [2 * HOUR, -2 * HOUR])
async def test_one_wrong_clock_of_three_frees_nothing_and_is_told_of(
    tmp_path: Path, who: str, ahead: int
) -> None:
    async with servers(tmp_path) as found, found.mount() as meta:
        leader = await found.leader()
        followers = [one for one in found.up if one is not leader]
        wrong = leader if who == "leader" else followers[0]
        set_clock(wrong, ahead)
        if wrong is not leader:
            set_clock(leader, 0)  # it hears of the others anew
        await known(found)
        now = time.time_ns()
        await keep(meta, b"hour", now + HOUR)
        await keep(meta, b"soon", now + 2 * NS)
        assert await is_kept(meta, b"hour")
        assert await is_kept(meta, b"soon")
        assert abs(proven(leader) - time.time_ns()) < NS
        await found.until(lambda: time.time_ns() > now + 2 * NS + NS // 10)
        assert not await is_kept(meta, b"soon")
        assert await is_kept(meta, b"hour")
        await found.until(lambda: "clocks" in leader.meta.troubles)
        assert "do not agree" in leader.meta.troubles["clocks"]


async def test_another_leader_with_a_clock_that_is_ahead_frees_nothing(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, found.mount() as meta:
        leader = await known(found)
        ino = await keep(meta, b"hour", time.time_ns() + HOUR)
        wrong = next(one for one in found.up if one is not leader)
        set_clock(wrong, 2 * HOUR)
        await found.ask("Transfer", {"node": str(wrong.number)})
        assert await is_kept(meta, b"hour")  # it has not heard of the others yet, perhaps
        await known(found)
        assert await is_kept(meta, b"hour")
        with trio.fail_after(END_S):
            retention, now = await meta.read(Kept(ino))
        assert now < retention.until


async def test_who_sets_retention_waits_until_a_majority_tells_the_time(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, found.mount() as meta:
        leader = await known(found)
        clocks = leader.meta.clocks
        set_clock(leader, 0)

        def hears(node: int, told: int, steady: int) -> None:
            """Nothing."""

        hear, clocks.proven.hear = clocks.proven.hear, hears  # type: ignore[method-assign]
        with trio.move_on_after(0.5) as waited:
            await keep(meta, b"f", time.time_ns() + HOUR)
        assert waited.cancelled_caught
        clocks.proven.hear = hear  # type: ignore[method-assign]
        await keep(meta, b"g", time.time_ns() + HOUR)
        assert await is_kept(meta, b"g")


async def test_with_one_of_three_away_the_earlier_clock_counts(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, found.mount() as meta:
        leader = await known(found)
        await keep(meta, b"hour", time.time_ns() + HOUR)
        away, other = [one for one in found.up if one is not leader]
        await found.kill(away.number)
        set_clock(leader, 2 * HOUR)
        clocks = leader.meta.clocks
        await found.until(lambda: other.number in clocks.proven.ahead(clocks.steady()))
        assert await is_kept(meta, b"hour")
