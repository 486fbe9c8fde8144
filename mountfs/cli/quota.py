"""mountfs quota: how much a directory with all below it, a user or a group may have."""

import argparse
import grp
import os
import pwd
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from mountfs.cli import show
from mountfs.cli.info import locate, moment
from mountfs.cli.places import Place, mount_table, mounts_in
from mountfs.cli.quota_check import Difference, count
from mountfs.errors import Fault, FsError
from mountfs.fuse.options import parse_size
from mountfs.meta.quota import Kind
from mountfs.vfs import control

SUMMARY = "how much a directory, a user or a group may have"
DESCRIPTION = """\
Show, set and take away quotas: of a directory with all that is below it, of a user, of a group.
Bytes count as the space they take, in blocks of 4 KiB; files and directories count one each.
A hard limit is never passed.  A soft limit may be passed for the time of grace.  Nobody is exempt,
root neither.  Who would pass a limit gets EDQUOT ("Disk quota exceeded").
"""
EPILOG = """\
examples:
  mountfs quota set /mnt/data/project --bytes 10GiB --inodes 1000000
  mountfs quota set /mnt/data/project --soft-bytes 8GiB --grace 3d
  mountfs quota set /mnt/data --user alice --bytes 50GiB
  mountfs quota get /mnt/data/project          limits, and what is there
  mountfs quota list /mnt/data                 all quotas of a filesystem
  mountfs quota set /mnt/data/project --inodes none    this limit no more
  mountfs quota delete /mnt/data --group staff
  mountfs quota check /mnt/data/project        count anew what is there, and compare

PATH is the directory that the quota is for; with --user or --group it is any path in the mount, and
can be left out where there is one mount only.  Limits that `set` does not name stay as they are.
What `check` finds it does not change: on a sound filesystem it finds nothing (see: mountfs fsck).

exit status: 0 done, nothing differs; 1 failed, or something differs; 2 wrong call
"""

_ACTIONS = ("set", "get", "list", "delete", "check")
_LIMITS = ("hard_bytes", "soft_bytes", "hard_inodes", "soft_inodes", "grace_s")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=_ACTIONS)
    parser.add_argument("path", nargs="?", metavar="PATH")
    whose = parser.add_mutually_exclusive_group()
    whose.add_argument("--user", metavar="USER", help="the quota of a user: name or number")
    whose.add_argument("--group", metavar="GROUP", help="the quota of a group: name or number")
    size = _or_none(parse_size)
    number = _or_none(int)
    parser.add_argument(
        "--bytes", dest="hard_bytes", type=size, metavar="SIZE", help="hard limit: 10GiB; or: none"
    )
    parser.add_argument(
        "--soft-bytes", dest="soft_bytes", type=size, metavar="SIZE", help="soft limit"
    )
    parser.add_argument(
        "--inodes", dest="hard_inodes", type=number, metavar="N",
        help="hard limit of files and directories; or: none",
    )  # fmt: skip
    parser.add_argument(
        "--soft-inodes", dest="soft_inodes", type=number, metavar="N", help="soft limit of them"
    )
    parser.add_argument(
        "--grace", dest="grace_s", type=_seconds, metavar="TIME",
        help="how long soft limits may be passed: 7d (the default), 12h, 0",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="JSON")


def run(arguments: argparse.Namespace) -> int:
    limits = {name: getattr(arguments, name) for name in _LIMITS}
    limits = {name: value for name, value in limits.items() if value is not None}
    of_owner = arguments.user is not None or arguments.group is not None
    if (arguments.action == "set") != bool(limits):
        arguments.parser.error("set takes limits, such as --bytes 10GiB; the others take none")
    if arguments.action in ("list", "check") and of_owner:
        arguments.parser.error(f"{arguments.action} takes a path only")
    if arguments.path is None and not of_owner and arguments.action != "list":
        arguments.parser.error(f"{arguments.action} takes a path, --user or --group")
    place, ino = _place(arguments.path)
    if arguments.action == "list":
        return _list(arguments, place)
    if arguments.action == "check":
        return _check(arguments, place, ino)
    kind, number = _whose(arguments, ino)
    asked: dict[str, Any] = {"kind": kind.name.lower(), "number": number}
    found = control.ask(place.control, f"quota_{arguments.action}", **asked, **limits)
    if arguments.json:
        show.print_json(found)
    elif arguments.action == "delete":
        print(f"{_name(kind, number, arguments.path or '')} has no quota any more")
    else:
        show.out().print(show.facts(_facts(found), _name(kind, number, arguments.path or "")))
    return show.EXIT_OK


# -- what is meant


def _place(path: str | None) -> tuple[Place, int]:
    """The mount, and the inode that was named in it; 0: none was."""
    if path is not None:
        return locate(path, mount_table())
    places = mounts_in(mount_table())
    if len(places) != 1:
        where = ", ".join(str(place.mountpoint) for place in places) or "nowhere"
        raise FsError(
            Fault.INVALID, f"mountfs is mounted at: {where}; say which one is meant, as PATH"
        )
    return places[0], 0


def _whose(arguments: argparse.Namespace, ino: int) -> tuple[Kind, int]:
    if arguments.user is not None:
        return Kind.USER, _number_of(arguments.user, lambda name: pwd.getpwnam(name).pw_uid)
    if arguments.group is not None:
        return Kind.GROUP, _number_of(arguments.group, lambda name: grp.getgrnam(name).gr_gid)
    if os.path.islink(arguments.path) or not os.path.isdir(arguments.path):
        raise FsError(Fault.NOT_DIRECTORY, f"{arguments.path} is not a directory")
    return Kind.TREE, ino


def _number_of(name: str, known: Callable[[str], int]) -> int:
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return known(name)
    except KeyError:
        raise FsError(
            Fault.NOT_FOUND, f"this machine knows nobody called {name}; give the number"
        ) from None


def _or_none(parse: Callable[[str], int]) -> Callable[[str], int]:
    def parsed(text: str) -> int:
        return 0 if text == "none" else parse(text)

    parsed.__name__ = "limit"  # argparse says: invalid limit value
    return parsed


def _seconds(text: str) -> int:
    """
    >>> _seconds("90"), _seconds("2h"), _seconds("7d")
    (90, 7200, 604800)
    """
    match = re.fullmatch(r"(\d+)([smhdw]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: 7d, 12h, 30m, 90s or 0")
    return int(match[1]) * _SECONDS[match[2] or "s"]


# -- how it is shown


def _name(kind: Kind, number: int, path: str) -> str:
    if kind is Kind.TREE:
        return show.name(path) if path else f"directory inode {number}"
    known: Callable[[int], Any] = pwd.getpwuid if kind is Kind.USER else grp.getgrgid
    try:
        return f"{kind.name.lower()} {known(number)[0]} ({number})"
    except KeyError:
        return f"{kind.name.lower()} {number}"


def _facts(quota: dict[str, Any]) -> list[tuple[str, str]]:
    limits = quota["limits"]
    rows = [("bytes", _amounts(quota, "bytes", show.size))]
    rows.append(("files and directories", _amounts(quota, "inodes", "{:,}".format)))
    if limits is None:
        return [*rows, ("quota", "none")]
    if limits["soft_bytes"] or limits["soft_inodes"]:
        rows.append(("grace", show.duration(limits["grace_s"] * 1e9)))
    for what in ("bytes", "inodes"):
        if since := limits[f"{what}_since_ns"]:
            ends = moment(since + limits["grace_s"] * 1_000_000_000)
            rows.append((f"over the soft limit of {what}", f"since {moment(since)}, until {ends}"))
    return rows


def _amounts(quota: dict[str, Any], what: str, shown: Callable[[int], str]) -> str:
    limits = quota["limits"] or {}
    parts = [shown(quota[what])]
    for word in ("soft", "hard"):
        if limit := limits.get(f"{word}_{what}"):
            parts.append(f"{word} limit {shown(limit)} ({quota[what] / limit:.0%})")
    return ", ".join(parts)


def _list(arguments: argparse.Namespace, place: Place) -> int:
    quotas: list[dict[str, Any]] = []
    while True:
        kind = number = 0
        if quotas:
            kind, number = int(Kind[quotas[-1]["kind"].upper()]), quotas[-1]["number"]
        some = control.ask(place.control, "quota_list", after_kind=kind, after_number=number)
        if not some:
            break
        quotas += some
    if arguments.json:
        show.print_json(quotas)
        return show.EXIT_OK
    if not quotas:
        print("there are no quotas")
        return show.EXIT_OK
    table = Table(box=None, padding=(0, 2))
    for heading in ("of", "bytes", "soft", "hard", "inodes", "soft", "hard"):
        table.add_column(heading, justify="left" if heading == "of" else "right", no_wrap=True)
    for quota in quotas:
        limits, path = quota["limits"], quota.get("path", "")
        mounted = str(place.mountpoint or "").rstrip("/") + path if path else ""
        table.add_row(
            _name(Kind[quota["kind"].upper()], quota["number"], mounted),
            show.size(quota["bytes"]),
            *(show.size(limits[name]) if limits[name] else "-" for name in _LIMITS[:2][::-1]),
            f"{quota['inodes']:,}",
            *(f"{limits[name]:,}" if limits[name] else "-" for name in _LIMITS[2:4][::-1]),
        )
    show.out().print(table)
    return show.EXIT_OK


def _check(arguments: argparse.Namespace, place: Place, ino: int) -> int:
    found, differences = count(Path(place.control), ino)
    if arguments.json:
        show.print_json(
            {
                "bytes": found.bytes,
                "files": found.files,
                "directories": found.directories,
                "differences": [one.told() for one in differences],
            }
        )
    else:
        below = f"{show.size(found.bytes)}, {show.count_of(found.files, 'file')}"
        print(f"below {show.name(arguments.path)}: {below}, {found.directories:,} directories")
        for one in differences:
            print(_difference(one))
        if not differences:
            print("that is what is counted")
    return show.EXIT_FAILED if differences else show.EXIT_OK


def _difference(one: Difference) -> str:
    whose = "below it" if one.kind is None else _name(one.kind, one.number, "")
    return f"{whose}: {one.found:,} {one.what}, but {one.counted:,} are counted"
