"""What a client does in the background: it keeps its session, and begins another one when that has
ended.
"""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from mountfs.errors import Fault, FsError
from mountfs.meta.client import Options, RemoteMeta, Router
from mountfs.meta.command import Command
from mountfs.meta.locks import EOF, POSIX, Lock, Owner
from mountfs.meta.ops.lock import ReleaseLock, TakeLock
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.meta.ops.nodes import NodeRecord
from mountfs.meta.ops.reap import Reap
from mountfs.meta.ops.session import Sessions
from mountfs.meta.ops.slices import Discard, ReserveSlices
from mountfs.meta.ops.write import Run, Write
from mountfs.meta.protocol import Cluster, Method, Opened, encode
from mountfs.types import ROOT, SUPERUSER, Ino
from mountfs.wire.connection import Disconnected

GROWN = Cluster(1, tuple(NodeRecord(n, f"n{n}", f"n{n}:1", f"n{n}:2", 0, f"d{n}", ("meta",))
                         for n in (1, 2)))  # fmt: skip


class Leader:
    """A connection to who leads; `says` has its next answers, by method."""

    why = leaving = None

    def __init__(self, **says: list[Any]) -> None:
        self._says = says
        self.asked: list[Method] = []
        self.sessions = 0
        self.bodies: list[Any] = []

    async def call(self, method: Method, body: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        self.asked.append(method)
        self.bodies.append(msgspec.msgpack.decode(body) if body else None)
        says = self._says.get(method.name.lower())
        said = says.pop(0) if says else None
        if isinstance(said, Exception):
            raise said
        if method is Method.OPEN_SESSION:
            self.sessions += 1
            return encode(Opened(self.sessions, 60_000, 0))
        return encode(GROWN) if method is Method.CLUSTER else encode(said)

    def named(self, method: Method) -> list[Any]:
        return [body for one, body in zip(self.asked, self.bodies, strict=True) if one is method]


def meta_with(leader: Leader, monkeypatch: pytest.MonkeyPatch) -> RemoteMeta:
    nursery: Any = None
    router = Router(nursery, [("n1", 2)], Options())
    monkeypatch.setattr(router, "leader_now", lambda: leader)
    return RemoteMeta(router, Options())


async def test_it_hears_of_machines_that_come_while_it_is_mounted(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = Leader()
    meta = meta_with(leader, monkeypatch)
    with trio.move_on_after(meta.ttl_ms / 1000):
        await meta.keep_session()
    assert Method.RENEW in leader.asked
    assert [node.number for node in meta.router.nodes] == [1, 2]


@contextlib.asynccontextmanager
async def following(meta: RemoteMeta) -> AsyncIterator[None]:
    """It has a session, and gets another one."""
    await meta.open_session()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(meta.follow_session)
        yield
        nursery.cancel_scope.cancel()


def over(number: int = 1) -> FsError:
    return FsError(Fault.SESSION_ENDED, f"session {number} has ended")


MKDIR = Mkdir(ROOT, b"a", 0o755, 0, SUPERUSER)
LOCK = Lock(POSIX, Owner(1, 1), 0, EOF, True, 1)
ATTRIBUTES = b"as a reply"


async def test_a_renewal_that_is_refused_begins_another_session(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = Leader(renew=[over()])
    meta = meta_with(leader, monkeypatch)
    told: list[tuple[int, int]] = []
    meta.on_new_session.append(lambda before: told.append((before, meta.session)))
    async with following(meta):
        with trio.move_on_after(2 * meta.ttl_ms / 1000):
            await meta.keep_session()
    assert told == [(1, 2)]
    assert meta.ended is None
    assert set(leader.named(Method.RENEW)[1:]) == {2}


async def test_what_surely_has_not_acted_is_done_in_the_next_session(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = Leader(propose=[over(), ATTRIBUTES], read=[over(2), ()])
    meta = meta_with(leader, monkeypatch)
    told: list[int] = []
    meta.on_new_session.append(lambda before: told.append(len(leader.named(Method.PROPOSE))))
    async with following(meta):
        assert await meta.propose(MKDIR) == ATTRIBUTES
        assert [body[0] for body in leader.named(Method.PROPOSE)] == [1, 2]
        assert told == [1], "before anything is asked in the new session"
        assert await meta.read(Sessions()) == ()
        assert [body[0] for body in leader.named(Method.READ)] == [2, 3]


@pytest.mark.parametrize("unsure", [
    [Disconnected("gone", sent=True)], [FsError(Fault.UNAVAILABLE)], [FsError(Fault.NOT_LEADER)],
    [Disconnected("", sent=False), Disconnected("gone", sent=True)],
    [Disconnected("", sent=False), FsError(Fault.UNAVAILABLE)],
], ids=str)  # fmt: skip
async def test_what_may_have_acted_is_not_done_again(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, unsure: list[Exception]
) -> None:
    leader = Leader(propose=[*unsure, over(), 7])
    meta = meta_with(leader, monkeypatch)
    monkeypatch.setattr(meta.router, "leader", lambda: _returned(leader))
    async with following(meta):
        with pytest.raises(FsError, match="nobody knows") as refused:
            await meta.propose(MKDIR)
        assert refused.value.fault is Fault.SESSION_ENDED
        assert await meta.propose(ReserveSlices(1)) == 7
        sessions = [body[0] for body in leader.named(Method.PROPOSE)]
        assert sessions == [*(1 for _ in unsure), 1, 2]


async def test_what_was_not_even_sent_has_not_acted(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = Leader(propose=[Disconnected("gone", sent=False), over(), ATTRIBUTES])
    meta = meta_with(leader, monkeypatch)
    monkeypatch.setattr(meta.router, "leader", lambda: _returned(leader))
    async with following(meta):
        assert await meta.propose(MKDIR) == ATTRIBUTES


@pytest.mark.parametrize("command", [
    TakeLock(Ino(2), LOCK), ReleaseLock(Ino(2), POSIX, LOCK.owner), Reap(1, (Ino(2),)),
    Write(Ino(2), (Run(0, 1, 0, data=b"x"),), 0, False), Discard(()),
], ids=lambda command: type(command).__name__)  # fmt: skip
async def test_what_belongs_to_the_old_session_is_not_done_in_the_next_one(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, command: Command[Any]
) -> None:
    leader = Leader(propose=[over()])
    meta = meta_with(leader, monkeypatch)
    await meta.open_session()
    for _ in range(2):
        with pytest.raises(FsError) as refused:
            await meta.propose(command)
        assert refused.value.fault is Fault.SESSION_ENDED
    assert len(leader.named(Method.PROPOSE)) == 1


async def test_late_news_of_an_old_session_does_not_end_the_new_one(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = Leader(propose=[over(), ATTRIBUTES], await_lock=[over()])
    meta = meta_with(leader, monkeypatch)
    async with following(meta):
        await meta.propose(MKDIR)
        with pytest.raises(FsError) as refused:
            await meta.await_lock(Ino(2), LOCK)  # of session 1
        assert refused.value.fault is Fault.SESSION_ENDED
        assert meta.ended is None
        assert meta.session == 2


async def test_one_new_session_is_enough_for_all_who_wait_for_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = Leader(read=[over()] * 5 + [()] * 5)
    meta = meta_with(leader, monkeypatch)
    async with following(meta):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(meta.read, Sessions())
        assert leader.sessions == 2


async def test_a_cluster_that_does_not_want_us_is_asked_again_and_a_soft_mount_says_so(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = FsError(Fault.BUSY, "there are too many")
    leader = Leader(read=[over(), ()], open_session=[None, full, full, full])
    meta = meta_with(leader, monkeypatch)
    meta._options = Options(soft_s=1.0)
    async with following(meta):
        with pytest.raises(FsError) as refused:
            await meta.read(Sessions())
        assert refused.value.fault is Fault.TIMED_OUT
        meta._options = Options()
        assert await meta.read(Sessions()) == ()
    assert leader.sessions == 2
    assert caplog.text.count("there is no new session") == 1


async def test_who_leaves_wants_no_other_session(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = Leader(renew=[over()])
    meta = meta_with(leader, monkeypatch)
    async with following(meta):
        await meta.end_session()
        with trio.move_on_after(meta.ttl_ms / 1000):
            await meta.keep_session()
    assert leader.sessions == 1


async def _returned(leader: Leader) -> Leader:
    return leader
