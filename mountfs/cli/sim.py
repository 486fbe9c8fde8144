"""mountfs sim: clusters under seeds, with everything going wrong, to see whether they keep what
they promise.
"""

import argparse
import contextlib
import multiprocessing
import re
from collections.abc import Iterator
from functools import partial

import msgspec
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mountfs.cli import show
from mountfs.sim.scenario import KINDS, SECONDS, Result
from mountfs.sim.scenario import run as run_of
from mountfs.sim.shrink import Failure, attempt, shrink

SUMMARY = "simulate a cluster under seeds, faults and all, and check what it promises"
DESCRIPTION = """\
Run the metadata's servers and chunkservers, their disks and network, their clients and what befalls
them in one process, in simulated time, with all chance from one seed: the real consensus, state
machine, sessions, retries and healing.  Machines crash, stop, lose each other and their disks;
after every step it is checked that what the cluster promises still holds.  Nothing outside of the
process is touched.
"""
EPILOG = """\
examples:
  mountfs sim --seed 7                     one run; the same every time
  mountfs sim --seeds 0-999                a thousand of them, with a progress bar
  mountfs sim --seeds 0-99 --kind disks    only runs that look for damaged and full disks
  mountfs sim --seed 7 --trace | less      every message, write and fault of it, with times
  mountfs sim --seed 7 --without 3,1002    the same run, but these faults do not happen

kinds of runs (if none is given, the seed chooses):
  with registers: any, membership, reads, votes, leaders   small: find mistakes in Raft soonest
  with files:     files, sessions, disks, snapshots        the metadata, its sessions and clients
                  leases                                   mounts that keep what they read
  with bytes:     bytes                                    chunkservers: copies, healing, garbage

when a seed fails:
  The rule that was broken is said, then the shortest run that still breaks it is looked for, and
  its faults are listed with their numbers and times.  The command at the end repeats it.  A rule
  "assertion" is one that the product itself has checked.

exit status: 0 all promises were kept; 1 a seed failed; 2 wrong call; 130 interrupted
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seed", type=int, metavar="N", help="one run (default: 0)")
    which.add_argument(
        "--seeds", type=_range, metavar="A-B", help="all of these, one after another"
    )
    parser.add_argument(
        "--kind", choices=KINDS, metavar="KIND", help="instead of what seeds choose"
    )
    parser.add_argument(
        "--seconds", type=_positive, default=SECONDS, metavar="N",
        help=f"simulated time with faults; some of calm follows (default: {SECONDS})",
    )  # fmt: skip
    parser.add_argument(
        "--without", type=_numbers, default=frozenset(), metavar="N,N",
        help="numbers of faults that do not happen",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=_positive, default=1, metavar="N", help="runs at a time (default: 1)"
    )
    parser.add_argument(
        "--trace", action="store_true", help="print all that happens; one seed only"
    )
    parser.add_argument(
        "--no-shrink", action="store_true", help="show a failing run as it is, without looking on"
    )
    parser.add_argument(
        "--json", action="store_true", help="a JSON object for each seed, a line each"
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.trace:
        if arguments.seeds is not None:
            arguments.parser.error("--trace shows one run: give --seed")
        return _trace(arguments)
    seeds = arguments.seeds or range(arguments.seed or 0, (arguments.seed or 0) + 1)
    results: list[Result] = []
    failed = 0
    # Processes first: a fork while the progress bar's thread is at work could inherit its locks.
    with _outcomes(arguments, seeds) as outcomes, _progress(len(seeds)) as progress:
        task = progress.add_task("seeds", total=len(seeds))
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                failed += 1
                if not arguments.no_shrink:
                    progress.update(task, description=f"shrinking seed {outcome.seed}")
                    outcome = shrink(outcome)
                    progress.update(task, description="seeds")
            else:
                results.append(outcome)
            _tell(arguments, outcome, len(seeds))
            progress.advance(task)
    if not arguments.json and len(seeds) > 1:
        print(_summary(results, failed))
    return show.EXIT_FAILED if failed else show.EXIT_OK


@contextlib.contextmanager
def _outcomes(arguments: argparse.Namespace, seeds: range) -> Iterator[Iterator[Result | Failure]]:
    """In the order of the seeds."""
    one = partial(
        _attempt, kind=arguments.kind or "", seconds=arguments.seconds, without=arguments.without
    )
    if arguments.jobs == 1 or len(seeds) == 1:
        yield map(one, seeds)
        return
    with multiprocessing.get_context("fork").Pool(arguments.jobs) as pool:
        yield pool.imap(one, seeds)


def _attempt(seed: int, kind: str, seconds: int, without: frozenset[int]) -> Result | Failure:
    return attempt(seed, kind, seconds, without)


def _tell(arguments: argparse.Namespace, outcome: Result | Failure, count: int) -> None:
    if arguments.json:
        found = msgspec.to_builtins(outcome)
        if isinstance(outcome, Failure):
            found["command"] = outcome.command
        print(msgspec.json.encode({"failed": isinstance(outcome, Failure), **found}).decode())
    elif isinstance(outcome, Failure):
        print(describe(outcome))
    elif count == 1:
        print(_line(outcome))


def _line(result: Result) -> str:
    return (
        f"seed {result.seed} ({result.kind}): {show.count_of(result.operations, 'operation')}, "
        f"{show.count_of(result.faults, 'fault')}, {show.count_of(result.elections, 'election')}; "
        f"all promises were kept [{result.digest}]"
    )


def _summary(results: list[Result], failed: int) -> str:
    operations = sum(result.operations for result in results)
    faults = sum(result.faults for result in results)
    verdict = f"{show.count_of(failed, 'seed')} FAILED" if failed else "all promises were kept"
    return (
        f"{show.count_of(len(results) + failed, 'seed')}: "
        f"{show.count_of(operations, 'operation')}, {show.count_of(faults, 'fault')}; {verdict}"
    )


def describe(failure: Failure) -> str:
    """A failing run for people."""
    lines = [
        f"seed {failure.seed} ({failure.kind}) FAILED after {failure.at / 1e6:.3f} s",
        f"  broken: {failure.rule}",
        f"  {failure.detail.removeprefix(failure.rule + ': ')}",
        f"  {show.count_of(len(failure.faults), 'fault')} led to it:",
        *(f"    {fault.at / 1e6:8.3f} s  {fault.number:>5}  {fault.what}"
          for fault in failure.faults),
        f"  again: {failure.command}",
    ]  # fmt: skip
    return "\n".join(lines)


def _trace(arguments: argparse.Namespace) -> int:
    one = run_of(
        arguments.seed or 0,
        kind=arguments.kind or "",
        seconds=arguments.seconds,
        without=arguments.without,
        trace=True,
    )
    broken: Exception | None = None
    result: Result | None = None
    try:
        result = one.run()
    except Exception as error:
        broken = error
    for line in one.world.lines or ():
        print(line)
    if result is not None:
        print(_line(result))
        return show.EXIT_OK
    print(f"FAILED after {one.world.now / 1e6:.3f} s: {broken!r}")
    return show.EXIT_FAILED


def _progress(count: int) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=show.err(),
        transient=True,
        redirect_stdout=False,
        disable=count == 1 or not show.err().is_terminal,
    )


def _range(text: str) -> range:
    found = re.fullmatch(r"(\d+)-(\d+)", text)
    if found is None or int(found[1]) > int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no range of seeds such as 0-999")
    return range(int(found[1]), int(found[2]) + 1)


def _numbers(text: str) -> frozenset[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} are no numbers of faults such as 3,1007")
    return frozenset(map(int, text.split(",")))


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)
