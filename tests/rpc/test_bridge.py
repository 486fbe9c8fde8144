"""What changes over between threads and Trio: in order, and bounded."""

import pytest
import trio

from mountfs.errors import Fault, FsError
from mountfs.rpc.bridge import END, Feed, Pieces, Soon


async def test_a_feed_lets_only_a_few_pieces_be_under_way():
    feed = Feed(Soon(), 2)
    put = 0

    async def fill() -> None:
        nonlocal put
        for number in range(6):
            await feed.put(bytes([number + 1]))
            put += 1
        feed.finish()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fill)
        await trio.testing.wait_all_tasks_blocked()
        assert put == 2
        assert next(feed) == b"\1"
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert put == 2  # the first is being sent
        assert next(feed) == b"\2"
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert put == 3
        taken = []
        await trio.to_thread.run_sync(lambda: taken.extend(feed))
    assert taken == [b"\3", b"\4", b"\5", b"\6", END]


async def test_pieces_without_an_end_are_no_complete_stream():
    pieces = Pieces(Soon(), 4)
    with trio.fail_after(5):
        await trio.to_thread.run_sync(pieces.pump, iter([b"a", b"b"]))
        with pytest.raises(FsError) as caught:
            assert [piece async for piece in pieces] == [b"a", b"b"]
    assert caught.value.fault is Fault.INTERRUPTED


async def test_whoever_tells_a_trio_that_has_ended_hears_it():
    soon: list[Soon] = []

    async def make() -> None:
        soon.append(Soon())

    await trio.to_thread.run_sync(lambda: trio.run(make))
    assert soon[0](lambda: None) is False
