"""What does not belong together is refused, with a sentence that says what, where and what to do;
it ends in bounded time, and nothing is lost.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from mounted import Node
from nodes import Member, Nodes, fresh_cluster, until

from mountfs.raft.config import Config

SOON_S: Final = 60
LEASE_S: Final = Config().lease_ms / 1000


@pytest.fixture(scope="module")
def other_cluster() -> Iterator[Nodes]:
    """Of one node."""
    with fresh_cluster(1) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Nodes) -> Iterator[Nodes]:
    members = dict(shared_cluster.members)
    yield shared_cluster
    shared_cluster.calm()
    shared_cluster.members = members
    shared_cluster.restart(*(member for member in members.values() if not member.runs))
    shared_cluster.wait_for_voters(3)


def refused(member: Member, *options: str, says: list[str], seconds: float = SOON_S) -> None:
    status, said = member.try_start(*options, seconds=seconds)
    assert status == 1, said
    assert "Traceback" not in said
    missing = [words for words in says if words not in said]
    assert not missing, f"{missing} not in: {said}"


def mount_refused(node: Node, options: str = "", *, says: list[str]) -> None:
    done = node.try_mount(options)
    assert done.returncode == 32, done.stderr
    assert "Traceback" not in done.stderr
    missing = [words for words in says if words not in done.stderr]
    assert not missing, f"{missing} not in: {done.stderr}"
    assert not node.is_mounted


# -- nodes


def test_a_home_that_is_in_use(cluster: Nodes) -> None:
    refused(
        cluster["n1"],
        says=["in use by process", f"node at {cluster['n1'].rpc}", "end that first"],
    )


def test_a_port_that_is_taken_by_a_node_of_the_cluster(cluster: Nodes) -> None:
    new = cluster.member("new")
    new.host = cluster["n1"].host
    refused(
        new, "--join", cluster["n2"].rpc,
        says=[f"cannot listen at {new.rpc}", "in use", "--listen"],
    )  # fmt: skip
    assert len(cluster.listed()) == 3, "it is a member though it does not run"


def test_joining_nobody(cluster: Nodes) -> None:
    new = cluster.member("new")
    refused(
        new, "--join", "127.9.9.9:7410", seconds=120,
        says=["127.9.9.9:7410", "Connection refused", "does a majority of its nodes run?"],
    )  # fmt: skip
    assert not (new.home / "format.json").exists()


def test_a_name_that_is_taken(cluster: Nodes, tmp_path: Path) -> None:
    second = Member(cluster, "n2", cluster.member("new").host, tmp_path / "home")
    refused(
        second, "--join", cluster["n1"].rpc,
        says=["there is a node of the name n2", cluster["n2"].rpc, "mountfs node remove n2"],
    )  # fmt: skip
    assert not (second.home / "format.json").exists()


def test_a_node_that_has_lost_its_disk_is_not_the_same_any_more(
    cluster: Nodes, tmp_path: Path
) -> None:
    lost = cluster["n3"]
    lost.kill()
    shutil.move(lost.home, tmp_path / "kept")
    refused(
        lost, "--join", cluster["n1"].rpc,
        says=["there is a node of the name n3", "lost its disk", "mountfs node remove n3"],
    )  # fmt: skip
    refused(lost, says=["is no home yet", "--join"])
    shutil.rmtree(lost.home, ignore_errors=True)
    shutil.move(tmp_path / "kept", lost.home)


def test_joining_through_a_node_that_does_not_lead(cluster: Nodes) -> None:
    follower = cluster.followers()[0]
    new = cluster.member("late")
    new.start("--join", follower.rpc)
    new.wait_until_up()
    until(lambda: len(cluster.listed()) == 4, SOON_S, lambda: str(cluster.listed()))
    # And gone again, by asking one that does not lead either.
    assert cluster.ask("remove", "late", at=[follower]).returncode == 0
    until(lambda: not new.runs, SOON_S, new.said)
    assert "node late (number 4) was removed from its cluster" in new.said()
    assert "move the home away" in new.said()
    refused(new, says=["was removed from its cluster", "--join"])
    refused(new, "--join", cluster["n1"].rpc, says=["was removed from its cluster", "--join"])
    assert {node["name"] for node in cluster.listed()} == {"n1", "n2", "n3"}


def test_a_node_of_another_cluster_at_the_address_of_one(
    cluster: Nodes, other_cluster: Nodes
) -> None:
    ours, stranger = cluster["n3"], other_cluster["n1"]
    ours.kill()
    stranger.end()
    place = stranger.host
    stranger.host = ours.host
    try:
        stranger.start()
        stranger.wait_until_up()
        until(
            lambda: "another cluster" in cluster["n1"].said(), SOON_S, lambda: cluster["n1"].said()
        )
        mount_refused(
            cluster.node_of_mount(),
            says=["of different clusters", cluster["n1"].door, stranger.door, "those of one"],
        )
        refused(ours, says=["cannot listen at", ours.rpc])
        lines = [line for line in stranger.said().splitlines() if "is turned away" in line]
        assert 0 < len(lines) < 10, "it says so all the time"
        assert [node["name"] for node in other_cluster.listed()] == ["n1"]
    finally:
        stranger.kill()
        stranger.host = place
        other_cluster.restart(stranger)


def test_without_a_majority_nobody_joins_and_nobody_is_removed(cluster: Nodes) -> None:
    alone = cluster.wait_for_leader()
    for member in cluster.followers():
        member.kill()
    time.sleep(LEASE_S)  # until then it answers, and rightly: nobody else can have been elected
    asked = cluster.ask("list", at=[alone])
    assert asked.returncode == 1
    assert "does a majority of its nodes run?" in asked.stderr
    assert alone.rpc in asked.stderr
    new = cluster.member("new")
    refused(
        new, "--join", alone.rpc, seconds=120,
        says=["does a majority of its nodes run?", alone.rpc],
    )  # fmt: skip
    assert not (new.home / "format.json").exists()
    mount_refused(
        cluster.node_of_mount(), "soft=4", says=["no answer from the cluster within 4", alone.door]
    )


# -- mounts


def test_mounting_where_nobody_is(cluster: Nodes) -> None:
    mount_refused(
        cluster.node_of_mount(source="127.9.9.9:7411:"),
        says=["the cluster does not answer within 30 s", "127.9.9.9:7411: Connection refused"],
    )


def test_mounting_by_the_port_for_nodes(cluster: Nodes) -> None:
    mount_refused(
        cluster.node_of_mount(source=f"{cluster['n1'].rpc}:"),
        says=[cluster["n1"].rpc, "does not speak the mountfs protocol"],
    )


def test_a_mount_that_was_given_the_nodes_of_two_clusters(
    cluster: Nodes, other_cluster: Nodes
) -> None:
    doors = [cluster["n1"].door, other_cluster["n1"].door]
    mount_refused(
        cluster.node_of_mount(source=f"{','.join(doors)}:"), says=["different clusters", *doors]
    )
