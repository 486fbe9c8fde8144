"""What an operator sees of the bytes of a cluster, and does with its nodes: they are drained, they
leave, they are given up.  The tests are one story, in this order.
"""

import json
import os
from collections.abc import Iterator
from typing import Any, Final
from urllib.request import urlopen

import pytest
from nodes import CLIENT, MOUNTFS, PORT, Nodes, fresh_cluster, until

from mountfs.types import KIB

SOON_S: Final = 60
FILES: Final = 12


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """Three nodes that all vote, and c1 that keeps slices only: each with some volumes."""
    with fresh_cluster() as cluster:
        cluster.join("c1", roles="chunk")
        until(lambda: told(cluster)["copies_possible"] == 3, SOON_S, cluster.said)
        until(lambda: _all_alive(cluster), SOON_S, cluster.said)
        mount = cluster.mount()
        for number in range(FILES):
            (mount.point / f"f{number}").write_bytes(_content(number))
        os.sync()
        yield cluster


def _content(number: int) -> bytes:
    return bytes([number]) * (300 * KIB)


def _all_alive(cluster: Nodes) -> bool:
    return all(node["view"]["standing"] == "alive" for node in told(cluster)["nodes"])


def run(cluster: Nodes, *words: str) -> Any:
    places = ",".join(member.rpc for member in cluster.running)
    return cluster.run(*MOUNTFS, *words, "--at", places, *cluster.identity(CLIENT))


def told(cluster: Nodes) -> dict[str, Any]:
    """mountfs health --json"""
    done = run(cluster, "health", "--json")
    if not done.stdout:
        return {"word": done.stderr, "nodes": [], "volumes": {"causes": {}}, "copies_possible": 0}
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if found["word"] in ("healthy", "tidying") else 1)
    return found


def node(cluster: Nodes, name: str) -> dict[str, Any]:
    return next(one for one in cluster.listed() if one["name"] == name)


def read_all(cluster: Nodes) -> None:
    point = cluster.mounts[0].point
    for number in range(FILES):
        assert (point / f"f{number}").read_bytes() == _content(number)


def test_health_tells_of_nodes_and_volumes(cluster: Nodes) -> None:
    until(lambda: told(cluster)["word"] == "healthy", SOON_S, lambda: str(told(cluster)))
    found = told(cluster)
    assert {one["name"] for one in found["nodes"]} == {"n1", "n2", "n3", "c1"}
    assert sum(one["view"]["volumes"] for one in found["nodes"]) >= 3
    assert found["copies_possible"] == found["copies_wanted"] == 3
    shown = run(cluster, "health").stdout
    assert shown.startswith("healthy")
    assert "--location" in shown, "all of them are in one rack"
    assert "bytes" in run(cluster, "status").stdout


def test_a_node_that_does_not_wait_for_its_disk_is_named(cluster: Nodes) -> None:
    member = cluster["c1"]
    assert member.end() == 0
    member.start("--durability", "async", "--copy-rate", "50")
    member.wait_until_up()
    until(lambda: "disks of c1" in str(told(cluster).get("warnings")), SOON_S, cluster.said)
    assert "(--durability async)" in run(cluster, "status").stdout
    read_all(cluster)


def test_the_leader_gives_the_figures_to_prometheus(cluster: Nodes) -> None:
    leader = cluster.wait_for_leader()

    def figures() -> str:
        with urlopen(f"http://{leader.host}:{PORT + 2}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    until(lambda: 'mountfs_bytes_nodes{standing="alive"} 4.0' in figures(), SOON_S, figures)
    assert 'mountfs_bytes_volumes_wrong{cause="missing"} 0.0' in figures()
    assert 'mountfs_bytes_node_disk_free{node="c1"}' in figures()


def test_a_node_is_drained_and_stays(cluster: Nodes) -> None:
    done = cluster.ask("drain", "c1", "--wait")
    assert done.returncode == 0, done.stderr
    assert "keeps no slices any more" in done.stdout
    drained = node(cluster, "c1")
    assert drained["draining"]
    assert drained["volumes_left"] == 0
    assert "draining, 0 volumes left" in cluster.ask("list").stdout
    read_all(cluster)
    assert cluster.ask("drain", "c1", "--undo").returncode == 0
    assert not node(cluster, "c1")["draining"]


def test_one_that_leaves_takes_nothing_with_it_even_if_it_leads(cluster: Nodes) -> None:
    leaver = cluster.wait_for_leader()
    done = cluster.ask("remove", leaver.name, "--wait")
    assert done.returncode == 0, done.stderr
    assert "has left the cluster" in done.stdout
    assert leaver.name not in {one["name"] for one in cluster.listed()}
    until(lambda: not leaver.runs, SOON_S, leaver.said)
    assert "was removed from its cluster" in leaver.said()
    del cluster.members[leaver.name]
    read_all(cluster)
    until(lambda: told(cluster)["word"] in ("healthy", "tidying"), SOON_S, cluster.said)


def test_a_node_that_is_lost_is_given_up_at_once(cluster: Nodes) -> None:
    assert told_of(cluster, "c1")["volumes"] > 0
    cluster["c1"].kill()
    done = cluster.ask("remove", "c1", "--force")
    assert done.returncode == 0, done.stderr
    assert "node c1 is given up" in done.stdout
    until(lambda: len(cluster.listed()) == 2, SOON_S, cluster.said)
    del cluster.members["c1"]
    read_all(cluster)
    found = told(cluster)
    assert found["copies_possible"] == 2
    assert "add 1" in " ".join(found["warnings"])


def told_of(cluster: Nodes, name: str) -> dict[str, Any]:
    view: dict[str, Any] = next(
        one["view"] for one in told(cluster)["nodes"] if one["name"] == name
    )
    return view


def test_the_last_but_one_has_nowhere_to_put_what_it_keeps(cluster: Nodes) -> None:
    follower = cluster.followers()[0]
    for words in (("drain", follower.name), ("remove", follower.name)):
        done = cluster.ask(*words)
        assert done.returncode == 1
        assert "add a node first" in done.stderr


def test_what_is_thrown_away_is_seen(cluster: Nodes) -> None:
    point = cluster.mounts[0].point

    def debt(*words: str) -> Any:
        done = run(cluster, "gc", "--json", *words)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    until(lambda: debt("--now")["orphans"]["rounds"] > 0, SOON_S, lambda: str(debt()))
    before = sum(one["dead_bytes"] for one in debt()["dead"])
    (point / "f0").unlink()
    until(
        lambda: (
            not debt()["deleted"]["slices"]
            and sum(one["dead_bytes"] for one in debt()["dead"]) > before
        ),
        SOON_S,
        lambda: str(debt()),
    )
    assert "orphans" in run(cluster, "gc").stdout
