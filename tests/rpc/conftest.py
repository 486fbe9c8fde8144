"""`rpc_rig` and `echo_node` lie beside the tests.  A test leaves no thread and no descriptor."""

import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # whatever the import mode

END_SECONDS_MAX = 3
GRPC_DESCRIPTORS = 2
"""With which it polls; they may stay from its first use to the end of the process."""


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
    if found.count("anon_inode") <= GRPC_DESCRIPTORS:
        found = [name for name in found if name != "anon_inode"]
    return sorted(name for name in found if name in ("socket", "anon_inode", "pipe"))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = threads(), descriptors()
    assert not native_threads(), "the test before has left some"
    yield
    until = time.monotonic() + END_SECONDS_MAX
    while (threads(), descriptors()) != before or native_threads():
        assert time.monotonic() < until, (before, threads(), descriptors(), native_threads())
        gc.collect()  # what is garbage, gRPC still takes for being in use
        time.sleep(0.02)
