"""Looking again before sleeping stops where it is in vain, and begins again where it may help."""

import os
import socket
from collections.abc import Iterator

import pytest

from mountfs.wire.poll import REST, SOON, TRIES, Poll

SPAN_S = 1.0


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("mountfs.wire.poll.perf_counter", clock)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    return clock


@pytest.fixture
def readable() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"something")
        yield ours


async def in_vain(poll: Poll, clock: Clock) -> None:
    assert poll.begin()
    assert await poll.again()
    clock.now += SPAN_S
    assert not await poll.again()


async def test_it_looks_for_its_span(clock: Clock) -> None:
    poll = Poll(SPAN_S)
    assert not await poll.again()  # nothing was read yet
    await in_vain(poll, clock)


async def test_it_stops_when_it_is_in_vain(clock: Clock) -> None:
    poll = Poll(SPAN_S)
    for _ in range(TRIES):
        await in_vain(poll, clock)
    assert not poll.begin()


async def test_it_goes_on_when_it_finds_something_now_and_then(clock: Clock) -> None:
    poll = Poll(SPAN_S)
    for turn in range(5 * TRIES):
        if turn % (TRIES - 1):
            await in_vain(poll, clock)
        else:
            assert poll.begin()
            poll.found()


async def test_it_begins_again_when_it_is_woken_soon(clock: Clock, readable: socket.socket) -> None:
    poll = Poll(SPAN_S)
    for _ in range(TRIES):
        await in_vain(poll, clock)
    for _ in range(REST):
        assert not poll.begin()
        await poll.sleep(readable)
    await in_vain(poll, clock)


async def test_it_rests_when_it_is_woken_late(
    clock: Clock, readable: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    poll = Poll(SPAN_S)
    for _ in range(TRIES):
        await in_vain(poll, clock)

    async def late(sock: socket.socket) -> None:
        clock.now += SOON * SPAN_S

    monkeypatch.setattr("trio.lowlevel.wait_readable", late)
    for _ in range(2 * REST):
        await poll.sleep(readable)
        assert not poll.begin()


async def test_it_can_be_off(clock: Clock) -> None:
    poll = Poll(0)
    assert not poll.begin()
    assert not await poll.again()


async def test_on_one_processor_it_would_only_be_in_the_way(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert not Poll(SPAN_S).begin()
