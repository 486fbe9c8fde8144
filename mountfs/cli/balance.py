"""mountfs balance: move volumes from fuller nodes to emptier ones."""

import argparse
import sys
import time
from typing import Any, Final

from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from mountfs.cli import cluster_calls, show
from mountfs.cli.health import balancing_in_a_line
from mountfs.errors import Fault, FsError
from mountfs.meta.balancing import TOLERANCE

SUMMARY = "move volumes from fuller nodes of a cluster to emptier ones"
DESCRIPTION = f"""\
Nodes that come later are empty, and new contents alone do not even that out soon.  This moves
volumes until the shares of the nodes' space that are used differ by less than {TOLERANCE:.0%}.  It
is begun here and goes on by itself; mountfs health shows how far it is.
"""
EPILOG = """\
examples:
  mountfs balance --at 10.0.0.1 --dry-run          what would be moved; nothing is changed
  mountfs balance --at 10.0.0.1 --wait             do it, and show how far it is
  mountfs balance --at 10.0.0.1 --rate 20          slower; also while it is under way
  mountfs balance --at 10.0.0.1 --stop             what was moved stays where it is

A volume is copied first, then it counts as moved, and the old copy is removed after that: there are
never fewer copies.  Copies stay on different hosts, and in two racks where they should be.  Only
volumes that are full or sealed and have nothing wrong with them move.  Repairs come first.  When
another node becomes the leader it ends; begin it again.

exit status: 0 begun, or nothing is to be moved; with --wait: balanced; 1 failed, or it has ended
before that; 2 wrong call
"""
LOOK_S: Final = 1.0
RATE_MAX: Final = 100_000.0
SHOWN_MAX: Final = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cluster_calls.add_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="only show what would be moved")
    parser.add_argument("--stop", action="store_true", help="end it")
    parser.add_argument("--wait", action="store_true", help="return when it has ended")
    parser.add_argument(
        "--rate", type=float, default=100.0, metavar="MB/S",
        help="of all nodes together, at most; 0: as much as the nodes take (see mountfs node "
        "--copy-rate); default: 100",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="a JSON object")


def run(arguments: argparse.Namespace) -> int:
    if not 0 <= arguments.rate <= RATE_MAX:
        arguments.parser.error(f"--rate takes 0 to {RATE_MAX:,.0f} MB/s")
    if arguments.stop and (arguments.dry_run or arguments.wait):
        arguments.parser.error("--stop goes alone")
    begins = not arguments.dry_run and not arguments.stop
    body = {"begin": begins, "stop": arguments.stop, "rate": arguments.rate * 1e6}
    told = cluster_calls.ask(arguments, "Balance", body)
    waits = arguments.wait and begins
    if not waits or not arguments.json:
        _print(arguments, told)
    if not waits:
        return show.EXIT_OK
    ended = _wait(arguments, told)
    if arguments.json:
        show.print_json(ended)
    else:
        print(balancing_in_a_line(ended))
    return show.EXIT_OK if ended["spread"] < TOLERANCE else show.EXIT_FAILED


def _print(arguments: argparse.Namespace, told: dict[str, Any]) -> None:
    if arguments.json:
        show.print_json(told)
    elif arguments.stop:
        print(balancing_in_a_line(told["balancing"]) or "it was not under way")
    else:
        print(planned(told["plan"]))
        if arguments.dry_run:
            _print_moves(told["plan"]["moves"])
        elif told["plan"]["moves"]:
            print("It is under way; see: mountfs health.  To end it: mountfs balance --stop")


def planned(plan: dict[str, Any]) -> str:
    """In a sentence."""
    if not plan["moves"]:
        return f"nothing is to be moved: {plan['why_not']}"
    return (
        f"the nodes differ by {plan['spread']:.0%} of their space; to even that out, about "
        f"{show.size(plan['bytes_to_move'])} move"
    )


def _print_moves(moves: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("volume", "from node", "to node", "size"):
        table.add_column(title, justify="right")
    for move in moves[:SHOWN_MAX]:
        numbers = (move["volume"], move["source"], move["target"])
        table.add_row(*map(str, numbers), show.size(move["bytes"]))
    if moves:
        show.out().print(table)
    if len(moves) > SHOWN_MAX:
        print(f"and {len(moves) - SHOWN_MAX:,} more at first; then it is looked again")


def _wait(arguments: argparse.Namespace, told: dict[str, Any]) -> dict[str, Any]:
    """Until it has ended, or Ctrl-C, which ends the waiting only.  Returns how it stands then."""
    state: dict[str, Any] = told["balancing"]
    if not sys.stderr.isatty():
        while state["active"]:
            time.sleep(LOOK_S)
            state = _look(arguments, state)
        return state
    bar = Progress(
        TextColumn("balancing"), BarColumn(), TextColumn("{task.description}"), console=show.err()
    )
    with bar:
        task = bar.add_task("", total=None)
        while state["active"]:
            moved, left = state["moved_bytes"], state["left_bytes"]
            bar.update(
                task, completed=moved, total=max(moved + left, 1),
                description=f"{show.size(moved)} moved, about {show.size(left)} left",
            )  # fmt: skip
            time.sleep(LOOK_S)
            state = _look(arguments, state)
    return state


def _look(arguments: argparse.Namespace, before: dict[str, Any]) -> dict[str, Any]:
    try:
        told = cluster_calls.ask(arguments, "Health", None)
    except FsError as error:
        if error.fault not in (Fault.NOT_LEADER, Fault.UNAVAILABLE, Fault.TIMED_OUT):
            raise
        return before
    found: dict[str, Any] = told["balancing"]
    if found["begun"] != before["begun"]:
        return {**before, "active": False, "why": "another node leads now; begin it again"}
    return found
