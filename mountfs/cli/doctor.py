"""mountfs doctor: what is wrong when something hangs or fails, and what to do about it.

Each check looks at one thing and never touches the mount itself, nor the disk of the home, but in a
child process that can be left behind.
"""

import argparse
import contextlib
import os
import platform
import re
import resource
import shutil
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
from rich.table import Table
from rich.text import Text

from mountfs.chunks.volume import BadSuperblock
from mountfs.cli import show
from mountfs.cli.child import NoAnswer, ask_child
from mountfs.cli.examine import metadata_damage
from mountfs.cli.places import Place, looks_like_home, mount_above, mount_table, mounts_in
from mountfs.cli.volumes import VolumeReader, volume_paths
from mountfs.errors import Fault, FsError
from mountfs.types import MIB
from mountfs.vfs import control
from mountfs.vfs.home import Holder, holder_of, read_format

SUMMARY = "what is wrong when something hangs or fails, and what to do"
DESCRIPTION = """\
Check all that a mount needs, one thing after the other: the kernel's FUSE, the mount, its daemon,
the home and its disk.  Works when the mount hangs, when the daemon is gone and when the home is
damaged, and takes a minute at most.  Changes nothing.
"""
EPILOG = """\
examples:
  mountfs doctor /mnt/data       a mount point, mounted or not
  mountfs doctor /srv/home       a home

each line begins with one of
  ok     as it should be
  warn   works, but may not for long, or is worth knowing
  fail   the reason why something does not work; the next step is below it

exit status: 0 nothing fails; 1 something does; 2 wrong call
"""

ANSWER_S = 5.0
"""What does not answer in this time hangs, for a person."""
METADATA_S = 20.0
LOG_LINES = 5
_KERNEL_MIN = (5, 10)
_SPACE_FAIL_BYTES = 128 * MIB
_SPACE_WARN_BYTES = 1024 * MIB
_SPACE_WARN_RATIO = 0.02
_FILES_MIN = 1_024

Level = Literal["ok", "warn", "fail"]


class Finding(msgspec.Struct, frozen=True):
    level: Level
    check: str
    what: str
    next: str = ""
    """What to do, as a sentence or a command."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("place", metavar="DIR", help="a mount point or a home")
    parser.add_argument("--json", action="store_true", help="a JSON array of findings")


def run(arguments: argparse.Namespace) -> int:
    found: list[Finding] = []
    console = show.out()
    for finding in examine(arguments.place):
        found.append(finding)
        if not arguments.json:
            _print(console, finding)
    if arguments.json:
        show.print_json(msgspec.to_builtins(found))
    else:
        _print_summary(console, found)
    failed = any(finding.level == "fail" for finding in found)
    return show.EXIT_FAILED if failed else show.EXIT_OK


def examine(path: str) -> Iterator[Finding]:
    """All checks, in the order in which one depends on the other."""
    yield check_kernel(platform.release())
    yield check_device("/dev/fuse", os.geteuid())
    if os.geteuid() != 0:
        yield check_helper(shutil.which("fusermount3"))
    yield check_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0], _file_numbers())
    place, finding = find_place(path)
    yield finding
    if place is None:
        return
    yield from check_daemon(place)
    if place.mountpoint is not None:
        yield check_mount(place.mountpoint)
        yield from check_connection(place.mountpoint)
    if place.cluster is None:
        yield from check_home(place.home, place.mountpoint is not None)
    else:
        yield check_log(place.home)


# -- the machine


def check_kernel(release: str) -> Finding:
    found = re.match(r"(\d+)\.(\d+)", release)
    if found and (int(found[1]), int(found[2])) < _KERNEL_MIN:
        wanted = ".".join(map(str, _KERNEL_MIN))
        return Finding(
            "warn",
            "kernel",
            f"Linux {release} is older than any that mountfs is tried on",
            f"use Linux {wanted} or newer",
        )
    return Finding("ok", "kernel", f"Linux {release}")


def check_device(path: str, euid: int) -> Finding:
    try:
        mode = os.stat(path).st_mode
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return Finding(
            "fail", "device", f"there is no {path}",
            "modprobe fuse; in a container, start it with --device /dev/fuse --cap-add SYS_ADMIN",
        )  # fmt: skip
    except OSError as error:
        step = "modprobe fuse"
        if isinstance(error, PermissionError):
            step = f"chmod 666 {path}, or in a container --device {path}"
        return Finding("fail", "device", f"{path} cannot be opened: {error.strerror}", step)
    os.close(fd)
    if not stat.S_ISCHR(mode):
        return Finding("fail", "device", f"{path} is not a device", f"rm {path}; modprobe fuse")
    return Finding("ok", "device", f"{path} can be opened" + ("" if euid else " by root"))


def check_helper(program: str | None) -> Finding:
    if program is None:
        return Finding(
            "fail", "fusermount3", "it is missing, and only root can mount without it",
            "apt-get install fuse3, or mount as root",
        )  # fmt: skip
    if not os.stat(program).st_mode & stat.S_ISUID:
        return Finding(
            "fail", "fusermount3", f"{program} is not set-user-ID, so it may not mount",
            f"as root: chmod u+s {program}",
        )  # fmt: skip
    return Finding("ok", "fusermount3", program)


def check_files(limit: int, numbers: tuple[int, int] | None) -> Finding:
    """`numbers`: how many files the machine has open, and may have."""
    if numbers is not None and numbers[0] > numbers[1] * 0.9:
        return Finding(
            "fail", "open files", f"the machine has {numbers[0]:,} of {numbers[1]:,} files open",
            "end what opens so many, or raise it: sysctl fs.file-max",
        )  # fmt: skip
    if limit != resource.RLIM_INFINITY and limit < _FILES_MIN:
        return Finding(
            "warn", "open files", f"a process may open {limit:,} files only",
            f"ulimit -n {_FILES_MIN} before mounting",
        )  # fmt: skip
    of = f", {numbers[0]:,} of {numbers[1]:,} on the machine" if numbers else ""
    return Finding("ok", "open files", f"a process may open {limit:,}{of}")


def _file_numbers() -> tuple[int, int] | None:
    try:
        used, _, maximum = Path("/proc/sys/fs/file-nr").read_text().split()
    except (OSError, ValueError):
        return None
    return int(used), int(maximum)


# -- which mount, which home


def find_place(path: str) -> tuple[Place | None, Finding]:
    """What is meant by `path`.  Never asks a mount of ours; others in a child."""
    try:
        place = ask_child(lambda: _look(path), ANSWER_S)
    except NoAnswer:
        return None, Finding(
            "fail", "place", f"{path} does not answer, and is not a mount of mountfs",
            "another filesystem hangs: see what is there with: findmnt; dmesg",
        )  # fmt: skip
    except OSError as error:
        return None, Finding("fail", "place", f"{path}: {error.strerror}", "check the name")
    if place is None:
        mounted = ", ".join(str(one.mountpoint) for one in mounts_in(mount_table())) or "nothing"
        return None, Finding(
            "fail",
            "place",
            f"{path} is not a mount of mountfs now, nor a home of one; mounted is: {mounted}",
            f"mount.dfs HOME {path}, or name the home: mountfs doctor HOME",
        )
    if place.mountpoint is None:
        return place, Finding("ok", "place", f"{path} is a home, and not mounted in our sight")
    return place, Finding(
        "ok", "place", f"{place.mountpoint} is a mount of {place.cluster or place.home}"
    )


def _look(path: str) -> Place | None:
    mount = mount_above(path)
    if mount is not None:
        return mount
    home = os.path.realpath(path)
    os.stat(home)
    if not looks_like_home(Path(home)):
        return None
    sources = (one for one in mounts_in(mount_table()) if os.path.realpath(one.home) == home)
    return next(sources, Place(Path(home), None))


# -- the daemon


def check_daemon(place: Place) -> Iterator[Finding]:
    """Is somebody there, and does it answer?"""
    try:
        pid, holder = ask_child(lambda: _daemon(place.home), ANSWER_S)
    except NoAnswer:
        yield _stuck_disk(place.home)
        return
    except OSError as error:
        yield Finding(
            "fail", "daemon", f"{place.home}: {error.strerror}",
            "look with the rights of who mounted it (as root: sudo)",
        )  # fmt: skip
        return
    finding = judge_daemon(place, pid, holder, state_of(holder.pid if holder else pid))
    yield finding
    if holder is not None:
        yield check_answer(place)


def judge_daemon(place: Place, pid: int | None, holder: Holder | None, state: str) -> Finding:
    """`holder`: who has the home locked.  `pid`: what HOME/pid says.  `state`: as in proc(5)."""
    if holder is not None:
        if state in ("T", "t"):
            return Finding(
                "fail", "daemon", f"process {holder.pid} is stopped, so the mount waits for it",
                f"kill -CONT {holder.pid}",
            )  # fmt: skip
        if state == "D":
            return Finding(
                "warn", "daemon", f"process {holder.pid} waits for the disk just now",
                "if it stays so, the disk under the home does not answer: dmesg",
            )  # fmt: skip
        return Finding("ok", "daemon", f"process {holder.pid} is running and holds the home")
    if place.mountpoint is not None:
        died = f" (it was process {pid})" if pid else ""
        return Finding(
            "fail", "daemon", f"nobody holds the home: the daemon of the mount is gone{died}",
            "mount again, which clears this away: mount.dfs "
            f"{place.cluster or place.home} {place.mountpoint}",
        )  # fmt: skip
    return Finding("ok", "daemon", "none is running, as the home is not mounted")


def check_answer(place: Place) -> Finding:
    try:
        answer: dict[str, Any] = ask_child(lambda: _status(place.control), ANSWER_S + 2)
    except (NoAnswer, OSError) as error:
        return Finding(
            "fail", "control socket", str(error), _GET_RID.format(mount=place.mountpoint or "it")
        )
    if "error" in answer:
        return Finding(
            "fail",
            "control socket",
            answer["error"],
            f"see {place.home}/log; {_GET_RID.format(mount=place.mountpoint or 'it')}",
        )
    troubles = [f"{work}: {trouble}" for work, trouble in answer.get("troubles", {}).items()]
    if troubles:
        return Finding(
            "fail", "control socket", "the daemon is in trouble: " + "; ".join(troubles),
            "it tries again by itself once the cause is gone; where a volume is named, "
            f"mountfs fsck {place.home} says which files are damaged",
        )  # fmt: skip
    if answer.get("bugs"):
        return Finding(
            "warn", "control socket", f"the daemon met {answer['bugs']} bugs of its own",
            f"report them, with {place.home}/log",
        )  # fmt: skip
    return Finding("ok", "control socket", "the daemon answers, and has no troubles")


_GET_RID = (
    "to get rid of the mount: umount -l {mount}, then kill -TERM the daemon; what was not synced "
    "may be lost"
)


def _daemon(home: Path) -> tuple[int | None, Holder | None]:
    return read_pid(home), holder_of(home)


def read_pid(home: Path) -> int | None:
    try:
        return int((home / "pid").read_text().split()[0])
    except (FileNotFoundError, ValueError, IndexError):
        return None


def state_of(pid: int | None) -> str:
    """R, S, D, T, ... as in proc(5); empty: there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _status(path: Path) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = control.ask(path, "status", seconds=ANSWER_S)
    except FsError as error:
        return {"error": str(error)}
    return answer


# -- the mount


def check_mount(mountpoint: str) -> Finding:
    """Ask the mount two questions, in a child."""
    try:
        ask_child(lambda: (os.stat(mountpoint), os.statvfs(mountpoint), None)[2], ANSWER_S)
    except NoAnswer:
        return Finding(
            "fail", "mount", f"{mountpoint} does not answer within {ANSWER_S:g} s",
            _GET_RID.format(mount=mountpoint),
        )  # fmt: skip
    except PermissionError:
        return Finding(
            "warn", "mount", f"{mountpoint} is the mount of another user, who alone can look in",
            "look as that user, or mount with -o allow_other",
        )  # fmt: skip
    except OSError as error:
        return Finding(
            "fail", "mount", f"{mountpoint}: {error.strerror}",
            "mount again, which clears a dead mount away; see the daemon above",
        )  # fmt: skip
    return Finding("ok", "mount", f"{mountpoint} answers")


def check_connection(mountpoint: str) -> Iterator[Finding]:
    """How many requests wait in the kernel, where that can be seen."""
    minors = [
        info.device.partition(":")[2]
        for info in mount_table()
        if info.ours and info.mountpoint == mountpoint
    ]
    path = Path(f"/sys/fs/fuse/connections/{minors[-1]}/waiting") if minors else None
    try:
        waiting = int(path.read_text()) if path else 0
    except (OSError, ValueError):
        return  # not mounted there, or not ours to look at
    if waiting > 64:
        yield Finding("warn", "requests", f"{waiting:,} requests wait for the daemon")
    else:
        yield Finding("ok", "requests", f"{show.count_of(waiting, 'request')} under way")


# -- the home


def check_home(home: Path, mounted: bool) -> Iterator[Finding]:
    with contextlib.suppress(FsError):  # `check_format` says it
        format = read_format(home)
        try:
            format.require_metadata(home)
        except FsError as error:
            yield Finding("warn", "home", str(error))
            return
    checks: list[Callable[[Path], Finding]] = [check_format, check_parts, check_space, check_log]
    if mounted:
        checks.remove(check_parts)  # its daemon tells of them, and of its volumes
    else:
        checks.append(check_volumes)
    failed = False
    for check in checks:
        try:
            finding = ask_child(partial(check, home), ANSWER_S)
            failed |= finding.level == "fail"
            yield finding
        except NoAnswer:
            yield _stuck_disk(home)
            return
        except OSError as error:
            yield Finding(
                "fail", check.__name__.removeprefix("check_"), f"{home}: {error.strerror}",
                "look with the rights of its owner; dmesg tells of a broken disk",
            )  # fmt: skip
            failed = True
    if not mounted and not failed:
        yield check_metadata(home)


def check_format(home: Path) -> Finding:
    try:
        format = read_format(home)
    except FsError as error:
        step = "" if error.fault is Fault.BAD_HOME else "restore it from a backup"
        return Finding("fail", "format", str(error), step)
    return Finding("ok", "format", f"format {format.format}, filesystem {format.id}")


def check_parts(home: Path) -> Finding:
    """The parts of a home that must not be missing."""
    parts = ("meta/store/CURRENT", "meta/log", "chunks/volumes")
    missing = [part for part in parts if not (home / part).exists()]
    if missing:
        return Finding(
            "fail", "parts", f"missing in {home}: {', '.join(missing)}",
            f"restore them from a backup; mountfs fsck {home} says what else is wrong",
        )  # fmt: skip
    return Finding("ok", "parts", "all there")


def check_volumes(home: Path) -> Finding:
    """Whether each volume can be opened.  Which are missing, the mount and fsck know."""
    bad = []
    paths = volume_paths(home / "chunks" / "volumes")
    for path in paths.values():
        try:
            VolumeReader(path).close()
        except BadSuperblock as error:
            bad.append(f"{path}: {error}")
        except OSError as error:
            bad.append(f"{path}: {error.strerror}")
    if bad:
        return Finding(
            "fail", "volumes", "; ".join(bad),
            f"the rest can be mounted; mountfs fsck {home} says which files are damaged",
        )  # fmt: skip
    return Finding("ok", "volumes", f"{len(paths)} of them, and all can be opened")


def check_metadata(home: Path) -> Finding:
    """Whether the metadata would let itself be opened, as far as can be seen in a short time."""
    try:
        damage = ask_child(partial(_metadata_damage, home), METADATA_S)
    except NoAnswer:
        return Finding(
            "warn", "metadata", f"there is too much to check in {METADATA_S:g} s",
            f"mountfs fsck {home} checks all of it",
        )  # fmt: skip
    except OSError as error:
        return Finding("warn", "metadata", f"not checked: {error.strerror}", f"mountfs fsck {home}")
    if damage:
        return Finding(
            "fail", "metadata", damage,
            f"mountfs fsck {home} says what is lost; restore it from a backup",
        )  # fmt: skip
    return Finding("ok", "metadata", f"its files are sound; all of it: mountfs fsck {home}")


def _metadata_damage(home: Path) -> str | None:
    try:
        if holder_of(home) is not None:
            return None  # somebody is writing it
        return metadata_damage(home, read_format(home))
    except FsError as error:
        return str(error)


def check_space(home: Path) -> Finding:
    found = os.statvfs(home)
    if found.f_flag & os.ST_RDONLY:
        return Finding(
            "fail", "disk", f"the disk of {home} is mounted read-only",
            "dmesg tells whether an error made it so; mount -o remount,rw",
        )  # fmt: skip
    return judge_space(
        home,
        found.f_bavail * found.f_frsize,
        found.f_blocks * found.f_frsize,
        found.f_favail if found.f_files else None,
    )


def judge_space(home: Path, free: int, total: int, inodes: int | None) -> Finding:
    said = f"{show.size(free)} of {show.size(total)} are free under {home}"
    step = "delete files in the mount, or make room beside the home; nothing in it is to delete"
    if free < _SPACE_FAIL_BYTES:
        return Finding("fail", "disk", f"{said}: writers get ENOSPC", step)
    if inodes is not None and inodes < 100:
        return Finding("fail", "disk", f"only {inodes} more files can be made under {home}", step)
    if free < min(_SPACE_WARN_BYTES, total * _SPACE_WARN_RATIO):
        return Finding("warn", "disk", said, step)
    return Finding("ok", "disk", said)


def check_log(home: Path) -> Finding:
    path = home / "log"
    try:
        with open(path, "rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 64 * 1024, 0))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return Finding("ok", "log", f"{path} is not there: it was never mounted in the background")
    return judge_log(path, lines)


def judge_log(path: Path, lines: list[str]) -> Finding:
    bad = [line for line in lines[-200:] if re.search(r" (ERROR|CRITICAL) ", line)]
    if bad:
        shown = "\n".join(bad[-LOG_LINES:])
        return Finding("warn", "log", f"the last errors in {path}:\n{shown}", f"less {path}")
    return Finding("ok", "log", f"no errors lately; {path} ends with:\n" + "\n".join(lines[-2:]))


def _stuck_disk(home: Path) -> Finding:
    return Finding(
        "fail", "disk", f"the disk of {home} does not answer within {ANSWER_S:g} s",
        "nothing above it can work: dmesg; smartctl -a; is it a network filesystem?",
    )  # fmt: skip


# -- for people

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def _print(console: Any, finding: Finding) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(width=4)
    table.add_column(width=14)
    table.add_column(overflow="fold")
    what = Text(finding.what)
    if finding.next:
        what.append(f"\nnext: {finding.next}", style="bold")
    table.add_row(Text(finding.level, style=_STYLES[finding.level]), finding.check, what)
    console.print(table)


def _print_summary(console: Any, found: list[Finding]) -> None:
    failed = [finding for finding in found if finding.level == "fail"]
    warned = sum(finding.level == "warn" for finding in found)
    if failed:
        console.print(
            Text(f"\n{show.count_of(len(failed), 'thing')} to put right, the first first: "
                 f"{failed[0].check}", style="bold red")
        )  # fmt: skip
    elif warned:
        console.print(Text(f"\nIt works, with {show.count_of(warned, 'warning')}."))
    else:
        console.print(Text("\nNothing is wrong that could be seen from outside."))
