"""Nodes that stand still (SIGSTOP) for longer than anything waits for them, and then go on as if
nothing had happened: they must not answer what is not so any more.
"""

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from nodes import Member, Nodes
from work import Work

LINK_DEAD_S: Final = 3
"""Longer than a link between nodes waits (2 s), and than anybody waits with an election."""


@pytest.fixture
def cluster(shared_cluster: Nodes) -> Iterator[Nodes]:
    yield shared_cluster
    for member in shared_cluster.members.values():
        member.go_on()
    shared_cluster.calm()


@pytest.fixture
def work(cluster: Nodes, tmp_path: Path) -> Work:
    """Ledgers on two mounts, and a load."""
    chance = random.Random(7)
    work = Work(cluster, tmp_path, chance)
    one, two = cluster.mount("one"), cluster.mount("two")
    work.begin_ledger(one, "names-one")
    work.begin_ledger(two, "names-two")
    work.begin_load(one, "load-one")
    work.goes_on("before anything")
    return work


def _stand_still(*members: Member, seconds: float) -> None:
    for member in members:
        member.stop()
    time.sleep(seconds)


@pytest.mark.parametrize("seconds", [1.2, LINK_DEAD_S])
def test_a_leader_that_stands_still_is_replaced_and_follows_afterwards(
    cluster: Nodes, work: Work, seconds: float
) -> None:
    old = cluster.wait_for_leader()
    _stand_still(old, seconds=seconds)
    work.goes_on("while the leader stands still")
    new = cluster.wait_for_leader()
    assert new is not old
    old.go_on()
    work.goes_on("when the old leader is back")
    cluster.wait_for_voters(3)
    work.check("a leader stood still")


def test_a_follower_that_stands_still_is_not_waited_for(cluster: Nodes, work: Work) -> None:
    leader = cluster.wait_for_leader()
    follower = cluster.followers()[0]
    _stand_still(follower, seconds=LINK_DEAD_S)
    work.goes_on("while a follower stands still")
    follower.go_on()
    cluster.wait_for_voters(3)
    assert cluster.wait_for_leader() is leader, "a follower that comes back disturbs nobody"
    work.check("a follower stood still")


def test_nodes_that_stand_still_all_the_time_lose_nothing(cluster: Nodes, work: Work) -> None:
    """In bursts, as the disk or the host of a virtual machine makes them."""
    chance = random.Random(11)
    for _ in range(12):
        still = chance.sample(list(cluster.members.values()), chance.choice([1, 1, 2, 3]))
        _stand_still(*still, seconds=chance.choice([0.05, 0.3, 1.0]))
        for member in still:
            member.go_on()
        time.sleep(chance.random() * 0.3)
    work.goes_on("after all bursts")
    cluster.wait_for_voters(3)
    work.check("nodes stood still in bursts")


def test_without_a_majority_a_mount_waits_and_goes_on(cluster: Nodes, work: Work) -> None:
    leader = cluster.wait_for_leader()
    followers = cluster.followers()
    _stand_still(*followers, seconds=LINK_DEAD_S)
    assert cluster.leader([leader]) is None, "it says that it leads, and nobody follows"
    for member in followers:
        member.go_on()
    work.goes_on("when a majority is back")
    work.check("there was no majority")
