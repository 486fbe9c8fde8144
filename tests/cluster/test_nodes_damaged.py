"""Nodes that lose what they had: a damaged log or table is healed from the others, and what is left
of a cluster goes on when it is told to.
"""

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nodes import MOUNTFS, Member, Nodes, fresh_cluster, until

HEAL_S_MAX = 60


@pytest.fixture
def cluster(shared_cluster: Nodes) -> Iterator[Nodes]:
    """It is whole again afterwards."""
    yield shared_cluster
    shared_cluster.calm()
    members = shared_cluster.members.values()
    shared_cluster.restart(*(member for member in members if not member.runs))
    shared_cluster.wait_for_voters(3)


def mountfs(*words: str, status: int = 0) -> str:
    done = subprocess.run(
        [*MOUNTFS, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status, f"exit {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def flip(file: Path, offset: int) -> None:
    fd = os.open(file, os.O_RDWR)
    try:
        byte = os.pread(fd, 1, offset)
        os.pwrite(fd, bytes([byte[0] ^ 0x10]), offset)
    finally:
        os.close(fd)


def damage_log(member: Member) -> None:
    """In the middle of what was written, and synced long ago."""
    oldest = min((member.home / "meta" / "log").glob("*.seg"))
    written = len(oldest.read_bytes().rstrip(b"\0"))
    flip(oldest, written // 2)


def make_files(cluster: Nodes, count: int) -> str:
    """Returns the name of a directory with so many files."""
    node = cluster.mount()
    name = f"{time.time_ns():x}"
    (node.point / name).mkdir()
    for number in range(count):
        (node.point / name / f"file-{number}").write_text(f"{number}\n" * 20)
    node.unmount()
    return name


def wait_until_healthy(cluster: Nodes, member: Member) -> None:
    def healthy() -> bool:
        said = json.loads(status_of(cluster.running))
        nodes = {node["name"]: node for node in said["nodes"]}
        one = nodes.get(member.name, {})
        leads = max(node.get("committed", 0) for node in nodes.values())
        return said["health"] == "healthy" and one.get("applied", -1) >= leads

    until(healthy, HEAL_S_MAX, cluster.said)


def status_of(members: list[Member]) -> str:
    done = subprocess.run(
        [*MOUNTFS, "status", "--json", "--at", ",".join(member.rpc for member in members)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return done.stdout or "{}"


@pytest.mark.parametrize("part", ["log", "table", "everything"])
def test_a_node_whose_metadata_is_damaged_gets_it_from_the_others(
    cluster: Nodes, part: str
) -> None:
    made = make_files(cluster, 300)
    victim = cluster.followers()[0]
    assert victim.end() == 0  # which checkpoints: there are tables
    meta = victim.home / "meta"
    if part == "log":
        damage_log(victim)
    elif part == "table":
        for table in [*(meta / "store").glob("*.ldb"), *(meta / "store").glob("MANIFEST-*")]:
            flip(table, table.stat().st_size // 2)
    else:
        subprocess.run(["rm", "-rf", meta / "store", meta / "log"], check=True)
        (meta / "store").mkdir()
        (meta / "log").mkdir()
    cluster.restart(victim)
    wait_until_healthy(cluster, victim)
    cluster.wait_for_voters(3)
    assert "joins its cluster anew" in victim.said()[victim.before :]
    assert (victim.home / "meta.damaged").is_dir(), "it is kept, to be looked at"
    shutil.rmtree(victim.home / "meta.damaged")

    # It counts again: with another one gone, these two are the majority.
    other = next(member for member in cluster.running if member is not victim)
    other.kill()
    cluster.wait_for_leader()
    node = cluster.mount("again")
    assert len(os.listdir(node.point / made)) == 300
    (node.point / made / "one-more").write_text("x")


def test_a_damaged_node_without_others_says_what_to_do() -> None:
    with fresh_cluster(1) as cluster:
        make_files(cluster, 20)
        (only,) = cluster.running
        only.end()
        damage_log(only)
        before = sorted(path.name for path in only.home.iterdir())
        status, said = only.try_start()
        assert status == 1
        assert "damaged" in said
        assert "backup" in said
        assert set(before) <= {path.name for path in only.home.iterdir()}, "nothing was put aside"


def test_a_damaged_node_waits_for_a_majority_of_the_others(cluster: Nodes) -> None:
    make_files(cluster, 20)
    victim, other = cluster.followers()
    victim.end()
    damage_log(victim)
    other.kill()
    victim.start()
    until(
        lambda: "joins its cluster anew" in victim.said()[victim.before :], HEAL_S_MAX, victim.said
    )
    assert not (victim.home / "meta.damaged").exists(), "nobody has agreed to that"
    cluster.restart(other)
    wait_until_healthy(cluster, victim)


def test_status_says_in_one_word_how_a_cluster_is(cluster: Nodes) -> None:
    def word(*members: Member) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(status_of(list(members)))
        return found

    n1, n2, n3 = cluster.members.values()
    healthy = word(n2)
    assert healthy["health"] == "healthy"
    assert {node["name"] for node in healthy["nodes"]} == {"n1", "n2", "n3"}, "whoever is asked"
    assert all(node["term"] > 0 and node["log_bytes"] > 0 for node in healthy["nodes"])
    follower = cluster.followers()[0]
    follower.kill()
    degraded = word(*cluster.running)
    assert degraded["health"] == "degraded"
    assert follower.name in degraded["why"]
    other = next(one for one in cluster.followers() if one is not follower)
    other.kill()
    until(lambda: word(*cluster.running)["health"] == "leaderless", HEAL_S_MAX, cluster.said)
    for member in (n1, n2, n3):
        member.kill()
    assert "refused" in mountfs("status", "--at", n1.rpc, status=1)


def test_what_is_left_goes_on_alone_when_it_is_told_to() -> None:
    with fresh_cluster(3) as cluster:
        _go_on_alone(cluster)


def _go_on_alone(cluster: Nodes) -> None:
    made = make_files(cluster, 50)
    leader = cluster.wait_for_leader()
    lost = cluster.followers()
    for member in cluster.members.values():
        member.kill()
    home = str(leader.home)

    said = mountfs("cluster", "recover", home, status=1)
    assert "Nothing was changed" in said
    assert all(member.name in said for member in lost), "who is given up"
    mountfs("cluster", "recover", home, "--yes")
    assert "only voter" in mountfs("cluster", "recover", home, "--yes", status=1)

    cluster.restart(leader)
    assert cluster.wait_for_leader([leader]) is leader
    node = cluster.node_of_mount("left", source=f"{leader.door}:")
    node.mount()
    assert len(os.listdir(node.point / made)) == 50
    node.unmount()

    # Those who were given up come back: they are no part of it, and do it no harm.
    cluster.restart(*lost)
    cluster.wait_for_leader(lost)
    assert json.loads(status_of([leader, *lost]))["health"] == "mixed"
    assert json.loads(status_of([leader]))["health"] == "healthy"
    for member in lost:
        member.kill()
    known = leader.rpc
    new = [cluster.member(name) for name in ("n4", "n5")]
    for member in new:
        member.start("--join", known)
    for member in new:
        member.wait_until_up()
    cluster.wait_for_voters(3)


def test_safe_mode_is_asked_for_left_and_waited_for(cluster: Nodes) -> None:
    at = ",".join(member.rpc for member in cluster.running)
    assert "off" in mountfs("safemode", "get", "--at", at)
    assert json.loads(mountfs("safemode", "wait", "--at", at, "--json"))["on"] is False
    assert "off" in mountfs("safemode", "leave", "--at", at)
    for member in cluster.members.values():
        member.kill()
    assert "refused" in mountfs("safemode", "wait", "--at", at, "--seconds", "1", status=1)


def test_a_node_tells_prometheus_what_it_counts(cluster: Nodes) -> None:
    make_files(cluster, 10)
    leader = cluster.wait_for_leader()
    with urllib.request.urlopen(f"http://{leader.host}:7412/metrics", timeout=10) as answer:
        text = answer.read().decode()
    values = dict(
        line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")
    )
    assert float(values["mountfs_raft_leader"]) == 1
    assert float(values["mountfs_raft_committed_index"]) > 10
    assert float(values["mountfs_raft_commit_seconds_count"]) >= 10
    assert float(values["mountfs_log_sync_seconds_count"]) > 0
    assert {'mountfs_raft_lag_entries{node="2"}', 'mountfs_raft_lag_entries{node="3"}'} <= set(
        values
    ) or 'mountfs_raft_lag_entries{node="1"}' in values


def test_a_new_home_is_not_taken_for_a_new_cluster(tmp_path: Path) -> None:
    """A disk that is not mounted looks like an empty home."""
    home = tmp_path / "home"
    said = mountfs("node", "--home", str(home), "--listen", "127.0.0.1:7", status=1)
    assert "mountfs cluster init" in said
    assert "--join" in said
    assert not home.exists()
    mountfs("cluster", "init", str(home))
    assert "a home already" in mountfs("cluster", "init", str(home), status=1)
