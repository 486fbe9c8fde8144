"""Three metaservers beside three members of etcd: `scripts/bench metaservers`.

One system is up at a time, on the same disk, on new directories; each is started in every round,
in another order, and asked by 64 clients, by 16 and by one.  README.md says how to read what comes
of it.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks import clusters
from benchmarks.__main__ import ending_in_order, scratch_directory
from benchmarks.clusters import Cluster
from benchmarks.measure import machine, wait_until_quiet
from benchmarks.processes import CannotStart
from benchmarks.report import columns

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


def _without(what: str, scratch: Path) -> AbstractContextManager[Cluster]:
    program = (sys.executable, "-m", "benchmarks.unbatched", what, "node")
    return clusters.mountfs(scratch, program)


SYSTEMS: Final = {
    "mountfs": System(clusters.mountfs, "mountfs"),
    "etcd": System(clusters.etcd, "etcd"),
    "etcd-grpc": System(clusters.etcd, "etcd-grpc"),
    "no-batching": System(partial(_without, "batching"), "mountfs"),
    "no-pipelining": System(partial(_without, "pipelining"), "mountfs"),
    "neither": System(partial(_without, "both"), "mountfs"),
}


def main() -> None:
    arguments = _parse()
    names = [name for name in arguments.systems.split(",") if name]
    if unknown := set(names) - set(SYSTEMS):
        sys.exit(f"scripts/bench metaservers: unknown: {', '.join(sorted(unknown))}")
    results: dict[str, Any] = {"schema": SCHEMA, "complete": False, "rows": []}
    try:
        with ending_in_order(), scratch_directory(arguments.dir) as scratch:
            run(results, scratch, names, arguments)
    finally:
        if results["rows"]:
            write(results, arguments)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench metaservers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round: below 30 s")
    parser.add_argument(
        "--systems", metavar="NAMES", default=None,
        help=f"of {','.join(SYSTEMS)}; default: all; with --quick: mountfs,etcd",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=None, help="default 5, with --quick 1")
    parser.add_argument("--seconds", type=float, default=None, help="for one measurement")
    parser.add_argument("--clients", default="", help="only with so many, of 64,16,1")
    parser.add_argument("--check-perf", action="store_true", help="etcdctl check perf, too: 60 s")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="on the disk to measure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    found = parser.parse_args()
    found.rounds = found.rounds or (1 if found.quick else 5)
    found.seconds = found.seconds or (3.0 if found.quick else 5.0)
    found.systems = found.systems or ("mountfs,etcd" if found.quick else ",".join(SYSTEMS))
    return found


def run(
    results: dict[str, Any], scratch: Path, names: list[str], arguments: argparse.Namespace
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
        "systems": {},
        "not_measured": {},
        "rows": [
            {"case": str(case), "clients": case.clients, "measurements": {}} for case in cases
        ],
    }
    for round_number in range(arguments.rounds):
        turn = round_number % len(names)
        for name in names[turn:] + names[:turn]:
            if name in results["not_measured"]:
                continue
            try:
                _play(name, scratch / f"{name}-{round_number}", cases, arguments.seconds, results)
            except CannotStart as reason:
                results["not_measured"][name] = str(reason)
                print(f"not measured: {name}: {reason}", flush=True)
    if arguments.check_perf and "etcd" in names:
        results["check_perf"] = _check_perf(scratch / "check-perf")
    results["complete"] = True


def _play(
    name: str, scratch: Path, cases: tuple[Case, ...], seconds: float, results: dict[str, Any]
) -> None:
    """All cases on one system, which is up for that only."""
    system = SYSTEMS[name]
    with system.start(scratch) as cluster:
        results["systems"][name] = {"version": cluster.version, "durability": cluster.durability}
        for case, row in zip(cases, results["rows"], strict=True):
            os.sync()
            wait_until_quiet(cluster.pids, QUIET_S)
            found = _measure(system, cluster, case, seconds)
            row["measurements"].setdefault(name, []).append(found)
            _show(case, name, found)
    shutil.rmtree(scratch)


def _measure(system: System, cluster: Cluster, case: Case, seconds: float) -> dict[str, Any]:
    leader = cluster.at[cluster.leader]
    pids = [cluster.roots[cluster.leader], *cluster.roots]
    argv = [
        sys.executable, "-m", "benchmarks.metaload", system.load,
        ",".join([leader, *(at for at in cluster.at if at != leader)]),
        "--clients", str(case.clients), "--seconds", str(seconds),
        "--pids", ",".join(map(str, dict.fromkeys(pids))),
        "--names", f"{case.clients}{'s' if case.one_connection else ''}",
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
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    page = text(results)
    (arguments.out / f"{stem}.md").write_text(page + "\n")
    print(f"\n{page}\n\nWritten: {arguments.out / stem}.json and .md")


def text(results: dict[str, Any]) -> str:
    machine_ = results["machine"]
    names = list(results["systems"])
    lines = [
        f"{results['started']}, rounds: {results['rounds']} of {results['seconds']:g} s"
        f"{'' if results['complete'] else '  STOPPED: not all rounds are here.'}",
        f"{machine_['cpus']} CPUs ({machine_['cpu']}), {machine_['memory_gib']} GiB, Linux "
        f"{machine_['kernel']}, disk: {machine_['disk']}, 4 KiB append + fdatasync "
        f"{machine_['fsync_us']} us; load average at the start {results['load_average']:.1f}",
        "",
        *(
            f"- {name} ({about['version']}): {about['durability']}"
            for name, about in results["systems"].items()
        ),
        *(f"- {name} is not measured: {why}" for name, why in results["not_measured"].items()),
        "",
        "Operations per second; ± is half of the distance between the extremes; ~: something else",
        f"used more than {NOISY_CPUS:g} CPUs meanwhile.",
        "",
        *_rates(results, names),
        "",
        "Latency, median / 99 %, in milliseconds:",
        "",
        *_figures(results, names, lambda one: f"{one['p50_ms']:.2f} / {one['p99_ms']:.2f}"),
        "",
        "CPU of one operation in microseconds: leader / both followers / clients:",
        "",
        *_figures(
            results,
            names,
            lambda one: (
                f"{one['leader_cpu_us']:.0f} / {one['followers_cpu_us']:.0f} / "
                f"{one['client_cpu_us']:.0f}"
            ),
        ),
    ]
    if "check_perf" in results:
        lines += ["", f"etcdctl check perf --load l: {results['check_perf']}"]
    return "\n".join(lines)


def _rates(results: dict[str, Any], names: list[str]) -> list[str]:
    compare = {"mountfs", "etcd"} <= set(names)
    head = ["", *names, *(["mountfs/etcd", "median ms, mountfs/etcd", "target"] if compare else [])]
    rows = []
    for row in results["rows"]:
        cells = [row["case"]]
        for name in names:
            found = row["measurements"].get(name, [])
            rates = [one["rate"] for one in found]
            noisy = any(one["others_cpus"] > NOISY_CPUS for one in found)
            cells.append(_spread(rates) + (" ~" if noisy else ""))
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


def _figures(results: dict[str, Any], names: list[str], cell: Any) -> list[str]:
    rows = []
    for row in results["rows"]:
        found = [_median(row, name) for name in names]
        rows.append([row["case"], *(cell(one) if one else "-" for one in found)])
    return columns(["", *names], rows, left=[0])


if __name__ == "__main__":
    main()
