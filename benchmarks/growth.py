"""What one operation costs as a directory grows: it should cost the same with a million entries.

Fills one directory, and at each size times a sample of creates, cold stats, a whole cold listing
and unlinks, and looks at the memory of the daemon.  Writes growth.csv, growth.json and growth.svg.
"""

import argparse
import csv
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.__main__ import ending_in_order, scratch_directory
from benchmarks.filesystems import Mounted, choose
from benchmarks.measure import (
    cpu_s,
    drop_caches,
    machine,
    may_drop_caches,
    memory_mib,
    now,
    wait_until_quiet,
)
from benchmarks.plot import Line, Panel, svg

FIRST = 10_000
STEPS_PER_DECADE = (1, 2, 5)
SAMPLE = 5_000
"""Operations timed of each kind at each size."""
BATCHES = 10
QUIET_S = 30.0

COLUMNS = {
    "create_us": "create, µs",
    "stat_us": "stat, cold, µs",
    "readdir_us": "readdir, cold, µs for an entry",
    "unlink_us": "unlink, µs",
    "cpu_us": "CPU of the daemon for a create, µs",
    "rss_mib": "memory of the daemon, MiB",
}
"""What is measured at each size, and the title of its panel."""

Row = dict[str, float | str | None]


def main() -> None:
    arguments = _parse()
    rows: list[Row] = []
    with ending_in_order(), scratch_directory(arguments.dir) as scratch:
        facts = machine(scratch)
        for name, start in choose(["mountfs", *arguments.peers.split(",")]).items():
            with ExitStack() as stack:
                one = stack.enter_context(start(scratch / name))
                rows += grow(one, sizes_to(arguments.entries))
    arguments.out.mkdir(parents=True, exist_ok=True)
    _write(arguments.out, rows, facts)
    print(f"Written: growth.csv, growth.json and growth.svg in {arguments.out}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench growth", description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000, help="the largest size")
    parser.add_argument("--peers", default="plain", help="what to draw beside mountfs")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="on the disk to measure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def sizes_to(largest: int) -> list[int]:
    """Where to measure: 1, 2 and 5 times each power of ten from FIRST on, and `largest`.

    >>> sizes_to(60_000)
    [10000, 20000, 50000, 60000]
    """
    sizes = []
    decade = FIRST
    while decade < largest:
        sizes += [decade * step for step in STEPS_PER_DECADE if decade * step < largest]
        decade *= 10
    return [*sizes, largest]


def grow(one: Mounted, sizes: list[int]) -> list[Row]:
    """Measure at each size; the directory only grows between them."""
    directory = one.top / "grown"
    directory.mkdir()
    dice = random.Random(1)
    made = 0
    rows = []
    for size in sizes:
        for number in range(made, size - SAMPLE):
            _create(_path(directory, number))
        wait_until_quiet(one.pids, QUIET_S)
        cpu_before = cpu_s(one.pids())
        create_us = _each_us(_create, (_path(directory, n) for n in range(size - SAMPLE, size)))
        wait_until_quiet(one.pids, QUIET_S)  # what it has put off belongs to the creates
        cpu_us = 1e6 * (cpu_s(one.pids()) - cpu_before) / SAMPLE
        made = size
        some = [_path(directory, number) for number in dice.sample(range(size), SAMPLE)]
        stat_us = readdir_us = None
        if may_drop_caches():
            drop_caches(2)
            stat_us = _each_us(os.stat, some)
            drop_caches(2)
            started = now()
            listed = len(os.listdir(directory))
            readdir_us = 1e6 * (now() - started) / listed
            if listed != size:
                sys.exit(f"{one.name}: {listed} names in a directory of {size}")
        unlink_us = _each_us(os.unlink, some)
        wait_until_quiet(one.pids, QUIET_S)
        row: Row = {
            "filesystem": one.name,
            "entries": size,
            "create_us": round(create_us, 1),
            "stat_us": stat_us and round(stat_us, 1),
            "readdir_us": readdir_us and round(readdir_us, 2),
            "unlink_us": round(unlink_us, 1),
            "cpu_us": round(cpu_us, 1) if one.roots else None,
            "rss_mib": round(memory_mib(one.pids())[0], 1) if one.roots else None,
        }
        rows.append(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        for path in some:
            _create(path)
    return rows


def _path(directory: Path, number: int) -> str:
    return f"{directory}/entry-{number:08}"


def _create(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def _each_us(operation: Callable[[str], object], paths: Iterable[str]) -> float:
    """The time of `operation` in microseconds: the median over BATCHES of the mean of each.

    So what happens now and then and takes its time is seen, and one disturbance is not.
    """
    paths = list(paths)
    size = len(paths) // BATCHES
    means = []
    for first in range(0, len(paths), size):
        batch = paths[first : first + size]
        started = now()
        for path in batch:
            operation(path)
        means.append(1e6 * (now() - started) / len(batch))
    return statistics.median(means)


def _write(out: Path, rows: list[Row], facts: dict[str, object]) -> None:
    with open(out / "growth.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["filesystem", "entries", *COLUMNS])
        writer.writeheader()
        writer.writerows(rows)
    measured = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    (out / "growth.json").write_text(
        json.dumps({"measured": measured, "machine": facts, "rows": rows}, indent=1) + "\n"
    )
    panels = []
    for column, title in COLUMNS.items():
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            entries, value = row["entries"], row[column]
            if isinstance(entries, int | float) and isinstance(value, int | float):
                lines.setdefault(str(row["filesystem"]), []).append((entries, value))
        if lines:
            panels.append(Panel(title, [Line(name, points) for name, points in lines.items()]))
    (out / "growth.svg").write_text(svg("One directory, by its number of entries", panels))


if __name__ == "__main__":
    main()
