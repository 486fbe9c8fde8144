"""One seed, one run: a cluster, its clients, and what befalls them."""

from mountfs.sim.bytes_run import BytesRun
from mountfs.sim.faults import REGISTER_KINDS
from mountfs.sim.file_run import FileRun
from mountfs.sim.form import Result, Run
from mountfs.sim.register_run import RegisterRun
from mountfs.sim.world import World

SECONDS = 20

FILE_KINDS = ("files", "sessions", "disks", "snapshots", "leases")
"""Of runs with the metadata, by what they look for most."""

BYTE_KINDS = ("bytes",)
"""Of runs with chunkservers."""

KINDS = (*REGISTER_KINDS, *FILE_KINDS, *BYTE_KINDS)

_LIKELY = ("any", *REGISTER_KINDS, "files", "files", *FILE_KINDS, "bytes", "bytes", "bytes")
"""What a run is if nobody says it."""

__all__ = ["BYTE_KINDS", "FILE_KINDS", "KINDS", "REGISTER_KINDS", "SECONDS", "Result", "run"]


def run(
    seed: int,
    *,
    kind: str = "",
    seconds: int = SECONDS,
    without: frozenset[int] = frozenset(),
    trace: bool = False,
) -> Run:
    """A run that has not begun; `kind`: one of KINDS instead of what the seed says."""
    chosen = kind or kind_of(seed)
    form: type[Run] = RegisterRun
    if chosen in FILE_KINDS:
        form = FileRun
    elif chosen in BYTE_KINDS:
        form = BytesRun
    return form(seed, chosen, seconds, without, trace=trace)


def kind_of(seed: int) -> str:
    return World(seed).stream("kind").choice(_LIKELY)
