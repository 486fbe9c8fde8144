"""mountfs replication: how many copies a cluster keeps of what is in a directory."""

import argparse
import os
from typing import Any

from mountfs.cli import show
from mountfs.cli.info import locate
from mountfs.cli.places import mount_table
from mountfs.errors import Fault, FsError
from mountfs.vfs import control

SUMMARY = "how many copies a cluster keeps of what is in a directory"
DESCRIPTION = """\
Show or set how many copies a cluster keeps of the bytes of files.  It is a property of directories:
what is made in one inherits it.  Without it a cluster of three nodes or more keeps three copies, on
different hosts, and in at least two racks where there are two.
"""
EPILOG = """\
examples:
  mountfs replication get /mnt/data/scratch            what holds there
  mountfs replication set /mnt/data/scratch 1          one copy: for what can be made again
  mountfs replication set /mnt/data/papers 4 -r        also for all directories that are below it
  mountfs replication set /mnt/data/scratch default    as if nothing had been said

It holds for what is written from now on; other mounts notice within half a minute.  Files that are
there keep the copies that they have: copy them anew to change that (cp FILE NEW && mv NEW FILE).
Contents of up to 4 KiB are kept with the metadata, and have as many copies as that.

exit status: 0 done; 1 failed; 2 wrong call
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["get", "set"])
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("copies", nargs="?", metavar="N", help="1 to 8, or: default")
    parser.add_argument(
        "-r", "--recursive", action="store_true", help="set it for all directories below, too"
    )
    parser.add_argument("--json", action="store_true", help="a JSON object")


def run(arguments: argparse.Namespace) -> int:
    if (arguments.action == "set") != (arguments.copies is not None):
        arguments.parser.error("get takes a path; set takes a path and a number of copies")
    if arguments.action == "get":
        copies = _ask(arguments.path, "copies")["copies"]
        return _show(arguments, copies, 1)
    copies = _number(arguments)
    changed = 0
    for path in _directories(arguments.path, arguments.recursive):
        _ask(path, "set_copies", copies=copies)
        changed += 1
    return _show(arguments, copies, changed)


def _show(arguments: argparse.Namespace, copies: int, changed: int) -> int:
    if arguments.json:
        show.print_json({"path": arguments.path, "copies": copies or None, "directories": changed})
    elif arguments.action == "get":
        print(f"{copies} copies" if copies else "as many as the cluster keeps by default")
    else:
        what = f"{copies} copies" if copies else "the default"
        print(f"{what} for what is written in {changed:,} directories from now on")
    return show.EXIT_OK


def _number(arguments: argparse.Namespace) -> int:
    if arguments.copies == "default":
        return 0
    if not arguments.copies.isdigit() or not 1 <= int(arguments.copies) <= 8:
        arguments.parser.error(f"{arguments.copies!r} is not a number from 1 to 8, nor: default")
    return int(arguments.copies)


def _directories(path: str, recursive: bool) -> list[str]:
    if not os.path.isdir(path) or os.path.islink(path):
        raise FsError(Fault.NOT_DIRECTORY, f"{path} is not a directory")
    if not recursive:
        return [path]

    def stop(error: OSError) -> None:
        raise error

    return [directory for directory, _, _ in os.walk(path, onerror=stop)]


def _ask(path: str, question: str, **args: int) -> dict[str, Any]:
    place, ino = locate(path, mount_table())
    found: dict[str, Any] = control.ask(place.control, question, ino=ino, **args)
    return found
