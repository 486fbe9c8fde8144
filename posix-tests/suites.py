"""The outside suites: for each, how the cases of a built tree are run and how their end is read.

A suite is never part of this repository; the caller names a tree (or a binary) that is built.
Every case gets a fresh scratch directory in the mount (xfstests works in the mount itself).
"""

import itertools
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from verdicts import Check, Result, read_tap


class Unusable(Exception):
    """The tree or the mount cannot be used for this suite.  The text is a sentence for people."""


class Ended(NamedTuple):
    """How a case's process ended.  `status` is as of waitpid: negative for a signal."""

    status: int
    output: str


@dataclass(frozen=True)
class Case:
    """One program to run.  `{scratch}` in arguments and environment stands for its directory."""

    name: str
    command: tuple[str, ...]
    read: Callable[[Ended], list[Check]]
    seconds_max: float
    environment: Mapping[str, str] = field(default_factory=dict)
    skip: str = ""
    """Why it is not run at all, if it is not."""


class Options(NamedTuple):
    tree: Path
    mount: Path
    work: Path
    """A directory outside of the mount, for what a suite writes about itself."""
    seeds: int
    operations: int


class Suite(NamedTuple):
    cases: Callable[[Options], Iterator[Case]]
    parallel: bool
    """Whether cases may run beside each other: they need no more than their scratch directory."""


# pjdfstest: shell scripts that print TAP.


def _pjdfstest(options: Options) -> Iterator[Case]:
    if not os.access(options.tree / "pjdfstest", os.X_OK):
        raise Unusable(f"{options.tree} holds no built pjdfstest: configure and make it first")
    if os.geteuid() != 0:
        raise Unusable("pjdfstest changes users and makes devices: it must run as root")
    for script in sorted((options.tree / "tests").rglob("*.t")):
        name = str(script.relative_to(options.tree / "tests"))
        yield Case(name, ("/bin/sh", str(script)), _end_of_tap, seconds_max=180)


def _end_of_tap(ended: Ended) -> list[Check]:
    checks = read_tap(ended.output)
    if ended.status and not any(check.number == 0 for check in checks):
        checks.insert(0, Check(0, Result.FAILED, f"ended with status {ended.status}"))
    return checks


# fsx and fsstress: one process, one seed, one exit status.

_FSX_OPERATIONS: Final = {
    "fallocate": "F",
    "punch": "H",
    "zero": "z",
    "collapse": "C",
    "insert": "I",
    "clone": "J",
    "dedupe": "B",
    "copy_range": "E",
    "exchange": "0",
    "atomic": "a",
    "unshare": "u",
}
"""What fsx does beside reading, writing, mapping and truncating, and the flag that forbids it."""


class _Variant(NamedTuple):
    name: str
    allowed: frozenset[str]
    flags: tuple[str, ...] = ()


_SMALL = ("-l", "20000", "-o", "6000")
_LARGE = ("-l", "20000000", "-o", "1000000")
_FSX_VARIANTS: Final = (
    _Variant("truncate", frozenset()),
    _Variant("truncate-small", frozenset(), _SMALL),
    _Variant("punch", frozenset({"fallocate", "punch", "zero"})),
    _Variant("copy_range", frozenset({"copy_range"})),
    _Variant("copy_range-small", frozenset({"copy_range", "punch"}), _SMALL),
    _Variant("copy_range-punch-large", frozenset({"copy_range", "punch", "zero"}), _LARGE),
    _Variant("all-reopened", frozenset(_FSX_OPERATIONS), ("-c", "20")),
    _Variant("all-dropped-caches", frozenset(_FSX_OPERATIONS), ("-f",)),
    _Variant("unmapped", frozenset({"punch", "copy_range"}), ("-R", "-W")),
    _Variant("direct", frozenset(), ("-Z", "-R", "-W", "-r", "4096", "-w", "4096", "-t", "4096")),
)


def _fsx(options: Options) -> Iterator[Case]:
    binary = _executable(options.tree, "fsx")
    usage = subprocess.run([binary], capture_output=True, text=True, timeout=10)
    known = set("".join(re.findall(r"\[-(\w+)", usage.stderr + usage.stdout)))
    for variant, seed in itertools.product(_FSX_VARIANTS, range(1, options.seeds + 1)):
        forbidden = [
            f"-{flag}"
            for operation, flag in _FSX_OPERATIONS.items()
            if operation not in variant.allowed and flag in known
        ]
        numbers = ("-N", str(options.operations), "-S", str(seed), "-q")
        command = (binary, *variant.flags, *forbidden, *numbers, "{scratch}/file")
        yield Case(f"{variant.name}/{seed}", command, _end_of_program, seconds_max=600)


def _fsstress(options: Options) -> Iterator[Case]:
    binary = _executable(options.tree, "fsstress")
    for processes, seed in itertools.product((1, 4), range(1, options.seeds + 1)):
        numbers = ("-n", str(options.operations), "-p", str(processes), "-s", str(seed))
        command = (binary, "-d", "{scratch}", *numbers)
        yield Case(f"{processes}-processes/{seed}", command, _end_of_program, seconds_max=600)


def _executable(path: Path, name: str) -> str:
    for candidate in (path, path / name, path / "ltp" / name):
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return str(candidate.resolve())
    raise Unusable(f"{path} is no {name} binary and holds none")


def _end_of_program(ended: Ended) -> list[Check]:
    if ended.status == 0:
        return [Check(1, Result.PASSED)]
    tail = "\n".join(ended.output.splitlines()[-20:])
    return [Check(1, Result.FAILED, f"ended with status {ended.status}:\n{tail}")]


# LTP: the lines of an installed tree's runtest files, each a shell command.

_LTP_SYSCALLS = re.compile(
    r"(access|chdir|chmod|chown|chroot|close|copy_file_range|creat|dup|faccessat|fallocate|fchdir|"
    r"fchmod|fchown|fcntl|fdatasync|fgetxattr|flistxattr|flock|fremovexattr|fsetxattr|fstat|fsync|"
    r"ftruncate|futimesat|getcwd|getdents|getxattr|lchown|lgetxattr|link|listxattr|llistxattr|"
    r"llseek|lremovexattr|lseek|lstat|mkdir|mknod|mmap|msync|munmap|open|pread|pwrite|readahead|"
    r"readdir|readlink|readv|read0|removexattr|rename|rmdir|sendfile|setxattr|splice|stat|symlink|"
    r"sync|tee|truncate|umask|unlink|utime|vmsplice|write|writev)"
)
_LTP_SKIPPED = 32  # TCONF


def _ltp(options: Options) -> Iterator[Case]:
    lists = options.tree / "runtest"
    programs = options.tree / "testcases" / "bin"
    if not lists.is_dir() or not programs.is_dir():
        raise Unusable(f"{options.tree} holds no runtest and testcases/bin: install LTP there")
    environment = {
        "LTPROOT": str(options.tree),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "TMPDIR": "{scratch}",
        "LTP_COLORIZE_OUTPUT": "n",
    }
    for name in ("syscalls", "fs"):
        for line in (lists / name).read_text().splitlines():
            words = line.split(maxsplit=1)
            if len(words) < 2 or line.startswith("#"):
                continue
            if name == "syscalls" and not _LTP_SYSCALLS.match(words[0]):
                continue
            command = ("/bin/sh", "-c", words[1])
            case = f"{name}/{words[0]}"
            yield Case(case, command, _end_of_ltp, seconds_max=600, environment=environment)


def _end_of_ltp(ended: Ended) -> list[Check]:
    if ended.status == _LTP_SKIPPED:
        reason = re.search(r"TCONF\s*:?\s*(.*)", ended.output)
        return [Check(1, Result.SKIPPED, reason[1] if reason else "")]
    return _end_of_program(ended)


# xfstests: one `check` for each generic test, on the mount itself.

_NEEDS_MORE = re.compile(r"_require_scratch|_test_cycle_mount|_test_remount|_test_unmount|dmflakey")


def _xfstests(options: Options) -> Iterator[Case]:
    if not os.access(options.tree / "check", os.X_OK):
        raise Unusable(f"{options.tree} holds no xfstests")
    if not os.access(options.tree / "ltp" / "fsstress", os.X_OK):
        raise Unusable(f"{options.tree} is not built: configure and make it first")
    environment = {"HOST_OPTIONS": str(_xfstests_config(options))}
    tests = (options.tree / "tests" / "generic").glob("[0-9][0-9][0-9]")
    for script in sorted(tests):
        needs = _NEEDS_MORE.search(script.read_text(errors="replace"))
        # cd: the scratch directory is not used, and `check` must start in its own tree.
        command = f"cd '{options.tree}' && exec ./check generic/{script.name}"
        yield Case(
            f"generic/{script.name}",
            ("/bin/bash", "-c", command),
            _end_of_xfstests,
            seconds_max=900,
            environment=environment,
            skip=f"needs a second device or a remount ({needs[0]})" if needs else "",
        )


_DF: Final = """#!/bin/sh
exec df -T -P "$@" | sed 's/ fuse\\.[^ ]* / fuse /'
"""
_LEAVE_MOUNTED: Final = """#!/bin/sh
for word; do case $word in "{source}"|"{mount}") exit 0;; esac; done
exec {program} "$@"
"""


def _xfstests_config(options: Options) -> Path:
    """What `check` is told of the mount.

    It wants every FUSE filesystem to have the type `fuse`, and to unmount and mount between tests,
    which it cannot do for us: so it is given its own `df`, `mount` and `umount`.
    """
    source, kind = _mounted(options.mount)
    if not kind.startswith("fuse"):
        raise Unusable(f"{options.mount} is {kind}, not FUSE: xfstests might format its device")
    programs = {"df": _DF}
    for program in ("mount", "umount"):
        programs[program] = _LEAVE_MOUNTED.format(
            source=source, mount=options.mount, program=program
        )
    for name, text in programs.items():
        (options.work / name).write_text(text)
        (options.work / name).chmod(0o755)
    settings = {
        "FSTYP": "fuse",
        "FUSE_SUBTYP": kind.removeprefix("fuse"),
        "TEST_DEV": source,
        "TEST_DIR": str(options.mount),
        "RESULT_BASE": str(options.work / "results"),
        "DF_PROG": str(options.work / "df"),
        "MOUNT_PROG": str(options.work / "mount"),
        "UMOUNT_PROG": str(options.work / "umount"),
    }
    path = options.work / "config"
    path.write_text("".join(f"export {name}='{value}'\n" for name, value in settings.items()))
    return path


def _mounted(mount: Path) -> tuple[str, str]:
    """Source and type of what is mounted on `mount`."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        words = line.split(" ")
        if words[4] == str(mount):
            kind, source = words[words.index("-") + 1 :][:2]
            return source, kind
    raise Unusable(f"xfstests needs the mount point itself, and {mount} is none")


def _end_of_xfstests(ended: Ended) -> list[Check]:
    if skipped := re.search(r"\[not run\]\s*(.*)", ended.output):
        return [Check(1, Result.SKIPPED, skipped[1])]
    if re.search(r"^Passed all [1-9]", ended.output, re.MULTILINE) and ended.status == 0:
        return [Check(1, Result.PASSED)]
    return _end_of_program(Ended(ended.status or 1, ended.output))


SUITES: Final[Mapping[str, Suite]] = {
    "pjdfstest": Suite(_pjdfstest, parallel=True),
    "fsx": Suite(_fsx, parallel=True),
    "fsstress": Suite(_fsstress, parallel=True),
    "ltp": Suite(_ltp, parallel=False),
    "xfstests": Suite(_xfstests, parallel=False),
}
