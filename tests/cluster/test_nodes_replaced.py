"""Machines come and go under work: all of them replaced one by one, and a home that was mounted
alone becomes a cluster.
"""

import random
from pathlib import Path

import pytest
from mounted import fresh_node
from nodes import Nodes, fresh_cluster, until
from work import Work

SOON_S = 60
LARGE = 3 << 20


@pytest.mark.timeout(300)
def test_all_machines_are_replaced_under_load(cluster: Nodes, tmp_path: Path) -> None:
    work = Work(cluster, tmp_path, random.Random(3))
    work.begin_ledger(cluster.mount("one"), "names-one")
    work.begin_ledger(cluster.mount("two"), "names-two")
    work.goes_on("before anything")
    old = list(cluster.members.values())
    for number, member in enumerate(old):
        cluster.join(f"n{number + 4}")
        until(lambda: len(cluster.listed()) == 4, SOON_S, lambda: str(cluster.listed()))
        done = cluster.ask("remove", member.name)
        assert done.returncode == 0, done.stderr
        # It learns of it, says so, and ends.
        until(lambda gone=member: not gone.runs, SOON_S, member.said)
        assert "was removed from its cluster" in member.said()
        cluster.wait_for_voters(3)
        work.goes_on(f"after {member.name} was replaced")
    for member in old:
        status, said = member.try_start()
        assert status == 1, said
        assert f"node {member.name} (number" in said
        assert "was removed from its cluster" in said
        assert "move the home away" in said
        del cluster.members[member.name]
    assert {node["name"] for node in cluster.listed()} == {"n4", "n5", "n6"}
    work.goes_on("with three other machines")
    work.check("all machines were replaced")


@pytest.mark.timeout(300)
def test_a_home_that_was_mounted_alone_becomes_a_cluster(tmp_path: Path) -> None:
    with fresh_cluster(0) as cluster, fresh_node() as alone:
        alone.mount()
        large = random.Random(1).randbytes(LARGE)
        for number in range(200):
            (alone.point / f"small-{number}").write_text(f"this is {number}\n" * 20)
        (alone.point / "directory").mkdir()
        (alone.point / "directory/large").write_bytes(large)
        (alone.point / "link").symlink_to("directory/large")
        alone.unmount()

        first = cluster.found("n1", home=alone.home)
        one = cluster.mount("one")
        work = Work(cluster, tmp_path, random.Random(3))
        work.begin_ledger(one, "names")
        work.goes_on("on one node")
        cluster.join("n2", "n3")
        cluster.wait_for_voters(3)
        work.goes_on("on three nodes")

        two = cluster.mount("two")
        assert (two.point / "link").read_bytes() == large
        _small_files_are_there(two.point)

        first.kill()
        work.goes_on("without the first node")
        three = cluster.mount("three")
        _small_files_are_there(three.point)
        assert (three.point / "directory/large").stat().st_size == LARGE

        # What only that node has is there again when it is.
        cluster.restart(first)
        assert (three.point / "directory/large").read_bytes() == large
        work.check("a home became a cluster")


def _small_files_are_there(top: Path) -> None:
    for number in range(200):
        assert (top / f"small-{number}").read_text() == f"this is {number}\n" * 20
