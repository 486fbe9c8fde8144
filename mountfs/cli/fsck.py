"""mountfs fsck: is everything in a home as it was written, and does it fit together?"""

import argparse
import contextlib
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from mountfs.cli import show
from mountfs.cli.examine import Examination, Finding, Step, examine
from mountfs.cli.places import default_home, mount_above
from mountfs.cli.repair import plan, repair
from mountfs.errors import Fault, FsError, disk_error
from mountfs.vfs.home import holder_of, read_format

SUMMARY = "check a home: metadata, and every checksum; repair it if told to"
DESCRIPTION = """\
Read everything in a home that is not mounted, and say what is not as it should be: tables and log
of the metadata, the rules that files and directories obey, every byte in the volumes, and whether
each file has its bytes.  What is damaged is named by its path in the mount.

Nothing is changed without --repair; temporary files go to TMPDIR.  With --repair it is said what
will be done, and done is only what loses nothing.  Bytes that are lost stay as they are: reading
them is an error.  --drop-damaged gives them up: they read as zeros from then on.
"""
EPILOG = """\
examples:
  mountfs fsck                        check the default home
  mountfs fsck /srv/home              check this one
  mountfs fsck /srv/home --repair     put right what can be put right
  mountfs fsck /srv/home --repair --drop-damaged
                                      and put zeros where bytes of files are lost
  mountfs fsck /srv/home --json | jq -r '.findings[].file'

Before any --repair: copy the home as it is, and look for the damaged files in your backups.

exit status, as of fsck(8), added up:
  0 clean   1 repaired   4 errors are left   8 could not be checked   16 wrong call
  130 interrupted; what was repaired until then is good
"""

EXIT_CLEAN = 0
EXIT_REPAIRED = 1
EXIT_ERRORS_LEFT = 4
EXIT_COULD_NOT = 8
EXIT_USAGE = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("home", nargs="?", metavar="HOME", help="default: the default home")
    parser.add_argument("--repair", action="store_true", help="put right what loses nothing")
    parser.add_argument(
        "--drop-damaged",
        action="store_true",
        help="with --repair: give up lost bytes of files; they read as zeros",
    )
    parser.add_argument("--json", action="store_true", help="a JSON object")


def run(arguments: argparse.Namespace) -> int:
    if arguments.drop_damaged and not arguments.repair:
        raise FsError(Fault.INVALID, "--drop-damaged changes files: it needs --repair beside it")
    home = home_named(arguments.home)
    with _alone(home):
        found = _examined(home)
    if not arguments.json:
        print_findings(found)
    if not arguments.repair:
        if arguments.json:
            show.print_json(as_json(found, [], None))
        else:
            print_verdict(found, repaired=None)
        return EXIT_ERRORS_LEFT if found.errors else EXIT_CLEAN
    return _repair(arguments, found)


def _repair(arguments: argparse.Namespace, found: Examination) -> int:
    steps = plan(found, drop_damaged=arguments.drop_damaged)
    if not arguments.json:
        print_plan(found, steps)
    after = found
    if steps:
        say: Callable[[str], None] = (lambda _: None) if arguments.json else _say
        repair(found, drop_damaged=arguments.drop_damaged, say=say)
        with _alone(found.home):
            after = _examined(found.home)
    if arguments.json:
        show.print_json(as_json(found, steps, after))
    elif steps:
        print("\nAfter the repair:")
        print_findings(after)
        print_verdict(after, repaired=True)
    else:
        print_verdict(after, repaired=False)
    done = EXIT_REPAIRED if steps else EXIT_CLEAN
    return done | (EXIT_ERRORS_LEFT if after.errors else 0)


def home_named(name: str | None) -> Path:
    """The home to check.  A mount point will not do: what is mounted is in use."""
    home = Path(os.path.abspath(name)) if name is not None else default_home()
    mount = mount_above(str(home))
    if mount is not None:
        raise FsError(
            Fault.BUSY,
            f"{mount.mountpoint} is mounted from {mount.home}: unmount it first "
            f"(umount {mount.mountpoint}), then: mountfs fsck {mount.home}",
        )
    return home


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Nobody else opens the home meanwhile.  Writes nothing, so that a copy on a read-only disk can
    be checked.  Raises BUSY with who has it.
    """
    read_format(home).require_metadata(home)
    try:
        fd = os.open(home / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield  # a copy without it
        return
    except OSError as error:
        raise disk_error(error, f"{home}/lock") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(home) from None
        yield
    finally:
        os.close(fd)


def _busy(home: Path) -> FsError:
    holder = holder_of(home)
    if holder is None:
        return FsError(Fault.BUSY, f"{home} is in use by another process; try again")
    if holder.mountpoint:
        return FsError(
            Fault.BUSY,
            f"{home} is mounted at {holder.mountpoint} by process {holder.pid}: "
            f"unmount it first: umount {holder.mountpoint}",
        )
    return FsError(Fault.BUSY, f"{home} is in use by process {holder.pid}: wait for it to end")


def _examined(home: Path) -> Examination:
    format = read_format(home)
    with _progress() as step:
        try:
            return examine(home, format, step)
        except OSError as error:
            raise disk_error(error, f"{error.filename or home}") from error


@contextlib.contextmanager
def _progress() -> Iterator[Step]:
    console = show.err()
    columns = (
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    )  # fmt: skip
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("opening", total=None)

        def step(what: str, done: int, total: int | None) -> None:
            progress.update(task, description=what, completed=done, total=total)

        yield step


# -- telling


def lines(finding: Finding) -> Iterator[str]:
    """A finding for people: the file first, if it is about one."""
    head = show.name(finding.file) if finding.file else finding.where
    yield f"{finding.level}: {head}: {finding.what}" if head else f"{finding.level}: {finding.what}"
    if finding.ranges:
        shown = ", ".join(f"{start:,} to {stop:,}" for start, stop in finding.ranges[:8])
        more = f" and {len(finding.ranges) - 8} more ranges" if len(finding.ranges) > 8 else ""
        yield f"       lost are bytes {shown}{more}"
    if finding.file and finding.where:
        yield f"       in {finding.where}"


def print_findings(found: Examination) -> None:
    for finding in (*found.errors, *found.notes):
        for line in lines(finding):
            print(line)


def print_plan(found: Examination, steps: list[str]) -> None:
    if steps:
        print(f"\n--repair of {found.home} will:")
    for step in steps:
        print(f"  - {step}")
    sys.stdout.flush()


def print_verdict(found: Examination, *, repaired: bool | None) -> None:
    checked = f"{found.needles:,} needles with {show.size(found.needle_bytes)}"
    if found.metadata_read:
        checked = f"{found.inodes:,} inodes, {checked}"
    errors = show.count_of(len(found.errors), "error")
    print(f"{found.home}: {checked}: {errors if found.errors else 'clean'}")
    if not found.errors:
        return
    for line in advice(found, repaired=repaired):
        print(line)


def advice(found: Examination, *, repaired: bool | None) -> Iterator[str]:
    """The next steps.  `repaired`: whether --repair did something; None: it was not asked for."""
    if not found.metadata_opened:
        yield "next: restore the home from a backup; what is in its volumes has no names without it"
        return
    if not found.metadata_read:
        yield "next: restore the home from a backup, or mount it with -o ro and copy what it gives"
        return
    if found.lost:
        yield "next: restore the files named above from a backup, or give the lost bytes up with:"
        yield f"      mountfs fsck {found.home} --repair --drop-damaged"
    elif repaired is None and plan(found, drop_damaged=False):
        yield f"next: copy the home, then: mountfs fsck {found.home} --repair"
    else:
        yield "next: these are not repaired automatically; copy the files out, and restore the rest"


def as_json(found: Examination, steps: list[str], after: Examination | None) -> dict[str, Any]:
    """`after`: a second look, when something was repaired."""
    last = after if after is not None else found
    return {
        "home": str(found.home),
        "clean": not last.errors,
        "inodes": last.inodes,
        "needles": last.needles,
        "needle_bytes": last.needle_bytes,
        "findings": msgspec.to_builtins(found.findings),
        "repairs": steps,
        "left": msgspec.to_builtins(last.findings) if after is not None else None,
    }


def _say(what: str) -> None:
    print(f"  {what}", flush=True)
