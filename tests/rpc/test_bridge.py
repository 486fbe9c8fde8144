"""What changes over between threads and Trio: in order, bounded, and with few wake-ups."""

import threading

import pytest
import trio

from mountfs.errors import Fault, FsError
from mountfs.rpc.bridge import END, Feed, Inbox, Lane, Outbox, Pieces, Soon
from mountfs.rpc.joined import split


def outbox(bytes_max: int = 100, messages_max: int = 10, joined_bytes_max: int = 50) -> Outbox:
    return Outbox(bytes_max=bytes_max, messages_max=messages_max, joined_bytes_max=joined_bytes_max)


def test_what_waits_is_sent_together():
    box = outbox()
    for body in (b"a", b"b", b"c"):
        assert box.put(body)
    assert split(next(box)) == [b"a", b"b", b"c"]
    assert (box.taken_messages, box.taken_bytes, box.joined_messages) == (3, 3, 1)


def test_a_joined_message_has_a_bound_unless_one_alone_is_larger():
    box = outbox(bytes_max=1_000)
    for size in (30, 20, 60, 5):
        box.put(bytes(size))
    box.end()
    assert [[len(body) for body in split(joined)] for joined in box] == [[30], [20], [60], [5]]


def test_what_does_not_fit_is_told_and_fits_again_when_something_is_taken():
    box = outbox()
    assert box.put(bytes(60))
    assert not box.put(bytes(41))
    assert box.put(bytes(40))
    assert not box.put(b"x")
    assert (box.waiting_bytes, box.waiting_messages) == (100, 2)
    next(box)
    assert (box.waiting_bytes, box.waiting_messages) == (40, 1)
    assert box.put(bytes(60))


def test_the_number_of_messages_is_bounded_too():
    box = outbox(messages_max=2)
    assert [box.put(b"") for _ in range(3)] == [True, True, False]


async def test_many_messages_wake_trio_once():
    wakes = 0
    delivered = []

    class Counted(Soon):
        def __call__(self, call):
            nonlocal wakes
            wakes += 1
            return super().__call__(call)

    inbox = Inbox(Counted(), lambda sender, bodies: delivered.append((sender, bodies)), 1000)
    one, other = Lane(1), Lane(2)
    inbox.put(one, [b"a"])
    inbox.put(other, [b"b"])
    inbox.put(one, [b"c", b"d"])
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert delivered == [(1, [b"a", b"c", b"d"]), (2, [b"b"])]
    assert wakes == 1
    inbox.put(one, [b"e"])
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert delivered[-1] == (1, [b"e"])
    assert wakes == 2


async def test_a_thread_waits_while_too_much_is_there_and_goes_on_later():
    delivered = []
    inbox = Inbox(Soon(), lambda _, bodies: delivered.extend(bodies), 100)
    lane = Lane(1)
    inbox.hold()

    def bring() -> None:
        for number in range(50):
            assert inbox.put(lane, [bytes([number]) * 30])

    thread = threading.Thread(target=bring)
    thread.start()
    await trio.sleep(0.1)
    assert not delivered
    assert 100 <= lane.waiting_bytes < 200
    inbox.resume()
    with trio.fail_after(5):
        await trio.to_thread.run_sync(thread.join)
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert [body[0] for body in delivered] == list(range(50))
    assert lane.waiting_bytes == 0


async def test_a_stopped_lane_lets_its_thread_go():
    inbox = Inbox(Soon(), lambda _, bodies: None, 10)
    lane = Lane(1)
    inbox.hold()
    assert inbox.put(lane, [bytes(20)])
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(inbox.put(lane, [b"x"])))
    thread.start()
    await trio.sleep(0.05)
    assert not outcome
    lane.stop()
    with trio.fail_after(5):
        await trio.to_thread.run_sync(thread.join)
    assert outcome == [False]


async def test_what_a_superseded_stream_brought_is_not_delivered_after_what_is_newer():
    delivered = []
    inbox = Inbox(Soon(), lambda _, bodies: delivered.extend(bodies), 100)
    old, new = Lane(1), Lane(1)
    inbox.put(old, [b"old"])
    old.supersede()
    inbox.put(new, [b"new"])
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert delivered == [b"new"]


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
