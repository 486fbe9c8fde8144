"""Tests with real processes need root and /dev/fuse, and a node for each."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `mounted` and others, whatever the import mode

from mounted import Node, fresh_node


@pytest.fixture(autouse=True)
def _root_and_fuse() -> None:
    if os.geteuid() != 0:
        pytest.skip("mounts, kills and fills disks: needs root")
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse here")


@pytest.fixture
def node() -> Iterator[Node]:
    """A node of its own, not mounted yet."""
    with fresh_node() as node:
        yield node
