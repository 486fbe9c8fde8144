"""Nodes that keep slices and have no metadata: they come, are found, start anew and leave, and
nobody counts on their vote.
"""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any, Final
from urllib.request import urlopen

import pytest
from nodes import CLIENT, MOUNTFS, PORT, Member, Nodes, fresh_cluster, pki, until

SOON_S: Final = 60
BOTH: Final = ("n1", "n2", "n3")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """Three nodes that all vote, and c1, which keeps slices only, for all tests here."""
    with fresh_cluster() as cluster:
        cluster.join("c1", roles="chunk", location="/rack-2/c1")
        wait_until_heard(cluster)
        yield cluster


def listed(cluster: Nodes) -> dict[str, Any]:
    return {node["name"]: node for node in cluster.listed()}


def wait_until_heard(cluster: Nodes, name: str = "c1") -> None:
    """Until the leader hears its reports."""
    until(lambda: listed(cluster).get(name, {}).get("alive"), SOON_S, cluster.said)


def is_at(cluster: Nodes, member: Member, location: str) -> bool:
    return bool(listed(cluster)[member.name]["location"] == location)


def health(cluster: Nodes, *at: Member) -> Any:
    places = ",".join(member.rpc for member in at)
    told = cluster.run(
        *MOUNTFS, "status", "--json", "--at", places, *cluster.identity(CLIENT)
    ).stdout
    return json.loads(told)["health"] if told else None


def refused(member: Member, *options: str) -> str:
    status, said = member.try_start(*options)
    assert status == 1, said
    assert "Traceback" not in said
    return said


def test_it_is_a_node_and_does_not_vote(cluster: Nodes) -> None:
    told = listed(cluster)
    assert told["c1"]["roles"] == ["chunk"]
    assert told["c1"]["location"] == "/rack-2/c1"
    assert told["c1"]["role"] == "no member"
    assert told["n1"]["location"] == f"/rack/{cluster['n1'].host}"
    assert [told[name]["role"] for name in BOTH] == ["voter"] * 3
    shown = cluster.ask("list").stdout
    assert "/rack-2/c1" in shown
    assert "meta,chunk" in shown
    assert not [path for path in (cluster["c1"].home / "meta").rglob("*") if path.is_file()]


def test_it_tells_who_leads_and_how_it_is(cluster: Nodes) -> None:
    c1 = cluster["c1"]
    assert cluster.ask("list", at=[c1]).returncode == 0
    until(lambda: health(cluster, c1) == "healthy", SOON_S, cluster.said)
    shown = cluster.run(*MOUNTFS, "status", "--at", c1.rpc).stdout
    assert all(name in shown for name in (*BOTH, "c1"))
    with urlopen(f"http://{c1.host}:{PORT + 2}/metrics", timeout=10) as answer:
        metrics = answer.read().decode()
    assert "mountfs_chunks_heard 1.0" in metrics
    assert "mountfs_chunks_disk_bytes" in metrics
    assert "mountfs_raft" not in metrics


def test_a_mount_works_while_it_is_gone_and_when_it_is_back(cluster: Nodes) -> None:
    mount = cluster.mount()
    (mount.point / "before").write_bytes(b"before")
    cluster["c1"].kill()
    (mount.point / "gone").write_bytes(b"gone")
    until(lambda: not listed(cluster)["c1"]["alive"], SOON_S, cluster.said)
    assert health(cluster, cluster["n1"]) == "degraded"
    cluster.restart(cluster["c1"])
    wait_until_heard(cluster)
    (mount.point / "back").write_bytes(b"back")
    found = {path.name: path.read_bytes() for path in mount.point.iterdir()}
    assert found == {"before": b"before", "gone": b"gone", "back": b"back"}
    cluster.calm()


def test_whoever_leads_next_hears_of_it(cluster: Nodes) -> None:
    before = cluster.wait_for_leader()
    before.stop()
    try:
        others = [cluster[name] for name in BOTH if cluster[name] is not before]
        after = cluster.wait_for_leader(others)
        assert after is not before
        wait_until_heard(cluster)
    finally:
        before.go_on()
    cluster.wait_for_leader()


def test_it_is_found_where_it_has_moved_to(cluster: Nodes) -> None:
    c1 = cluster["c1"]
    number = listed(cluster)["c1"]["number"]
    assert c1.end() == 0
    before, c1.host = c1.host, cluster.member("place").host
    del cluster.members["place"]
    c1.options = ["--location", "/rack-3/c1"]  # its home knows its roles
    try:
        cluster.restart(c1)
        place = (number, c1.rpc, "/rack-3/c1", True)

        def is_there() -> bool:
            told = listed(cluster)["c1"]
            return (told["number"], told["rpc"], told["location"], told["alive"]) == place

        until(is_there, SOON_S, cluster.said)
    finally:
        c1.end()
        c1.host = before
        c1.options = ["--roles", "chunk", "--location", "/rack-2/c1"]
        cluster.restart(c1)
    until(partial(is_at, cluster, c1, "/rack-2/c1"), SOON_S, cluster.said)


def test_a_node_that_votes_may_move_to_another_rack(cluster: Nodes) -> None:
    follower = cluster.followers()[0]
    before = listed(cluster)[follower.name]["location"]
    for location in ("/rack-7/x", before):
        follower.end()
        follower.start("--location", location)
        follower.wait_until_up()
        until(partial(is_at, cluster, follower, location), SOON_S, cluster.said)


def test_a_home_keeps_its_roles(cluster: Nodes) -> None:
    c1, follower = cluster["c1"], cluster.followers()[0]
    c1.end()
    follower.end()
    c1.options = []
    said = refused(c1, "--roles", "meta,chunk")
    assert "has no metadata: start it with --roles chunk" in said
    said = refused(follower, "--roles", "chunk")
    assert "has the metadata of its cluster: start it with --roles meta,chunk" in said
    for words in (("fsck", str(c1.home)), ("cluster", "recover", str(c1.home))):
        done = cluster.run(*MOUNTFS, *words)
        assert done.returncode != 0
        assert "keeps slices and has no metadata" in done.stderr
    mount = cluster.node_of_mount(source=str(c1.home))
    assert "keeps slices and has no metadata" in mount.try_mount().stderr
    cluster.calm()
    assert c1.home.exists()
    c1.options = ["--location", "/rack-2/c1"]
    cluster.restart(c1, follower)
    wait_until_heard(cluster)


def test_a_mount_that_names_it_alone_is_told_whom_to_name(cluster: Nodes) -> None:
    mount = cluster.node_of_mount(source=f"{cluster['c1'].door}:")
    said = mount.try_mount().stderr
    assert "keeps slices, and has no metadata: ask" in said
    assert cluster["n1"].door in said
    cluster.calm()


def test_one_that_is_removed_ends_and_says_so(cluster: Nodes) -> None:
    disks = [cluster.top / "disk-2", cluster.top / "disk-3"]
    for directory in disks:
        directory.mkdir()
    (c2,) = cluster.join("c2", roles="chunk", data=disks)
    wait_until_heard(cluster, "c2")
    assert all((directory / "disk.json").exists() for directory in disks), "they are its own"
    assert cluster.ask("remove", "c2").returncode == 0
    until(lambda: not c2.runs, SOON_S, c2.said)
    assert "c2" not in listed(cluster)
    assert "was removed from its cluster" in c2.said()
    assert "was removed from its cluster" in refused(c2)
    del cluster.members["c2"]


def test_a_node_without_slices(cluster: Nodes) -> None:
    (n4,) = cluster.join("n4", roles="meta")
    until(lambda: listed(cluster)["n4"]["role"] == "learner", SOON_S, cluster.said)
    assert listed(cluster)["n4"]["roles"] == ["meta"]
    assert cluster.ask("remove", "n4").returncode == 0
    until(lambda: not n4.runs, SOON_S, n4.said)
    del cluster.members["n4"]


def test_with_certificates_it_reports_as_others_do() -> None:
    with fresh_cluster(1, with_certificates=True) as cluster:
        assert cluster.pki is not None
        pki("issue", cluster.pki, "node", "c1")
        cluster.join("c1", roles="chunk")
        wait_until_heard(cluster)
        assert health(cluster, cluster["c1"]) == "healthy"


def test_what_it_keeps_is_not_given_up_with_a_lost_majority() -> None:
    with fresh_cluster(3) as cluster:
        (c1,) = cluster.join("c1", roles="chunk")
        wait_until_heard(cluster)
        survivor, *lost = (cluster[name] for name in BOTH)
        for member in (survivor, *lost):
            member.kill()
        done = cluster.run(*MOUNTFS, "cluster", "recover", str(survivor.home), "--yes")
        assert done.returncode == 0, done.stderr
        cluster.restart(survivor)
        wait_until_heard(cluster)
        assert listed(cluster).keys() == {survivor.name, "c1"}
        until(lambda: health(cluster, survivor, c1) == "healthy", SOON_S, cluster.said)
        assert c1.end() == 0
        cluster.restart(c1)
        wait_until_heard(cluster)
