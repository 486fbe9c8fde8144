"""The command line.

Exit status: 0 all could have been; 1 something could not, or hangs; 2 it is not known, or could not
be tried.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from .judge import STEPS_MAX, Verdict, judge
from .run import Hung, Plan, running
from .scenes import SCENES

DESCRIPTION = """
Work on the same few names, files and locks through several mounts of one filesystem, and judge
whether what was seen could have been answered by one filesystem, one call after the other
(linearizability).
"""
EPILOG = f"""
kinds: {", ".join(SCENES)}.  A directory of a local disk, given twice, has to pass.
Everything happens in a directory linear-... in the first mount, which is removed at the end.
"""


def main() -> int:
    arguments = _parse()
    if arguments.check:
        return _judge(arguments.check, arguments)
    seed = time.time_ns() % 1_000_000_007 if arguments.seed is None else arguments.seed
    plan = Plan(
        mounts=arguments.mounts,
        kinds=arguments.kinds,
        seconds=arguments.seconds,
        seed=seed,
        round_s=arguments.round,
        workers=arguments.workers,
        watchers=arguments.watchers,
        pause_s=arguments.pause_ms / 1000,
    )
    print(f"seed {seed}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="mountfs-linear-") as scratch:
        books: Path = arguments.keep or Path(scratch)
        books.mkdir(exist_ok=True)
        if list(books.glob("*.book")):
            return _fail(f"there are books in {books} already: give --keep another directory")
        try:
            with running(plan, books) as run:
                run.wait()
        except Hung as error:
            print(error, file=sys.stderr)
            _judge(books, arguments)
            return 1
        except (OSError, RuntimeError) as error:
            return _fail(str(error))
        return _judge(books, arguments)


def _judge(directory: Path, arguments: argparse.Namespace) -> int:
    books = sorted(directory.glob("*.book"))
    if not books:
        return _fail(f"there are no books in {directory}")
    return _tell(judge(books, steps_max=arguments.steps), arguments.json)


def _tell(verdict: Verdict, as_json: bool) -> int:
    print(msgspec.json.encode(verdict).decode() if as_json else verdict.text())
    if verdict.wrong:
        return 1
    return 2 if verdict.undecided else 0


def _fail(why: str) -> int:
    print(f"linear: {why}", file=sys.stderr)
    return 2


def _kinds(text: str) -> list[str]:
    for kind in text.replace("+", ",").split(","):
        if kind not in SCENES:
            raise argparse.ArgumentTypeError(f"{kind!r} is none of {', '.join(SCENES)}")
    return text.split(",")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster.linear", description=DESCRIPTION, epilog=EPILOG
    )
    parser.add_argument("--mounts", nargs="+", type=Path, metavar="DIR", help="two or three")
    parser.add_argument("--seconds", type=float, default=10, help="of work (10)")
    parser.add_argument("--seed", type=int, help="what workers choose (by the clock)")
    parser.add_argument(
        "--kinds", type=_kinds, default=list(SCENES), metavar="KIND,KIND+KIND,...",
        help="of rounds in turn, with + in one round (each by itself)",
    )  # fmt: skip
    parser.add_argument("--round", type=float, default=0.5, help="seconds of a round (0.5)")
    parser.add_argument("--workers", type=int, default=2, help="that change, a mount (2)")
    parser.add_argument("--watchers", type=int, default=2, help="that only look, a mount (2)")
    parser.add_argument("--pause-ms", type=float, default=1, help="between two calls (1)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave what was seen there")
    parser.add_argument("--check", type=Path, metavar="DIR", help="judge what was kept, only")
    parser.add_argument(
        "--steps", type=int, default=STEPS_MAX, help=f"of judging a history ({STEPS_MAX})"
    )
    parser.add_argument("--json", action="store_true", help="the verdict as JSON")
    arguments = parser.parse_args()
    if not arguments.mounts and not arguments.check:
        parser.error("give --mounts, or --check")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
