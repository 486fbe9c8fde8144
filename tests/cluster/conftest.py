"""Tests with real processes need root and /dev/fuse, and a node for each."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `mounted` and others, whatever the import mode

from mounted import Node, fresh_node
from network import Network, fresh_network
from nodes import TTL_S, Nodes, fresh_cluster


@pytest.fixture(autouse=True)
def _root_and_fuse() -> None:
    _needs_root_and_fuse()


def _needs_root_and_fuse() -> None:
    if os.geteuid() != 0:
        pytest.skip("mounts, kills and fills disks: needs root")
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse here")


@pytest.fixture
def node() -> Iterator[Node]:
    """A node of its own, not mounted yet."""
    with fresh_node() as node:
        yield node


@pytest.fixture
def cluster() -> Iterator[Nodes]:
    """Three nodes that all vote, n1 to n3, not mounted yet."""
    with fresh_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Nodes]:
    """The same for all tests of a module, who have to leave it as they have found it."""
    _needs_root_and_fuse()
    with fresh_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A network whose links can be cut."""
    _needs_root_and_fuse()
    with fresh_network() as network:
        yield network


@pytest.fixture(scope="module")
def shared_apart(network: Network) -> Iterator[Nodes]:
    """Three nodes that all vote, each on its own machine in the network; clients on another."""
    with fresh_cluster(network=network) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def impatient() -> Iterator[Nodes]:
    """A cluster that gives a silent mount three seconds."""
    with fresh_cluster(options=["--session-ttl", str(TTL_S)]) as cluster:
        yield cluster


@pytest.fixture
def two(impatient: Nodes) -> Iterator[tuple[Node, Node]]:
    """Two mounts, and in both an empty directory `here`."""
    one, other = impatient.mount("one"), impatient.mount("other")
    subprocess.run(["rm", "-rf", one.point / "here"], check=True)
    (one.point / "here").mkdir()
    yield one, other
    impatient.calm()
