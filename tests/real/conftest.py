"""Ordinary programs on a real mount: one node for all of these tests, a directory for each."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "cluster"))  # `mounted`

from mounted import Node, fresh_node


@pytest.fixture(scope="session")
def real_node() -> Iterator[Node]:
    if os.geteuid() != 0:
        pytest.skip("mounts, owners and ACLs: needs root")
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse here")
    with fresh_node() as node:
        node.mount("allow_other")
        node.point.chmod(0o755)
        yield node
        node.unmount()


@pytest.fixture
def here(real_node: Node) -> Iterator[Path]:
    """An empty directory in the mount."""
    directory = Path(tempfile.mkdtemp(prefix="here-", dir=real_node.point))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def remount(real_node: Node) -> object:
    """Unmounts and mounts again: nothing comes from a cache after it."""

    def again() -> None:
        real_node.unmount()
        real_node.mount("allow_other")

    return again
