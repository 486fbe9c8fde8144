"""Calls, and what breaks them on their way: networks that swallow, processes that stop or die."""

import signal
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
import trio
from rpc_rig import ADMIN, ANYWHERE, CLUSTER, a_proxy, another_process, smaller

from mountfs.errors import Fault, FsError
from mountfs.rpc.client import Client, open_client
from mountfs.rpc.server import Call, Server, open_server
from mountfs.types import MIB

NOTICED_S = 20
"""Far less than the deadlines here: it is silence that ends the calls."""
DEADLINE_S = 60


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with open_server(ANYWHERE, CLUSTER) as server:
        server.register(ADMIN, "Echo", echo)
        yield server


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with open_client(CLUSTER) as client:
        yield client


async def echo(body: bytes, call: Call) -> bytes:
    return body


async def answered(client: Client, address: str) -> None:
    """Until somebody is there again."""
    with trio.fail_after(NOTICED_S):
        while True:
            try:
                assert await client.call(address, ADMIN, "Echo", b"x", deadline_s=5) == b"x"
                return
            except FsError as error:
                assert error.fault is Fault.NOT_LEADER
                await trio.sleep(0.01)


@pytest.mark.parametrize("when", ["before the call", "while it is answered"])
async def test_a_black_hole_is_noticed_and_healed(server, client, when):
    begun = trio.Event()
    made = 0

    async def wait(body: bytes, call: Call) -> bytes:
        nonlocal made
        made += 1
        begun.set()
        await trio.sleep_forever()
        return b""

    server.register(ADMIN, "Wait", wait)
    async with a_proxy(server.address) as proxy, trio.open_nursery() as nursery:
        await answered(client, proxy.address)
        if when == "before the call":
            proxy.swallow()

        async def swallow() -> None:
            await begun.wait()
            proxy.swallow()

        nursery.start_soon(swallow)
        with trio.fail_after(NOTICED_S), pytest.raises(FsError) as caught:
            await client.call(proxy.address, ADMIN, "Wait", b"", deadline_s=DEADLINE_S)
        assert caught.value.fault is Fault.NOT_LEADER
        proxy.forward()
        await answered(client, proxy.address)
        assert made == (when == "while it is answered"), "it is not made again behind our back"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("what", ["request", "answer", "pieces there", "pieces back"])
async def test_a_slow_link_is_no_black_hole(server, client, what):
    """What is under way takes longer than a keepalive may."""
    total = 5 * MIB

    async def count(body: bytes, call: Call) -> bytes:
        return b"%d" % len(body)

    async def give(body: bytes, call: Call) -> bytes:
        return bytes(total)

    async def count_pieces(pieces: AsyncIterator[bytes], call: Call) -> bytes:
        return b"%d" % sum([len(piece) async for piece in pieces])

    async def mebibytes(body: bytes = b"", call: Call | None = None) -> AsyncIterator[bytes]:
        for _ in range(total // MIB):
            yield bytes(MIB)

    server.register(ADMIN, "Count", count)
    server.register(ADMIN, "Give", give)
    server.register_sink(ADMIN, "CountPieces", count_pieces)
    server.register_source(ADMIN, "GivePieces", mebibytes)
    async with a_proxy(server.address) as proxy:
        proxy.bytes_a_second = 2_000_000
        at, within = (proxy.address, ADMIN), {"deadline_s": DEADLINE_S}
        with trio.fail_after(DEADLINE_S):
            if what == "request":
                said = int(await client.call(*at, "Count", bytes(total), **within))
            elif what == "answer":
                said = len(await client.call(*at, "Give", b"", **within))
            elif what == "pieces there":
                said = int(await client.send_stream(*at, "CountPieces", mebibytes(), **within))
            else:
                async with client.stream(*at, "GivePieces", b"", **within) as pieces:
                    said = sum([len(piece) async for piece in pieces])
    assert said == total


async def test_a_call_that_waits_long_lives_on():
    """Keepalives are answered, and nobody takes them for too many."""
    quick = smaller(keepalive_ms=100, keepalive_timeout_ms=300)

    async def wait(body: bytes, call: Call) -> bytes:
        await trio.sleep(2)
        return b"done"

    async with (
        open_server(ANYWHERE, CLUSTER, config=quick) as server,
        open_client(CLUSTER, config=quick) as client,
    ):
        server.register(ADMIN, "Wait", wait)
        with trio.fail_after(NOTICED_S):
            assert await client.call(server.address, ADMIN, "Wait", b"", deadline_s=15) == b"done"


async def test_a_killed_process_is_noticed_and_found_again_when_it_is_back(client):
    async with another_process() as (process, address):
        async with client.stream(address, ADMIN, "Begin", b"", deadline_s=DEADLINE_S) as pieces:
            with trio.fail_after(NOTICED_S):
                assert await anext(pieces) == b"begun"
                process.kill()
                with pytest.raises(FsError) as caught:
                    await anext(pieces)
        assert caught.value.fault is Fault.NOT_LEADER
    async with another_process(address):
        await answered(client, address)


async def test_a_stopped_process_is_noticed_and_found_again_when_it_goes_on(client):
    """It still holds its connections: nothing but silence tells."""
    async with another_process() as (process, address):
        async with client.stream(address, ADMIN, "Begin", b"", deadline_s=DEADLINE_S) as pieces:
            with trio.fail_after(NOTICED_S):
                assert await anext(pieces) == b"begun"
                process.send_signal(signal.SIGSTOP)
                try:
                    with pytest.raises(FsError) as caught:
                        await anext(pieces)
                finally:
                    process.send_signal(signal.SIGCONT)
        assert caught.value.fault is Fault.NOT_LEADER
        await answered(client, address)


FORKING = """
import os, subprocess, sys, trio
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
