"""What one slow server costs who reads: `scripts/bench tail`.

Three nodes, each a process, have three copies of some files.  In front of the door of one of them
is a relay, a process of the benchmark, that hands calls on, and lets some of them wait: first none,
then 5 % of the reads for 200 ms, then all for 50 ms.  The product has no such switch.  Reads are
made by the client that a mount has (`RemoteChunks`), with hedging and without; it goes to all
servers over the network.
"""

import argparse
import math
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio

from benchmarks import clusters
from benchmarks.__main__ import ending_in_order, scratch_directory
from benchmarks.measure import machine, machine_cpu_s, now
from benchmarks.plot import Line, Panel, svg
from benchmarks.processes import accepts, free_port, serving, wait_for
from benchmarks.report import columns, save
from mountfs.chunks.config import HedgeConfig
from mountfs.chunks.hedge import Hedges
from mountfs.chunks.open_volumes import OpenVolumes
from mountfs.chunks.protocol import Method
from mountfs.chunks.remote import RemoteChunks
from mountfs.chunks.volume_map import VolumeMap
from mountfs.errors import FsError
from mountfs.inline import leave
from mountfs.meta.client import Options
from mountfs.meta.ops.volumes import GetVolumes, VolumeRecord
from mountfs.meta.protocol import ROLE
from mountfs.meta.records import Slice
from mountfs.types import KIB, MIB, ROOT, SLICE_BYTES_MAX, SUPERUSER, VolumeId
from mountfs.vfs.cluster import ClusterMount, cluster_mount
from mountfs.wire.connection import Body, Disconnected
from mountfs.wire.frames import Hello, Parts
from mountfs.wire.service import Peer, Service
from mountfs.wire.stream import Client, connect

SCHEMA: Final = "mountfs-tail/1"
FILES: Final = 48
"""Of one slice each: they stay in memory, so that a healthy server is quick."""
SETTLE_READS: Final = 400
"""Before each measurement, with all servers healthy: what a client has learned, and saved up.  They
count for the share of extra reads only.
"""
SLOW_DOWN: Final = 250
"""The method by which the relay is told whom to let wait."""
SHARES: Final = (0.50, 0.95, 0.99, 0.999)


class Case(NamedTuple):
    name: str
    share: float
    """Of the reads of one server."""
    wait_ms: float


CASES: Final = (
    Case("healthy", 0.0, 0.0),
    Case("5 % of one server + 200 ms", 0.05, 200.0),
    Case("all of one server + 50 ms", 1.0, 50.0),
)


class Kind(NamedTuple):
    name: str
    size: int
    per_s: float
    """Reads that begin in a second, whether earlier ones have ended or not."""


KINDS: Final = (Kind("4 KiB", 4 * KIB, 150.0), Kind("1 MiB", MIB, 30.0))


def main() -> None:
    if sys.argv[1:2] == ["relay"]:
        trio.run(relay, int(sys.argv[2]), int(sys.argv[3]), bytes.fromhex(sys.argv[4]))
        return
    arguments = _parse()
    results: dict[str, Any] = {"schema": SCHEMA, "complete": False, "rows": []}
    try:
        with ending_in_order(), scratch_directory(arguments.dir) as scratch:
            results |= {
                "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
                "seconds": arguments.seconds,
                "machine": machine(scratch),
            }
            with clusters.mountfs(scratch / "nodes") as cluster:
                trio.run(measure, cluster, scratch, results, arguments.seconds)
            results["complete"] = True
    finally:
        if results["rows"]:
            save(arguments.out, "tail", results, text(results))
            (arguments.out / "tail.svg").write_text(picture(results))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench tail", description=__doc__)
    parser.add_argument("--seconds", type=float, default=40.0, help="for one measurement")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="on the disk to measure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


# --- the relay ------------------------------------------------------------------------------------


async def relay(port: int, behind: int, cluster: bytes) -> None:
    """Hand calls on to the server at port `behind`, until ended.  Who cancels a call that waits
    here, or there, cancels it there, too.
    """
    hello = Hello(cluster=cluster, role=ROLE, name="relay")
    dice = random.Random(5)
    share = wait_ms = 0.0
    server: Client

    async def handle(peer: Peer, method: int, body: Body) -> Parts:
        nonlocal share, wait_ms
        if method == SLOW_DOWN:
            share, wait_ms = (float(part) for part in bytes(body).split())
            return b""
        await leave()
        if method == Method.READ and share and dice.random() < share:
            await trio.sleep(wait_ms / 1000)
        try:
            return await server.call(method, body)
        except Disconnected:
            sys.exit("the server behind the relay is gone")

    async with trio.open_nursery() as nursery:
        server = await connect(nursery, ("127.0.0.1", behind), hello)
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        await Service(handle, hello).serve(listeners)


@asynccontextmanager
async def slow_link(
    cluster: clusters.Cluster, scratch: Path, identity: bytes
) -> AsyncIterator[Client]:
    """A connection to the last node, through a relay."""
    port, behind = free_port(), cluster.at[-1].rpartition(":")[2]
    argv = [sys.executable, "-m", "benchmarks.tail", "relay", str(port), behind, identity.hex()]
    log = scratch / "relay.log"
    with ExitStack() as stack:
        process = stack.enter_context(serving(argv, log))
        wait_for(lambda: accepts(port), "the relay", process, log)
        async with trio.open_nursery() as nursery:
            hello = Hello(cluster=identity, role=ROLE, name="tail")
            yield await connect(nursery, ("127.0.0.1", port), hello)
            nursery.cancel_scope.cancel()


# --- reading --------------------------------------------------------------------------------------


async def measure(
    cluster: clusters.Cluster, scratch: Path, results: dict[str, Any], seconds: float
) -> None:
    seeds = [(host, int(port)) for host, _, port in (at.rpartition(":") for at in cluster.at)]
    async with cluster_mount("tail", seeds, Options()) as mount:
        slices = await make_files(mount)
        identity = (await mount.meta.router.leader()).peer.cluster
        async with slow_link(cluster, scratch, identity) as slow:
            number = next(
                node.number for node in mount.meta.router.nodes if node.door == cluster.at[-1]
            )
            for kind in KINDS:
                for case in CASES:
                    for hedging in (False, True):
                        chunks = client(mount, number, slow, hedging=hedging)
                        row = await one(chunks, slices, kind, case, seconds, slow)
                        row |= {"kind": kind.name, "case": case.name, "hedging": hedging}
                        results["rows"].append(row)
                        told = "  ".join(f"{name} {row[name]} ms" for name in _NAMES)
                        how = "hedging" if hedging else "no hedging"
                        print(f"{kind.name}, {case.name}, {how}: {told}", flush=True)


async def make_files(mount: ClusterMount) -> list[Slice]:
    """Files of one slice; returns the slices."""
    found = []
    fs = mount.filesystem
    for number in range(FILES):
        name = b"file-%d" % number
        _, handle = await fs.create(ROOT, name, 2, 0o644, 0, SUPERUSER)
        data = random.Random(number).randbytes(SLICE_BYTES_MAX)
        for at in range(0, len(data), MIB):
            await fs.write(handle, at, memoryview(data[at : at + MIB]))
        await fs.fsync(handle)
        handle.file.forget_layouts()
        layout = await fs.reader.layout(handle.file, 0)
        found += [piece for piece in layout if piece.volume and piece.length == SLICE_BYTES_MAX]
    assert len(found) == FILES, f"{len(found)} slices of {FILES} files"
    return found


def client(mount: ClusterMount, number: int, slow: Client, *, hedging: bool) -> RemoteChunks:
    """What a mount has, but that it reaches node `number` by `slow`, and none is on its machine."""
    router = mount.meta.router

    async def link(node: int) -> Client:
        return slow if node == number else await router.link_to(node)

    async def where(volumes: tuple[VolumeId, ...]) -> tuple[VolumeRecord, ...]:
        return await mount.meta.read(GetVolumes(volumes))

    async def nothing(_: Any) -> Any:
        raise AssertionError("nothing is written")

    return RemoteChunks(
        router.numbers_of("chunk"),
        link,
        VolumeMap(where),
        OpenVolumes(lambda: 0, nothing, nothing),
        hedges=Hedges(HedgeConfig(enabled=hedging)),
    )


async def one(
    chunks: RemoteChunks,
    slices: list[Slice],
    kind: Kind,
    case: Case,
    seconds: float,
    slow: Client,
) -> dict[str, Any]:
    """Reads that begin at random times, at a rate that does not depend on how long they take."""
    dice = random.Random(7)
    took_ms: list[float] = []
    failed = 0

    async def read(due: float | None) -> None:
        nonlocal failed
        piece = dice.choice(slices)
        start = dice.randrange(piece.length // kind.size) * kind.size
        try:
            data = await chunks.read(piece.volume, piece.slice_id, start, start + kind.size)
            assert len(data) == kind.size
        except FsError:
            failed += 1
        if due is not None:  # also what it waited for us counts
            took_ms.append(1000 * (trio.current_time() - due))

    await slow.call(SLOW_DOWN, b"0 0")
    for _ in range(SETTLE_READS):
        await read(None)
    await slow.call(SLOW_DOWN, f"{case.share} {case.wait_ms}".encode())
    before = chunks.hedges.told()
    begun, busy = now(), machine_cpu_s()[0]
    due = trio.current_time()
    async with trio.open_nursery() as nursery:
        while now() - begun < seconds:
            due += dice.expovariate(kind.per_s)
            await trio.sleep_until(due)
            nursery.start_soon(read, due)
    wall, cpus = now() - begun, machine_cpu_s()[0] - busy
    after = chunks.hedges.told()
    counted = ("hedges", "hedges_won", "cancelled", "denied", "probations")
    took_ms.sort()
    return {
        "reads": len(took_ms),
        "failed": failed,
        **dict(zip(_NAMES, (_share_of(took_ms, share) for share in SHARES), strict=True)),
        **{name: after[name] - before[name] for name in counted},
        "extra_percent": round(100 * after["hedges"] / after["reads"], 2),
        "busy_cpus": round(cpus / wall, 2),
        "curve": [
            [of, _share_of(took_ms, 1 - 1 / of)]
            for of in (1.25, 1.5, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000)
            if of <= len(took_ms)
        ],
    }


_NAMES: Final = ("p50", "p95", "p99", "p99.9")


def _share_of(ordered: list[float], share: float) -> float:
    return round(ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)))], 2)


# --- the page -------------------------------------------------------------------------------------


def text(results: dict[str, Any]) -> str:
    about = results["machine"]
    lines = [
        f"{results['started']}, {results['seconds']:g} s for each line; {about['cpus']} CPUs "
        f"({about['cpu']}), pipe round trip {about['pipe_round_trip_one_cpu_us']} us on one CPU "
        f"and {about['pipe_round_trip_two_cpus_us']} us across two",
        "",
        "Three copies on three nodes; one node is slow.  ms that a read takes; reads begin at "
        f"random, {' and '.join(f'{k.per_s:g}/s of {k.name}' for k in KINDS)} on average.",
        "",
    ]
    rows = []
    for row in results["rows"]:
        rows.append(
            [
                row["kind"],
                row["case"],
                "on" if row["hedging"] else "off",
                *(f"{row[name]:.1f}" for name in _NAMES),
                f"{row['reads']:,}",
                f"{row['extra_percent']:.1f}",
                str(row["hedges_won"]),
                str(row["cancelled"]),
                str(row["denied"]),
                _verdict(row, results["rows"]),
            ]
        )
    head = ["read", "one of three servers", "hedging", *_NAMES, "reads", "extra %", "won"]
    head += ["cancelled", "denied", "target"]
    return "\n".join(lines + columns(head, rows, left=[0, 1, 2, len(head) - 1]))


def _verdict(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """A p99 of at most twice that of healthy servers, for at most 5 % more reads."""
    healthy = _row(rows, row["kind"], CASES[0].name, hedging=True)
    if not row["hedging"] or healthy is None or row is healthy:
        return ""
    missed = []
    if row["p99"] > 2 * healthy["p99"]:
        missed.append(f"p99 is {row['p99'] / healthy['p99']:.1f} times the healthy one")
    if row["extra_percent"] > 5:
        missed.append("more than 5 % extra")
    return "missed: " + ", ".join(missed) if missed else "reached"


def _row(
    rows: list[dict[str, Any]], kind: str, case: str, *, hedging: bool
) -> dict[str, Any] | None:
    for row in rows:
        if (row["kind"], row["case"], row["hedging"]) == (kind, case, hedging):
            return row
    return None


def picture(results: dict[str, Any]) -> str:
    panels = []
    for kind in KINDS:
        for case in CASES[1:]:
            wanted: tuple[tuple[str, str, bool], ...] = (
                ("all healthy", CASES[0].name, True),
                ("hedging off", case.name, False),
                ("hedging on", case.name, True),
            )
            lines = [
                Line(name, [(x, y) for x, y in row["curve"]])
                for name, of, hedging in wanted
                if (row := _row(results["rows"], kind.name, of, hedging=hedging))
            ]
            if lines:
                panels.append(Panel(f"{kind.name}; {case.name}", lines))
    return svg("ms that one of so many reads takes, or longer", panels, columns=2)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    main()
