"""Messages between nodes, and what breaks them."""

import contextlib
import signal
import subprocess
import sys

import pytest
import trio
from rpc_rig import (
    ANYWHERE,
    CONFIG,
    Node,
    a_node,
    a_proxy,
    another_process,
    smaller,
    two_nodes,
)

from mountfs.errors import FsError
from mountfs.rpc import handshake
from mountfs.rpc.client import open_client
from mountfs.rpc.handshake import Hello
from mountfs.rpc.peers import METHOD, SERVICE


async def test_messages_come_in_order_both_ways():
    async with two_nodes() as (a, b):
        sent = [b"%d" % number for number in range(2_000)]
        for body in sent:
            a.peers.send(2, body)
            b.peers.send(1, body * 2)
        await b.until(lambda: len(b.of(1)) == len(sent))
        await a.until(lambda: len(a.of(2)) == len(sent))
        assert b.of(1) == sent
        assert a.of(2) == [body * 2 for body in sent]
        counters = a.peers.counters(2)
        assert counters.sent_messages == 2_000
        assert counters.sent_joined < 1_000, "those that wait travel together"
        assert counters.dropped_messages == counters.waiting_messages == 0
        assert len(b.batches) < 1_000, "and are delivered together"


async def test_what_is_sent_before_the_peer_is_reached_waits_for_it():
    async with a_node(1) as a, a_node(2) as b:
        a.peers.set_peers({2: b.address})
        a.peers.send(2, b"first")
        await b.until(lambda: b.of(1) == [b"first"])
        assert a.lost == []


async def test_messages_of_any_size_up_to_the_limit_pass():
    sizes = [0, 1, CONFIG.joined_bytes_max, 3 * CONFIG.joined_bytes_max, CONFIG.message_bytes_max]
    async with two_nodes() as (a, b):
        for size in sizes:
            a.peers.send(2, bytes(size))
            await b.until(lambda: len(b.of(1)[-1:]) and len(b.of(1)[-1]) == size)  # noqa: B023
        assert [len(body) for body in b.of(1)] == sizes


async def test_a_message_that_is_too_large_is_dropped_and_said_and_the_next_one_is_not():
    async with two_nodes() as (a, b):
        a.peers.send(2, bytes(CONFIG.message_bytes_max + 1))
        assert "was not sent" in a.peers.problems[2]
        assert a.peers.counters(2).dropped_messages == 1
        a.peers.send(2, b"x")
        await b.until(lambda: b.of(1) == [b"x"])
        assert a.lost == []


async def test_a_peer_with_smaller_limits_breaks_the_stream_and_is_there_again():
    small = smaller(message_bytes_max=100_000, piece_bytes_max=100_000)
    async with a_node(1) as a, a_node(2, config=small) as b:
        a.peers.set_peers({2: b.address})
        await a.until(lambda: not a.peers.problems)
        a.peers.send(2, bytes(1_000_000))
        await a.until(lambda: a.lost == [2])
        await a.until(lambda: not a.peers.problems)
        a.peers.send(2, b"x")
        await b.until(lambda: b.of(1) == [b"x"])


async def test_a_message_to_nobody_is_lost_without_a_word():
    async with a_node(1) as a:
        a.peers.send(7, b"x")
        a.peers.set_peers({1: a.address, 7: "127.0.0.1:1"})
        a.peers.send(1, b"to myself")
        await a.until(lambda: a.lost == [7])
        for _ in range(10):
            a.peers.send(7, b"x")
            await trio.sleep(0.05)
        assert a.lost == [7], "it was never there again"
        assert a.peers.counters(7).dropped_messages >= 5
        assert "node 7 at 127.0.0.1:1 does not answer" in a.peers.problems[7]
        assert a.batches == []


async def test_peers_come_and_go():
    async with a_node(1) as a, a_node(2) as b, a_node(3) as c:
        a.peers.set_peers({2: b.address, 3: c.address})
        a.peers.send(2, b"x")
        a.peers.send(3, b"x")
        await b.until(lambda: b.of(1))
        await c.until(lambda: c.of(1))
        a.peers.set_peers({3: c.address})
        a.peers.send(2, b"y")
        a.peers.send(3, b"y")
        await c.until(lambda: c.of(1) == [b"x", b"y"])
        assert b.of(1) == [b"x"]
        a.peers.set_peers({})
        a.peers.set_peers({2: b.address})
        await a.until(lambda: not a.peers.problems)
        a.peers.send(2, b"z")
        await b.until(lambda: b.of(1) == [b"x", b"z"])
        assert a.lost == []


async def test_a_peer_that_moves_is_followed():
    async with a_node(1) as a:
        async with a_node(2) as b:
            a.peers.set_peers({2: b.address})
            await a.until(lambda: not a.peers.problems)
        async with a_node(2, address=ANYWHERE) as b:
            a.peers.set_peers({2: b.address})
            await a.until(lambda: not a.peers.problems, 2)


# -- loss and return


async def test_a_peer_that_closes_is_lost_once_and_found_again_when_it_is_back():
    async with a_node(1) as a:
        async with a_node(2) as b:
            address = b.address
            a.peers.set_peers({2: address})
            await a.until(lambda: not a.peers.problems)
        await a.until(lambda: a.lost == [2], 1)
        await trio.sleep(1.5)
        assert a.lost == [2]
        async with a_node(2, address=address) as b:
            # It does not know us: nothing tells us to try.
            await a.until(lambda: not a.peers.problems, 0.5)
            a.peers.send(2, b"x")
            await b.until(lambda: b.of(1) == [b"x"], 1)
        await a.until(lambda: a.lost == [2, 2], 1)


async def test_a_killed_process_is_lost_at_once_and_found_again_when_it_is_back():
    async with a_node(1) as a:
        async with another_process("2", "1", a.address) as (_, address):
            a.peers.set_peers({2: address})
            await a.until(lambda: not a.peers.problems)
            a.peers.send(2, b"hello")
            await a.until(lambda: a.of(2) == [b"hello"])
        await a.until(lambda: a.lost == [2], 1)
        await trio.sleep(1)
        async with another_process("2", "1", a.address, address):
            await a.until(lambda: not a.peers.problems, 0.5)
            a.peers.send(2, b"again")
            await a.until(lambda: a.of(2) == [b"hello", b"again"])


async def test_who_calls_us_is_tried_at_once():
    patient = smaller(retry_ms=60_000, retry_max_ms=60_000, refused_retry_ms=60_000)
    async with a_node(1, config=patient) as a:
        async with a_node(2) as b:
            address = b.address
        a.peers.set_peers({2: address})
        await a.until(lambda: a.lost == [2])
        async with a_node(2, address=address) as b:
            b.peers.set_peers({1: a.address})
            await a.until(lambda: not a.peers.problems, 2)


@pytest.mark.parametrize("way", ["there", "back"])
async def test_a_black_hole_is_noticed_and_healed(way):
    """On the way from us, and on that to us: each has its stream."""
    async with a_node(1) as a, a_node(2) as b, a_proxy(b.address) as proxy:
        near, far = (a, b)
        near.peers.set_peers({2: proxy.address})
        far.peers.set_peers({1: near.address})
        await near.until(lambda: not near.peers.problems and not far.peers.problems)
        started = trio.current_time()
        proxy.swallow()
        if way == "there":
            near.peers.send(2, b"lost")
        await near.until(lambda: near.lost == [2])
        assert trio.current_time() - started < 2.2
        assert far.lost == [], "its own stream takes another way"
        await trio.sleep(1.5)
        assert near.lost == [2]
        proxy.forward()
        await near.until(lambda: not near.peers.problems, 2)
        near.peers.send(2, b"x")
        await far.until(lambda: far.of(1) == [b"x"])


@pytest.mark.parametrize(("messages", "size"), [(10, 800_000), (1, 8_000_000)])
async def test_a_slow_link_is_no_black_hole(messages, size):
    """What is under way takes longer than a keepalive may."""
    async with a_node(1) as a, a_node(2) as b, a_proxy(b.address) as proxy:
        proxy.bytes_a_second = 2_000_000
        a.peers.set_peers({2: proxy.address})
        await a.until(lambda: not a.peers.problems)
        for _ in range(messages):
            a.peers.send(2, bytes(size))
        await a.until(lambda: a.lost or len(b.of(1)) == messages, 20)
        assert a.lost == []


async def test_an_idle_stream_lives_on():
    async with two_nodes(smaller(keepalive_ms=100, keepalive_timeout_ms=300)) as (a, b):
        await trio.sleep(3)
        assert a.lost == b.lost == []
        assert a.peers.counters(2).connections == 1


async def test_a_peer_that_does_not_read_makes_us_drop_and_not_grow():
    config = smaller(
        queue_bytes_max=1 << 20,
        message_bytes_max=1 << 20,
        inbox_bytes_max=1 << 20,
        joined_bytes_max=1 << 18,
    )
    async with two_nodes(config) as (a, b):
        b.peers.hold()
        body = bytes(10_000)
        sent = 0
        for _ in range(300):
            for _ in range(20):
                a.peers.send(2, b"%6d" % sent + body)
                sent += 1
            assert a.peers.counters(2).waiting_bytes <= 1 << 20
            await trio.sleep(0.002)
        counters = a.peers.counters(2)
        assert counters.dropped_messages > 1_000
        # What has left us is in the sockets, gRPC's windows and their inbox: all bounded.
        assert counters.sent_bytes < 20 << 20
        assert not b.of(1)
        b.peers.resume()
        kept = sent - counters.dropped_messages
        await b.until(lambda: len(b.of(1)) == kept)
        numbers = [int(body[:6]) for body in b.of(1)]
        assert numbers == sorted(numbers)
        assert a.lost == []


async def test_a_stream_of_a_node_that_came_again_takes_the_place_of_the_old_one():
    """Its old one may take long to end, when the node has lost its power."""
    async with a_node(2) as b, a_proxy(b.address) as proxy, a_node(1) as old, a_node(1) as new:
        old.peers.set_peers({2: proxy.address})
        await old.until(lambda: not old.peers.problems)
        old.peers.send(2, b"old")
        await b.until(lambda: b.of(1) == [b"old"])
        new.peers.set_peers({2: b.address})
        await new.until(lambda: not new.peers.problems)
        new.peers.send(2, b"new")
        await b.until(lambda: b.of(1) == [b"old", b"new"])
        await old.until(lambda: old.lost == [2])


# -- who may not


async def refused(a: Node, words: str) -> None:
    """`a` shows why node 2 does not talk to it, and does not try all the time."""
    await a.until(lambda: words in a.peers.problems.get(2, ""), 3)
    assert a.lost == [2]
    connections = a.peers.counters(2).connections
    await trio.sleep(0.3)
    assert a.peers.counters(2).connections == connections == 0


async def test_another_cluster_is_refused_and_both_sides_say_so():
    async with a_node(1, cluster="red") as a, a_node(2) as b:
        a.peers.set_peers({2: b.address})
        words = "node 1 of cluster red talks to node 2 of another cluster, blue"
        await refused(a, words)
        assert words in b.peers.problems[1]
        a.peers.send(2, b"x")
        await trio.sleep(0.1)
        assert not b.batches


async def test_another_node_at_the_address_is_refused_and_both_sides_say_so():
    async with a_node(1) as a, a_node(3) as c:
        a.peers.set_peers({2: c.address})
        words = "node 1 looks for node 2 where node 3 is"
        await refused(a, words)
        assert words in c.peers.problems[1]


async def test_an_older_protocol_is_refused_and_both_sides_say_so(monkeypatch):
    async with a_node(1) as a, a_node(2) as b:
        monkeypatch.setattr(handshake, "PROTOCOL_MIN", handshake.PROTOCOL + 1)
        a.peers.set_peers({2: b.address})
        await refused(a, "upgrade node 1")
        assert "upgrade node 1" in b.peers.problems[1]


async def test_a_problem_is_over_when_it_is_cured():
    quick = smaller(refused_retry_ms=200)
    async with a_node(1, cluster="red") as wrong, a_node(2) as b:
        wrong.peers.set_peers({2: b.address})
        await b.until(lambda: 1 in b.peers.problems)
        async with a_node(1, config=quick) as right:
            right.peers.set_peers({2: b.address})
            await right.until(lambda: not right.peers.problems)
            await b.until(lambda: 1 not in b.peers.problems)


async def test_who_claims_many_numbers_fills_nothing():
    async with a_node(2) as b, open_client("blue") as client:
        for number in range(100, 200):
            hello = Hello("red", number, 2).to_metadata()
            with contextlib.suppress(FsError):
                await client.send_stream(
                    b.address, SERVICE, METHOD, _nothing(), deadline_s=5, metadata=hello
                )
        assert 10 < len(b.peers.problems) <= 64


async def _nothing():
    return
    yield b""


async def test_a_malformed_message_ends_its_stream_alone():
    async def garbage():
        yield b"\xff\xff\xff\xff?"
        await trio.sleep(5)

    async with two_nodes() as (a, b), open_client("blue") as client:
        hello = Hello("blue", 9, 2).to_metadata()
        with trio.fail_after(3), pytest.raises(FsError, match="ends too early"):
            await client.send_stream(
                b.address, SERVICE, METHOD, garbage(), deadline_s=5, metadata=hello
            )
        a.peers.send(2, b"x")
        await b.until(lambda: b.batches == [(1, [b"x"])])


async def test_an_exception_of_the_owner_ends_the_peers():
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with two_nodes() as (a, b):

            def fail(node: int, bodies: list[bytes]) -> None:
                raise ZeroDivisionError

            b.peers._received = fail
            a.peers.send(2, b"x")
            with trio.fail_after(5):
                await trio.sleep_forever()


async def test_closing_is_quick_even_when_much_waits():
    async with two_nodes() as (a, b):
        b.peers.hold()
        for _ in range(100):
            a.peers.send(2, bytes(1 << 20))
        await trio.sleep(0.2)
        started = trio.current_time()
    assert trio.current_time() - started < 2


async def test_a_stopped_process_is_noticed_and_found_again_when_it_goes_on():
    """It still holds its connections: nothing but silence tells."""
    async with a_node(1) as a, another_process("2", "1", a.address) as (process, address):
        a.peers.set_peers({2: address})
        await a.until(lambda: not a.peers.problems)
        started = trio.current_time()
        process.send_signal(signal.SIGSTOP)
        try:
            await a.until(lambda: a.lost == [2])
            assert trio.current_time() - started < 2.2
        finally:
            process.send_signal(signal.SIGCONT)
        await a.until(lambda: not a.peers.problems, 3)
        with trio.fail_after(5):  # its own stream may not be there yet
            while not a.of(2):
                a.peers.send(2, b"x")
                await trio.sleep(0.05)


FORKING = """
import os, subprocess, sys, trio
import mountfs.rpc.client, mountfs.rpc.peers
from mountfs.rpc.server import open_server
from mountfs.rpc.client import open_client

if os.fork():  # as a daemon does
    _, status = os.wait()
    sys.exit(os.waitstatus_to_exitcode(status))

async def echo(body, call):
    subprocess.run(["true"], check=True)  # other programs may be run at any time
    return body

async def main():
    async with open_server("127.0.0.1:0", "blue") as server, open_client("blue") as client:
        server.register("a.B", "Echo", echo)
        assert await client.call(server.address, "a.B", "Echo", b"x", deadline_s=5) == b"x"

trio.run(main)
print("good")
"""


def test_a_daemon_may_fork_before_it_starts_and_says_nothing_of_it():
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKING], capture_output=True, text=True, timeout=30
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "good\n", "")
