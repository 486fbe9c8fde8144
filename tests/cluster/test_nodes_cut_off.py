"""Links between machines are cut, in one direction or both, for good or again and again."""

import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from network import Network
from nodes import CLIENT, PORT, Member, Nodes
from work import Work

DEAD_S: Final = 3.5
"""Longer than a link between nodes waits (2 s)."""
GONE_S_MAX: Final = 9
"""An election and the time that a mount gives a leader take 3 seconds on an idle machine; less
than the 10 after which a call is made again in any case.
"""


@pytest.fixture
def apart(shared_apart: Nodes, network: Network) -> Iterator[Nodes]:
    yield shared_apart
    network.heal_all()
    shared_apart.calm()


@pytest.fixture
def work(apart: Nodes, tmp_path: Path) -> Work:
    """Ledgers on two mounts."""
    work = Work(apart, tmp_path, random.Random(7))
    work.begin_ledger(apart.mount("one"), "names-one")
    work.begin_ledger(apart.mount("two"), "names-two")
    work.goes_on("before anything")
    return work


def _others(cluster: Nodes, member: Member) -> list[Member]:
    return [other for other in cluster.members.values() if other is not member]


def _end(cluster: Nodes, network: Network, work: Work, when: str) -> None:
    network.heal_all()
    cluster.wait_for_voters(3)
    work.goes_on("when all links are back")
    work.check(when)


def test_the_network_of_the_tests_does_cut_links(apart: Nodes, network: Network) -> None:
    """Or else everything here would prove nothing."""
    one, two = apart["n1"], apart["n2"]

    def reaches(source: Member, target: Member) -> bool:
        def connect() -> bool:
            try:
                socket.create_connection((target.host, PORT), timeout=1).close()
            except TimeoutError:
                return False
            return True

        return bool(network.inside(source.name, connect))

    assert reaches(one, two)
    network.cut(one.name, two.name)
    assert not reaches(one, two)
    assert not reaches(two, one)
    assert reaches(one, apart["n3"])
    network.heal(one.name, two.name)
    assert reaches(one, two)


def test_a_leader_without_followers_is_left_by_its_clients(
    apart: Nodes, network: Network, work: Work
) -> None:
    """Clients reach it as before, but it is not the leader any more, and may not say so."""
    old = apart.wait_for_leader()
    for other in _others(apart, old):
        network.cut_both(old.name, other.name)
    new = apart.wait_for_leader(_others(apart, old))
    work.goes_on("with the old leader cut off from the others")
    assert apart.leader([old]) is None, "it still says that it leads"
    assert new is not old
    _end(apart, network, work, "a leader was cut off from the others")


@pytest.mark.parametrize("way", ["what it says is lost", "what it is told is lost"])
def test_a_leader_that_is_cut_off_in_one_direction_is_replaced(
    apart: Nodes, network: Network, work: Work, way: str
) -> None:
    old = apart.wait_for_leader()
    for other in _others(apart, old):
        ends = (old, other) if way == "what it says is lost" else (other, old)
        network.cut(*(member.name for member in ends))
    apart.wait_for_leader(_others(apart, old))
    work.goes_on(way)
    _end(apart, network, work, way)


def test_a_leader_whose_machine_is_gone_is_missed_for_seconds_only(
    apart: Nodes, network: Network, work: Work
) -> None:
    """Nobody says that it is gone: no connection breaks."""
    old = apart.wait_for_leader()
    since = time.monotonic()
    for other in (CLIENT, *(member.name for member in _others(apart, old))):
        network.cut_both(old.name, other)
    work.goes_on("with the leader's machine gone", since)
    assert time.monotonic() - since < GONE_S_MAX
    _end(apart, network, work, "the leader's machine was gone")


@pytest.mark.parametrize("way", ["both", "to it", "from it"])
def test_a_follower_that_is_cut_off_disturbs_nobody_when_it_is_back(
    apart: Nodes, network: Network, work: Work, way: str
) -> None:
    leader = apart.wait_for_leader()
    follower = apart.followers()[0]
    for other in _others(apart, follower):
        if way != "from it":
            network.cut(other.name, follower.name)
        if way != "to it":
            network.cut(follower.name, other.name)
    time.sleep(DEAD_S)
    work.goes_on("with a follower cut off")
    network.heal_all()
    apart.wait_for_voters(3)
    assert apart.wait_for_leader() is leader
    _end(apart, network, work, f"a follower was cut off ({way})")


def test_one_link_between_a_leader_and_a_follower_is_not_missed(
    apart: Nodes, network: Network, work: Work
) -> None:
    """The third one connects them: who leads may change, but somebody leads."""
    leader = apart.wait_for_leader()
    follower = apart.followers()[0]
    network.cut_both(leader.name, follower.name)
    time.sleep(DEAD_S)
    work.goes_on("with one link cut")
    _end(apart, network, work, "one link was cut")


def test_a_mount_that_is_cut_off_from_the_leader_alone_goes_on_when_it_is_back(
    apart: Nodes, network: Network, work: Work
) -> None:
    leader = apart.wait_for_leader()
    network.cut_both(CLIENT, leader.name)
    time.sleep(DEAD_S)
    network.heal_all()
    _end(apart, network, work, "the mounts were cut off from the leader")


def test_a_mount_that_is_cut_off_from_all_goes_on_when_they_are_back(
    apart: Nodes, network: Network, work: Work
) -> None:
    for member in apart.members.values():
        network.cut_both(CLIENT, member.name)
    time.sleep(DEAD_S)
    _end(apart, network, work, "the mounts were cut off")


def test_links_that_come_and_go_lose_nothing(apart: Nodes, network: Network, work: Work) -> None:
    chance = random.Random(5)
    names = [CLIENT, *apart.members]
    for _ in range(25):
        one, other = chance.sample(names, 2)
        network.cut(one, other)
        if chance.random() < 0.5:
            network.cut(other, one)
        time.sleep(chance.choice([0.05, 0.2, 0.8]))
        if chance.random() < 0.7:
            network.heal(one, other)
    network.heal_all()
    work.goes_on("after all of it")
    _end(apart, network, work, "links came and went")
