"""Locks of several mounts on three metaservers: who waits for another mount is called, and nothing
that happens to leaders and connections loses a lock.
"""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from servers import CLUSTER, END_S, Servers, servers

from mountfs.errors import Fault, FsError
from mountfs.meta.client import RemoteMeta
from mountfs.meta.locks import EOF, FLOCK, POSIX, Lock, Owner
from mountfs.meta.ops.lock import TakeLock
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.session import Sessions
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.protocol import ROLE, AwaitLock, Method, Propose, encode
from mountfs.meta.records import ino_of
from mountfs.types import ROOT, SUPERUSER, Ino
from mountfs.vfs.lock_table import LockTable
from mountfs.wire.frames import Hello
from mountfs.wire.stream import Client, connect

SOON_S = 3.0
"""Much less than PATIENCE_S: nobody found it by asking again."""


class Mount:
    def __init__(self, meta: RemoteMeta) -> None:
        self.meta = meta
        self.locks = LockTable(meta)

    def lock(self, number: int = 1, *, exclusive: bool = True, flavor: int = POSIX) -> Lock:
        return Lock(flavor, Owner(self.meta.session, number), 0, EOF, exclusive, 100 + number)

    async def take(self, ino: Ino, lock: Lock | None = None, *, wait: bool = True) -> None:
        with trio.fail_after(END_S):
            await self.locks.take(ino, lock or self.lock(), wait=wait)

    async def release(self, ino: Ino, flavor: int = POSIX) -> None:
        with trio.fail_after(END_S):
            await self.locks.release(ino, flavor, self.lock().owner, 0, EOF)

    async def can_take(self, ino: Ino) -> bool:
        try:
            await self.take(ino, wait=False)
        except FsError as error:
            assert error.fault is Fault.WOULD_BLOCK
            return False
        return True

    async def file(self, name: str = "file") -> Ino:
        made = await self.meta.propose(Make(ROOT, name.encode(), 0o100644, 0, 0, False, SUPERUSER))
        return ino_of(made[0])


@contextlib.asynccontextmanager
async def two(found: Servers) -> AsyncIterator[tuple[Mount, Mount, Ino]]:
    async with found.mount() as one, found.mount() as other:
        mounts = Mount(one), Mount(other)
        yield *mounts, await mounts[0].file()


async def waiting(found: Servers, count: int = 1) -> None:
    """Until so many wait where it is decided."""

    def look() -> bool:
        leading = [one for one in found.up if found.leads(one)]
        return any(len(one.meta.service.lock_waiting._waits) == count for one in leading)

    await found.until(look)


@pytest.mark.parametrize("flavor", [POSIX, FLOCK])
async def test_a_lock_is_handed_over_without_asking_again_and_again(
    tmp_path: Path, flavor: int
) -> None:
    async with servers(tmp_path) as found, two(found) as (one, other, ino):
        await one.take(ino, one.lock(flavor=flavor))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.take, ino, other.lock(flavor=flavor))
            await waiting(found)
            before = other.meta.attempts
            await trio.sleep(0.5)
            assert other.meta.attempts == before
            begun = trio.current_time()
            await one.release(ino, flavor)
        assert trio.current_time() - begun < SOON_S
        if flavor == POSIX:
            assert not await one.can_take(ino)


async def test_a_circle_over_two_mounts_is_a_deadlock(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, two(found) as (one, other, ino):
        second = await one.file("second")
        await one.take(ino)
        await other.take(second)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.take, ino)
            await waiting(found)
            with pytest.raises(FsError) as refused:
                await one.take(second)
            assert refused.value.fault is Fault.DEADLOCK
            await one.release(ino)


async def test_locks_go_to_those_who_wait_as_they_came(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, two(found) as (one, other, ino):
        got: list[int] = []
        await one.take(ino)

        async def take(mount: Mount, number: int) -> None:
            lock = mount.lock(number)
            await mount.take(ino, lock)
            got.append(number)
            await mount.locks.release(ino, POSIX, lock.owner, 0, EOF)

        async with trio.open_nursery() as nursery:
            for number in range(2, 8):
                nursery.start_soon(take, (one, other)[number % 2], number)
                await waiting(found, number - 1)
            await one.release(ino)
        assert got == list(range(2, 8))


async def test_who_would_wait_lets_those_go_first_who_wait_already(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, two(found) as (one, other, ino):
        shared = [one.lock(number, exclusive=False) for number in (1, 2, 3)]
        await one.take(ino, shared[0])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.take, ino)
            await waiting(found)
            assert await one.meta.take_lock(ino, shared[1], waits=True) == other.lock()
            assert await one.meta.take_lock(ino, shared[2], waits=False) is None
            for lock in (shared[0], shared[2]):
                await one.locks.release(ino, POSIX, lock.owner, 0, EOF)


async def test_readers_do_not_starve_a_writer(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, two(found) as (one, other, ino):
        written = False

        async def read(number: int) -> None:
            """As one goes, the next one is there already."""
            lock = one.lock(number, exclusive=False)
            while not written:
                await one.take(ino, lock)
                await trio.sleep(0.02)
                await one.locks.release(ino, POSIX, lock.owner, 0, EOF)

        async with trio.open_nursery() as nursery:
            for number in range(1, 5):
                nursery.start_soon(read, number)
            await trio.sleep(0.1)
            await other.take(ino)
            written = True
            await other.release(ino)


async def test_locks_and_those_who_wait_outlive_the_leader(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, two(found) as (one, other, ino):
        await one.take(ino)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.take, ino)
            await waiting(found)
            leader = await found.leader()
            await found.kill(leader.number)
            await found.leader(other_than=leader.number)
            await waiting(found)
            with trio.fail_after(END_S):
                assert await other.meta.take_lock(ino, other.lock(7), waits=False) == one.lock()
            begun = trio.current_time()
            await one.release(ino)
        assert trio.current_time() - begun < SOON_S
        await found.start(leader.number)


async def test_a_leader_that_hands_over_sends_those_who_wait_on(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, two(found) as (one, other, ino):
        await one.take(ino)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.take, ino)
            await waiting(found)
            leader = await found.leader()
            begun = trio.current_time()
            await found.ask("Transfer", {"node": str(leader.number % 3 + 1)})
            await found.until(lambda: not leader.meta.service.lock_waiting.any)
            await waiting(found)
            await one.release(ino)
        assert trio.current_time() - begun < SOON_S


@pytest.mark.parametrize("how", ["cut", "swallow"])
async def test_a_short_loss_of_the_network_loses_no_lock(tmp_path: Path, how: str) -> None:
    async with servers(tmp_path) as found, two(found) as (one, other, ino):
        await one.take(ino)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.take, ino)
            await waiting(found)
            for each in found.up:
                each.proxy.swallow = how == "swallow"
                each.proxy.cut()
            await trio.sleep(0.5)
            for each in found.up:
                each.proxy.swallow = False
                each.proxy.cut()
            await waiting(found)
            assert one.meta.ended is None
            await one.release(ino)
        assert not await one.can_take(ino)


async def test_who_gives_up_holds_nothing(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, two(found) as (one, other, ino):
        await one.take(ino)
        with trio.move_on_after(0.2) as gave_up:
            await other.take(ino)
        assert gave_up.cancelled_caught
        await waiting(found, 0)
        await one.release(ino)
        assert await one.can_take(ino)


async def test_who_is_cancelled_while_the_lock_is_taken_hears_of_it(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, two(found) as (one, other, ino):
        leader = await found.leader()
        with trio.CancelScope() as scope:
            scope.cancel()
            assert await one.meta.take_lock(ino, one.lock(), waits=True) is None
        leader.proxy.lose_answers = 1
        with trio.CancelScope() as scope:
            scope.cancel()
            assert await one.meta.take_lock(ino, one.lock(2), waits=True) == one.lock()
        assert not await other.can_take(ino)


async def test_the_end_of_a_session_frees_what_others_wait_for(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, two(found) as (one, other, ino):
        await one.take(ino)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.take, ino)
            await waiting(found)
            leader = await found.leader()
            begun = trio.current_time()
            link = await raw(nursery, leader.proxy.port)
            await link.call(Method.END_SESSION, encode(one.meta.session))
            await found.until(lambda: not leader.meta.service.lock_waiting.any)
            nursery.cancel_scope.cancel()
        assert trio.current_time() - begun < SOON_S


async def test_who_holds_and_who_waits_is_told(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, two(found) as (one, other, ino):
        await one.take(ino)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.take, ino)
            await waiting(found)
            told = await one.meta.locks(ino)
            assert [holder.lock for holder in told.held] == [one.lock()]
            assert [holder.lock for holder in told.waiting] == [other.lock()]
            assert {holder.about for holder in (*told.held, *told.waiting)} == {"a test's client"}
            await one.release(ino)


async def raw(nursery: trio.Nursery, port: int) -> Client:
    return await connect(nursery, ("127.0.0.1", port), Hello(cluster=CLUSTER, role=ROLE, name="t"))


async def test_a_session_locks_and_waits_only_for_itself(tmp_path: Path) -> None:
    async with (
        servers(tmp_path, 1) as found,
        two(found) as (one, other, ino),
        trio.open_nursery() as nursery,
    ):
        link = await raw(nursery, found[1].proxy.port)
        session = one.meta.session
        theirs = other.lock()
        for method, body in (
            (Method.AWAIT_LOCK, encode(AwaitLock(session, ino, theirs, 1_000))),
            (Method.PROPOSE, encode(Propose(session, 99, 1, TakeLock(ino, theirs)))),
        ):
            with pytest.raises(FsError) as refused:
                await link.call(method, body)
            assert refused.value.fault is Fault.NOT_PERMITTED
        with pytest.raises(FsError) as refused:
            await link.call(
                Method.AWAIT_LOCK, encode(AwaitLock(session, Ino(-1), one.lock(), 1_000))
            )
        assert refused.value.fault is Fault.INVALID
        nursery.cancel_scope.cancel()


async def test_what_is_asked_for_an_owner_of_before_is_not_done_in_the_new_session(
    tmp_path: Path,
) -> None:
    async with servers(tmp_path) as found, two(found) as (one, other, ino):
        old = one.lock()
        await one.take(ino)
        await found.ask("Evict", {"session": one.meta.session, "yes": True})
        assert await one.meta.read(Sessions())
        with pytest.raises(FsError) as refused:
            await one.take(ino, old)
        assert refused.value.fault is Fault.SESSION_ENDED
        await one.locks.release(ino, POSIX, old.owner, 0, EOF)
        assert await other.can_take(ino)


# -- operators


async def test_sessions_are_told_with_what_they_hold(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, two(found) as (one, other, ino):
        await one.take(ino)
        gone = await one.file("gone")
        await one.meta.propose(Unlink(ROOT, b"gone", SUPERUSER))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.take, ino)
            await waiting(found)
            told: Any = await found.ask("Sessions")
            nursery.cancel_scope.cancel()
        assert gone
        rows = {
            row["number"]: (row["about"], row["locks"], row["waits"], row["unnamed"])
            for row in told
        }
        assert rows == {
            one.meta.session: ("a test's client", 1, 0, 1),
            other.meta.session: ("a test's client", 0, 1, 0),
        }
        assert all(0 <= row["silent_ms"] < END_S * 1000 for row in told)


async def test_a_session_is_evicted_when_that_is_meant(tmp_path: Path) -> None:
    async with servers(tmp_path) as found, two(found) as (one, other, ino):
        await one.take(ino)
        before = one.meta.session
        dry: Any = await found.ask("Evict", {"session": before})
        assert (dry["locks"], dry["evicted"]) == (1, False)
        assert not await other.can_take(ino)
        done: Any = await found.ask("Evict", {"session": before, "yes": True})
        assert done["evicted"]
        assert await other.can_take(ino)
        assert await one.meta.read(Sessions())
        assert one.meta.session != before
        with pytest.raises(FsError, match="there is no session") as refused:
            await found.ask("Evict", {"session": before, "yes": True})
        assert refused.value.fault is Fault.NOT_FOUND
