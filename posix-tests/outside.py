"""Run an outside test suite in a mount, and compare its results with what is expected of us.

    python posix-tests/outside.py pjdfstest --tree PATH --mount DIR [--jobs N] [--only GLOB]

`expected/SUITE.txt` lists the checks that are known to fail, one reasoned line each.  Exit status:
0 when everything went as expected, 1 when anything did not (a failure as well as a pass), 2 when
the suite could not be run.
"""

import argparse
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from suites import SUITES, Case, Ended, Options, Unusable
from verdicts import (
    SURPRISES,
    Check,
    Finding,
    Result,
    Verdict,
    count,
    judge,
    read_exclusions,
    stale_cases,
)

EXPECTED: Final = Path(__file__).parent / "expected"
OUTPUT_BYTES_MAX: Final = 8 << 20
"""Of a longer output only the end is read."""
KILL_SECONDS: Final = 10.0
"""How long a killed process may take to be gone.  Longer: it hangs in the filesystem."""


def main() -> int:
    arguments = _parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="outside-") as work:
        options = Options(
            tree=arguments.tree.resolve(),
            mount=arguments.mount.resolve(),
            work=Path(work),
            seeds=arguments.seeds,
            operations=arguments.operations,
        )
        try:
            if not options.mount.is_dir():
                raise Unusable(f"{options.mount} is no directory")
            expected = EXPECTED / f"{arguments.suite}.txt"
            exclusions = read_exclusions(expected.read_text() if expected.exists() else "")
            cases = list(SUITES[arguments.suite].cases(options))
        except (Unusable, ValueError) as error:
            print(f"outside.py: {error}", file=sys.stderr)
            return 2
        chosen = [case for case in cases if fnmatchcase(case.name, arguments.only)]
        if not chosen:
            print(f"outside.py: no case is named like {arguments.only}", file=sys.stderr)
            return 2
        jobs = arguments.jobs if SUITES[arguments.suite].parallel else 1
        started = time.monotonic()
        findings: list[Finding] = []
        for case, checks in _run_all(chosen, options.mount, jobs):
            findings += judge(case.name, checks, exclusions)
        if arguments.only == "*":
            findings += stale_cases((case.name for case in cases), exclusions)
    findings.sort(key=lambda finding: (finding.case, finding.number))
    seconds = time.monotonic() - started
    surprises = [finding for finding in findings if finding.verdict in SURPRISES]
    counts = count(findings)
    if arguments.json:
        print(json.dumps(_as_data(arguments.suite, len(chosen), counts, surprises, seconds)))
    else:
        _show(arguments.suite, len(chosen), counts, surprises, seconds)
    return 1 if surprises else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("suite", choices=sorted(SUITES))
    add("--tree", type=Path, required=True, help="built tree of the suite, or its binary")
    add("--mount", type=Path, required=True, help="directory to run in")
    add("--jobs", type=int, default=os.cpu_count(), help="cases at a time (default: CPUs)")
    add("--only", metavar="GLOB", default="*", help="cases to run, like 'rename/*'")
    add("--json", action="store_true", help="print the result as one JSON object")
    add("--seeds", type=int, default=3, help="fsx, fsstress: seeds for each variant (3)")
    add("--operations", type=int, default=3000, help="fsx, fsstress: operations a seed (3000)")
    return parser


def _run_all(cases: list[Case], mount: Path, jobs: int) -> Iterator[tuple[Case, list[Check]]]:
    """Every case with its checks, as they end.  Shows a progress bar on a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        Progress(
            *columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal
        ) as progress,
        ThreadPoolExecutor(max(1, jobs)) as pool,
    ):
        bar = progress.add_task("", total=len(cases))
        running = {pool.submit(run, case, mount): case for case in cases}
        try:
            for done in as_completed(running):
                progress.update(bar, advance=1, description=f"{running[done].name:24}")
                yield running[done], done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def run(case: Case, mount: Path) -> list[Check]:
    """Run one case in a fresh directory of the mount.  What it leaves behind is removed."""
    if case.skip:
        return [Check(1, Result.SKIPPED, case.skip)]
    scratch = Path(tempfile.mkdtemp(prefix="outside-", dir=mount))
    scratch.chmod(0o755)
    ended = _run_bounded(case, scratch)
    checks = case.read(ended) if isinstance(ended, Ended) else [ended]
    try:
        shutil.rmtree(scratch)
    except OSError as error:
        if not any(check.number == 0 for check in checks):
            checks.insert(0, Check(0, Result.FAILED, f"its directory cannot be removed: {error}"))
    return checks


def _run_bounded(case: Case, scratch: Path) -> Ended | Check:
    """How the case ended; or, when it did not in time, the failed check that says so.

    The process leads a group of its own.  It is killed as a group while the leader has not been
    waited for, so the number cannot have become another group's.
    """
    fill = str(scratch).join
    command = [fill(word.split("{scratch}")) for word in case.command]
    settings = {name: fill(value.split("{scratch}")) for name, value in case.environment.items()}
    with tempfile.TemporaryFile() as said:  # not a pipe: a grandchild that stays cannot hold us
        process = subprocess.Popen(
            command,
            cwd=scratch,
            env=os.environ | settings,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        handle = os.pidfd_open(process.pid)
        try:
            ended, _, _ = select.select([handle], [], [], case.seconds_max)
        finally:
            os.close(handle)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        try:
            status = process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            return Check(0, Result.FAILED, f"hangs: process {process.pid} cannot be killed")
        if not ended:
            return Check(0, Result.FAILED, f"not done after {case.seconds_max:.0f} s: killed")
        said.seek(max(0, os.fstat(said.fileno()).st_size - OUTPUT_BYTES_MAX))
        return Ended(status, said.read().decode(errors="replace"))


def _as_data(
    suite: str, cases: int, counts: Counter[Verdict], surprises: list[Finding], seconds: float
) -> dict[str, object]:
    return {
        "suite": suite,
        "cases": cases,
        "counts": {verdict.value: counts[verdict] for verdict in Verdict},
        "surprises": [
            finding._asdict() | {"verdict": finding.verdict.value} for finding in surprises
        ],
        "seconds": round(seconds, 1),
    }


def _show(
    suite: str, cases: int, counts: Counter[Verdict], surprises: list[Finding], seconds: float
) -> None:
    console = Console()
    for finding in surprises:
        where = f"{finding.case} {finding.number}" if finding.number else finding.case
        console.print(f"{finding.verdict.value}: {where}  {finding.detail}", markup=False)
    table = Table(suite, "checks")
    for verdict in Verdict:
        table.add_row(verdict.value, str(counts[verdict]))
    table.add_section()
    table.add_row("all", f"{sum(counts.values())}, of {cases} cases in {seconds:.0f} s")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
