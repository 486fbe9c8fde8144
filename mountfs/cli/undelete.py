"""mountfs undelete: have back what was deleted."""

import argparse
import os
import stat
from typing import Any

from mountfs.cli import show
from mountfs.cli.trash_calls import Asking, things, user, when
from mountfs.errors import Fault, FsError
from mountfs.vfs.retention_words import moment

SUMMARY = "have back what was deleted, from the trash of its tree"
DESCRIPTION = """\
Give what was deleted at PATH its name again: what was deleted there last, or the last at or before
a time.  A directory comes back with what was deleted in it by the same rm -rf (all that the same
user deleted without a pause of a minute).  It takes the owner of the file, or root.
"""
EPILOG = """\
examples:
  mountfs undelete /mnt/data/home/thesis.tex
  mountfs undelete /mnt/data/home/thesis.tex --at 2026-11-28T09:30:00Z     an older one
  mountfs undelete /mnt/data/home/thesis.tex --to /mnt/data/home/old.tex   the name is taken
  mountfs undelete /mnt/data/home/project --dry-run                        a tree: what would come
  mountfs undelete /mnt/data/home/project --contents                       after rm -rf project/*

What there is, and since when: mountfs trash list DIR.  Nothing that is there is ever replaced.
More than 1,000 files come back in several steps: where a quota stops that, the rest stays in the
trash.

exit status: 0 done; 1 refused, failed, or not all came back; 2 wrong call
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--at", metavar="TIME", help="what was deleted last at or before that")
    parser.add_argument("--to", metavar="OTHER", help="under another name, or elsewhere")
    parser.add_argument(
        "--contents", action="store_true", help="PATH is there: what was deleted in it last"
    )
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would be done")
    parser.add_argument("--json", action="store_true", help="a JSON object")


def run(arguments: argparse.Namespace) -> int:
    at = moment(arguments.at) if arguments.at else 0
    if not arguments.contents:
        return _undelete(arguments, at)
    if arguments.to:
        arguments.parser.error("--contents come back into the directory itself: no --to")
    asking = Asking(arguments.path)
    run = asking("trash_last_run", at=at)["run"]
    way = [[asking.ino, ""]]
    if arguments.dry_run:
        return _would(arguments, _within(asking, way, run), f"into {arguments.path}")
    return _done(arguments, _all(asking, way, run, _nothing()), f"into {arguments.path}")


def _undelete(arguments: argparse.Namespace, at: int) -> int:
    path = os.path.abspath(arguments.path)
    target = os.path.abspath(arguments.to) if arguments.to else path
    asking, found, names = _find(path, at)
    if found["directory"] != asking.ino and not arguments.to:
        above = os.path.join(asking.path, *names[:-1])
        raise FsError(
            Fault.NOT_FOUND,
            f"{show.name(arguments.path)} was in a directory that is deleted too: undelete "
            f"{show.name(above)}, or name another place with --to",
        )
    if os.path.lexists(target):
        raise FsError(
            Fault.EXISTS, f"{show.name(target)} is there: name another place with --to, or move it"
        )
    what = f"{show.name(target)}: deleted {when(found['time_ns'])} by {user(found['by'])}"
    is_directory = stat.S_ISDIR(found["mode"])
    if arguments.dry_run:
        within = _nothing()
        if is_directory:
            within = _within(asking, [[found["ino"], ""]], found["run"])
        within["directories" if is_directory else "files"] += 1
        within["bytes"] += found["allocated"]
        return _would(arguments, within, what)
    into = Asking(os.path.dirname(target))
    wanted = {name: found[name] for name in ("directory", "name", "order")}
    restored = into("undelete", to_name=os.fsencode(os.path.basename(target)).hex(), **wanted)
    return _done(arguments, _all(into, restored["left"], found["run"], restored), what)


def _find(path: str, at: int) -> tuple[Asking, dict[str, Any], list[str]]:
    """What was deleted at a path: in the nearest directory that is there, or in one above it that
    was deleted since and made anew.
    """
    names: list[str] = []
    directory = path
    missing = FsError(Fault.NOT_FOUND, f"{show.name(path)}: nothing is in the trash")
    while directory != os.path.dirname(directory):
        directory, name = os.path.split(directory)
        names.insert(0, name)
        if not os.path.isdir(directory):
            continue
        try:
            asking = Asking(directory)
        except FsError as error:
            if error.fault is Fault.NOT_FOUND and len(names) > 1:
                break  # above the mount
            raise
        wanted = [os.fsencode(one).hex() for one in names]
        try:
            return asking, asking("trash_find", names=wanted, at=at), names
        except FsError as error:
            if error.fault is not Fault.NOT_FOUND:
                raise
            yours = "" if asking.as_owner else " of yours"
            before = " that was deleted by then" if at else ""
            missing = FsError(
                Fault.NOT_FOUND,
                f"{show.name(path)}: nothing{yours}{before} is in the trash; see what is: mountfs "
                f"trash list {show.name(os.path.dirname(path))}",
            )
    raise missing


def _nothing() -> dict[str, int]:
    return {"files": 0, "directories": 0, "bytes": 0, "skipped": 0}


def _within(asking: Asking, way: Any, run: int) -> dict[str, int]:
    """What would come back besides a directory, or into one.  What is deeper is not there yet, so
    it is asked for directory by directory.
    """
    total = _nothing()
    while way:
        found = asking("trash_within", way=way, run=run)
        for name in total:
            total[name] += found[name]
        way = found["left"]
    return total


def _all(asking: Asking, way: Any, run: int, done: dict[str, Any]) -> dict[str, Any]:
    """Give back what is left, as far as that goes."""
    total = {"restored": 0, "bytes": 0, "skipped": 0, "stopped": ""} | {
        name: done[name] for name in ("restored", "bytes", "skipped") if name in done
    }
    try:
        while way:
            found = asking("undelete_in", way=way, run=run)
            for name in ("restored", "bytes", "skipped"):
                total[name] += found[name]
            way = found["left"]
    except FsError as error:
        total["stopped"] = str(error)
    return total


def _would(arguments: argparse.Namespace, within: dict[str, int], what: str) -> int:
    if arguments.json:
        show.print_json({"dry_run": True, "what": what, **within})
        return show.EXIT_OK
    came = things(within["files"] + within["directories"])
    print(f"would give back {what}\n{came}, {show.size(within['bytes'])}")
    if within["skipped"]:
        print(_skipped(within["skipped"]))
    return show.EXIT_OK


def _done(arguments: argparse.Namespace, total: dict[str, Any], what: str) -> int:
    status = show.EXIT_FAILED if total["stopped"] else show.EXIT_OK
    if arguments.json:
        show.print_json({"what": what, **total})
        return status
    if not total["restored"] and total["stopped"]:
        raise FsError(Fault.INVALID, total["stopped"])
    print(f"given back {what}\n{things(total['restored'])}, {show.size(total['bytes'])}")
    if total["skipped"]:
        print(_skipped(total["skipped"]))
    if total["stopped"]:
        print(
            f"and then: {total['stopped']}\nThe rest is in the trash still: see  mountfs trash list"
            ", and  mountfs undelete DIR --contents  for directories that are not whole"
        )
    return status


def _skipped(number: int) -> str:
    return f"{number:,} stay in the trash: another user's, or their names are taken"
