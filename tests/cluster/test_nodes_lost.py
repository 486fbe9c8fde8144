"""Nodes that keep slices are killed, lose all they have, rot and stand still, one after the other,
while programs write and read: no error, no wrong byte, and in the end every copy is there again.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from operator import lt
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import pytest
import sums
import trio
from mounted import Node
from nodes import MOUNTFS, PORT, Member, Nodes, fresh_cluster, until, wait_for

from mountfs.chunks.protocol import LIST_MAX, List, Method
from mountfs.meta.client import Options, RemoteMeta, remote_meta
from mountfs.meta.ops.volumes import ListVolumes, UsedSlices, VolumeRecord
from mountfs.meta.placement import rack_of
from mountfs.types import SliceId

HEAL_AFTER_S: Final = 20
RACKS: Final = {"n1": "/rack-1/n1", "n2": "/rack-1/n2", "n3": "/rack-2/n3", "c1": "/rack-2/c1"}
STILL_S: Final = 10
PROGRESS_S_MAX: Final = 60
HEALED_S_MAX: Final = 150
"""Generous: the machine may be busy with other things."""


@pytest.fixture
def cluster() -> Iterator[Nodes]:
    """Three nodes that do everything and one that keeps slices only, in two racks."""
    with fresh_cluster(0, options=["--heal-after", str(HEAL_AFTER_S)]) as cluster:
        cluster.found("n1", location=RACKS["n1"])
        members = []
        for name in ("n2", "n3", "c1"):
            roles = "chunk" if name == "c1" else ""
            members += cluster.begin_join(name, roles=roles, location=RACKS[name])
        for member in members:
            member.wait_until_up()
        until(lambda: health(cluster)["word"] == "healthy", PROGRESS_S_MAX, cluster.said)
        yield cluster


class Sums:
    """Two of `sums.py`, each on a mount of its own."""

    def __init__(self, cluster: Nodes, books: Path) -> None:
        self.cluster = cluster
        self.mounts = {name: cluster.mount(name) for name in ("one", "two")}
        self.books = {name: books / name for name in self.mounts}
        (one, two) = self.mounts.values()
        for name in self.mounts:
            (one.point / name).mkdir()
        until(lambda: (two.point / "one").exists(), PROGRESS_S_MAX, lambda: "no directory")
        self.workers = {
            name: self._begin(node.point / name, node.point / other, self.books[name])
            for (name, node), other in zip(self.mounts.items(), ("two", "one"), strict=True)
        }

    def _begin(self, own: Path, others: Path, book: Path) -> subprocess.Popen[bytes]:
        book.touch()
        script = str(Path(sums.__file__))
        worker = subprocess.Popen([sys.executable, script, str(own), str(others), str(book)])
        self.cluster.workers.append(worker)
        return worker

    def go_on(self, why: str) -> None:
        """Wait until each has made some more files, and read some."""
        goals = {name: [count + 3 for count in self._counts(name)] for name in self.books}

        def all_have() -> bool:
            for name, worker in self.workers.items():
                assert worker.poll() is None, (why, sums.lines(self.books[name], "wrong"))
                if any(map(lt, self._counts(name), goals[name])):
                    return False
            return True

        until(all_have, PROGRESS_S_MAX, lambda: f"{why}: nothing more\n{self.cluster.said()}")

    def _counts(self, name: str) -> tuple[int, int]:
        return len(sums.lines(self.books[name], "made")), len(sums.lines(self.books[name], "read"))

    def end(self) -> None:
        for worker in self.workers.values():
            worker.send_signal(signal.SIGTERM)
        for name, worker in self.workers.items():
            status = wait_for(worker, PROGRESS_S_MAX, name)
            assert status == 0, sums.lines(self.books[name], "wrong")

    def wrong(self, node: Node) -> list[str]:
        """What is not as it has to be, seen through a mount, after `end`."""
        found = []
        for name, book in self.books.items():
            names = set(sums.lines(book, "made")) - set(sums.lines(book, "gone"))
            there = set(sums.finished(node.point / name))
            found += [f"{one} is missing" for one in names - there]
            found += [f"{one} should not be there" for one in there - names]
            found += [sums.trouble(node.point / name / one) for one in sorted(names & there)]
        return [one for one in found if one]


def health(cluster: Nodes) -> dict[str, Any]:
    """mountfs health --json"""
    places = ",".join(member.rpc for member in cluster.running)
    done = cluster.run(*MOUNTFS, "health", "--json", "--at", places)
    found: dict[str, Any] = json.loads(done.stdout) if done.stdout else {"word": done.stderr}
    return found


def wait_until_healthy(cluster: Nodes) -> None:
    def told() -> str:
        return f"{json.dumps(health(cluster), indent=1)}\n{cluster.said()}"

    until(lambda: health(cluster)["word"] in ("healthy", "tidying"), HEALED_S_MAX, told)


def number_of(cluster: Nodes, name: str) -> int:
    return next(node["number"] for node in cluster.listed() if node["name"] == name)


class Rot(NamedTuple):
    volume: Path
    inode: int
    places: int

    @property
    def is_gone(self) -> bool:
        """The whole copy was made anew."""
        return not self.volume.exists() or self.volume.stat().st_ino != self.inode


def flip_bits(member: Member) -> Rot:
    """In the largest of its volumes, here and there."""
    largest = max((member.home / "chunks" / "volumes").glob("*.vol"), key=_written)
    size = _written(largest)
    places = range(size // 7, size, size // 5)
    with open(largest, "r+b") as file:
        for at in places:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 0x10]))
    return Rot(largest, largest.stat().st_ino, len(places))


def _written(path: Path) -> int:
    """Up to where it is not reserved only."""
    return len(path.read_bytes().rstrip(b"\0"))


async def short_volumes(cluster: Nodes) -> list[str]:
    """Asks each node what it has: which volumes have a replica that lacks a slice in use, has a
    damaged one, or is where it should not be.
    """
    seeds = [(member.host, PORT + 1) for member in cluster.running]
    with trio.fail_after(PROGRESS_S_MAX):
        async with remote_meta(seeds, Options(about="a test")) as meta:
            records = await meta.read(ListVolumes(1_000))
            assert records
            return [one for record in records for one in await _lacks(meta, record)]


async def _lacks(meta: RemoteMeta, record: VolumeRecord) -> list[str]:
    used = {slice_id for slice_id, _, _ in await meta.read(UsedSlices(record.number, LIST_MAX))}
    if not used:
        return []
    found = []
    locations = {node.number: node.location for node in meta.router.nodes}
    racks = {rack_of(locations[node]) for node in record.replicas}
    if len(record.replicas) != 3 or len(racks) != 2:
        found.append(f"{record} is in {racks}")
    for node in record.replicas:
        link = await meta.router.link_to(node)
        for damaged in (False, True):
            asked = List(record.number, SliceId(0), LIST_MAX, damaged)
            answer = await link.call(Method.LIST, msgspec.msgpack.encode(asked))
            there = {one for one, _ in msgspec.msgpack.decode(answer)}
            if damaged and there:
                found.append(f"{record}: node {node} has damaged ones: {there}")
            elif not damaged and not used <= there:
                found.append(f"{record}: node {node} lacks {used - there}")
    return found


@pytest.mark.timeout(600)
def test_nodes_are_lost_in_all_ways_and_nobody_notices(cluster: Nodes, tmp_path: Path) -> None:
    work = Sums(cluster, tmp_path)
    work.go_on("before anything")
    n1, n2, n3, c1 = (cluster[name] for name in RACKS)

    n1.kill()
    work.go_on("without n1")
    cluster.restart(n1)
    work.go_on("with n1 again")
    cluster.wait_for_leader()

    number = number_of(cluster, "n2")
    n2.kill()
    shutil.rmtree(n2.home / "chunks")
    work.go_on("without n2")
    cluster.restart(n2)
    assert number_of(cluster, "n2") == number, "it is who it was"
    work.go_on("with n2, which has lost everything")
    wait_until_healthy(cluster)
    assert list((n2.home / "chunks" / "volumes").glob("*.vol"))

    n3.kill()
    rot = flip_bits(n3)
    assert rot.places >= 3
    (n3.home / "chunks" / "scrub.json").unlink()  # it is time to read it all
    cluster.restart(n3)
    work.go_on("with n3, which has rotten")

    c1.stop()
    end = time.monotonic() + STILL_S
    work.go_on("while c1 stands still")
    time.sleep(max(end - time.monotonic(), 0))
    c1.go_on()
    work.go_on("with c1 again")

    work.end()
    until(lambda: "needles were read" in n3.said()[n3.before :], HEALED_S_MAX, n3.said)
    assert "does not match" in n3.said()[n3.before :] or rot.is_gone, (rot, n3.said())
    wait_until_healthy(cluster)
    short = partial(trio.run, short_volumes, cluster)
    until(lambda: not short(), HEALED_S_MAX, lambda: "\n".join(short()))
    for node in work.mounts.values():
        assert not work.wrong(node)
