"""What a client does in the background for as long as its session lasts."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from mountfs.errors import Fault, FsError
from mountfs.meta.client import Options, RemoteMeta, Router
from mountfs.meta.ops.nodes import NodeRecord
from mountfs.meta.protocol import Cluster, Method, encode

GROWN = Cluster(1, tuple(NodeRecord(n, f"n{n}", f"n{n}:1", f"n{n}:2", 0, f"d{n}", ("meta",))
                         for n in (1, 2)))  # fmt: skip


class Leader:
    """A connection to who leads; `renewed` is what it says to RENEW."""

    why = leaving = None

    def __init__(self, renewed: FsError | None = None) -> None:
        self._renewed = renewed
        self.asked: list[Method] = []

    async def call(self, method: Method, body: bytes) -> bytes:
        self.asked.append(method)
        if method is Method.RENEW and self._renewed is not None:
            raise self._renewed
        return encode(GROWN) if method is Method.CLUSTER else b""


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


async def test_it_ends_with_the_session(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = FsError(Fault.SESSION_ENDED, "session 1 has ended")
    meta = meta_with(Leader(over), monkeypatch)
    with trio.fail_after(meta.ttl_ms / 1000):
        await meta.keep_session()
    assert meta.ended is over
