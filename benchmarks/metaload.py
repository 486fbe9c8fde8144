"""What asks a cluster of metaservers: `python -m benchmarks.metaload SYSTEM HOST:PORT,...`.

Clients are tasks of one process; each does one thing after the other.  A client of mountfs creates
files in a directory of its own; one of etcd puts values of 64 bytes.  Both are Trio, both send and
receive by themselves, so that what they take of the machine is about the same; how much it was is
in the result, as JSON: one line.
"""

import argparse
import gc
import json
import stat
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import perf_counter, process_time
from typing import Any, NamedTuple

import trio

from benchmarks import etcd
from benchmarks.measure import cpu_s, machine_cpu_s
from mountfs.errors import Fault, FsError
from mountfs.meta.client import Options, RemoteMeta, remote_meta
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.meta.records import ino_of
from mountfs.types import ROOT, Cred

WARM_S = 0.7
"""Not counted: connections open, caches fill."""
PATIENCE_S = 30.0
CRED = Cred(0, 0, (), True)
VALUE = bytes(range(64))

One = Callable[[int], Awaitable[object]]
"""Does the n-th thing of a client."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.metaload", description=__doc__)
    parser.add_argument("system", choices=["mountfs", "etcd", "etcd-grpc"])
    parser.add_argument("at", help="where the servers are; etcd: the leader first")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--one-connection", action="store_true", help="all clients share it")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--pids", default="", help="the servers, whose CPU time is told, too")
    parser.add_argument("--names", default="0", help="so that no other run has the same names")
    arguments = parser.parse_args()
    if arguments.system == "etcd-grpc":
        result = with_grpc(arguments)
    else:
        result = trio.run(generate, arguments)
    print(json.dumps(result))


async def generate(arguments: argparse.Namespace) -> dict[str, Any]:
    way = through_mountfs if arguments.system == "mountfs" else through_etcd
    async with way(arguments) as clients:
        gc.collect()
        gc.freeze()
        meter = Meter(arguments)
        async with trio.open_nursery() as nursery:
            for one in clients:
                nursery.start_soon(_client, one, meter)
    return meter.result()


async def _client(one: One, meter: "Meter") -> None:
    number = 0
    while perf_counter() < meter.stop:
        begun = perf_counter()
        await one(number)
        meter.did(begun)
        number += 1


class Clocks(NamedTuple):
    wall_s: float
    own_s: float
    machine_s: float
    """CPU time of everybody."""
    servers_s: list[float]


class Meter:
    """Counts what is done between `start` and `stop`, and the CPU time of that while."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._pids = [int(pid) for pid in arguments.pids.split(",") if pid]
        self.start = perf_counter() + WARM_S
        self.stop = self.start + arguments.seconds
        self._began: Clocks | None = None
        self._ended: Clocks | None = None
        self._took: list[float] = []

    def did(self, begun: float) -> None:
        now = perf_counter()
        if begun < self.start or now > self.stop:
            if now > self.stop and self._ended is None:
                self._ended = self._clock()
            return
        if self._began is None:
            self._began = self._clock()
        self._took.append(now - begun)

    def _clock(self) -> Clocks:
        servers = [cpu_s([pid]) for pid in self._pids]
        return Clocks(perf_counter(), process_time(), machine_cpu_s()[0], servers)

    def result(self) -> dict[str, Any]:
        assert self._began is not None, "nothing was done"
        assert self._ended is not None
        began, ended = self._began, self._ended
        seconds = ended.wall_s - began.wall_s
        own = ended.own_s - began.own_s
        servers = [b - a for a, b in zip(began.servers_s, ended.servers_s, strict=True)]
        others = max(0.0, ended.machine_s - began.machine_s - own - sum(servers))
        took = sorted(self._took)
        done = len(took)
        return {
            "operations": done,
            "seconds": round(seconds, 3),
            "rate": round(done / seconds, 1),
            "p50_ms": round(1000 * took[done // 2], 3),
            "p99_ms": round(1000 * took[done * 99 // 100], 3),
            "client_cpu_us": round(1e6 * own / done, 1),
            "servers_cpu_us": [round(1e6 * one / done, 1) for one in servers],
            "others_cpus": round(others / seconds, 2),
        }


# --- the ways -------------------------------------------------------------------------------------


@asynccontextmanager
async def through_mountfs(arguments: argparse.Namespace) -> AsyncIterator[list[One]]:
    seeds = [(host, int(port)) for host, port in _places(arguments.at)]
    async with trio.open_nursery() as nursery:
        opened = trio.Event()
        leave = trio.Event()
        metas: list[RemoteMeta] = []
        connections = 1 if arguments.one_connection else arguments.clients

        async def session() -> None:
            async with remote_meta(seeds, Options(about="benchmark")) as meta:
                metas.append(meta)
                if len(metas) == connections:
                    opened.set()
                await leave.wait()

        for _ in range(connections):
            nursery.start_soon(session)
        with trio.fail_after(PATIENCE_S):
            await opened.wait()
            clients = [
                await _creator(metas[i % connections], f"{arguments.names}-{i}")
                for i in range(arguments.clients)
            ]
        try:
            yield clients
        finally:
            leave.set()


async def _creator(meta: RemoteMeta, name: str) -> One:
    while True:
        try:
            made = await meta.propose(Mkdir(ROOT, name.encode(), 0o755, 0, CRED))
            break
        except FsError as error:  # safe mode: for a moment after the first start
            if error.fault is not Fault.READ_ONLY:
                raise
            await trio.sleep(0.05)

    parent = ino_of(made)

    async def one(number: int) -> None:
        name = b"file-%09d" % number
        await meta.propose(Make(parent, name, stat.S_IFREG | 0o644, 0o022, 0, True, CRED))

    return one


@asynccontextmanager
async def through_etcd(arguments: argparse.Namespace) -> AsyncIterator[list[One]]:
    host, port = _places(arguments.at)[0]
    async with trio.open_nursery() as nursery:
        connections = 1 if arguments.one_connection else arguments.clients
        opened = [await etcd.connect(nursery, host, int(port)) for _ in range(connections)]

        def putter(client: etcd.Etcd, key: bytes) -> One:
            return lambda number: client.put(key + b"%09d" % number, VALUE)

        yield [
            putter(opened[i % connections], f"{arguments.names}-{i:03}-file-".encode())
            for i in range(arguments.clients)
        ]
        nursery.cancel_scope.cancel()


def with_grpc(arguments: argparse.Namespace) -> dict[str, Any]:
    """etcd through grpcio, to check the client of ours: a call is begun when the last one ends."""
    import grpc

    channel = grpc.insecure_channel(
        arguments.at.split(",")[0], options=[("grpc.use_local_subchannel_pool", 1)]
    )
    put: Any = channel.unary_unary(etcd.PUT.decode())
    meter = Meter(arguments)
    ended = threading.Semaphore(0)

    def next_one(client: int, number: int) -> None:
        begun = perf_counter()
        if begun >= meter.stop:
            ended.release()
            return
        key = f"{arguments.names}-{client:03}-file-{number:09}".encode()

        def done(call: Any) -> None:
            call.result()
            meter.did(begun)
            next_one(client, number + 1)

        put.future(etcd.put_message(key, VALUE)).add_done_callback(done)

    for client in range(arguments.clients):
        next_one(client, 0)
    for _ in range(arguments.clients):
        ended.acquire()
    channel.close()
    return meter.result()


def _places(text: str) -> list[tuple[str, str]]:
    found = []
    for one in text.split(","):
        host, _, port = one.rpartition(":")
        found.append((host, port))
    return found


if __name__ == "__main__":
    main()
