"""mountfs locks: who holds locks on a file, and who waits for them."""

import argparse
import os
from typing import Any

from rich.table import Table

from mountfs.cli import show
from mountfs.cli.health import seconds
from mountfs.cli.info import locate
from mountfs.cli.places import mount_table
from mountfs.vfs import control

SUMMARY = "who holds locks on a file, and who waits for them"
DESCRIPTION = """\
Show the locks on a file in a mount: those of all programs on all machines that have the filesystem
mounted, and those that somebody waits for, in the order of their coming.
"""
EPILOG = """\
examples:
  mountfs locks list /mnt/data/database
  mountfs locks list --json /mnt/data/database | jq '.held[] | select(.exclusive).pid'

what the columns mean:
  kind       flock: of flock(2), on the whole file; fcntl: of fcntl(2), lockf(3), on some bytes, for
             a process or an open file
  mode       read: shared with other readers; write: alone
  bytes      the first one and the last one; "end": however long the file may become
  process    its number on the machine of the mount
  session    of the mount: see mountfs session list

A program that does not let go ends with: kill PROCESS, on its machine.  A machine that is gone
loses its locks by itself after a minute; to be quicker: mountfs session evict.

exit status: 0 shown; 1 failed; 2 wrong call
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["list"])
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--json", action="store_true", help="a JSON object")


def run(arguments: argparse.Namespace) -> int:
    place, ino = locate(arguments.path, mount_table())
    said = control.ask(place.control, "locks", ino=ino)
    if arguments.json:
        show.print_json({"path": os.path.abspath(arguments.path), **said})
    elif not said["held"] and not said["waiting"]:
        print("nobody holds a lock on it, and nobody waits for one")
    else:
        show.out().print(_table(said))
    return show.EXIT_OK


def _table(said: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("state", "kind", "mode", "bytes", "process", "session", "where"):
        table.add_column(title, justify="right" if title in ("process", "session") else "left")
    for lock in said["held"]:
        table.add_row("held", *_columns(lock))
    for lock in said["waiting"]:
        table.add_row(f"waits for {seconds(lock['waits_ms'] / 1000)}", *_columns(lock))
    return table


def _columns(lock: dict[str, Any]) -> list[str]:
    stop = lock["stop"]
    return [
        lock["kind"],
        "write" if lock["exclusive"] else "read",
        "all" if not lock["start"] and stop is None else f"{lock['start']}-{_last(stop)}",
        str(lock["pid"]),
        str(lock["session"]),
        show.name(lock["about"]),
    ]


def _last(stop: int | None) -> str:
    return "end" if stop is None else str(stop - 1)
