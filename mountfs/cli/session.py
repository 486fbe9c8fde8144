"""mountfs session: who has a cluster mounted; put one out."""

import argparse
from typing import Any

from rich.table import Table

from mountfs.cli import cluster_calls, show
from mountfs.cli.health import seconds

SUMMARY = "who has a cluster mounted; put one out"
DESCRIPTION = """\
Every mount of a cluster has a session: it holds the mount's locks, and the files that it has open
and that have lost their names.  A session of which nothing is heard for a minute (--session-ttl of
the nodes) is ended by itself.
"""
EPILOG = """\
examples:
  mountfs session list --at 10.0.0.1              all of them: what they hold, when heard of last
  mountfs session evict 7 --at 10.0.0.1           what that would take from number 7
  mountfs session evict 7 --at 10.0.0.1 --yes     do it: its locks are free for others at once

A mount that is evicted begins another session by itself and goes on.  Those of its open files that
held a lock, or had bytes that were not written yet, say so: they answer EIO (Input/output error)
until they are closed, and the log of the mount has which ones.  Files without a name are gone.
To end a mount for good, unmount it.

With --tls, evict takes the certificate of a node, as everything does that changes a cluster.

exit status: 0 listed, evicted, or told what would be; 1 failed, as where there is no such session;
2 wrong call
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["list", "evict"])
    parser.add_argument("number", nargs="?", type=int, metavar="NUMBER", help="of a session")
    cluster_calls.add_arguments(parser)
    parser.add_argument("--yes", action="store_true", help="evict it, and do not only say what for")
    parser.add_argument("--json", action="store_true", help="a JSON list, or for evict an object")


def run(arguments: argparse.Namespace) -> int:
    if arguments.action == "list":
        if arguments.number is not None or arguments.yes:
            arguments.parser.error("list takes no number, and no --yes")
        told = cluster_calls.ask(arguments, "Sessions", None)
        if arguments.json:
            show.print_json(told)
        else:
            _print(told)
        return show.EXIT_OK
    if arguments.number is None:
        arguments.parser.error("evict takes the NUMBER of a session; see: mountfs session list")
    body = {"session": arguments.number, "yes": arguments.yes}
    evicted = cluster_calls.ask(arguments, "Evict", body)
    if arguments.json:
        show.print_json(evicted)
    else:
        print(evicted_in_words(evicted))
    return show.EXIT_OK


def evicted_in_words(told: dict[str, Any]) -> str:
    """What became of a session, or would."""
    parts = []
    if told["locks"]:
        parts.append(show.count_of(told["locks"], "lock"))
    if told["waits"]:
        parts.append(f"its place among those who wait for {show.count_of(told['waits'], 'lock')}")
    if told["unnamed"]:
        parts.append(f"{show.count_of(told['unnamed'], 'file')} without a name")
    what = " and ".join(parts) or "nothing that is known here"
    who = f"session {told['number']} ({told['about'] or 'nobody says who it is'})"
    if told["evicted"]:
        return f"{who} is evicted: it has lost {what}"
    return (
        f"{who} would lose {what}, and what it has not written yet.  Nothing is done without --yes"
    )


def _print(sessions: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("session", "heard of", "locks", "waits", "unnamed", "who"):
        table.add_column(title, justify="left" if title == "who" else "right")
    for told in sessions:
        table.add_row(
            str(told["number"]),
            f"{seconds(told['silent_ms'] / 1000)} ago",
            f"{told['locks']:,}",
            f"{told['waits']:,}",
            f"{told['unnamed']:,}",
            show.name(told["about"]),
        )
    show.out().print(table)
    print(show.count_of(len(sessions), "session"))
