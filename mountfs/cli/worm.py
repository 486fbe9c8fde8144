"""mountfs worm: retention, which keeps files as they are until a time that is set."""

import argparse
import os
import sys
from collections.abc import Iterator
from typing import Any, Final

from mountfs.cli import show
from mountfs.cli.info import locate
from mountfs.cli.places import mount_table
from mountfs.errors import Fault, FsError
from mountfs.meta.retention import moment as written
from mountfs.vfs import control
from mountfs.vfs.retention_words import duration, in_words, moment

SUMMARY = "retention: keep files as they are until a time that is set (WORM)"
DESCRIPTION = """\
Show or set retention.  A file that is retained can be read, and nothing else: nobody writes to it,
truncates, renames, links or removes it, or changes its owner, mode, times or attributes, through
any mount or door, and the directories above it keep their names.

  governance   who owns the mount can make it shorter again, with --bypass-governance
  compliance   nobody can; it can only be made longer
  legal hold   holds until it is taken away, whatever else is said

Times are ISO 8601 (2027-01-31, 2027-01-31T12:00:00Z; UTC unless a zone is named); durations are a
number and one of s, min, h, d, w, y.
"""
EPILOG = """\
examples:
  mountfs worm get /mnt/data/contract.pdf
  mountfs worm set /mnt/data/contract.pdf --mode governance --for 30d
  mountfs worm set /mnt/data/contract.pdf --mode compliance --until 2036-12-31   (asks: no way back)
  mountfs worm set /mnt/data/contract.pdf --mode none --bypass-governance
  mountfs worm hold /mnt/data/contract.pdf on
  mountfs worm list /mnt/data                       all that is retained below
  mountfs worm default /mnt/data/archive            what files that are written there get
  mountfs worm default /mnt/data/archive --mode compliance --for 10y --idle 1h --yes
  mountfs worm default /mnt/data/inbox --mode governance --for 1y --idle 10min --only-idle
  mountfs worm default /mnt/data/archive --mode none

With a default, a file is retained when it is closed after writing.  Programs that write a temporary
file and rename it then fail, for it is retained under its first name: let them write in place
(rsync --inplace), or use --only-idle, and a file is retained when nothing has changed for that
long.  Files that are there when a default is set are left alone until they are written.

A dry run shows what would be done:  --dry-run
What it protects from, and what it does not: docs/worm.md

exit status: 0 done; 1 refused or failed; 2 wrong call
"""

ANSWER_S: Final = 30.0
IDLE: Final = "1h"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["get", "set", "hold", "list", "default"])
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("state", nargs="?", choices=["on", "off"], help="of a legal hold")
    parser.add_argument("--mode", choices=["governance", "compliance", "none"])
    parser.add_argument("--until", metavar="TIME", help="the last moment of it")
    parser.add_argument("--for", dest="duration", metavar="DURATION", help="from now on")
    parser.add_argument(
        "--bypass-governance", action="store_true", help="make governance shorter, or end it"
    )
    parser.add_argument(
        "--idle",
        metavar="DURATION",
        help=f"default: retain what was written and not closed after so long ({IDLE}; 0s: never)",
    )
    parser.add_argument(
        "--only-idle", action="store_true", help="default: not when a file is closed"
    )
    parser.add_argument("-r", "--recursive", action="store_true", help="set: all files below")
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would be done")
    parser.add_argument("--yes", action="store_true", help="do not ask before compliance")
    parser.add_argument("--json", action="store_true", help="a JSON object; list: one a line")


def run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    if arguments.action == "list":
        return _list(arguments)
    if arguments.action == "default" and arguments.mode:
        return _set_default(arguments)
    if arguments.action == "default":
        said = _ask(arguments.path, "worm_default")
        return _show(arguments, said, _default_in_words(said))
    if arguments.action == "set":
        return _set(arguments)
    if arguments.action == "hold":
        if arguments.dry_run:
            return _would(arguments, f"put a legal hold {arguments.state}: {arguments.path}")
        said = _ask(arguments.path, "worm_hold", on=arguments.state == "on")
        return _show(arguments, said, _in_words(said))
    said = _ask(arguments.path, "worm_get")
    return _show(arguments, said, _in_words(said))


def _check(arguments: argparse.Namespace) -> None:
    action, mode = arguments.action, arguments.mode
    timed = arguments.until or arguments.duration
    is_default, sets = action == "default", action in ("set", "default")
    wrong = [
        ((action == "hold") != (arguments.state is not None), "hold takes a path and on or off"),
        (not sets and (mode or timed), "--mode, --until and --for are for set and default"),
        (action == "set" and not mode, "set needs --mode governance, compliance or none"),
        (not mode and timed, "a time needs --mode"),
        (mode == "none" and timed, "with --mode none there is no time"),
        (arguments.until and arguments.duration, "either --until or --for"),
        (is_default and arguments.until, "a default is --for so long, from when it is given"),
        (is_default and mode not in (None, "none") and not timed, "a default needs --for"),
        (
            not is_default and (arguments.idle or arguments.only_idle),
            "--idle and --only-idle are for default",
        ),
        (
            action != "set" and (arguments.bypass_governance or arguments.recursive),
            "--bypass-governance and --recursive are for set",
        ),
    ]
    for is_wrong, told in wrong:
        if is_wrong:
            arguments.parser.error(told)


# -- what is done


def _set(arguments: argparse.Namespace) -> int:
    until_ns = moment(arguments.until) if arguments.until else 0
    duration_ns = duration(arguments.duration) if arguments.duration else 0
    paths = list(_files(arguments.path)) if arguments.recursive else [arguments.path]
    what = f"{arguments.mode}{_time_in_words(arguments)}: {show.count_of(len(paths), 'file')}"
    if arguments.dry_run:
        return _would(arguments, f"set {what}")
    if arguments.mode == "compliance" and not _is_sure(arguments, what):
        return show.EXIT_FAILED
    said: dict[str, Any] = {}
    for path in paths:
        said = _ask(
            path, "worm_set", mode=arguments.mode, until_ns=until_ns, duration_ns=duration_ns,
            bypass=arguments.bypass_governance,
        )  # fmt: skip
    if arguments.recursive:
        return _show(arguments, {"files": len(paths)}, what)
    return _show(arguments, said, _in_words(said))


def _set_default(arguments: argparse.Namespace) -> int:
    idle = arguments.idle or ("0s" if arguments.mode == "none" else IDLE)
    wanted = {
        "mode": arguments.mode,
        "duration_ns": duration(arguments.duration) if arguments.duration else 0,
        "idle_ns": duration(idle),
        "at_close": not arguments.only_idle,
    }
    what = _default_in_words({**wanted, "directory": None})
    if arguments.dry_run:
        return _would(arguments, f"set for what is written below {arguments.path}: {what}")
    if arguments.mode == "compliance" and not _is_sure(arguments, what):
        return show.EXIT_FAILED
    said = _ask(arguments.path, "worm_set_default", **wanted)
    return _show(arguments, said, what)


def _is_sure(arguments: argparse.Namespace, what: str) -> bool:
    if arguments.yes:
        return True
    if not sys.stdin.isatty():
        raise FsError(
            Fault.INVALID,
            "compliance cannot be undone by anybody: say --yes if it is meant, or look with "
            "--dry-run first",
        )
    print(f"{what}\nNobody can undo compliance before its time.  Type  yes  to go on: ", end="")
    return input().strip() == "yes"


def _list(arguments: argparse.Namespace) -> int:
    if not os.path.isdir(arguments.path) or os.path.islink(arguments.path):
        raise FsError(Fault.NOT_DIRECTORY, f"{arguments.path} is not a directory")
    place, ino = locate(arguments.path, mount_table())
    count = 0
    for path, one in _retained(place.control, os.fsencode(arguments.path), ino):
        count += 1
        name = os.fsdecode(path)
        if arguments.json:
            show.print_json_line({"path": show.name(name), **_dated(one)})
        else:
            print(f"{show.name(name)}: {_in_words(one)}")
    if not count and not arguments.json:
        print(f"nothing is retained below {show.name(arguments.path)}")
    return show.EXIT_OK


def _retained(control_path: Any, path: bytes, ino: int) -> Iterator[tuple[bytes, dict[str, Any]]]:
    directories = [(path, ino)]
    while directories:
        path, ino = directories.pop()
        after = ""
        while True:
            page = control.ask(control_path, "worm_list", seconds=ANSWER_S, ino=ino, after=after)
            for one in page["found"]:
                below = os.path.join(path, bytes.fromhex(one["name"]))
                if "mode" in one:
                    yield below, one
                else:
                    directories.append((below, one["ino"]))
            after = page["after"]
            if not after:
                break


def _files(path: str) -> Iterator[str]:
    if not os.path.isdir(path) or os.path.islink(path):
        raise FsError(Fault.NOT_DIRECTORY, f"{path} is not a directory")

    def stop(error: OSError) -> None:
        raise error

    for directory, _, names in os.walk(path, onerror=stop):
        for name in names:
            whole = os.path.join(directory, name)
            if os.path.isfile(whole) and not os.path.islink(whole):
                yield whole


# -- what is shown


def _would(arguments: argparse.Namespace, what: str) -> int:
    if arguments.json:
        show.print_json({"dry_run": True, "would": what})
    else:
        print(f"would {what}")
    return show.EXIT_OK


def _show(arguments: argparse.Namespace, said: dict[str, Any], words: str) -> int:
    if arguments.json:
        show.print_json({"path": arguments.path, **_dated(said)})
    else:
        print(words)
    return show.EXIT_OK


def _dated(said: dict[str, Any]) -> dict[str, Any]:
    dated = {key: value for key, value in said.items() if key not in ("name", "now_ns")}
    if said.get("until_ns"):
        dated["until"] = written(said["until_ns"])
    return dated


def _in_words(said: dict[str, Any]) -> str:
    words = []
    if said["mode"] != "none":
        over = "" if said["kept"] else ", which is over"
        words.append(f"{said['mode']} until {written(said['until_ns'])}{over}")
    if said["hold"]:
        words.append("a legal hold")
    return "; ".join(words) or "not retained"


def _time_in_words(arguments: argparse.Namespace) -> str:
    if arguments.until:
        return f" until {written(moment(arguments.until))}"
    return f" for {arguments.duration}" if arguments.duration else ""


def _default_in_words(said: dict[str, Any]) -> str:
    if said["mode"] == "none":
        return "files that are written there are not retained by themselves"
    when = []
    if said["at_close"]:
        when.append("when a file is closed")
    if said["idle_ns"]:
        when.append(f"when it was left alone for {in_words(said['idle_ns'])}")
    whose = f" (by directory {said['directory']})" if said["directory"] else ""
    return f"{said['mode']} for {in_words(said['duration_ns'])}, {' or '.join(when)}{whose}"


def _ask(path: str, question: str, **args: Any) -> dict[str, Any]:
    place, ino = locate(path, mount_table())
    found: dict[str, Any] = control.ask(place.control, question, seconds=ANSWER_S, ino=ino, **args)
    return found
