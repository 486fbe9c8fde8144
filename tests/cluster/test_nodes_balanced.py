"""Volumes move to a node that is emptier than the others, on disks of a few MiB."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from nodes import CLIENT, MOUNTFS, Nodes, fresh_cluster, until

from mountfs.types import MIB

SOON_S: Final = 60
DISK_BYTES: Final = 400 * MIB
MOUNTS: Final = 4
FILES: Final = 5
"""Of each mount, in a volume of its own."""
NAMES: Final = ("n1", "c1", "c2", "c3")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """n1, and c1 to c3 that keep slices only, each on a disk of its own.  c1 was drained: it is
    empty, and all volumes are sealed.
    """
    with fresh_cluster(0) as cluster:
        homes = {name: cluster.top / f"disk-{name}" for name in NAMES}
        try:
            for disk in homes.values():
                _mount(disk)
            cluster.found("n1", home=homes["n1"] / "home")
            for name in ("c1", "c2"):
                cluster.join(name, home=homes[name] / "home", roles="chunk")
            until(lambda: len(_alive(cluster)) == 3, SOON_S, cluster.said)
            for one in range(MOUNTS):
                mount = cluster.mount(f"m{one}")
                for number in range(FILES):
                    (mount.point / f"f{one}-{number}").write_bytes(_content(number))
            os.sync()
            cluster.join("c3", home=homes["c3"] / "home", roles="chunk")
            until(lambda: len(_alive(cluster)) == 4, SOON_S, cluster.said)
            done = cluster.ask("drain", "c1", "--wait")
            assert done.returncode == 0, done.stderr
            assert cluster.ask("drain", "c1", "--undo").returncode == 0
            yield cluster
        finally:
            cluster.destroy()
            for disk in homes.values():
                subprocess.run(["umount", "-l", str(disk)], check=False)


def _mount(disk: Path) -> None:
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small disk can be made here: {done.stderr.strip()}")


def _content(number: int) -> bytes:
    return bytes([number]) * (4 * MIB)


def told(cluster: Nodes, *words: str) -> Any:
    done = run(cluster, *words, "--json")
    return json.loads(done.stdout) if done.stdout else {}


def run(cluster: Nodes, *words: str) -> Any:
    return cluster.run(*MOUNTFS, *words, "--at", cluster["n1"].rpc, *cluster.identity(CLIENT))


def _alive(cluster: Nodes) -> list[str]:
    nodes = told(cluster, "health").get("nodes", [])
    return [one["name"] for one in nodes if one["view"]["standing"] == "alive"]


def kept(cluster: Nodes) -> dict[str, int]:
    nodes = told(cluster, "health")["nodes"]
    return {one["name"]: one["view"]["volumes"] for one in nodes}


def test_nodes_are_balanced_and_nothing_is_lost(cluster: Nodes) -> None:
    until(lambda: kept(cluster)["c1"] == 0, SOON_S, lambda: str(told(cluster, "health")))
    plan = told(cluster, "balance", "--dry-run")["plan"]
    assert plan["moves"], plan
    assert plan["spread"] > 0.05
    assert kept(cluster)["c1"] == 0, "nothing was done"
    shown = run(cluster, "balance", "--dry-run").stdout
    assert "to even that out, about" in shown
    done = run(cluster, "balance", "--wait")
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "it has ended: the nodes differ by less than 5%" in done.stdout
    assert told(cluster, "health")["balancing"]["moved"] > 0
    assert kept(cluster)["c1"] > 0
    assert "nothing is to be moved" in run(cluster, "balance").stdout
    point = cluster.mounts[0].point
    for one in range(MOUNTS):
        for number in range(FILES):
            assert (point / f"f{one}-{number}").read_bytes() == _content(number)
    until(
        lambda: told(cluster, "health")["word"] == "healthy",
        SOON_S,
        lambda: str(told(cluster, "health")),
    )
    assert "it was not under way" not in run(cluster, "balance", "--stop").stdout
