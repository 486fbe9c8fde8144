"""mountfs stats: what goes on in a mount, as differences of its counters."""

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mountfs.cli import show
from mountfs.cli.places import Place, mount_table, place_of
from mountfs.errors import Fault, FsError
from mountfs.vfs import control

SUMMARY = "what goes on in a mount, live"
DESCRIPTION = """\
Show what the programs that use a mount ask of it: operations per second by kind, how long they
take in the daemon, bytes that are not yet written, and the processor time that mountfs takes.
Operations that the kernel answers from its caches do not reach mountfs, and are not counted.
"""
EPILOG = """\
examples:
  mountfs stats /mnt/data                      live, until Ctrl-C
  mountfs stats /mnt/data --interval 10        every ten seconds
  mountfs stats /mnt/data --count 1 --json     one measurement of a second, for a program
  mountfs stats /mnt/data | tee stats.txt      plain lines, when not on a terminal

the columns:
  per s, mean, errors   of the last interval
  slowest               since the mount, of one operation

from memory:
  rows    of metadata that were found without a look into the tables on disk
  reads   of stored bytes that were answered at once; those of 512 KiB and more count as not
          answered at once on a machine with several processors, wherever the bytes were

of nodes (the mount of a cluster):
  sent       reads that went to a second node as well, because the first took long
  won        of those, how many the second answered first; cancelled: what was not needed any more
  denied     reads that were not, because 5 % more reads is the limit
  rewritten  writes that began anew in another volume, because a node did not take them

exit status: 0 shown; 1 the mount does not answer; 2 wrong call
"""

ANSWER_S = 10.0


class Sample(msgspec.Struct):
    """An answer of the daemon, and when it came, in seconds of a clock that does not jump."""

    at: float
    stats: dict[str, Any]


class Rate(msgspec.Struct):
    """One kind of operation during an interval."""

    operation: str
    per_s: float
    mean_ns: float
    slowest_ns: int
    """Since the mount."""
    errors_per_s: float


class Hedging(msgspec.Struct):
    """What the mount of a cluster has asked of nodes that keep slices, during an interval."""

    reads: int
    hedges: int
    """Reads that went to a second node as well, because the first took long."""
    won: int
    """Of those, how many the second answered first."""
    cancelled: int
    """What was asked and not needed any more."""
    denied: int
    """Reads that were not hedged when it was time: 5 % more reads is the limit."""
    failovers: int
    """Reads that went to another node because one could not answer."""
    rewrites: int
    """Writes that began anew in another volume, because a node did not take them."""


class Rates(msgspec.Struct):
    """What went on between two samples."""

    seconds: float
    operations: list[Rate]
    """Most time taken first."""
    per_s: float
    cpu_percent: float
    dirty_bytes: int
    unwritten_files: int
    rows_from_memory_percent: float | None
    """Rows of metadata that needed no look into the tables; None: none was asked for."""
    reads_at_once_percent: float | None
    """Reads of slices that were answered without waiting for a disk or a thread; None: no read."""
    hedging: Hedging | None = None
    """None: it is no cluster's."""


def rates(before: Sample, after: Sample) -> Rates:
    """The difference of two samples.  A daemon that was started anew counts from zero."""
    seconds = max(after.at - before.at, 1e-9)
    earlier = before.stats["operations"]
    found = []
    for name, now in after.stats["operations"].items():
        then = earlier.get(name, {})
        if now["calls"] < then.get("calls", 0):
            then = {}
        calls = now["calls"] - then.get("calls", 0)
        if calls:
            took_ns = now["total_ns"] - then.get("total_ns", 0)
            errors = now["errors"] - then.get("errors", 0)
            found.append(
                Rate(name, calls / seconds, took_ns / calls, now["slowest_ns"], errors / seconds)
            )
    found.sort(key=lambda rate: -rate.per_s * rate.mean_ns)
    cpu_s = after.stats["cpu_s"] - before.stats["cpu_s"]
    return Rates(
        seconds,
        found,
        sum(rate.per_s for rate in found),
        max(cpu_s, 0.0) / seconds * 100,
        after.stats["dirty_bytes"],
        after.stats["unwritten_files"],
        _hits(before, after, "rows", "rows_stored"),
        _hits(before, after, "reads", "reads_waited"),
        _hedging(before, after),
    )


def _hits(before: Sample, after: Sample, asked: str, missed: str) -> float | None:
    then, now = before.stats["caches"], after.stats["caches"]
    if now[asked] < then[asked]:  # started anew
        then = {asked: 0, missed: 0}
    count = now[asked] - then[asked]
    return 100 * (1 - (now[missed] - then[missed]) / count) if count else None


def _hedging(before: Sample, after: Sample) -> Hedging | None:
    now = _hedged(after)
    if now is None:
        return None
    then = _hedged(before)
    if then is None or now["reads"] < then["reads"]:  # started anew
        then = dict.fromkeys(now, 0)
    return Hedging(**{name: now[name] - then[name] for name in Hedging.__struct_fields__})


def _hedged(sample: Sample) -> dict[str, int] | None:
    caches = sample.stats["caches"]
    if "hedging" not in caches:
        return None
    said = caches["hedging"]
    return {
        "won": said["hedges_won"],
        "rewrites": caches["rewrites"],
        **{name: said[name] for name in ("reads", "hedges", "cancelled", "denied", "failovers")},
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("place", metavar="DIR", help="a mount point, or a directory in a mount")
    parser.add_argument(
        "--interval", type=_seconds, default=1.0, metavar="S", help="seconds (default: 1)"
    )
    parser.add_argument(
        "--count", type=_count, default=None, metavar="N", help="stop after N intervals"
    )
    parser.add_argument("--json", action="store_true", help="a line of JSON for each interval")


def run(arguments: argparse.Namespace) -> int:
    place = place_of(arguments.place, mount_table())
    if place.mountpoint is None:
        raise FsError(Fault.NOT_FOUND, f"{place.home} is not mounted, so nothing goes on in it")
    found = _intervals(place, arguments.interval, arguments.count)
    if arguments.json:
        for one in found:
            print(msgspec.json.encode(one).decode(), flush=True)
    elif sys.stdout.isatty():
        _live(place, found)
    else:
        for one in found:
            print("\n".join(lines(one)), flush=True)
    return show.EXIT_OK


def lines(one: Rates) -> Iterator[str]:
    """One interval as plain text."""
    yield _summary(one)
    for rate in one.operations:
        yield (
            f"  {rate.operation:<16} {show.rounded(rate.per_s):>9}/s"
            f"  mean {show.duration(rate.mean_ns):>8}"
            f"  slowest {show.duration(rate.slowest_ns):>8}"
            f"  errors {show.rounded(rate.errors_per_s)}/s"
        )


def _live(place: Place, found: Iterator[Rates]) -> None:
    waiting = Text(f"{place.mountpoint}: measuring; Ctrl-C ends it", style="dim")
    with Live(waiting, auto_refresh=False, console=show.out()) as screen:
        for one in found:
            screen.update(Group(Text(str(place.mountpoint), style="bold"), _table(one)))
            screen.refresh()


def _table(one: Rates) -> Group:
    table = Table(box=None, padding=(0, 2))
    table.add_column("operation")
    for heading in ("per s", "mean", "slowest", "errors/s"):
        table.add_column(heading, justify="right")
    for rate in one.operations:
        table.add_row(
            rate.operation,
            show.rounded(rate.per_s),
            show.duration(rate.mean_ns),
            show.duration(rate.slowest_ns),
            show.rounded(rate.errors_per_s) if rate.errors_per_s else "",
        )
    return Group(Text(_summary(one)), table)


def _summary(one: Rates) -> str:
    return (
        f"{show.rounded(one.per_s)} operations/s, CPU {one.cpu_percent:.0f} %, "
        f"{show.size(one.dirty_bytes)} of {show.count_of(one.unwritten_files, 'file')} "
        f"not yet written; from memory: {_percent(one.rows_from_memory_percent)} of rows, "
        f"{_percent(one.reads_at_once_percent)} of reads{_of_nodes(one.hedging)}"
    )


def _of_nodes(one: Hedging | None) -> str:
    if one is None:
        return ""
    return (
        f"\nof nodes: {show.count_of(one.reads, 'read')}; hedges {one.hedges:,} sent, {one.won:,} "
        f"won, {one.cancelled:,} cancelled, {one.denied:,} denied; {one.failovers:,} failed over; "
        f"{one.rewrites:,} rewritten"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0f} %"


def _intervals(place: Place, interval: float, count: int | None) -> Iterator[Rates]:
    before = _sample(place)
    due = before.at
    while count is None or count > 0:
        due += interval
        time.sleep(max(due - time.monotonic(), 0))
        after = _sample(place)
        yield rates(before, after)
        before = after
        count = None if count is None else count - 1


def _sample(place: Place) -> Sample:
    return Sample(time.monotonic(), control.ask(place.control, "stats", seconds=ANSWER_S))


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.05 <= value <= 86_400:
        raise argparse.ArgumentTypeError("from 0.05 to 86400 seconds")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value
