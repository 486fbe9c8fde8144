"""What mountfs is held to, row by row, as ratios within one run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """Reached when one of the two that are given is reached: the lesser demand counts."""

    times_juicefs: float | None = None
    times_plain: float | None = None

    def __str__(self) -> str:
        parts = []
        if self.times_juicefs is not None:
            parts.append(f"{self.times_juicefs:g}x juicefs")
        if self.times_plain is not None:
            parts.append(f"{self.times_plain:g}x plain")
        return " or ".join(parts)


_NAMES = Target(times_juicefs=5)
_COLD_OR_SYNCED = Target(times_juicefs=3, times_plain=0.8)
_STREAM = Target(times_plain=0.8)
_CACHED = Target(times_plain=0.9)
"""Equal to the disk: nothing but the kernel works there.  A tenth is below what can be told."""
_BEST_PEER = Target(times_juicefs=1)

TARGETS = {
    "create empty": _NAMES,
    "create 4 KiB": _NAMES,
    "create 4 KiB + fsync": _COLD_OR_SYNCED,
    "stat, cold": _COLD_OR_SYNCED,
    "stat, warm": _CACHED,
    "stat, 3 s later": _BEST_PEER,
    "readdir + stat, cold": _BEST_PEER,
    "readdir + stat, warm": _CACHED,
    "open-read-close 4 KiB, cold": _COLD_OR_SYNCED,
    "open-read-close 4 KiB, warm": _NAMES,
    "rename": _NAMES,
    "mkdir": _NAMES,
    "rmdir": _NAMES,
    "unlink empty": _NAMES,
    "unlink 4 KiB": _NAMES,
    "sequential write + fsync": _STREAM,
    "sequential read, cold": _STREAM,
    "sequential read, warm": _CACHED,
    "random 4 KiB read, cold": _COLD_OR_SYNCED,
    "random 4 KiB write + fsync": _COLD_OR_SYNCED,
    "append 4 KiB + fsync": _COLD_OR_SYNCED,
    "untar": _NAMES,
    "find, cold": _BEST_PEER,
    "du, cold": _BEST_PEER,
    "grep -r, cold": _BEST_PEER,
    "cp -r": _NAMES,
    "diff -r": _BEST_PEER,
    "rm -rf": _NAMES,
    "git init + add + commit": _COLD_OR_SYNCED,
    "git status, cold": _COLD_OR_SYNCED,
    "sqlite transaction": _COLD_OR_SYNCED,
}


CLUSTER_TARGETS = {
    row: Target(times_juicefs=1) for row in ("create 4 KiB", "stat, cold", "untar", "rm -rf")
}
"""What three nodes that sync every change are held to, against one machine that does not."""

CLUSTER_ROWS = (
    "create 4 KiB",
    "create 20 KiB",
    "create 64 KiB",
    "stat, cold",
    "open-read-close 4 KiB, cold",
    "open-read-close 20 KiB, cold",
    "open-read-close 64 KiB, cold",
    "sequential write + fsync",
    "sequential read, cold",
    "random 4 KiB read, cold",
    "append 4 KiB + fsync",
    "untar",
)
"""What clusters are compared in: three times as quick as SeaweedFS, but for `_ONCE`."""
_ONCE = ("sequential write + fsync", "sequential read, cold", "untar")
CLUSTER_PEERS = {
    "mountfs-cluster": ("seaweedfs-3", "gluster"),
    "mountfs-cluster-1": ("seaweedfs-1",),
}
"""Which have as many copies."""
EXT4_SHARE = 0.8
"""Of a cold sequential read, when the client reads the files of the servers itself."""


def cluster_verdict(row: str, rates: dict[str, float]) -> str:
    """Against JuiceFS on one machine."""
    target, own, theirs = (
        CLUSTER_TARGETS.get(row),
        rates.get("mountfs-cluster"),
        rates.get("juicefs"),
    )
    if target is None or target.times_juicefs is None or not own or not theirs:
        return ""
    return "reached" if own >= target.times_juicefs * theirs else f"missed {target}"


def copies_verdict(row: str, name: str, rates: dict[str, float]) -> str:
    """How a cluster did against those that keep as many copies; empty if it cannot be told."""
    own = rates.get(name)
    if not own or row not in CLUSTER_ROWS:
        return ""
    missed = []
    for peer in CLUSTER_PEERS[name]:
        times = 3 if peer.startswith("seaweedfs") and row not in _ONCE else 1
        if peer in rates and own < times * rates[peer]:
            missed.append(f"{times}x {peer}")
    if row == "sequential read, cold" and own < EXT4_SHARE * rates.get("plain", 0):
        missed.append(f"{EXT4_SHARE}x plain")
    return f"missed {', '.join(missed)}" if missed else "reached"


def verdict(row: str, rates: dict[str, float]) -> str:
    """How mountfs did in this row: "reached", or what it missed.  Empty if it cannot be told.

    `rates` has the rate of each filesystem.  No row may be below the best peer either.
    """
    target, own = TARGETS.get(row), rates.get("mountfs")
    if target is None or not own:
        return ""
    asked = {"juicefs": target.times_juicefs, "plain": target.times_plain}
    demands = [
        times * rates.get(name, float("inf")) for name, times in asked.items() if times is not None
    ]
    if own < min(demands) and not all(rates.get(n) for n, times in asked.items() if times):
        return ""  # what was not measured might have been the lesser demand
    ours = ("mountfs", *CLUSTER_PEERS, "mountfs-before", "plain")
    peers = [rate for name, rate in rates.items() if name not in ours]
    if own < min(demands):
        return f"missed {target}"
    if peers and own < max(peers):
        return "below a peer"
    return "reached"
