"""mountfs gc: what a cluster has to throw away, and how far it is."""

import argparse
from datetime import UTC, datetime
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from mountfs.cli import cluster_calls, show
from mountfs.cli.health import seconds

SUMMARY = "what a cluster has to throw away, and how far it is; look for it now"
DESCRIPTION = """\
Show what takes space in a cluster and belongs to no file any more, by cause.  All of it is thrown
away by itself; nothing that a file refers to ever is.
"""
EPILOG = """\
examples:
  mountfs gc --at 10.0.0.1           what there is; nothing is changed
  mountfs gc --at 10.0.0.1 --now     and look for orphans at once, without pauses

what the lines mean:
  deleted       pieces of deleted or overwritten files, which the nodes are told to delete
  kept by       nodes that have not: what they have of it goes when they are back
  orphans       pieces that were written and never became part of a file (a client died): each
                volume of each node is looked at for those, all of them once in 6 hours
  missing       pieces that a node should have and has not: they are copied; see mountfs health
  dead space    of what was deleted, in volumes; each node compacts those of which half is dead

A piece is an orphan only after a time of grace, and only if the metadata has refused its name for
good.  So --now does not find what was written within the last hour.

exit status: 0 shown; 1 nobody leads, or --now while the cluster is in safe mode; 2 wrong call
"""
NAMED_MAX: Final = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cluster_calls.add_arguments(parser)
    parser.add_argument("--now", action="store_true", help="begin to look for orphans")
    parser.add_argument("--json", action="store_true", help="a JSON object")


def run(arguments: argparse.Namespace) -> int:
    debt = cluster_calls.ask(arguments, "Garbage", {"now": arguments.now})
    if arguments.json:
        show.print_json(debt)
    else:
        _print(debt)
    return show.EXIT_OK


def _print(debt: dict[str, Any]) -> None:
    console = show.out()
    console.print(show.facts([("deleted", deleted(debt)), ("orphans", orphans(debt))]))
    names = {one["node"]: one["name"] for one in debt["dead"]}
    kept = sorted(debt["deleted"]["kept_by"].items())
    for node, why in kept[:NAMED_MAX]:
        console.print(Text(f"  kept by node {names.get(node, node)}: {why}", style="yellow"))
    if debt["orphans"]["missing"]:
        count = debt["orphans"]["missing"]
        console.print(Text(f"  missing: {count:,}; see: mountfs health", style="red"))
    table = Table(box=None, pad_edge=False)
    for title in ("node", "in volumes", "dead space", "to be compacted"):
        table.add_column(title, justify="left" if title == "node" else "right")
    for one in debt["dead"]:
        sizes = (one["total_bytes"], one["dead_bytes"], one["worth_bytes"])
        table.add_row(one["name"], *map(show.size, sizes))
    console.print(table)


def deleted(debt: dict[str, Any]) -> str:
    """In a line."""
    said = debt["deleted"]
    if not said["slices"]:
        return "nothing that is still there"
    more = "more than " if said["more"] else ""
    found = f"{more}{show.count_of(said['slices'], 'piece')} with {show.size(said['bytes'])}"
    if said["seconds_left"] is None:
        return f"{found}, as long as nodes keep some"
    return f"{found}, gone in about {seconds(said['seconds_left'])}"


def orphans(debt: dict[str, Any]) -> str:
    """In a line."""
    said = debt["orphans"]
    found = f"{said['orphans']:,} found and deleted; "
    looked = f"{said['looked']:,} of {show.count_of(debt['volumes'], 'volume')} looked at"
    if debt["is_hurried"]:
        found += f"{looked}, without pauses"
    elif debt["volumes"]:
        found += f"{looked}, the rest in about {seconds(debt['round_seconds_left'])}"
    else:
        found += "there are no volumes"
    if said["finished_at"]:
        last = datetime.fromtimestamp(said["finished_at"], UTC)
        found += f"; the last round ended {last:%Y-%m-%d %H:%M:%S} UTC"
    return found
