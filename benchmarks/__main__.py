"""Run the benchmark.  scripts/bench is the way to call it; it sets up what this needs."""

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.filesystems import CLUSTERS, DEFAULT, FILESYSTEMS, Mounted, choose
from benchmarks.measure import (
    Outcome,
    cpu_s,
    drop_caches,
    machine,
    machine_cpu_s,
    may_drop_caches,
    memory_mib,
    now,
    own_cpu_s,
    wait_until_quiet,
)
from benchmarks.processes import CannotStart
from benchmarks.targets import CLUSTER_ROWS
from benchmarks.workloads import (
    FULL,
    PARTS,
    QUICK,
    Archive,
    Part,
    Scene,
    Sizes,
    Step,
    make_archive,
)

SCHEMA = "mountfs-bench/1"
QUIET_S = 10.0
"""How long a daemon may go on working after a row; this work is booked to the row."""


def main() -> None:
    arguments = _parse()
    sizes = QUICK if arguments.quick else FULL
    names = [name for name in arguments.peers.split(",") if name]
    if not arguments.clusters:
        names.insert(0, "mountfs")
    try:
        choose(names)
    except ValueError as error:
        sys.exit(f"scripts/bench: {error}")
    parts = [
        part for part in PARTS if any(_wanted(part, step, arguments.only) for step in part.rows())
    ]
    if not parts:
        wanted = " or ".join(arguments.only)
        sys.exit(f"scripts/bench: no row has {wanted} in its name; see --list")
    if arguments.list:
        for part in parts:
            for step in part.rows():
                print(f"{part.name:12} {step.name}")
        return
    results: dict[str, Any] = {"schema": SCHEMA, "complete": False, "rows": []}
    try:
        with ending_in_order(), scratch_directory(arguments.dir) as scratch:
            run(results, scratch, names, parts, sizes, arguments)
    finally:
        if results["rows"]:
            write(results, arguments)


def write(results: dict[str, Any], arguments: argparse.Namespace) -> None:
    """As JSON and as a table; of a run that was stopped, what there is."""
    stem = "clusters" if arguments.clusters else "bench"
    if arguments.quick:
        stem += "-quick"
    if arguments.against:
        stem += "-against"
    if arguments.only and not arguments.clusters:
        stem += "-part"
    report.save(arguments.out, stem, results, report.text(results))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Do the same work on mountfs, a plain directory and peers, and compare.",
    )
    parser.add_argument("--quick", action="store_true", help="smaller sizes: a few minutes")
    parser.add_argument(
        "--only", default="", metavar="ROWS",
        help="rows with one of these comma-separated words in their name, and all they stand on",
    )  # fmt: skip
    parser.add_argument(
        "--peers", default="", metavar="NAMES",
        help=f"what to compare with, of {','.join(list(FILESYSTEMS)[1:])}; "
        f"default: {','.join(DEFAULT)}, or with --clusters: {','.join(CLUSTERS)}",
    )  # fmt: skip
    parser.add_argument(
        "--clusters", action="store_true",
        help="three nodes, beside clusters of others with as many copies; the rows they compare in",
    )  # fmt: skip
    parser.add_argument(
        "--against", type=Path, metavar="CHECKOUT",
        help="another version of mountfs to measure in the same run, with our dependencies",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=2, help="how often all is done (default 2)")
    parser.add_argument(
        "--dir", type=Path, default=Path("/var/tmp"),
        help="on the disk to measure; a temporary directory is made there (default /var/tmp)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results",
        help="where JSON and table go (default benchmarks/results)",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    found = parser.parse_args()
    found.peers = found.peers or ",".join(CLUSTERS if found.clusters else DEFAULT)
    found.only = [word for word in found.only.split(",") if word]
    if found.clusters:
        found.only = found.only or CLUSTER_ROWS
    if found.against is not None:
        found.against = found.against.resolve()
        if not (found.against / "mountfs").is_dir():
            parser.error(f"{found.against} is no checkout of mountfs")
    return found


def _wanted(part: Part, step: Step, only: Sequence[str]) -> bool:
    return not only or any(word in (part.name, step.name) or word in step.name for word in only)


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end us as Ctrl-C does: with everything cleaned up."""

    def stop(number: int, _: object) -> None:
        # Once is enough: a second signal must not break the cleaning up.
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, signal.SIG_IGN)
        print("\nStopping, and cleaning up.", file=sys.stderr)
        sys.exit(128 + number)

    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, stop)
    yield


@contextlib.contextmanager
def scratch_directory(parent: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="mountfs-bench-", dir=parent))
    try:
        yield path
    finally:
        # A mount that would not go must not be emptied through.
        points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        left = [point for point in points if point.startswith(f"{path}/")]
        if left:
            print(f"Still mounted, so {path} was left: {', '.join(left)}", file=sys.stderr)
        else:
            shutil.rmtree(path, ignore_errors=True)


def run(
    results: dict[str, Any],
    scratch: Path,
    names: list[str],
    parts: list[Part],
    sizes: Sizes,
    arguments: argparse.Namespace,
) -> None:
    """Fill `results` as it goes."""
    results |= {
        "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "sizes_name": "quick" if arguments.quick else "full",
        "sizes": vars(sizes),
        "rounds": arguments.rounds,
        "cold": may_drop_caches(),
        "machine": machine(scratch),
        "filesystems": {},
        "not_measured": {},
    }
    archive = make_archive(scratch / "tree.tar", sizes.tree_files)
    with ExitStack() as stack:
        up: list[Mounted] = []
        for name, start in choose(names, arguments.against).items():
            try:
                up.append(stack.enter_context(start(scratch / name)))
            except CannotStart as reason:
                results["not_measured"][name] = str(reason)
                print(f"not measured: {name}: {reason}", flush=True)
        for name in ("mountfs", "mountfs-cluster"):
            if name in results["not_measured"]:
                sys.exit(f"scripts/bench: {name} does not start")
        idle_s = 3.0 if arguments.quick else 10.0
        started = {one.name: _at_rest(one, results) for one in up}
        _idle(up, idle_s, results)
        for round_number in range(arguments.rounds):
            for part in parts:
                _play(part, up, sizes, archive, round_number, results, arguments.only)
        for one in up:
            cost = results["filesystems"][one.name]["cost"]
            cost["rss_end_mib"], cost["rss_peak_mib"] = map(_rounded, memory_mib(one.pids()))
            cost["cpu_s"] = _rounded(cpu_s(one.pids()) - started[one.name])
        results["complete"] = True


def _at_rest(one: Mounted, results: dict[str, Any]) -> float:
    """Note what a filesystem is and costs before any work; its CPU seconds so far."""
    wait_until_quiet(one.pids, QUIET_S)
    pids = one.pids()
    results["filesystems"][one.name] = {
        "version": one.version,
        "durability": one.durability,
        "fsync_reaches_disk": one.fsync_reaches_disk,
        "cost": {"rss_idle_mib": _rounded(memory_mib(pids)[0])},
    }
    return cpu_s(pids)


def _idle(up: list[Mounted], seconds: float, results: dict[str, Any]) -> None:
    before = {one.name: cpu_s(one.pids()) for one in up}
    time.sleep(seconds)
    for one in up:
        spent = cpu_s(one.pids()) - before[one.name]
        results["filesystems"][one.name]["cost"]["idle_cpu_percent"] = _rounded(
            100 * spent / seconds
        )


def _play(
    part: Part,
    up: list[Mounted],
    sizes: Sizes,
    archive: Archive,
    round_number: int,
    results: dict[str, Any],
    only: Sequence[str],
) -> None:
    """One scene on every filesystem, step by step, so that all meet the same noise."""
    scenes: dict[str, Scene] = {}
    for one in up:
        top = one.top / f"{part.name}-{round_number}"
        scenes[one.name] = part.scene(top, sizes, part.processes, archive)
    steps = list(part.rows())
    wanted = [index for index, step in enumerate(steps) if _wanted(part, step, only)]
    # Later steps stand on earlier ones, but nothing stands on what comes after the last.
    for step in steps[: wanted[-1] + 1]:
        row = _row(results["rows"], part, step)
        if step.cold and not may_drop_caches():
            row["skipped"] = "skipped: needs root"
            continue
        # Another order in every round: nobody is always the one after the slow one.
        turn = round_number % len(up)
        for one in up[turn:] + up[:turn]:
            measurement = _measure(step, scenes[one.name], one)
            row["measurements"].setdefault(one.name, []).append(measurement)
            _show(row, one.name, measurement)
    for scene in scenes.values():
        scene.close()


def _row(rows: list[dict[str, Any]], part: Part, step: Step) -> dict[str, Any]:
    """The row of this step with so many processes: that of an earlier round, or a new one."""
    for row in rows:
        if (row["name"], row["processes"]) == (step.name, part.processes):
            return row
    rows.append(
        {
            "name": step.name,
            "processes": part.processes,
            "unit": step.unit,
            "synced": step.synced,
            "measurements": {},
        }
    )
    return rows[-1]


def _measure(step: Step, scene: Scene, one: Mounted) -> dict[str, Any]:
    os.sync()  # what others have written must not be written during our time
    if step.cold:
        drop_caches(step.cold)
    wait_until_quiet(one.pids, QUIET_S)
    if step.prepare:
        step.prepare(scene)
    daemons = cpu_s(one.pids())
    mine = own_cpu_s()
    busy, stolen = machine_cpu_s()
    started = now()
    try:
        outcome = step.run(scene)
    except OSError as error:
        outcome = Outcome(0, 0.0, {str(error): 1})
    wall = now() - started
    busy_after, stolen_after = machine_cpu_s()
    mine_after, daemons_after = own_cpu_s(), cpu_s(one.pids())
    others = (busy_after - busy) - (mine_after - mine) - (daemons_after - daemons)
    wait_until_quiet(one.pids, QUIET_S)
    return {
        "rate": outcome.rate and float(f"{outcome.rate:.5g}"),
        "operations": _rounded(outcome.operations),
        "seconds": round(outcome.seconds, 4),
        "failures": outcome.failures,
        "cut_short": outcome.cut_short,
        "p50_ms": outcome.p50_ms,
        "p99_ms": outcome.p99_ms,
        "wall_s": round(wall, 3),
        "client_cpu_s": _rounded(mine_after - mine),
        "daemon_cpu_s": _rounded(cpu_s(one.pids()) - daemons),
        "others_cpu_s": _rounded(max(0.0, others)),
        "stolen_cpu_s": _rounded(stolen_after - stolen),
    }


def _show(row: dict[str, Any], name: str, measurement: dict[str, Any]) -> None:
    rate = measurement["rate"]
    print(
        f"{row['name']:28} x{row['processes']}  {name:10} "
        f"{'-' if rate is None else format(rate, ',.1f'):>14} {row['unit']:10}"
        f"{' budget' if measurement['cut_short'] else ''}"
        f"{' ' + str(measurement['failures']) if measurement['failures'] else ''}",
        flush=True,
    )


def _rounded(value: float) -> float:
    return round(value, 2)


if __name__ == "__main__":
    main()
