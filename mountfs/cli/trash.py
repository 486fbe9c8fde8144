"""mountfs trash: what becomes of what is deleted in a tree."""

import argparse
import os
import stat
import time
from typing import Any, Final

from rich.table import Table

from mountfs.cli import show
from mountfs.cli.trash_calls import Asking, name_of, things, user, when
from mountfs.errors import Fault, FsError

SUMMARY = "keep what is deleted in a tree for some days"
DESCRIPTION = """\
Show or set for how many days what is deleted below a directory can be had back, see what is there,
and remove it for good.  The nearest directory above that says something counts.

In the trash is what has lost its last name: files, directories, links, by unlink, rmdir or because
something else was renamed over it.  What was overwritten or truncated is not there, nor is a name
of a file that has others.
"""
EPILOG = """\
examples:
  mountfs trash set /mnt/data/home --days 30
  mountfs trash set /mnt/data/scratch --days 2 --counts no    and it takes nobody's quota
  mountfs trash get /mnt/data/home            what holds there, and how much is in it
  mountfs trash list /mnt/data/home           what is there, from when, by whom, until when
  mountfs undelete /mnt/data/home/thesis.tex  have it back
  mountfs trash empty /mnt/data/home --older-than 7 --dry-run
  mountfs trash off /mnt/data/home/cache      below it nothing is kept, whatever is said above
  mountfs trash off /mnt/data/home --inherit  say nothing there any more

`set` and `off` are for who owns the mount, and for what is deleted from then on: what is in the
trash stays until its time.  `list` shows root everything and others what is theirs; `empty` removes
the same.  Space comes back when it is emptied, or the days are over: on a full disk, empty it.

exit status: 0 done; 1 refused or failed; 2 wrong call.  More: docs/trash.md
"""

DAY_NS: Final = 86_400 * 1_000_000_000
BATCH: Final = 200
"""Entries that are removed by one command; as many as fit into one question."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["set", "get", "off", "list", "empty"])
    parser.add_argument("path", metavar="DIR")
    parser.add_argument("--days", type=int, metavar="N", help="set: so long it is kept")
    parser.add_argument(
        "--counts",
        choices=["yes", "no"],
        help="set: whether it counts for quotas while it is there (yes)",
    )
    parser.add_argument(
        "--inherit", action="store_true", help="off: what is said further up holds here too"
    )
    parser.add_argument(
        "--older-than", type=float, metavar="DAYS", help="empty: only what was deleted before that"
    )
    parser.add_argument(
        "--all", action="store_true", help="list: also what is in deleted directories"
    )
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would be done")
    parser.add_argument("--json", action="store_true", help="a JSON object; list: one a line")


def run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    asking = Asking(arguments.path)
    if arguments.action == "list":
        return _list(arguments, asking)
    if arguments.action == "empty":
        return _empty(arguments, asking)
    if arguments.action == "get":
        return _get(arguments, asking)
    return _set(arguments, asking)


def _check(arguments: argparse.Namespace) -> None:
    action = arguments.action
    wrong = [
        ((action == "set") != (arguments.days is not None), "set takes --days, nothing else does"),
        (action != "set" and arguments.counts, "--counts is for set"),
        (action == "set" and arguments.days == 0, "to keep nothing: mountfs trash off DIR"),
        (action != "off" and arguments.inherit, "--inherit is for off"),
        (action != "empty" and arguments.older_than is not None, "--older-than is for empty"),
        (action != "list" and arguments.all, "--all is for list"),
        (action in ("get", "list") and arguments.dry_run, f"{action} changes nothing anyway"),
    ]
    for is_wrong, told in wrong:
        if is_wrong:
            arguments.parser.error(told)


# -- what holds


def _set(arguments: argparse.Namespace, asking: Asking) -> int:
    wanted: dict[str, Any] = {"days": arguments.days, "counts": arguments.counts != "no"}
    if arguments.action == "off":
        wanted = {"days": None if arguments.inherit else 0}
    if arguments.dry_run:
        now = asking("trash_get")
        return _would(arguments, f"set for {arguments.path}: {_wanted(wanted)}; now {_said(now)}")
    if not asking.as_owner and os.geteuid() != 0:
        raise FsError(
            Fault.NOT_PERMITTED, "the trash of a tree is set by root, or by who owns the mount"
        )
    said = asking("trash_set", **wanted)
    if arguments.json:
        show.print_json(_shown(said))
    else:
        print(f"{show.name(arguments.path)}: {_said(said)}")
    return show.EXIT_OK


def _get(arguments: argparse.Namespace, asking: Asking) -> int:
    said = asking("trash_get")
    count = bytes = uncounted = 0
    for one in asking.entries():
        count += 1
        bytes += one["allocated"]
        uncounted += 0 if one["counted"] else one["allocated"]
    if arguments.json:
        use = {"entries": count, "bytes": bytes, "uncounted_bytes": uncounted}
        show.print_json({**_shown(said), **use})
        return show.EXIT_OK
    rows = [("what holds", _said(said))]
    if said["said_by"]:
        rows.append(("said by", show.name(os.fsdecode(bytes_of(said["said_by"])))))
    whose = "in the trash below it" if asking.as_owner else "of yours in the trash below it"
    entries = f"{things(count)}, {show.size(bytes)}"
    if uncounted:
        entries += f", of which {show.size(uncounted)} count for no quota"
    rows.append((whose, entries))
    show.out().print(show.facts(rows, show.name(arguments.path)))
    return show.EXIT_OK


def bytes_of(text: str) -> bytes:
    return bytes.fromhex(text)


def _shown(said: dict[str, Any]) -> dict[str, Any]:
    said_by = said["said_by"]
    path = os.fsdecode(bytes_of(said_by)) if said_by else None
    return {**said, "said_by": None if path is None else show.name(path)}


def _said(said: dict[str, Any]) -> str:
    if not said["days"]:
        return "what is deleted is gone"
    counts = "counts" if said["counts"] else "does not count"
    kept = show.count_of(said["days"], "day")
    return f"what is deleted is kept for {kept}, and {counts} for quotas"


def _wanted(wanted: dict[str, Any]) -> str:
    return "what is said further up" if wanted["days"] is None else _said(wanted)


# -- what there is


def _list(arguments: argparse.Namespace, asking: Asking) -> int:
    found = Listing(asking)
    if arguments.json:
        for one in found.entries:
            show.print_json_line(found.told(one))
        return show.EXIT_OK
    if not found.entries:
        whose = "nothing" if asking.as_owner else "nothing of yours"
        print(f"{whose} is in the trash below {show.name(arguments.path)}")
        return show.EXIT_OK
    table = Table(box=None, padding=(0, 2))
    for heading in ("deleted", "by", "size", "until", "what"):
        table.add_column(heading, justify="right" if heading == "size" else "left", no_wrap=True)
    for one in found.entries if arguments.all else found.tops():
        size, within = found.with_what_is_in_it(one)
        what = show.name(found.path(one)) + ("/" if stat.S_ISDIR(one["mode"]) else "")
        if within and not arguments.all:
            what += f"  ({within:,} in it)"
        row = (when(one["time_ns"]), user(one["by"]), show.size(size), when(one["until_ns"]), what)
        table.add_row(*row)
    show.out().print(table, soft_wrap=True)
    return show.EXIT_OK


class Listing:
    """All that is in the trash below a directory."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking
        self.entries = sorted(asking.entries(), key=lambda one: int(one["order"]))
        self._by_ino = {one["ino"]: one for one in self.entries}
        self._paths: dict[int, str | None] = {}
        self._below: dict[int, tuple[int, int]] = {}
        for one in self.entries:
            above = self._by_ino.get(one["directory"])
            while above is not None:
                size, count = self._below.get(above["ino"], (0, 0))
                self._below[above["ino"]] = size + one["size"], count + 1
                above = self._by_ino.get(above["directory"])

    def tops(self) -> list[dict[str, Any]]:
        """Those that were not in a directory that is in the trash too."""
        return [one for one in self.entries if one["directory"] not in self._by_ino]

    def with_what_is_in_it(self, entry: dict[str, Any]) -> tuple[int, int]:
        """(bytes, how many there are in it)"""
        size, count = self._below.get(entry["ino"], (0, 0))
        return size + (0 if stat.S_ISDIR(entry["mode"]) else entry["size"]), count

    def path(self, entry: dict[str, Any]) -> str:
        """Where it was, as its directories are called now."""
        above = self._by_ino.get(entry["directory"])
        if above is not None:
            return os.path.join(self.path(above), name_of(entry))
        number = entry["directory"]
        if number not in self._paths:
            said = self._asking("trash_path", directory=number, name=entry["name"])["path"]
            self._paths[number] = None if said is None else os.fsdecode(bytes_of(said))
        below = self._paths[number]
        if below is None:
            return f"(directory inode {number})/{name_of(entry)}"
        return os.path.normpath(os.path.join(self._asking.path, below, name_of(entry)))

    def told(self, entry: dict[str, Any]) -> dict[str, Any]:
        return {
            "path": show.name(self.path(entry)),
            "type": "directory" if stat.S_ISDIR(entry["mode"]) else "file",
            "inode": entry["ino"],
            "size": entry["size"],
            "allocated": entry["allocated"],
            "owner": entry["uid"],
            "deleted": when(entry["time_ns"]),
            "deleted_by": entry["by"],
            "until": when(entry["until_ns"]),
            "run": entry["run"],
            "counted": entry["counted"],
            "directory_deleted": entry["directory"] in self._by_ino,
        }


# -- what is removed


def _empty(arguments: argparse.Namespace, asking: Asking) -> int:
    before = time.time_ns()
    if arguments.older_than is not None:
        before -= int(arguments.older_than * DAY_NS)
    doomed, size = [], 0
    for one in asking.entries():
        if one["time_ns"] <= before:
            doomed.append((one["order"], one["until_ns"]))
            size += one["allocated"]
    what = f"{things(len(doomed))}, {show.size(size)}"
    if arguments.dry_run:
        return _would(arguments, f"remove for good from the trash: {what}", entries=len(doomed))
    removed = 0
    doomed.sort()  # what was deleted in a directory goes before it
    places = [(until, order) for order, until in doomed]
    for at in range(0, len(places), BATCH):
        removed += asking("trash_empty", entries=places[at : at + BATCH])["removed"]
    kept = len(doomed) - removed
    if arguments.json:
        show.print_json({"removed": removed, "kept": kept, "bytes": size})
        return show.EXIT_OK
    print(f"removed for good: {removed:,} of {what}")
    if kept:
        print(
            f"{kept:,} are gone already, or are directories in which something was deleted that is "
            "kept longer, or is another user's"
        )
    return show.EXIT_OK


def _would(arguments: argparse.Namespace, what: str, **more: Any) -> int:
    if arguments.json:
        show.print_json({"dry_run": True, "would": what, **more})
    else:
        print(f"would {what}")
    return show.EXIT_OK
