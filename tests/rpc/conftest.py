"""`rpc_rig` and `echo_node` lie beside the tests.  A test leaves no thread and no descriptor."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # whatever the import mode

END_SECONDS_MAX = 3


def threads() -> list[str]:
    """Of Python; Trio keeps its workers for a while."""
    return sorted(
        thread.name for thread in threading.enumerate() if not thread.name.startswith("Trio")
    )


def native_threads() -> list[str]:
    """Of gRPC itself."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        names.append((task / "comm").read_text().strip())
    return sorted(name for name in names if name in ("event_engine", "lifeguard"))


def descriptors() -> list[str]:
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{entry}").partition(":")[0])
        except OSError:  # that of the listing itself
            continue
    return sorted(name for name in found if name in ("socket", "anon_inode", "pipe"))


@pytest.fixture(scope="session")
def _what_grpc_keeps() -> None:
    """Two descriptors, from its first use to the end of the process."""
    with grpc.insecure_channel("127.0.0.1:1"):
        pass


@pytest.fixture(autouse=True)
def nothing_is_left(_what_grpc_keeps: None) -> Iterator[None]:
    before = threads(), native_threads(), descriptors()
    yield
    until = time.monotonic() + END_SECONDS_MAX
    while (after := (threads(), native_threads(), descriptors())) != before:
        assert time.monotonic() < until, (before, after)
        time.sleep(0.02)
