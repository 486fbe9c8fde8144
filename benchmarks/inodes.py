"""A million small files in a cluster of three: `scripts/bench inodes`.

They are made by commands, not through a mount.  Then: memory and disk, how long a new node takes to
have all of it, and how long a node takes to be back after an orderly stop and after kill -9.
"""

import argparse
import os
import random
import signal
import stat
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import trio
from crc32c import crc32c

from benchmarks import clusters
from benchmarks.__main__ import ending_in_order, scratch_directory
from benchmarks.measure import cpu_s, machine, memory_mib, now
from benchmarks.processes import accepts, serving
from benchmarks.report import columns, save
from mountfs.errors import Fault, FsError
from mountfs.meta import admin
from mountfs.meta.client import Options, RemoteMeta, remote_meta
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.meta.ops.read import Usage
from mountfs.meta.ops.write import Run, Write
from mountfs.meta.records import Attributes, ino_of
from mountfs.rpc.client import open_client
from mountfs.types import ROOT, Cred, Ino

SCHEMA = "mountfs-inodes/1"
CRED: Final = Cred(0, 0, (), True)
FILES_PER_DIRECTORY: Final = 10_000
UNDER_WAY: Final = 256
CONTENT_FROM: Final = 1 << 20
LIMIT_S: Final = 600
LOOK_S: Final = 0.05
TAIL: Final = 20_000
"""Files that are made after the last checkpoint, before a node is killed: what it has to replay."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench inodes", description=__doc__)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--bytes", type=int, default=100, help="in each file; default 100")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="on the disk to measure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"schema": SCHEMA, "complete": False, "rows": []}
    try:
        with ending_in_order(), scratch_directory(arguments.dir) as scratch:
            run(results, scratch, arguments)
    finally:
        if results["rows"]:
            save(arguments.out, "inodes", results, text(results))


class Nodes:
    """Nodes that are started and ended one by one."""

    def __init__(self, scratch: Path, stack: ExitStack) -> None:
        self.scratch = scratch
        self.ports: dict[int, int] = {}
        self.pids: dict[int, int] = {}
        self._stacks: dict[int, ExitStack] = {}
        stack.callback(self._end)

    def start(self, number: int, *more: str) -> None:
        """`more` of its command line."""
        port = (
            self.ports.setdefault(number, clusters.free_ports())
            if (number not in self.ports)
            else self.ports[number]
        )
        first = None if number == 1 else f"127.0.0.1:{self.ports[1]}"
        argv = [*clusters.node_command(self.scratch, number, port, first), *more]
        stack = self._stacks[number] = ExitStack()
        process = stack.enter_context(serving(argv, self.scratch / f"n{number}.log"))
        self.pids[number] = process.pid

    def wait(self, number: int) -> None:
        """Until it has its port."""
        deadline = now() + LIMIT_S
        while not accepts(self.ports[number] + 1):
            if now() > deadline:
                raise RuntimeError(f"node {number} did not start within {LIMIT_S} s")
            time.sleep(0.02)

    def stop(self, number: int) -> float:
        """In order; how long it took."""
        begun = now()
        self._stacks.pop(number).close()
        return now() - begun

    def kill(self, *numbers: int) -> None:
        for number in numbers:
            os.kill(self.pids[number], signal.SIGKILL)
        for number in numbers:
            self._stacks.pop(number).close()

    def _end(self) -> None:
        for stack in self._stacks.values():
            stack.close()

    # -- what they say

    @property
    def doors(self) -> list[tuple[str, int]]:
        return [("127.0.0.1", port + 1) for port in self.ports.values()]

    def list(self) -> list[dict[str, Any]]:
        """What `mountfs node list` says; nothing while nobody leads."""

        async def ask() -> Any:
            async with open_client("", None) as client:
                places = [f"127.0.0.1:{port}" for port in self.ports.values()]
                return await admin.ask(client, places, "Nodes", None, deadline_s=5)

        try:
            found: list[dict[str, Any]] = trio.run(ask)
        except (FsError, BaseExceptionGroup):
            return []
        return found

    def until(self, number: int, condition: Callable[[dict[str, Any]], bool], what: str) -> float:
        """How long it took."""
        begun = now()
        while True:
            if any(node["name"] == f"n{number}" and condition(node) for node in self.list()):
                return now() - begun
            if now() - begun > LIMIT_S:
                raise RuntimeError(f"node {number}: not {what} after {LIMIT_S} s: {self.list()}")
            time.sleep(LOOK_S)

    def leader(self) -> int:
        return next(int(node["name"][1:]) for node in self.list() if node["leader"])

    def rss_mib(self) -> dict[str, float]:
        return {f"n{n}": round(memory_mib([pid])[0], 1) for n, pid in sorted(self.pids.items())}

    def disk_mib(self, number: int) -> dict[str, float]:
        """Of each part of a home."""
        home = self.scratch / f"n{number}"
        found: dict[str, float] = {}
        for top, _, files in os.walk(home):
            part = "/".join(Path(top).relative_to(home).parts[:2]) or "."
            size = sum(os.lstat(os.path.join(top, name)).st_blocks * 512 for name in files)
            found[part] = round(found.get(part, 0) + size / 2**20, 1)
        return {part: size for part, size in found.items() if size}


def run(results: dict[str, Any], scratch: Path, arguments: argparse.Namespace) -> None:
    """Fill `results` as it goes."""
    results |= {
        "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "files": arguments.files,
        "bytes": arguments.bytes,
        "machine": machine(scratch),
        "load_average": os.getloadavg()[0],
    }

    def note(what: str, value: object) -> None:
        results["rows"].append([what, value])
        print(f"{what}: {value}", flush=True)

    with ExitStack() as stack:
        nodes = Nodes(scratch, stack)
        clusters.begin(scratch)
        for number in (1, 2, 3):
            nodes.start(number)
            nodes.wait(number)
        for number in (1, 2, 3):
            nodes.until(number, lambda node: node["role"] == "voter", "a voter")
        time.sleep(3)
        note("RSS of an empty node, MiB", nodes.rss_mib())
        before = cpu_s(nodes.pids.values())
        made_s = trio.run(fill, nodes.doors, "a", arguments.files, arguments.bytes)
        note("made, files/s", round(arguments.files / made_s))
        note(
            "CPU of all nodes for one file, us",
            round(1e6 * (cpu_s(nodes.pids.values()) - before) / arguments.files),
        )
        note("RSS after that, MiB", nodes.rss_mib())
        time.sleep(5)
        note("inodes, as the cluster counts them", trio.run(count, nodes.doors))
        leader = nodes.leader()
        note(f"disk of the leader (n{leader}), MiB", nodes.disk_mib(leader))
        follower = next(number for number in (3, 2) if number != leader)

        note("orderly stop of a follower, s", round(nodes.stop(follower), 2))
        nodes.until(follower, lambda node: not node["alive"], "away")
        note("disk of a stopped follower, MiB", nodes.disk_mib(follower))
        nodes.start(follower)
        note("restarted after that: has all, s", round(_is_back(nodes, follower), 2))
        note("RSS of a restarted follower, MiB", nodes.rss_mib()[f"n{follower}"])

        trio.run(fill, nodes.doors, "b", TAIL, arguments.bytes)
        nodes.kill(follower)
        nodes.until(follower, lambda node: not node["alive"], "away")
        nodes.start(follower)
        note(
            f"restarted after kill -9 ({TAIL:,} files later): has all, s",
            round(_is_back(nodes, follower), 2),
        )

        begun = now()
        nodes.start(4)
        nodes.wait(4)
        note("a new node: it listens, s", round(now() - begun, 2))
        nodes.until(4, _has_all, "up to date")
        note("a new node: it has all, s", round(now() - begun, 2))
        note("RSS after that, MiB", nodes.rss_mib())
        note("disk of the new node, MiB", nodes.disk_mib(4))

        nodes.kill(1, 2, 3, 4)
        begun = now()
        for number in (1, 2, 3, 4):
            nodes.start(number)
        trio.run(fill, nodes.doors, "c", 1, arguments.bytes)
        note(
            "all killed and started again: the first command is answered, s",
            round(now() - begun, 2),
        )
        note("RSS of all after their restart, MiB", nodes.rss_mib())
        note("inodes, as the cluster counts them, at the end", trio.run(count, nodes.doors))
    results["complete"] = True


def _has_all(node: dict[str, Any]) -> bool:
    return bool(node["alive"]) and node["lag"] is not None and node["lag"] <= 1


def _is_back(nodes: Nodes, number: int) -> float:
    return nodes.until(number, _has_all, "back")


async def fill(doors: list[tuple[str, int]], prefix: str, files: int, size: int) -> float:
    """Make so many files with so many bytes; the seconds it took."""
    noise = random.Random(1).randbytes(CONTENT_FROM + size)  # LevelDB compresses what it can
    numbers = iter(range(files))

    async def worker(meta: RemoteMeta, directories: list[Ino]) -> None:
        for number in numbers:
            parent = directories[number // FILES_PER_DIRECTORY]
            name = b"file-%09d" % number
            made, _ = await meta.propose(
                Make(parent, name, stat.S_IFREG | 0o644, 0o022, 0, True, CRED)
            )
            if size:
                at = number * 7919 % CONTENT_FROM
                content = noise[at : at + size]
                content_run = Run(0, size, crc32c(content), data=content)
                await meta.propose(Write(ino_of(made), (content_run,), meta.now(), False))

    async with remote_meta(doors, Options(about="benchmark")) as meta:
        directories = []
        for number in range(-(-files // FILES_PER_DIRECTORY)):
            name = f"{prefix}{number:06}".encode()
            directories.append(ino_of(await _directory(meta, name)))
        begun = now()
        async with trio.open_nursery() as nursery:
            for _ in range(min(UNDER_WAY, files)):
                nursery.start_soon(worker, meta, directories)
        return now() - begun


async def _directory(meta: RemoteMeta, name: bytes) -> Attributes:
    while True:
        try:
            return await meta.propose(Mkdir(ROOT, name, 0o755, 0, CRED))
        except FsError as error:  # safe mode, after a start
            if error.fault is not Fault.READ_ONLY:
                raise
            await trio.sleep(LOOK_S)


async def count(doors: list[tuple[str, int]]) -> int:
    async with remote_meta(doors, Options(about="benchmark")) as meta:
        return (await meta.read(Usage()))[0]


def text(results: dict[str, Any]) -> str:
    about = results["machine"]
    rows = []
    for what, value in results["rows"]:
        if isinstance(value, dict):
            value = ", ".join(f"{key} {one:g}" for key, one in value.items())
        rows.append([what, f"{value:,}" if isinstance(value, int | float) else str(value)])
    return "\n".join(
        [
            f"{results['started']}, {results['files']:,} files of {results['bytes']} bytes, once"
            f"{'' if results['complete'] else '  STOPPED'}; {about['cpus']} CPUs ({about['cpu']}), "
            f"disk: {about['disk']}, 4 KiB append + fdatasync {about['fsync_us']} us, load average "
            f"at the start {results['load_average']:.1f}",
            "",
            *columns(["", ""], rows, left=[0]),
        ]
    )


if __name__ == "__main__":
    main()
