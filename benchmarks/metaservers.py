"""Three metaservers beside three members of etcd: `scripts/bench metaservers`.

All are up at once, on the same disk, and asked in turns by 64 clients, by 16 and by one.  README.md
says how to read what comes of it.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks import clusters
from benchmarks.__main__ import ending_in_order, scratch_directory
from benchmarks.clusters import Cluster
from benchmarks.measure import machine, wait_until_quiet
from benchmarks.processes import CannotStart
from benchmarks.report import columns, save

SCHEMA = "mountfs-metaservers/1"
LIMIT_S = 120
"""For one measurement with all that belongs to it."""
NOISY_CPUS: Final = 0.3
QUIET_S: Final = 3.0


class Case(NamedTuple):
    clients: int
    one_connection: bool = False

    def __str__(self) -> str:
        if self.clients == 1:
            return "1 client"
        how = "sharing a connection" if self.one_connection else "each its connection"
        return f"{self.clients} clients, {how}"


CASES: Final = (Case(64), Case(64, True), Case(16), Case(1))
QUICK: Final = (Case(64), Case(1))


class System(NamedTuple):
    start: clusters.Start
    load: str
    """What `metaload` calls it."""


def _node(without: str, delay_ms: float = 0) -> System:
    program = (sys.executable, "-m", "benchmarks.unbatched", without, str(delay_ms), "node")
    return System(partial(clusters.mountfs, program=program), "mountfs")


SYSTEMS: Final = {
    "mountfs": System(clusters.mountfs, "mountfs"),
    "etcd": System(clusters.etcd, "etcd"),
    "etcd, grpcio": System(clusters.etcd, "etcd-grpc"),
    "no batching": _node("batching"),
    "no pipelining": _node("pipelining"),
    "neither": _node("both"),
    "mountfs, 2 ms": _node("nothing", 2),
    "no pipelining, 2 ms": _node("pipelining", 2),
    "no batching, 2 ms": _node("batching", 2),
    "neither, 2 ms": _node("both", 2),
}
PARTS: Final = {
    "peers": ("mountfs", "etcd", "etcd, grpcio"),
    "batching": ("mountfs", "no batching", "no pipelining", "neither"),
    "distance": ("mountfs, 2 ms", "no batching, 2 ms", "no pipelining, 2 ms", "neither, 2 ms"),
}
"""What is up at the same time, and measured in turns."""


def main() -> None:
    arguments = _parse()
    parts = [name for name in arguments.parts.split(",") if name]
    if unknown := set(parts) - set(PARTS):
        sys.exit(f"scripts/bench metaservers: unknown: {', '.join(sorted(unknown))}")
    results: dict[str, Any] = {"schema": SCHEMA, "complete": False, "parts": []}
    try:
        with ending_in_order(), scratch_directory(arguments.dir) as scratch:
            run(results, scratch, parts, arguments)
    finally:
        if results["parts"]:
            write(results, arguments)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench metaservers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round: below 30 s")
    parser.add_argument(
        "--parts", metavar="NAMES", default=None,
        help=f"of {','.join(PARTS)}; default: all; with --quick: peers, without grpcio",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=None, help="default 5, with --quick 1")
    parser.add_argument("--seconds", type=float, default=None, help="for one measurement")
    parser.add_argument("--clients", default="", help="only with so many, of 64,16,1")
    parser.add_argument(
        "--patience", type=int, default=2,
        help="how often a measurement is made again when others used the machine; default 2",
    )  # fmt: skip
    parser.add_argument("--check-perf", action="store_true", help="etcdctl check perf, too: 60 s")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="on the disk to measure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    found = parser.parse_args()
    found.rounds = found.rounds or (1 if found.quick else 5)
    found.seconds = found.seconds or (3.0 if found.quick else 5.0)
    found.parts = found.parts or ("peers" if found.quick else ",".join(PARTS))
    return found


def run(
    results: dict[str, Any], scratch: Path, parts: list[str], arguments: argparse.Namespace
) -> None:
    """Fill `results` as it goes."""
    cases: tuple[Case, ...] = QUICK if arguments.quick else CASES
    if arguments.clients:
        asked = {int(one) for one in arguments.clients.split(",")}
        cases = tuple(case for case in cases if case.clients in asked)
    results |= {
        "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "machine": machine(scratch),
        "load_average": os.getloadavg()[0],
    }
    for name in parts:
        systems = PARTS[name][:2] if arguments.quick else PARTS[name]
        part: dict[str, Any] = {
            "name": name,
            "systems": {},
            "not_measured": {},
            "rows": [
                {"case": str(case), "clients": case.clients, "measurements": {}} for case in cases
            ],
        }
        results["parts"].append(part)
        _play(part, systems, scratch / name, cases, arguments)
    if arguments.check_perf:
        results["check_perf"] = _check_perf(scratch / "check-perf")
    results["complete"] = True


def _play(
    part: dict[str, Any],
    systems: Sequence[str],
    scratch: Path,
    cases: tuple[Case, ...],
    arguments: argparse.Namespace,
) -> None:
    """All cases on all systems of a part, in turns."""
    with ExitStack() as stack:
        up: dict[str, Cluster] = {}
        for name in systems:
            start = SYSTEMS[name].start
            same = [other for other in up if SYSTEMS[other].start is start]
            try:
                up[name] = up[same[0]] if same else stack.enter_context(start(scratch / name))
            except CannotStart as reason:
                part["not_measured"][name] = str(reason)
                print(f"not measured: {name}: {reason}", flush=True)
            else:
                part["systems"][name] = {
                    "version": up[name].version,
                    "durability": up[name].durability,
                }
        names = list(up)
        for round_number in range(arguments.rounds if names else 0):
            turn = round_number % len(names)
            for case, row in zip(cases, part["rows"], strict=True):
                for name in names[turn:] + names[:turn]:
                    found = _undisturbed(name, up[name], case, round_number, arguments)
                    row["measurements"].setdefault(name, []).append(found)
                    _show(case, name, found)
    shutil.rmtree(scratch)


def _undisturbed(
    name: str, cluster: Cluster, case: Case, round_number: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """A measurement during which nobody else used the machine; or, of some, the least disturbed."""
    found: list[dict[str, Any]] = []
    for attempt in range(1 + arguments.patience):
        os.sync()
        wait_until_quiet(cluster.pids, QUIET_S)
        names = f"{name[-4:]}{round_number}{attempt}"
        found.append(_measure(SYSTEMS[name], cluster, case, names, arguments.seconds))
        if found[-1]["others_cpus"] <= NOISY_CPUS:
            break
    return min(found, key=lambda one: float(one["others_cpus"])) | {"attempts": len(found)}


def _measure(
    system: System, cluster: Cluster, case: Case, names: str, seconds: float
) -> dict[str, Any]:
    leader = cluster.at[cluster.leader]
    pids = [cluster.roots[cluster.leader], *cluster.roots]
    argv = [
        sys.executable, "-m", "benchmarks.metaload", system.load,
        ",".join([leader, *(at for at in cluster.at if at != leader)]),
        "--clients", str(case.clients), "--seconds", str(seconds),
        "--pids", ",".join(map(str, dict.fromkeys(pids))),
        "--names", f"{names}-{case.clients}{'s' if case.one_connection else ''}",
        *(["--one-connection"] if case.one_connection else []),
    ]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S)
    if done.returncode:
        raise RuntimeError(f"the load failed: {done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    leads, *follow = found.pop("servers_cpu_us")
    found["leader_cpu_us"] = leads
    found["followers_cpu_us"] = round(sum(follow), 1)
    return found


def _check_perf(scratch: Path) -> str:
    """What etcd itself says that it can: limited to 8,000 puts a second, from 500 clients."""
    with clusters.etcd(scratch) as cluster:
        argv = [
            "etcdctl", "--endpoints", ",".join(cluster.at), "check", "perf", "--load", "l"
        ]  # fmt: skip
        done = subprocess.run(argv, capture_output=True, text=True, timeout=2 * LIMIT_S)
        lines = (done.stdout + done.stderr).replace("\r", "\n").splitlines()
        return "; ".join(line for line in lines if line.startswith(("PASS", "FAIL", "Slowest")))


def _show(case: Case, name: str, found: dict[str, Any]) -> None:
    print(
        f"{case!s:36} {name:14} {found['rate']:9,.0f}/s  p50 {found['p50_ms']:7.2f} ms  "
        f"p99 {found['p99_ms']:7.2f} ms  CPU/op: leader {found['leader_cpu_us']:.0f}, followers "
        f"{found['followers_cpu_us']:.0f}, clients {found['client_cpu_us']:.0f} us; "
        f"others {100 * found['others_cpus']:.0f} %",
        flush=True,
    )


# --- the tables -----------------------------------------------------------------------------------


def write(results: dict[str, Any], arguments: argparse.Namespace) -> None:
    stem = "metaservers-quick" if arguments.quick else "metaservers"
    save(arguments.out, stem, results, text(results))


def text(results: dict[str, Any]) -> str:
    about = results["machine"]
    lines = [
        f"{results['started']}, rounds: {results['rounds']} of {results['seconds']:g} s"
        f"{'' if results['complete'] else '  STOPPED: not all rounds are here.'}",
        f"{about['cpus']} CPUs ({about['cpu']}), {about['memory_gib']} GiB, Linux "
        f"{about['kernel']}, disk: {about['disk']}, 4 KiB append + fdatasync "
        f"{about['fsync_us']} us; load average at the start {results['load_average']:.1f}",
        "",
        "Medians over the rounds; ± is half of the distance between the extremes; ~: in most of",
        f"the rounds something else used more than {NOISY_CPUS:g} CPUs.",
    ]
    for part in results["parts"]:
        lines += ["", *_part(part)]
    if "check_perf" in results:
        lines += ["", f"etcdctl check perf --load l: {results['check_perf']}"]
    return "\n".join(lines)


def _part(part: dict[str, Any]) -> list[str]:
    names = list(part["systems"])
    return [
        f"## {part['name']}",
        "",
        *(
            f"- {name} ({about['version']}): {about['durability']}"
            for name, about in part["systems"].items()
        ),
        *(f"- {name} is not measured: {why}" for name, why in part["not_measured"].items()),
        "",
        "Operations per second:",
        "",
        *_rates(part, names),
        "",
        "Latency, median / 99 %, in milliseconds:",
        "",
        *_figures(part, names, lambda one: f"{one['p50_ms']:.2f} / {one['p99_ms']:.2f}"),
        "",
        "CPU of one operation in microseconds: leader / both followers / clients:",
        "",
        *_figures(
            part,
            names,
            lambda one: (
                f"{one['leader_cpu_us']:.0f} / {one['followers_cpu_us']:.0f} / "
                f"{one['client_cpu_us']:.0f}"
            ),
        ),
    ]


def _rates(part: dict[str, Any], names: list[str]) -> list[str]:
    compare = {"mountfs", "etcd"} <= set(names)
    head = ["", *names, *(["mountfs/etcd", "median ms, mountfs/etcd", "target"] if compare else [])]
    rows = []
    for row in part["rows"]:
        cells = [row["case"]]
        for name in names:
            found = row["measurements"].get(name, [])
            noisy = sum(one["others_cpus"] > NOISY_CPUS for one in found) > len(found) / 2
            cells.append(_spread([one["rate"] for one in found]) + (" ~" if noisy else ""))
        if compare:
            both = [_median(row, name) for name in ("mountfs", "etcd")]
            if all(both):
                rate = both[0]["rate"] / both[1]["rate"]
                took = both[0]["p50_ms"] / both[1]["p50_ms"]
                cells += [f"{rate:.2f}", f"{took:.2f}", _verdict(row["clients"], rate, took)]
            else:
                cells += ["-", "-", ""]
        rows.append(cells)
    return columns(head, rows, left=[0, len(head) - 1] if compare else [0])


RATE_MIN: Final = 1.0
"""With 64 clients: creates per second, of etcd's puts."""
LATENCY_MAX: Final = 1.2
"""With one: the median, of etcd's."""


def _verdict(clients: int, rate: float, took: float) -> str:
    if clients == 64:
        return "reached" if rate >= RATE_MIN else f"missed {RATE_MIN:g}x the rate"
    if clients == 1:
        return "reached" if took <= LATENCY_MAX else f"missed {LATENCY_MAX:g}x the median"
    return ""


def _median(row: dict[str, Any], name: str) -> dict[str, float]:
    found = row["measurements"].get(name, [])
    if not found:
        return {}
    return {key: statistics.median(one[key] for one in found) for key in found[0]}


def _spread(rates: list[float]) -> str:
    if not rates:
        return "-"
    middle = statistics.median(rates)
    value = f"{middle:,.0f}"
    if len(rates) > 1:
        value += f" ±{50 * (max(rates) - min(rates)) / middle:.0f}%"
    return value


def _figures(part: dict[str, Any], names: list[str], cell: Any) -> list[str]:
    rows = []
    for row in part["rows"]:
        found = [_median(row, name) for name in names]
        rows.append([row["case"], *(cell(one) if one else "-" for one in found)])
    return columns(["", *names], rows, left=[0])


if __name__ == "__main__":
    main()
