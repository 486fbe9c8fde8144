"""Waiting for locks where they are decided: tasks that sleep, and who wakes them."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mountfs.errors import Fault, FsError
from mountfs.meta.command import Command
from mountfs.meta.lock_waiting import LockWaiting
from mountfs.meta.locks import EOF, POSIX, Lock, Owner
from mountfs.meta.ops.lock import ReleaseLock, TakeLock
from mountfs.meta.ops.reap import Reap
from mountfs.meta.ops.session import EndSession
from mountfs.meta.ops.unlink import Unlink
from mountfs.types import ROOT, SUPERUSER, Ino

LONG_S = 1_000.0


class Place:
    """A file in a machine, and those who wait for locks on it."""

    def __init__(self, machine) -> None:
        self.machine = machine
        self.ino = machine.make("a")
        self.waiting = LockWaiting(lambda: machine.state, lambda: trio.current_time() * 1000)
        self.heard: list[object] = []

    def lock(self, number: int, session: int | None = None) -> Lock:
        owner = Owner(session or self.machine.session, number)
        return Lock(POSIX, owner, 0, EOF, True, 100 + number)

    def do(self, command: Command[object], session: int | None = None) -> object:
        reply = self.machine.do(command, session=session)
        self.waiting.applied(command, reply)
        return reply

    def take(self, lock: Lock) -> bool:
        return self.do(TakeLock(self.ino, lock)) is None

    def release(self, lock: Lock) -> None:
        self.do(ReleaseLock(self.ino, lock.flavor, lock.owner))

    async def wait(self, lock: Lock) -> None:
        try:
            self.heard.append(await self.waiting.wait(self.ino, lock, LONG_S))
        except FsError as error:
            self.heard.append(error.fault)


@pytest.fixture
def place(machine):
    return Place(machine)


async def test_who_waits_is_woken_when_the_lock_is_released(place, autojump_clock: MockClock):
    one, two = place.lock(1), place.lock(2)
    assert place.take(one)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(place.wait, two)
        await wait_all_tasks_blocked()
        assert place.heard == []
        assert place.waiting.any
        place.release(one)
    assert place.heard == [True]
    assert trio.current_time() < LONG_S
    assert place.take(two)
    assert not place.waiting.any


async def test_patience_has_an_end(place, autojump_clock: MockClock):
    place.take(place.lock(1))
    assert await place.waiting.wait(place.ino, place.lock(2), 4) is False
    assert await place.waiting.wait(place.ino, place.lock(2), 4) is False


async def test_who_gives_up_leaves_the_queue(place, autojump_clock: MockClock):
    place.take(place.lock(1))
    with trio.move_on_after(1):
        await place.waiting.wait(place.ino, place.lock(2), LONG_S)
    assert not place.waiting.any


async def test_who_gives_up_makes_way_for_others(place, autojump_clock: MockClock):
    shared = Lock(POSIX, Owner(place.machine.session, 1), 0, EOF, False, 1)
    assert place.take(shared)
    scope = trio.CancelScope()

    async def writer() -> None:
        with scope:
            await place.wait(place.lock(2))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer)
        await wait_all_tasks_blocked()
        nursery.start_soon(place.wait, Lock(POSIX, Owner(99, 3), 0, EOF, False, 3))
        await wait_all_tasks_blocked()
        assert place.heard == []
        scope.cancel()
        await wait_all_tasks_blocked()
        assert place.heard == [True]


async def test_another_leader_is_to_be_asked(place, autojump_clock: MockClock):
    place.take(place.lock(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(place.wait, place.lock(2))
        await wait_all_tasks_blocked()
        place.waiting.end(FsError(Fault.NOT_LEADER))
    assert place.heard == [Fault.NOT_LEADER]
    assert not place.waiting.any


async def test_the_end_of_a_session_wakes_those_who_waited_for_it_and_in_it(
    place, machine, autojump_clock: MockClock
):
    other = machine.open_session()
    theirs = place.lock(1, session=other)
    assert place.do(TakeLock(place.ino, theirs), session=other) is None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(place.wait, place.lock(2))
        nursery.start_soon(place.wait, place.lock(3, session=other))
        await wait_all_tasks_blocked()
        place.do(EndSession(other), session=0)
    assert sorted(map(str, place.heard)) == ["Fault.SESSION_ENDED", "True"]


async def test_who_waits_for_a_file_that_goes_away_is_woken(
    place, machine, autojump_clock: MockClock
):
    place.take(place.lock(1))
    machine.do(Unlink(ROOT, b"a", SUPERUSER))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(place.wait, place.lock(2))
        await wait_all_tasks_blocked()
        place.do(Reap(machine.session, (place.ino,)))
    assert place.heard == [True]
    with pytest.raises(FsError) as refused:
        place.take(place.lock(2))
    assert refused.value.fault is Fault.STALE


async def test_it_tells_who_holds_and_who_waits(place, machine, autojump_clock: MockClock):
    place.take(place.lock(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(place.wait, place.lock(2))
        await trio.sleep(3)
        told = place.waiting.told(place.ino)
        nursery.cancel_scope.cancel()
    assert [holder.lock for holder in told.held] == [place.lock(1)]
    (waiter,) = told.waiting
    assert (waiter.lock, waiter.waits_ms) == (place.lock(2), 3000)
    assert place.waiting.count(machine.session) == 0
    with pytest.raises(FsError) as refused:
        place.waiting.told(Ino(999))
    assert refused.value.fault is Fault.STALE
