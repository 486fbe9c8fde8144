"""A chunkserver with ten million slices: `scripts/bench needles`.

Its volumes are written directly, as if it had them for long, with few bytes in each slice: what
memory and time depend on is how many there are.  Then the node is started without an index, after
an orderly stop, and after kill -9 with slices that are in no index yet.  It runs once: its figures
are sizes, and times of seconds.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import trio
from crc32c import crc32c

from benchmarks import clusters
from benchmarks.__main__ import ending_in_order, scratch_directory
from benchmarks.inodes import Nodes
from benchmarks.measure import cpu_s, drop_caches, machine, may_drop_caches, memory_mib, now
from benchmarks.processes import CannotStart
from benchmarks.report import columns, save
from benchmarks.server import FIRST_NAME, calls, volumes_of
from mountfs.chunks import needle
from mountfs.chunks.file import VolumeFile, sync_directory
from mountfs.chunks.protocol import READ, READ_HEAD, WRITE_HEAD, Method, first_volume_of
from mountfs.chunks.volume import SUPERBLOCK_BYTES, Superblock
from mountfs.errors import FsError
from mountfs.meta.client import Options, remote_meta
from mountfs.types import MIB, SliceId, VolumeId
from mountfs.wire.connection import Disconnected
from mountfs.wire.frames import ANY_CLUSTER
from mountfs.wire.stream import Client

SCHEMA: Final = "mountfs-needles/1"
IN_VOLUME: Final = 200_000
"""Of 5 KiB they would fill one."""
TAIL: Final = 5_000
"""Slices that are stored right before the kill."""
READS: Final = 50_000
REST_S: Final = 15.0
"""Until memory is looked at: what follows a start is over by then."""
LIMIT_S: Final = 1_800
META, CHUNK = 1, 2


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench needles", description=__doc__)
    parser.add_argument("--needles", type=int, default=10_000_000)
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="on the disk to measure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"schema": SCHEMA, "complete": False, "rows": []}
    try:
        with ending_in_order(), scratch_directory(arguments.dir) as scratch, ExitStack() as stack:
            results |= {
                "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
                "needles": arguments.needles,
                "machine": machine(scratch),
            }
            _run(results, Nodes(scratch, stack), arguments.needles)
            results["complete"] = True
    finally:
        if results["rows"]:
            save(arguments.out, "needles", results, text(results))


def _run(results: dict[str, Any], nodes: Nodes, needles: int) -> None:
    clusters.begin(nodes.scratch)
    nodes.start(META, "--roles", "meta")
    nodes.wait(META)
    nodes.start(CHUNK, "--roles", "chunk")
    nodes.wait(CHUNK)
    nodes.stop(CHUNK)
    home = nodes.scratch / f"n{CHUNK}" / "chunks"
    begun = now()
    _make(home, needles)
    print(f"{needles:,} needles written in {now() - begun:.0f} s", flush=True)

    def note(what: str, seconds: float) -> None:
        pid = nodes.pids[CHUNK]
        cpu = cpu_s([pid])
        time.sleep(REST_S)
        rss, peak = memory_mib([pid])
        row = {
            "after": what,
            "start_s": round(seconds, 2),
            "cpu_s": round(cpu, 2),
            "rss_mib": round(rss, 1),
            "peak_mib": round(peak, 1),
        }
        results["rows"].append(row)
        print(row, flush=True)

    note("no index: all volumes are scanned", _start(nodes, needles))
    nodes.stop(CHUNK)
    if may_drop_caches():
        drop_caches(3)
    note("an orderly stop, nothing in the page cache", _start(nodes, needles))
    nodes.stop(CHUNK)
    note("an orderly stop", _start(nodes, needles))
    results["reads_per_s"] = round(_read_many(nodes, needles), 1)
    note(f"{READS:,} reads of random slices", 0.0)
    _store_tail(nodes)
    nodes.kill(CHUNK)
    note(f"kill -9, {TAIL:,} slices after the last ones", _start(nodes, needles))
    results["disk_mib"] = nodes.disk_mib(CHUNK)


# --- making them ----------------------------------------------------------------------------------


def _make(directory: Path, needles: int) -> None:
    home = bytes.fromhex(json.loads((directory / "disk.json").read_text())["home"])
    volumes = directory / "volumes"
    for number in range(-(-needles // IN_VOLUME)):
        volume, names = _volume(number, needles)
        salt = random.Random(number).getrandbits(32)
        path = volumes / f"{volume:08}.vol"
        file = VolumeFile.create(path, Superblock(volume, 1, salt, SUPERBLOCK_BYTES, home))
        end = SUPERBLOCK_BYTES
        pieces: list[bytes] = []
        at = end
        for name in map(SliceId, names):
            payload = name.to_bytes(8, "big")
            sums = needle.checksums([payload])
            pieces += [needle.encode(salt, end, SUPERBLOCK_BYTES, name, 8, sums.table), payload]
            pieces.append(needle.padding(8))
            end += needle.needle_bytes(8)
            if end - at > MIB:
                file.write([b"".join(pieces)], at)
                pieces, at = [], end
        file.write([b"".join(pieces)], at)
        file.finish(end)
        file.publish()
    sync_directory(volumes)


def _volume(number: int, needles: int) -> tuple[VolumeId, range]:
    """Number and slices of one of the volumes."""
    first = number * IN_VOLUME
    names = range(FIRST_NAME + first, FIRST_NAME + min(first + IN_VOLUME, needles))
    return VolumeId(first_volume_of(CHUNK) + number), names


def _ordered(dice: random.Random, needles: int) -> Iterator[tuple[VolumeId, int]]:
    for _ in range(READS):
        at = dice.randrange(needles)
        yield _volume(at // IN_VOLUME, needles)[0], FIRST_NAME + at


# --- starting and asking --------------------------------------------------------------------------


def _start(nodes: Nodes, needles: int) -> float:
    """Until it gives a slice."""
    begun = now()
    nodes.start(CHUNK)
    last = _volume((needles - 1) // IN_VOLUME, needles)[0], FIRST_NAME + needles - 1
    while True:
        if now() - begun > LIMIT_S:
            raise CannotStart(f"the node gives no slice after {LIMIT_S} s")
        try:
            trio.run(_ask, nodes, [last])
        except* (Disconnected, FsError, OSError):
            time.sleep(0.02)
        else:
            return now() - begun


def _read_many(nodes: Nodes, needles: int) -> float:
    begun = now()
    trio.run(_ask, nodes, list(_ordered(random.Random(3), needles)))
    return READS / (now() - begun)


async def _ask(nodes: Nodes, wanted: list[tuple[VolumeId, int]]) -> None:
    async def read(link: Client, number: int) -> None:
        volume, name = wanted[number]
        answer = await link.call(Method.READ, READ.pack(volume, name, 0, 8))
        if bytes(answer)[READ_HEAD.size :] != name.to_bytes(8, "big"):
            raise OSError("another slice came")

    tally = await calls(_door(nodes), ANY_CLUSTER, read, range(len(wanted)), LIMIT_S)
    if tally.failures:
        raise OSError(f"{dict(tally.failures)}")


def _door(nodes: Nodes) -> tuple[str, int]:
    return "127.0.0.1", nodes.ports[CHUNK] + 1


def _store_tail(nodes: Nodes) -> None:
    trio.run(_store, nodes)


async def _store(nodes: Nodes) -> None:
    payload = os.urandom(4096)
    async with remote_meta([("127.0.0.1", nodes.ports[META] + 1)], Options()) as meta:
        (record,) = await volumes_of(meta, 1)

        async def put(link: Client, number: int) -> None:
            name = SliceId(FIRST_NAME * 2 + number)
            head = WRITE_HEAD.pack(name, crc32c(payload), record.number, record.epoch)
            await link.call(Method.WRITE, [head, payload])

        tally = await calls(_door(nodes), ANY_CLUSTER, put, range(TAIL), LIMIT_S)
        assert tally.operations == TAIL, tally.failures


# --- the page -------------------------------------------------------------------------------------


def text(results: dict[str, Any]) -> str:
    about = results["machine"]
    head = ["started after", "until it gives a slice, s", "CPU s", "RSS MiB", "peak MiB"]
    rows = [
        [
            row["after"],
            f"{row['start_s']:.1f}" if row["start_s"] else "-",
            f"{row['cpu_s']:.1f}",
            f"{row['rss_mib']:.0f}",
            f"{row['peak_mib']:.0f}",
        ]
        for row in results["rows"]
    ]
    lines = [
        f"{results['started']}; {about['cpus']} CPUs ({about['cpu']}), disk: {about['disk']}",
        "",
        f"A node with {results['needles']:,} slices in volumes of {IN_VOLUME:,}; RSS {REST_S:g} s "
        "after what is named.",
        "",
        *columns(head, rows, left=[0]),
    ]
    if "disk_mib" in results:
        parts = ", ".join(f"{name} {size:,.0f}" for name, size in results["disk_mib"].items())
        lines += [
            "",
            f"{results['reads_per_s']:,.0f} reads/s of random slices.  Disk, MiB: {parts}",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
