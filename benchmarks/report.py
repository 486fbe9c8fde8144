"""Results as a table to read: `python -m benchmarks.report FILE...` shows earlier runs."""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.targets import CLUSTER_PEERS, cluster_verdict, copies_verdict, verdict

Results = dict[str, Any]
"""What the runner writes as JSON; benchmarks/README.md names its fields."""

NOISY_CPUS = 0.5
"""Mark a value when something else used more than this of the machine meanwhile."""


def save(out: Path, stem: str, results: Results, page: str) -> None:
    """As JSON and as a page; of a run that was stopped, what there is."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / f"{stem}.md").write_text(page + "\n")
    print(f"\n{page}\n\nWritten: {out / stem}.json and .md")


def median(row: Results, name: str) -> float | None:
    """The median rate of a filesystem over the rounds of a row."""
    rates = [one["rate"] for one in row["measurements"].get(name, []) if one["rate"] is not None]
    return statistics.median(rates) if rates else None


def text(results: Results) -> str:
    """Everything, as Markdown that also reads well in a terminal."""
    return "\n".join(
        [
            *_head(results),
            "",
            *_speed(results),
            "",
            *_legend(results),
            *_clusters(results),
            "",
            "CPU of the daemons for one unit of each row, in microseconds:",
            "",
            *_cpu(results),
            "",
            "Memory and idle CPU of the daemons:",
            "",
            *_cost(results),
            *_notes(results),
        ]
    )


def _head(results: Results) -> list[str]:
    machine = results["machine"]
    stopped = "" if results["complete"] else "  STOPPED: not all rounds of all rows are here."
    lines = [
        f"{results['started']}, sizes: {results['sizes_name']}, rounds: {results['rounds']}"
        f"{stopped}",
        f"{machine['cpus']} CPUs ({machine['cpu']}), {machine['memory_gib']} GiB, "
        f"Linux {machine['kernel']}, disk: {machine['disk']}, "
        f"4 KiB append + fdatasync {machine['fsync_us']} us, pipe round trip "
        f"{machine['pipe_round_trip_one_cpu_us']} us on one CPU and "
        f"{machine['pipe_round_trip_two_cpus_us']} us across two",
        "",
    ]
    for name, about in results["filesystems"].items():
        lines.append(f"- {name} ({about['version']}): {about['durability']}")
    return lines


def _speed(results: Results) -> list[str]:
    names = list(results["filesystems"])
    others = [name for name in names if name != "mountfs"] if "mountfs" in names else []
    head = ["row", "x", "unit", *names, *[f"mountfs/{name}" for name in others], "target"]
    cluster = {"mountfs-cluster", "juicefs"} <= set(names)
    if cluster:
        head += ["mountfs-cluster/juicefs", "target of the cluster"]
    table = []
    for row in results["rows"]:
        rates = {name: median(row, name) for name in names}
        known = {name: rate for name, rate in rates.items() if rate is not None}
        ratios = [
            f"{known['mountfs'] / known[name]:.2f}" if {"mountfs", name} <= set(known) else "-"
            for name in others
        ]
        table.append(
            [
                row["name"],
                str(row["processes"]),
                row["unit"],
                *[_cell(results, row, name) for name in names],
                *ratios,
                row.get("skipped") or verdict(row["name"], known),
            ]
        )
        if cluster:
            both = [known.get(name) for name in ("mountfs-cluster", "juicefs")]
            ratio = f"{both[0] / both[1]:.2f}" if both[0] and both[1] else "-"
            table[-1] += [ratio, cluster_verdict(row["name"], known)]
    return columns(head, table, left=[0, 2, head.index("target"), len(head) - 1])


def _clusters(results: Results) -> list[str]:
    """Each cluster beside those that keep as many copies."""
    names = list(results["filesystems"])
    lines = []
    for own, peers in CLUSTER_PEERS.items():
        peers = tuple(name for name in peers if name in names)
        if own not in names or not peers:
            continue
        if "plain" in names:
            peers += ("plain",)
        table = []
        for row in results["rows"]:
            rates = {name: rate for name in names if (rate := median(row, name)) is not None}
            if own not in rates:
                continue
            table.append(
                [
                    row["name"],
                    str(row["processes"]),
                    *(f"{rates[own] / rates[n]:.2f}" if rates.get(n) else "-" for n in peers),
                    copies_verdict(row["name"], own, rates),
                ]
            )
        head = ["row", "x", *(f"{own}/{name}" for name in peers), "target"]
        lines += ["", *columns(head, table, left=[0, len(head) - 1])]
    return lines


def _cell(results: Results, row: Results, name: str) -> str:
    rate = median(row, name)
    measurements = row["measurements"].get(name, [])
    if not measurements:
        return "-"
    rates = [one["rate"] for one in measurements if one["rate"] is not None]
    value = "-" if rate is None else _number(rate)
    if rate and len(rates) > 1:
        value += f" ±{50 * (max(rates) - min(rates)) / rate:.0f}%"
    marks = ""
    if row["synced"] and not results["filesystems"][name]["fsync_reaches_disk"]:
        marks += "†"
    if any(one["cut_short"] for one in measurements):
        marks += "b"
    if any(one["failures"] for one in measurements):
        marks += "✗"
    if any(_noisy(one) for one in measurements):
        marks += "~"
    return f"{value} {marks}".rstrip()


def _noisy(one: Results) -> bool:
    return bool(one["wall_s"] and one["others_cpu_s"] > NOISY_CPUS * max(one["wall_s"], 0.2))


def _legend(results: Results) -> list[str]:
    loose = [
        name for name, about in results["filesystems"].items() if not about["fsync_reaches_disk"]
    ]
    lines = [
        "Values are medians over the rounds; ± is half of the distance between the extremes.",
        "x is the number of processes.  b: stopped by its budget, rate over what was done.",
        "✗: operations failed (below).  ~: something else on the machine used the CPUs meanwhile.",
    ]
    if loose:
        lines.insert(
            0,
            f"† fsync returns without anything on the disk ({', '.join(loose)}): the rate of a "
            "weaker promise, not comparable.",
        )
    if not results["cold"]:
        lines.append("Cold rows were skipped: emptying the kernel's caches takes root.")
    return lines


def _cpu(results: Results) -> list[str]:
    names = [name for name in results["filesystems"] if name != "plain"]
    table = []
    for row in results["rows"]:
        if row.get("skipped"):
            continue
        cells = []
        for name in names:
            measurements = row["measurements"].get(name, [])
            operations = sum(one["operations"] for one in measurements)
            spent = sum(one["daemon_cpu_s"] for one in measurements)
            cells.append(_number(1e6 * spent / operations) if operations else "-")
        table.append([row["name"], str(row["processes"]), row["unit"].split("/")[0], *cells])
    return columns(["row", "x", "unit", *names], table, left=[0, 2])


def _cost(results: Results) -> list[str]:
    head = ["", "RSS idle MiB", "RSS end MiB", "RSS peak MiB", "idle CPU %", "CPU s, whole run"]
    table = [
        [
            name,
            *(
                f"{about['cost'][key]:,.1f}" if key in about["cost"] else "-"
                for key in (
                    "rss_idle_mib",
                    "rss_end_mib",
                    "rss_peak_mib",
                    "idle_cpu_percent",
                    "cpu_s",
                )
            ),
        ]
        for name, about in results["filesystems"].items()
        if name != "plain" and "cost" in about
    ]
    return columns(head, table, left=[0])


def _notes(results: Results) -> list[str]:
    notes = [f"- not measured: {name}: {why}" for name, why in results["not_measured"].items()]
    for row in results["rows"]:
        for name, measurements in row["measurements"].items():
            notes += [
                f"- {row['name']} x{row['processes']}, {name}: {count} times {what}"
                for one in measurements
                for what, count in one["failures"].items()
            ]
    return ["", *notes] if notes else []


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def columns(head: list[str], rows: list[list[str]], left: list[int]) -> list[str]:
    widths = [max(len(line[column]) for line in [head, *rows]) for column in range(len(head))]

    def line(cells: list[str]) -> str:
        padded = [
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = "|".join(
        "-" * (width + 2) if column in left else "-" * (width + 1) + ":"
        for column, width in enumerate(widths)
    )
    return [line(head), f"|{rule}|", *map(line, rows)]


def main(paths: list[str]) -> None:
    for path in paths:
        print(text(json.loads(Path(path).read_text())))


if __name__ == "__main__":
    main(sys.argv[1:])
