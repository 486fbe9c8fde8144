"""Disks of nodes fill up under work and have room again: nothing is lost, and what a majority can
do without that disk goes on.
"""

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from nodes import Member, Nodes, fresh_cluster
from work import Work

DISK_BYTES = 256 << 20


@pytest.fixture(scope="module")
def small_disks() -> Iterator[Nodes]:
    """Three nodes, each with a disk of its own."""
    with fresh_cluster(0) as cluster:
        disks = []
        try:
            for name in ("n1", "n2", "n3"):
                disk = cluster.top / f"disk-{name}"
                disk.mkdir()
                mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(disk)]
                done = subprocess.run(mount, capture_output=True, text=True)
                if done.returncode:
                    pytest.skip(f"no small disk to be had: {done.stderr.strip()}")
                disks.append(disk)
            cluster.found("n1", home=disks[0] / "home")
            for name, disk in zip(("n2", "n3"), disks[1:], strict=True):
                cluster.join(name, home=disk / "home")
            cluster.wait_for_voters(3)
            yield cluster
        finally:
            cluster.destroy()
            for disk in disks:
                subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture
def work(small_disks: Nodes, tmp_path: Path) -> Iterator[Work]:
    work = Work(small_disks, tmp_path, random.Random(3))
    work.begin_ledger(small_disks.mount("one"), "names-one")
    work.goes_on("before anything")
    yield work
    small_disks.calm()


def _fill(member: Member) -> Path:
    """Take all the room there is on its disk."""
    filler = member.home.parent / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            for size in (1 << 20, 4096, 1):
                while True:
                    file.write(bytes(size))
        except OSError:
            pass
        stat = os.statvfs(filler)
        while stat.f_bavail:
            try:
                file.write(bytes(4096))
            except OSError:
                break
            stat = os.statvfs(filler)
    return filler


def test_the_disk_of_a_follower_is_full(small_disks: Nodes, work: Work) -> None:
    follower = small_disks.followers()[0]
    filler = _fill(follower)
    for _ in range(10):
        work.goes_on("with a follower that has no room")
    filler.unlink()
    small_disks.wait_for_voters(3)
    work.check("the disk of a follower was full")


def test_the_disk_of_the_leader_is_full(small_disks: Nodes, work: Work) -> None:
    leader = small_disks.wait_for_leader()
    filler = _fill(leader)
    for _ in range(10):
        work.goes_on("with a leader that has no room")
    filler.unlink()
    small_disks.wait_for_voters(3)
    work.check("the disk of the leader was full")


def test_a_node_whose_disk_is_full_starts_again_when_there_is_room(
    small_disks: Nodes, work: Work
) -> None:
    member = small_disks.followers()[0]
    filler = _fill(member)
    work.goes_on("with a node that has no room")
    member.kill()
    work.goes_on("without it")
    filler.unlink()
    small_disks.restart(member)
    small_disks.wait_for_voters(3)
    work.check("a node with a full disk was killed")
