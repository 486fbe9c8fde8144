"""What leases save, and what they cost: `scripts/bench leases`.

Three nodes, each a process, and up to eight mounts of their cluster, all on this machine.

- idle: files of one directory are looked at once; after a while in which nobody changes them, they
  are looked at again.  What that takes, beside a plain directory, and what the daemon is asked for
  by the kernel, and the leader by the daemon.
- recall: what a change takes longer because another mount believes what it changes: until that
  mount's kernel has forgotten it.
- mounts: how many files 1 to 8 mounts create in a second, one program on each, in directories of
  their own and in one directory.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from benchmarks import clusters
from benchmarks.__main__ import ending_in_order, scratch_directory
from benchmarks.filesystems import mounted_cluster
from benchmarks.measure import Tally, each, in_processes, machine, now
from benchmarks.report import columns, save
from mountfs.vfs import control

SCHEMA: Final = "mountfs-leases/1"
FILES: Final = 1_000
ROUNDS: Final = 5
CHANGES: Final = 300
MOUNTS: Final = (1, 2, 4, 8)
BUDGET_S: Final = 600.0


def main() -> None:
    arguments = _parse()
    results: dict[str, Any] = {"schema": SCHEMA, "complete": False}
    try:
        with ending_in_order(), scratch_directory(arguments.dir) as scratch:
            results |= {
                "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
                "idle_s": arguments.idle,
                "seconds": arguments.seconds,
                "machine": machine(scratch),
            }
            with ExitStack() as stack:
                cluster = stack.enter_context(clusters.mountfs(scratch / "nodes"))
                mounts = [
                    stack.enter_context(mounted_cluster(cluster, scratch / f"mount-{number}"))
                    for number in range(max(MOUNTS))
                ]
                results["idle"] = idle(mounts[0], scratch / "plain", arguments.idle)
                results["recall"] = recall(mounts[0], mounts[1])
                results["mounts"] = [
                    one for count in MOUNTS for one in create(mounts[:count], arguments.seconds)
                ]
            results["complete"] = True
    finally:
        if "idle" in results:
            save(arguments.out, "leases", results, text(results))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench leases", description=__doc__)
    parser.add_argument("--idle", type=float, default=120.0, help="seconds (default: %(default)g)")
    parser.add_argument("--seconds", type=float, default=10.0, help="for one count of mounts")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="on the disk to measure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


# --- idle -----------------------------------------------------------------------------------------


def _stat_all(place: Path, names: list[str]) -> int:
    for name in names:
        os.stat(f"{place}/{name}")
    return len(names)


def _open_all(place: Path, names: list[str]) -> int:
    for name in names:
        os.close(os.open(f"{place}/{name}", os.O_RDONLY))
    return len(names)


def idle(mount: Path, plain: Path, idle_s: float) -> list[dict[str, Any]]:
    names = [f"f{number}" for number in range(FILES)]
    places = {"mountfs": mount / "idle", "plain": plain}
    for place in places.values():
        place.mkdir()
        for name in names:
            (place / name).write_bytes(b"x")

    kinds: dict[str, Callable[[Path], int]] = {
        "stat": lambda place: _stat_all(place, names),
        "listing": lambda place: len(os.listdir(place)),
        "open": lambda place: _open_all(place, names),
    }
    for place in places.values():
        for look in kinds.values():
            look(place)
    time.sleep(idle_s)
    rows = []
    for kind, look in kinds.items():
        row: dict[str, Any] = {"kind": kind}
        for system, place in places.items():
            before = _asked(mount)
            looked, began = 0, now()
            for _ in range(ROUNDS):
                looked += look(place)
            took = now() - began
            row |= {f"{system}_us": took / looked * 1e6, "looked": looked}
            if system == "mountfs":
                after = _asked(mount)
                row |= {
                    "daemon": after[0] - before[0],
                    "leader": after[1] - before[1],
                }
        rows.append(row)
    return rows


def _asked(mount: Path) -> tuple[int, int]:
    """(requests of the kernel, questions to the leader) of a mount until now"""
    stats = control.ask(control_of(mount), "stats")
    calls = sum(one["calls"] for one in stats["operations"].values())
    return calls, stats["caches"]["leases"]["misses"]


def control_of(mount: Path) -> Path:
    from mountfs.cli.places import mount_directory

    return mount_directory(str(mount)) / "control"


# --- recall ---------------------------------------------------------------------------------------


def recall(one: Path, other: Path) -> dict[str, Any]:
    """What chmod takes of files that only its mount knows, and of files that another believes."""
    directory = one / "recall"
    directory.mkdir()
    files = [directory / f"f{number}" for number in range(2 * CHANGES)]
    for file in files:
        file.touch()
    took: dict[str, list[float]] = {"alone": [], "believed": []}
    for number, file in enumerate(files):
        kind = "believed" if number % 2 else "alone"
        if kind == "believed":
            elsewhere = other / "recall" / file.name
            for _ in range(2):  # the second time its kernel answers
                os.stat(elsewhere)
        os.stat(file)
        began = now()
        os.chmod(file, 0o640)
        took[kind].append((now() - began) * 1e3)
        if kind == "believed":
            assert os.stat(elsewhere).st_mode & 0o777 == 0o640
    found = {f"{kind}_ms": statistics.median(times) for kind, times in took.items()}
    return {
        **found,
        "recall_ms": found["believed_ms"] - found["alone_ms"],
        "believed_p99_ms": sorted(took["believed"])[-max(1, CHANGES // 100)],
        "changes": CHANGES,
    }


# --- mounts ---------------------------------------------------------------------------------------


def create(mounts: list[Path], seconds: float) -> list[dict[str, Any]]:
    rows = []
    for where in ("own", "same"):
        top = f"{where}-{len(mounts)}"
        (mounts[0] / top).mkdir()

        def work(number: int, mount: Path, top: str = top, where: str = where) -> Tally:
            directory = mount / top
            if where == "own":
                directory /= str(number)
                directory.mkdir()
            end = now() + seconds

            def names() -> Any:
                count = 0
                while now() < end:
                    count += 1
                    yield directory / f"{number}-{count}"

            return each(names(), lambda path: path.touch(), BUDGET_S)

        done = in_processes(
            [lambda n=n, m=m: work(n, m) for n, m in enumerate(mounts)],  # type: ignore[misc]
            BUDGET_S,
        )
        rows.append(
            {
                "where": where,
                "mounts": len(mounts),
                "per_s": done.rate,
                "failures": done.failures,
            }
        )
    return rows


# --- for people -----------------------------------------------------------------------------------


def text(results: dict[str, Any]) -> str:
    about = results["machine"]
    lines = [
        f"{results['started']}; {about['cpus']} CPUs ({about['cpu']}), which nodes and mounts "
        "share.",
        "",
        f"Looked at again after {results['idle_s']:g} s, {FILES:,} files, {ROUNDS} times:",
        "",
        *columns(
            ["what", "us each", "plain directory", "the daemon was asked", "the leader was asked"],
            [
                [
                    row["kind"],
                    f"{row['mountfs_us']:.2f}",
                    f"{row['plain_us']:.2f}",
                    f"{row['daemon']:,}",
                    f"{row['leader']:,}",
                ]
                for row in results["idle"]
            ],
            left=[0],
        ),
    ]
    if "recall" in results:
        row = results["recall"]
        lines += [
            "",
            f"chmod of a file, median of {row['changes']}: {row['alone_ms']:.2f} ms; of one that "
            f"another mount believes {row['believed_ms']:.2f} ms (p99 {row['believed_p99_ms']:.1f})"
            f": its kernel has forgotten {row['recall_ms']:.2f} ms later.",
        ]
    if "mounts" in results:
        lines += ["", "Files created per second, one program on each mount:", ""]
        rates = {(row["where"], row["mounts"]): row["per_s"] for row in results["mounts"]}
        lines += columns(
            ["mounts", "in directories of their own", "in one directory"],
            [
                [str(count), *(f"{rates[where, count] or 0:,.0f}" for where in ("own", "same"))]
                for count in MOUNTS
            ],
            left=[],
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
