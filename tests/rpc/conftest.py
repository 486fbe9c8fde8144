"""`rpc_rig` and `echo_node` lie beside the tests.  A test leaves no thread and no descriptor."""

import contextlib
import gc
import os
import sys
import threading
import time
from collections import Counter
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
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            names.append((task / "comm").read_text().strip())
    return sorted(name for name in names if name in ("event_engine", "lifeguard"))


def descriptors() -> Counter[str]:
    found: Counter[str] = Counter()
    for entry in os.listdir("/proc/self/fd"):
        try:
            kind = os.readlink(f"/proc/self/fd/{entry}").partition(":")[0]
        except OSError:  # that of the listing itself
            continue
        if kind in ("socket", "anon_inode", "pipe"):
            found[kind] += 1
    return found


def left(before: tuple[list[str], Counter[str]]) -> list[str]:
    """What there is now and was not before."""
    more = descriptors() - before[1]
    if more["anon_inode"] <= GRPC_DESCRIPTORS:
        del more["anon_inode"]
    threads_left = Counter(threads()) - Counter(before[0])
    return [*more.elements(), *threads_left.elements(), *native_threads()]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    gc.collect()  # what other tests have left, which would go at any time
    before = threads(), descriptors()
    assert not native_threads(), "the test before has left some"
    yield
    until = time.monotonic() + END_SECONDS_MAX
    while found := left(before):
        assert time.monotonic() < until, found
        gc.collect()  # what is garbage, gRPC still takes for being in use
        time.sleep(0.02)
