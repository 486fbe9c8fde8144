"""A rack is cut off while files are written and read: the others go on, and nothing is lost."""

import json
import time
from collections.abc import Iterator
from typing import Any, Final

import pytest
import sums
from mounted import Node
from network import Network
from nodes import CLIENT, MOUNTFS, Nodes, fresh_cluster, until

MAJORITY: Final = {"n1": "/rack-1/n1", "n2": "/rack-1/n2", "c1": "/rack-1/c1"}
CUT_OFF: Final = {"n3": "/rack-2/n3"}
SOON_S: Final = 60
HEALED_S_MAX: Final = 90
"""Generous: the machine may be busy with other things."""
CUT_S: Final = 6.0
"""Longer than a link between nodes waits, and than a silent node is waited for."""


@pytest.fixture
def cluster(network: Network) -> Iterator[Nodes]:
    """Three nodes that vote and one that keeps slices only; one of the voters in another rack."""
    with fresh_cluster(0, network=network, options=["--heal-after", "20"]) as cluster:
        cluster.found("n1", location=MAJORITY["n1"])
        for name, location in {**MAJORITY, **CUT_OFF}.items():
            if name != "n1":
                roles = "chunk" if name == "c1" else ""
                cluster.begin_join(name, roles=roles, location=location)
        for member in cluster.members.values():
            member.wait_until_up()
        until(lambda: word(cluster) == "healthy", SOON_S, cluster.said)
        yield cluster


def health(cluster: Nodes) -> dict[str, Any]:
    places = ",".join(cluster[name].rpc for name in ("n1", "n2"))
    done = cluster.run(*MOUNTFS, "health", "--json", "--at", places)
    found: dict[str, Any] = json.loads(done.stdout) if done.stdout else {"word": done.stderr}
    return found


def word(cluster: Nodes) -> str:
    return str(health(cluster)["word"])


def work_on(mount: Node, name: str, since: int, seconds: float) -> list[str]:
    """Write files, and read the latest ones, for so long; every error is one of the test."""
    made: list[str] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(made) < 5:
        made.append(f"{name}-{since + len(made)}")
        sums.make(mount.point, made[-1])
        for one in made[-3:]:
            assert not sums.trouble(mount.point / one)
    return made


@pytest.mark.timeout(300)
def test_the_others_go_on_without_a_rack_and_lose_nothing(cluster: Nodes, network: Network) -> None:
    mount = cluster.mount("one")
    made = work_on(mount, "before", 1, 1.0)
    for name in (CLIENT, *MAJORITY):
        for other in CUT_OFF:
            network.cut_both(name, other)
    made += work_on(mount, "during", 1, CUT_S)
    for one in made:
        assert not sums.trouble(mount.point / one), "with a rack cut off"
    network.heal_all()
    made += work_on(mount, "after", 1, 1.0)

    until(
        lambda: word(cluster) in ("healthy", "tidying"),
        HEALED_S_MAX,
        lambda: f"{json.dumps(health(cluster), indent=1)}\n{cluster.said()}",
    )
    second = cluster.mount("two")  # nothing of it is in its caches
    assert sorted(sums.finished(second.point)) == sorted(made)
    assert not [why for one in made if (why := sums.trouble(second.point / one))]
