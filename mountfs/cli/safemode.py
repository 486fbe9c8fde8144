"""mountfs safemode: is a cluster in safe mode; end it; wait for its end."""

import argparse
import time
from typing import Any, Final

from mountfs.cli import cluster_calls, show
from mountfs.errors import Fault, FsError

SUMMARY = "whether a cluster refuses writes after a cold start; end that, or wait for its end"
DESCRIPTION = """\
After a cold start, when all machines begin anew, the metadata knows of volumes that nobody has
reported yet.  Until enough of them have been, a cluster answers reads as far as possible and
refuses writes (read-only file system).  That is safe mode; it ends by itself.
"""
EPILOG = """\
examples:
  mountfs safemode get                     is it on, and what does it wait for
  mountfs safemode wait --seconds 60       return when it is over
  mountfs safemode leave                   write although some volumes are missing: files with bytes
                                           in them cannot be read until those come back

exit status: 0 it is off; 1 it is on, or nobody leads; 2 wrong call
"""
LOOK_S: Final = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["get", "leave", "wait"])
    cluster_calls.add_arguments(parser)
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="how long to wait at most; default: 300"
    )
    parser.add_argument("--json", action="store_true", help="a JSON object")


def run(arguments: argparse.Namespace) -> int:
    if arguments.action == "wait":
        report = _wait(arguments)
    else:
        method = {"get": "SafeMode", "leave": "LeaveSafeMode"}[arguments.action]
        report = cluster_calls.ask(arguments, method, None)
    if arguments.json:
        show.print_json(report)
    else:
        print(f"safe mode is {'on' if report['on'] else 'off'}: {report['why']}")
    return show.EXIT_FAILED if report["on"] else show.EXIT_OK


def _wait(arguments: argparse.Namespace) -> dict[str, Any]:
    """Until it is off.  Nobody leads yet just after a cold start: that is waited for, too."""
    until = time.monotonic() + arguments.seconds
    while True:
        left = max(until - time.monotonic(), 0)
        report: dict[str, Any] | None = None
        try:
            report = cluster_calls.ask(arguments, "SafeMode", None, deadline_s=min(left, 5.0))
        except FsError as error:
            if error.fault not in (Fault.NOT_LEADER, Fault.UNAVAILABLE, Fault.TIMED_OUT):
                raise
            if time.monotonic() >= until:
                raise
        if report is not None and (not report["on"] or time.monotonic() >= until):
            return report
        time.sleep(min(LOOK_S, max(until - time.monotonic(), 0)))
