"""One chunkserver alone: `scripts/bench server`.

Slices of 4 KiB and 1 MiB are stored and read again, beside a volume server of SeaweedFS over HTTP.
Clients are equal: processes with some calls each under way, that look at sizes only.  Volumes and
names are got before the time begins, as mounts do.
"""

import argparse
import json
import os
import random
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import trio
from crc32c import crc32c

from benchmarks import clusters
from benchmarks.__main__ import ending_in_order, scratch_directory
from benchmarks.clusters import ORDINARY, free_ports
from benchmarks.measure import (
    Tally,
    cpu_s,
    in_processes,
    machine,
    machine_cpu_s,
    memory_mib,
    now,
    own_cpu_s,
    wait_until_quiet,
)
from benchmarks.processes import (
    START_S,
    CannotStart,
    accepts,
    answers,
    find,
    free_port,
    get,
    serving,
    version,
    wait_for,
)
from benchmarks.report import columns, save
from mountfs import __version__
from mountfs.chunks.protocol import READ, READ_HEAD, WRITE_HEAD, Allot, Method
from mountfs.errors import Fault, FsError
from mountfs.meta.client import Options, remote_meta
from mountfs.meta.ops.volumes import VolumeRecord
from mountfs.meta.protocol import ROLE
from mountfs.types import KIB, MIB
from mountfs.wire.frames import Hello
from mountfs.wire.stream import Client, connect

SCHEMA: Final = "mountfs-server/1"
CLIENTS: Final = 2
"""Processes, a connection each; those of HTTP have one for each call that is under way."""
UNDER_WAY: Final = 8
"""Calls of each at a time."""
FIRST_NAME: Final = 1 << 60
"""No file has slices with such names, and nobody takes them for garbage."""
VOLUME_FILL: Final = 900 * MIB
QUIET_S: Final = 5.0
ROUNDS_MAX: Final = 3


class Kind(NamedTuple):
    name: str
    size: int
    stored_max: int
    """So many in one measurement: what the disk takes must not be what is measured longest."""


KINDS: Final = (Kind("4 KiB", 4 * KIB, 60_000), Kind("1 MiB", MIB, 1_600))


@dataclass
class Server:
    """One that is up.  `put` and `get` are the work of one client: which, what kind, how long."""

    name: str
    about: str
    roots: list[int]
    put: Callable[[int, Kind, int, float], Tally]
    """(client, kind, round, seconds)"""
    get: Callable[[int, Kind, int, float], Tally]


Start = Callable[[Path], AbstractContextManager[Server]]


def main() -> None:
    arguments = _parse()
    results: dict[str, Any] = {"schema": SCHEMA, "complete": False, "rows": []}
    try:
        with ending_in_order(), scratch_directory(arguments.dir) as scratch:
            results |= {
                "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
                "seconds": arguments.seconds,
                "rounds": arguments.rounds,
                "machine": machine(scratch),
                "servers": {},
            }
            run(results, scratch, arguments)
            results["complete"] = True
    finally:
        if results["rows"]:
            save(arguments.out, "server", results, text(results))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench server", description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="for one measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="on the disk to measure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def run(results: dict[str, Any], scratch: Path, arguments: argparse.Namespace) -> None:
    with ExitStack() as stack:
        up = []
        for number, start in enumerate(SERVERS):
            try:
                up.append(stack.enter_context(start(scratch / str(number))))
            except CannotStart as reason:
                print(f"not measured: {reason}", file=sys.stderr)
        results["servers"] = {one.name: one.about for one in up}
        for round_number in range(arguments.rounds):
            for kind in KINDS:
                for what in ("put", "get"):
                    turn = round_number % len(up)
                    for one in up[turn:] + up[:turn]:
                        row = _measure(one, kind, what, round_number, arguments.seconds)
                        results["rows"].append(row)
                        print(
                            f"{what} {kind.name:6} {one.name:22} {row['per_s']:>9,.0f}/s "
                            f"{row['cpu_us']:>7,.0f} us",
                            flush=True,
                        )


def _measure(one: Server, kind: Kind, what: str, number: int, seconds: float) -> dict[str, Any]:
    os.sync()
    wait_until_quiet(lambda: one.roots, QUIET_S)
    before, mine, busy = cpu_s(one.roots), own_cpu_s(), machine_cpu_s()[0]
    begun = now()
    work = one.put if what == "put" else one.get
    outcome = in_processes(
        [partial(work, client, kind, number, seconds) for client in range(CLIENTS)], seconds
    )
    wall, clients = now() - begun, own_cpu_s() - mine
    others = machine_cpu_s()[0] - busy - clients - (cpu_s(one.roots) - before)
    wait_until_quiet(lambda: one.roots, QUIET_S)
    spent = cpu_s(one.roots) - before
    done = max(outcome.operations, 1)
    return {
        "server": one.name,
        "what": what,
        "kind": kind.name,
        "per_s": round(outcome.rate or 0.0, 1),
        "operations": outcome.operations,
        "failures": outcome.failures,
        "p50_ms": outcome.p50_ms,
        "p99_ms": outcome.p99_ms,
        "cpu_us": round(1e6 * spent / done, 1),
        "cpu_s_per_gb": round(spent / (done * kind.size / 1e9), 2),
        "client_cpu_us": round(1e6 * clients / done, 1),
        "others_cpus": round(others / wall, 2),
        "rss_mib": round(memory_mib(one.roots)[0], 1),
    }


# --- mountfs --------------------------------------------------------------------------------------


class Volumes(NamedTuple):
    """Of one kind and client, in one round."""

    records: tuple[VolumeRecord, ...]
    first: int
    """Name of the first slice."""


Allotted = dict[tuple[int, str, int], Volumes]
"""By client, kind and round."""


@contextmanager
def mountfs(durability: str, scratch: Path) -> Iterator[Server]:
    """A node with the metadata, that is not measured, and one with slices."""
    clusters.begin(scratch)
    first, second = free_ports(), free_ports()
    with ExitStack() as stack:
        for number, port, more in (
            (1, first, ["--roles", "meta"]),
            (2, second, ["--roles", "chunk", "--durability", durability]),
        ):
            join = f"127.0.0.1:{first}" if number > 1 else None
            argv = [*clusters.node_command(scratch, number, port, join, ORDINARY), *more]
            log = scratch / f"n{number}.log"
            node = stack.enter_context(serving(argv, log))
            wait_for(partial(accepts, port + 1), f"node {number}", node, log)
        allotted: Allotted = {}
        cluster = trio.run(_allot, first + 1, allotted)
        door = ("127.0.0.1", second + 1)
        yield Server(
            name="mountfs" if durability == "fsync" else f"mountfs, {durability}",
            about=f"{__version__}, over wire/; "
            + ("synced before the answer" if durability == "fsync" else "answered from memory"),
            roots=[node.pid],
            put=partial(_put, door, cluster, allotted, scratch),
            get=partial(_get, door, cluster, allotted, scratch),
        )


async def _allot(port: int, allotted: Allotted) -> bytes:
    """Volumes for all that will be measured; returns which cluster it is."""
    async with remote_meta([("127.0.0.1", port)], Options()) as meta:
        name = FIRST_NAME
        for number in range(ROUNDS_MAX):
            for kind in KINDS:
                for client in range(CLIENTS):
                    count = -(-kind.stored_max * kind.size // CLIENTS // VOLUME_FILL)
                    records = await volumes_of(meta, count)
                    allotted[client, kind.name, number] = Volumes(records, name)
                    name += kind.stored_max
        return (await meta.router.leader()).peer.cluster


async def volumes_of(meta: Any, count: int) -> tuple[VolumeRecord, ...]:
    with trio.fail_after(START_S):
        while True:
            try:
                body = msgspec.msgpack.encode(Allot(meta.session, 1, count))
                answer = await meta.ask_leader(Method.ALLOT, body)
                return msgspec.msgpack.decode(answer, type=tuple[VolumeRecord, ...])
            except FsError as error:  # it may not have heard of the node yet
                if error.fault is not Fault.UNAVAILABLE:
                    raise
            await trio.sleep(0.2)


def _where(volumes: Volumes, kind: Kind, number: int) -> tuple[int, VolumeRecord]:
    """Name and volume of one of the slices."""
    return volumes.first + number, volumes.records[number * kind.size // VOLUME_FILL]


def _put(
    door: tuple[str, int],
    cluster: bytes,
    allotted: Allotted,
    scratch: Path,
    client: int,
    kind: Kind,
    round_number: int,
    seconds: float,
) -> Tally:
    volumes = allotted[client, kind.name, round_number]
    payload = random.Random(client).randbytes(kind.size)
    crc = crc32c(payload)

    async def put(link: Client, number: int) -> None:
        name, record = _where(volumes, kind, number)
        head = WRITE_HEAD.pack(name, crc, record.number, record.epoch)
        await link.call(Method.WRITE, [head, payload])

    tally = trio.run(calls, door, cluster, put, range(kind.stored_max // CLIENTS), seconds)
    _note_stored(scratch, client, kind, round_number, tally.operations)
    return tally


def _get(
    door: tuple[str, int],
    cluster: bytes,
    allotted: Allotted,
    scratch: Path,
    client: int,
    kind: Kind,
    round_number: int,
    seconds: float,
) -> Tally:
    volumes = allotted[client, kind.name, round_number]
    order = _random_order(_stored(scratch, client, kind, round_number), client)

    async def get(link: Client, number: int) -> None:
        name, record = _where(volumes, kind, number)
        answer = await link.call(Method.READ, READ.pack(record.number, name, 0, kind.size))
        if len(answer) != READ_HEAD.size + kind.size:
            raise OSError(f"{len(answer)} bytes came")

    return trio.run(calls, door, cluster, get, order, seconds)


async def calls(
    door: tuple[str, int],
    cluster: bytes,
    call: Callable[[Client, int], Awaitable[None]],
    numbers: Sequence[int],
    seconds: float,
) -> Tally:
    async with trio.open_nursery() as nursery:
        link = await connect(nursery, door, Hello(cluster=cluster, role=ROLE, name="server"))
        tally = await _all(numbers, lambda _: partial(call, link), seconds)
        await link.aclose()
    return tally


async def _all(
    numbers: Sequence[int],
    caller: Callable[[int], Callable[[int], Awaitable[None]]],
    seconds: float,
) -> Tally:
    """Call for each number, UNDER_WAY at a time, until `seconds` are over."""
    tally = Tally(started=now())
    left = iter(numbers)
    end = tally.started + seconds

    async def some(number: int) -> None:
        call = caller(number)
        for one in left:
            if now() >= end:
                return
            begun = now()
            try:
                await call(one)
            except (OSError, FsError) as error:
                if tally.fail(str(error)):
                    return
            else:
                tally.operations += 1
                tally.latencies_s.append(now() - begun)

    async with trio.open_nursery() as nursery:
        for number in range(UNDER_WAY):
            nursery.start_soon(some, number)
    tally.stopped = now()
    return tally


def _random_order(count: int, seed: int) -> list[int]:
    """Of those that were stored first: they were all, when calls under way had ended."""
    numbers = list(range(max(count - UNDER_WAY, 0)))
    random.Random(seed).shuffle(numbers)
    return numbers * 20


def _note_stored(scratch: Path, client: int, kind: Kind, number: int, count: int) -> None:
    """For the process that will read them."""
    (scratch / f"stored-{client}-{kind.size}-{number}").write_text(str(count))


def _stored(scratch: Path, client: int, kind: Kind, number: int) -> int:
    return int((scratch / f"stored-{client}-{kind.size}-{number}").read_text())


# --- SeaweedFS ------------------------------------------------------------------------------------


@contextmanager
def weed(fsync: bool, scratch: Path) -> Iterator[Server]:
    program = find("weed")
    (scratch / "master").mkdir(parents=True)
    (scratch / "volume").mkdir()
    master, port = free_port(), free_port()
    at = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    with ExitStack() as stack:
        leader = stack.enter_context(
            serving(
                [
                    program, "master", *at, f"-port={master}", f"-mdir={scratch / 'master'}",
                    "-peers=none", "-telemetry=false", "-volumeSizeLimitMB=1024",
                ],
                scratch / "master.log",
            )
        )  # fmt: skip
        status = f"http://127.0.0.1:{master}/cluster/status"
        wait_for(lambda: answers(status), "weed master", leader)
        server = stack.enter_context(
            serving(
                [
                    program, "volume", *at, f"-port={port}", f"-dir={scratch / 'volume'}",
                    "-max=100", f"-master=127.0.0.1:{master}", "-preStopSeconds=0",
                ],
                scratch / "volume.log",
            )
        )  # fmt: skip
        assign = f"http://127.0.0.1:{master}/dir/assign"
        wait_for(lambda: b"fid" in get(assign), "weed volume", server)
        names = {
            (client, kind.name, number): _assigned(assign, kind)
            for number in range(ROUNDS_MAX)
            for kind in KINDS
            for client in range(CLIENTS)
        }
        yield Server(
            name="weed volume, fsync" if fsync else "weed volume",
            about=f"{version([program, 'version'])}, over HTTP/1.1; "
            + ("?fsync=true: synced before the answer" if fsync else "answered from memory"),
            roots=[server.pid],
            put=partial(_weed_put, port, "?fsync=true" if fsync else "", names, scratch),
            get=partial(_weed_get, port, names, scratch),
        )


Names = dict[tuple[int, str, int], list[str]]


def _assigned(assign: str, kind: Kind) -> list[str]:
    """Names for as many files as are stored; those of one answer differ by a number behind them."""
    names: list[str] = []
    share = kind.stored_max // CLIENTS
    each = min(VOLUME_FILL // kind.size // 8, share)
    while len(names) < share:
        with urllib.request.urlopen(f"{assign}?count={each}", timeout=START_S) as reply:
            name = json.loads(reply.read())["fid"]
        names += [name, *(f"{name}_{number}" for number in range(1, each))]
    return names[:share]


def _weed_put(
    port: int,
    query: str,
    names: Names,
    scratch: Path,
    client: int,
    kind: Kind,
    round_number: int,
    seconds: float,
) -> Tally:
    fids = names[client, kind.name, round_number]
    payload = random.Random(client).randbytes(kind.size)

    async def put(http: "Http", number: int) -> None:
        await http.call("PUT", f"/{fids[number]}{query}", payload)

    tally = trio.run(_http_calls, port, put, range(len(fids)), seconds)
    _note_stored(scratch, client, kind, round_number, tally.operations)
    return tally


def _weed_get(
    port: int,
    names: Names,
    scratch: Path,
    client: int,
    kind: Kind,
    round_number: int,
    seconds: float,
) -> Tally:
    fids = names[client, kind.name, round_number]
    order = _random_order(_stored(scratch, client, kind, round_number), client)

    async def get(http: "Http", number: int) -> None:
        size = await http.call("GET", f"/{fids[number]}")
        if size != kind.size:
            raise OSError(f"{size} bytes came")

    return trio.run(_http_calls, port, get, order, seconds)


async def _http_calls(
    port: int,
    call: Callable[["Http", int], Awaitable[None]],
    numbers: Sequence[int],
    seconds: float,
) -> Tally:
    connections = [Http(await trio.open_tcp_stream("127.0.0.1", port)) for _ in range(UNDER_WAY)]
    try:
        return await _all(numbers, lambda number: partial(call, connections[number]), seconds)
    finally:
        for http in connections:
            await http.stream.aclose()


class Http:
    """As little of HTTP/1.1 as these servers need, so that the client takes as little as it can."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._memory = memoryview(bytearray(256 * KIB))

    async def call(self, verb: str, path: str, body: bytes = b"") -> int:
        """How many bytes came.  Raises OSError for what is no success."""
        head = f"{verb} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        kind = "Content-Type: application/octet-stream\r\n" if body else ""
        await self.stream.send_all(f"{head}{kind}\r\n".encode() + body)
        got = bytearray()
        while (end := got.find(b"\r\n\r\n")) < 0:
            got += await self._more()
        lines = bytes(got[:end]).split(b"\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in lines[1:])
        size = int(fields[b"content-length"])
        left = size - (len(got) - end - 4)
        while left > 0:
            left -= await self._receive()
        if lines[0].split()[1] not in (b"200", b"201"):
            raise OSError(lines[0].decode())
        return size

    async def _more(self) -> bytes:
        return bytes(self._memory[: await self._receive()])

    async def _receive(self) -> int:
        size = await self.stream.socket.recv_into(self._memory)
        if not size:
            raise OSError("the server has closed the connection")
        return size


SERVERS: Final[Sequence[Start]] = (
    partial(mountfs, "fsync"),
    partial(weed, True),
    partial(mountfs, "async"),
    partial(weed, False),
)


# --- the page -------------------------------------------------------------------------------------


def text(results: dict[str, Any]) -> str:
    about = results["machine"]
    lines = [
        f"{results['started']}, {results['rounds']} rounds of {results['seconds']:g} s; "
        f"{about['cpus']} CPUs ({about['cpu']}), disk: {about['disk']}, 4 KiB append + fdatasync "
        f"{about['fsync_us']} us",
        "",
        f"{CLIENTS} processes with {UNDER_WAY} calls each under way ask one server; they share the "
        "CPUs with it.  What is read is in memory.  Medians of the rounds.",
        "",
        *(f"- {name}: {what}" for name, what in results["servers"].items()),
        "",
    ]
    rows = []
    for what in ("put", "get"):
        for kind in KINDS:
            for name in results["servers"]:
                found = [
                    row
                    for row in results["rows"]
                    if (row["server"], row["what"], row["kind"]) == (name, what, kind.name)
                ]
                if found:
                    rows.append([what, kind.name, name, *_cells(found)])
    head = ["", "size", "server", "per s", "MB/s", "p50 ms", "p99 ms", "CPU us", "CPU s per GB"]
    head += ["client CPU us", "RSS MiB", "other CPUs"]
    return "\n".join(lines + columns(head, rows, left=[0, 1, 2]))


def _cells(rows: list[dict[str, Any]]) -> list[str]:
    def middle(name: str) -> float:
        values = sorted(row[name] or 0.0 for row in rows)
        return float(values[len(values) // 2])

    size = {kind.name: kind.size for kind in KINDS}[rows[0]["kind"]]
    failed = any(row["failures"] for row in rows)
    return [
        f"{middle('per_s'):,.0f}{' ✗' if failed else ''}",
        f"{middle('per_s') * size / 1e6:,.0f}",
        f"{middle('p50_ms'):.2f}",
        f"{middle('p99_ms'):.2f}",
        f"{middle('cpu_us'):,.0f}",
        f"{middle('cpu_s_per_gb'):.2f}",
        f"{middle('client_cpu_us'):,.0f}",
        f"{middle('rss_mib'):.0f}",
        f"{middle('others_cpus'):.2f}",
    ]


if __name__ == "__main__":
    main()
