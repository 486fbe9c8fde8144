"""The rows: what is done to a directory, always in the same order with the same names and bytes.

A *scene* is a sequence of steps on one tree; each step is a row of the table.  There is one scene
object for each filesystem, and the runner does every step on all of them before the next step.
Contents, counts and sizes are checked when they are read back: a difference is a failure.
"""

import errno
import hashlib
import io
import os
import random
import shlex
import sqlite3
import tarfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from benchmarks.measure import (
    Outcome,
    Tally,
    again_and_again,
    command,
    each,
    each_timed,
    in_processes,
    now,
)

KIB, MIB = 1 << 10, 1 << 20
PAGE = 4 * KIB
DIRECTORIES = 20
"""Small files are spread over this many."""
HOT_FILES = 400
"""Warm stat goes over so few that a pass ends before an attribute cache of one second does."""
WARM_S = 0.5
"""A warm row makes whole passes until this is spent."""

_BLOCK = random.Random(20260101).randbytes(MIB)
_CONTENT = _BLOCK[:PAGE]


@dataclass(frozen=True)
class Sizes:
    empty_files: int
    small_files: int
    synced_files: int
    directories: int
    stream_mib: int
    random_s: float
    appends: int
    tree_files: int
    transactions: int
    metadata_s: float
    """Budget of a row of single calls."""
    tool_s: float
    """Budget of a row that runs a command or a stream."""


FULL = Sizes(10_000, 5_000, 1_000, 2_000, 1_024, 6.0, 1_000, 5_000, 500, 12.0, 60.0)
QUICK = Sizes(2_000, 1_000, 200, 400, 256, 2.0, 200, 1_000, 100, 4.0, 20.0)


@dataclass(frozen=True)
class Step:
    """One row."""

    name: str
    unit: str
    run: Callable[..., Outcome]
    prepare: Callable[..., None] | None
    """Done to the same scene just before, untimed."""
    cold: int
    """What drop_caches is told before: 0 nothing, 2 names and attributes, 3 contents too."""
    synced: bool
    """It waits for fsync, so rows of filesystems whose fsync does not sync are not its equals."""


S = TypeVar("S", bound="Scene")
_Method = Callable[[S], Outcome]


def step(
    name: str,
    unit: str,
    *,
    prepare: Callable[[S], None] | None = None,
    cold: int = 0,
    synced: bool = False,
) -> Callable[[_Method[S]], Step]:
    """Make a method a row.  Rows are run in the order in which they are written down."""

    def mark(method: _Method[S]) -> Step:
        return Step(name, unit, method, prepare, cold, synced)

    return mark


class Scene:
    processes: int

    def __init__(self, top: Path, sizes: Sizes, processes: int, archive: "Archive") -> None:
        self.top = top
        self.sizes = sizes
        self.processes = processes
        self.archive = archive
        top.mkdir()
        self.build()

    def build(self) -> None:
        """Make what the steps stand on."""

    def close(self) -> None:
        """Remove what would be in the way of others: large files."""

    @classmethod
    def steps(cls) -> list[Step]:
        return [value for value in vars(cls).values() if isinstance(value, Step)]

    def together(self, work: Callable[[int], Tally], budget_s: float) -> Outcome:
        """`work(worker)` in every process."""
        return in_processes([partial(work, worker) for worker in range(self.processes)], budget_s)


# --- single calls ---------------------------------------------------------------------------------


class Calls(Scene):
    """Names, attributes and small files, by system calls.

    All processes work in the same directories, each on names of its own.
    """

    _Operation = Callable[[str], None]

    def build(self) -> None:
        sizes, count = self.sizes, self.processes
        self._flat = self.top / "flat"
        self._flat.mkdir()
        spread = [self.top / f"small{number:02}" for number in range(DIRECTORIES)]
        for directory in spread:
            directory.mkdir()

        def names(total: int, name: Callable[[int, int], str]) -> list[list[str]]:
            return [
                [name(worker, number) for number in range(total // count)]
                for worker in range(count)
            ]

        # One list for each worker; a step leaves in it what is there after it.
        self._empty = names(sizes.empty_files, lambda w, n: f"{self._flat}/w{w}-{n:06}")
        self._small = names(
            sizes.small_files, lambda w, n: f"{spread[n % DIRECTORIES]}/w{w}-{n:06}.dat"
        )
        self._synced = names(
            sizes.synced_files, lambda w, n: f"{spread[n % DIRECTORIES]}/s{w}-{n:06}.dat"
        )
        self._made = names(sizes.directories, lambda w, n: f"{self.top}/d{w}-{n:05}")
        self._shuffled: list[list[str]] = []

    def _do(
        self, lists: list[list[str]], operation: _Operation, loop: Callable[..., Tally] = each
    ) -> Outcome:
        budget_s = self.sizes.metadata_s
        return self.together(lambda w: loop(lists[w], operation, budget_s), budget_s)

    def _create(
        self, lists: list[list[str]], operation: _Operation, loop: Callable[..., Tally] = each
    ) -> Outcome:
        outcome = self._do(lists, operation, loop)
        if outcome.cut_short or outcome.failures:
            lists[:] = [[path for path in paths if os.path.lexists(path)] for paths in lists]
        return outcome

    def _warm(self, lists: list[list[str]], operation: _Operation) -> Outcome:
        budget_s = self.sizes.metadata_s
        return self.together(
            lambda w: again_and_again(
                lambda left_s: each(lists[w], operation, left_s), WARM_S, budget_s
            ),
            budget_s,
        )

    @step("create empty", "files/s")
    def create_empty(self) -> Outcome:
        return self._create(self._empty, _create_empty)

    @step("create 4 KiB", "files/s")
    def create_small(self) -> Outcome:
        outcome = self._create(self._small, _create_small)
        # A fixed shuffled order favours no allocator's order.
        self._shuffled = [
            random.Random(7 + worker).sample(paths, len(paths))
            for worker, paths in enumerate(self._small)
        ]
        return outcome

    @step("create 4 KiB + fsync", "files/s", synced=True)
    def create_synced(self) -> Outcome:
        return self._create(self._synced, _create_synced, each_timed)

    @step("stat, cold", "ops/s", cold=2)
    def stat_cold(self) -> Outcome:
        return self._do(self._shuffled, _stat_small)

    def _hot(self) -> list[list[str]]:
        return [paths[: HOT_FILES // self.processes] for paths in self._shuffled]

    def _stat_hot_once(self) -> None:
        for paths in self._hot():
            each(paths, _stat_small, self.sizes.metadata_s)

    @step("stat, warm", "ops/s", prepare=_stat_hot_once)
    def stat_warm(self) -> Outcome:
        return self._warm(self._hot(), _stat_small)

    def _look_away(self) -> None:
        time.sleep(3)  # longer than the one second for which clients commonly keep attributes

    @step("stat, 3 s later", "ops/s", prepare=_look_away)
    def stat_later(self) -> Outcome:
        return self._do(self._shuffled, _stat_small)

    def _list(self, end: float) -> Tally:
        """One pass over the flat directory, with the attributes of every entry."""
        tally = Tally(started=now())
        expected = sum(map(len, self._empty))
        with os.scandir(self._flat) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)
                tally.operations += 1
                if tally.operations % 64 == 0 and now() > end:
                    tally.cut_short = True
                    break
        if not tally.cut_short and tally.operations != expected:
            tally.fail(f"{tally.operations} entries of {expected}")
        tally.stopped = now()
        return tally

    @step("readdir + stat, cold", "entries/s", cold=2)
    def list_cold(self) -> Outcome:
        budget_s = self.sizes.metadata_s
        return self.together(lambda _: self._list(now() + budget_s), budget_s)

    def _list_once(self) -> None:
        self._list(now() + self.sizes.metadata_s)

    @step("readdir + stat, warm", "entries/s", prepare=_list_once)
    def list_warm(self) -> Outcome:
        budget_s = self.sizes.metadata_s
        return self.together(
            lambda _: again_and_again(lambda left_s: self._list(now() + left_s), WARM_S, budget_s),
            budget_s,
        )

    @step("open-read-close 4 KiB, cold", "files/s", cold=3)
    def read_cold(self) -> Outcome:
        return self._do(self._shuffled, _read_small)

    def _read_once(self) -> None:
        for paths in self._shuffled:
            each(paths, _read_small, self.sizes.metadata_s)

    @step("open-read-close 4 KiB, warm", "files/s", prepare=_read_once)
    def read_warm(self) -> Outcome:
        return self._warm(self._shuffled, _read_small)

    @step("rename", "ops/s")
    def rename(self) -> Outcome:
        outcome = self._do(self._small, lambda path: os.rename(path, path + ".r"))
        whole = not outcome.cut_short and not outcome.failures
        for paths in self._small:
            paths[:] = [p + ".r" if whole or os.path.lexists(p + ".r") else p for p in paths]
        return outcome

    @step("mkdir", "ops/s")
    def mkdir(self) -> Outcome:
        return self._create(self._made, os.mkdir)

    @step("rmdir", "ops/s")
    def rmdir(self) -> Outcome:
        return self._do(self._made, os.rmdir)

    @step("unlink empty", "ops/s")
    def unlink_empty(self) -> Outcome:
        return self._do(self._empty, os.unlink)

    @step("unlink 4 KiB", "ops/s")
    def unlink_small(self) -> Outcome:
        return self._do(self._small, os.unlink)


_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY


def _create_empty(path: str) -> None:
    os.close(os.open(path, _NEW, 0o644))


def _create_small(path: str) -> None:
    descriptor = os.open(path, _NEW, 0o644)
    try:
        os.write(descriptor, _CONTENT)
    finally:
        os.close(descriptor)


def _create_synced(path: str) -> None:
    descriptor = os.open(path, _NEW, 0o644)
    try:
        os.write(descriptor, _CONTENT)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_small(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        content = os.read(descriptor, 2 * PAGE)
    finally:
        os.close(descriptor)
    if content != _CONTENT:
        raise OSError(errno.EBADMSG, "content differs")


def _stat_small(path: str) -> None:
    if os.stat(path).st_size != PAGE:
        raise OSError(errno.EBADMSG, "size differs")


class Contents(Scene):
    """Files that are more than their attributes, written whole and read whole, by one process."""

    def build(self) -> None:
        self._spread = [self.top / f"c{number:02}" for number in range(DIRECTORIES)]
        for directory in self._spread:
            directory.mkdir()

        self._there: dict[int, list[str]] = {}

    def _create(self, kib: int) -> Outcome:
        content = _BLOCK[: kib * KIB]
        self._there[kib] = [
            f"{self._spread[number % DIRECTORIES]}/{kib}-{number:06}.dat"
            for number in range(self.sizes.small_files // 5)
        ]

        def create(path: str) -> None:
            descriptor = os.open(path, _NEW, 0o644)
            try:
                os.write(descriptor, content)
            finally:
                os.close(descriptor)

        outcome = self._all(kib, create)
        if outcome.cut_short or outcome.failures:
            self._there[kib] = [path for path in self._there[kib] if os.path.lexists(path)]
        return outcome

    def _read(self, kib: int) -> Outcome:
        content = _BLOCK[: kib * KIB]

        def read(path: str) -> None:
            with open(path, "rb", buffering=0) as file:
                if file.read(2 * len(content)) != content:
                    raise OSError(errno.EBADMSG, "content differs")

        return self._all(kib, read)

    def _all(self, kib: int, operation: Callable[[str], None]) -> Outcome:
        budget_s = self.sizes.metadata_s
        return self.together(lambda _: each(self._there[kib], operation, budget_s), budget_s)

    @step("create 20 KiB", "files/s")
    def create_20(self) -> Outcome:
        return self._create(20)

    @step("create 64 KiB", "files/s")
    def create_64(self) -> Outcome:
        return self._create(64)

    @step("open-read-close 20 KiB, cold", "files/s", cold=3)
    def read_20(self) -> Outcome:
        return self._read(20)

    @step("open-read-close 64 KiB, cold", "files/s", cold=3)
    def read_64(self) -> Outcome:
        return self._read(64)


# --- one large file -------------------------------------------------------------------------------


class Stream(Scene):
    """A large file as a stream."""

    def build(self) -> None:
        self._path = self.top / "large"

    def close(self) -> None:
        self._path.unlink(missing_ok=True)

    @step("sequential write + fsync", "MB/s", synced=True)
    def write(self) -> Outcome:
        budget_s = self.sizes.tool_s

        def work(_: int) -> Tally:
            with open(self._path, "wb", buffering=0) as file:
                tally = each(
                    range(self.sizes.stream_mib),
                    lambda number: _write_block(file, number),
                    budget_s,
                )
                os.fsync(file)
            tally.stopped = now()
            return tally

        return _in_megabytes(self.together(work, budget_s))

    def _read(self) -> Outcome:
        budget_s = self.sizes.tool_s

        def work(_: int) -> Tally:
            buffer = bytearray(MIB)
            with open(self._path, "rb", buffering=0) as file:
                blocks = range(os.fstat(file.fileno()).st_size // MIB)
                return each(blocks, lambda number: _read_block(file, buffer, number), budget_s)

        return _in_megabytes(self.together(work, budget_s))

    @step("sequential read, cold", "MB/s", cold=3)
    def read_cold(self) -> Outcome:
        return self._read()

    def _read_once(self) -> None:
        self._read()

    @step("sequential read, warm", "MB/s", prepare=_read_once)
    def read_warm(self) -> Outcome:
        return self._read()


class Random(Scene):
    """A large file at random places."""

    def build(self) -> None:
        self._path = self.top / "large"
        with open(self._path, "wb", buffering=0) as file:
            each(
                range(self.sizes.stream_mib),
                lambda number: _write_block(file, number),
                self.sizes.tool_s,
            )
            os.fsync(file)
        pages = self._path.stat().st_size // PAGE
        self._pages = random.Random(42).sample(range(pages), pages)

    def close(self) -> None:
        self._path.unlink(missing_ok=True)

    @step("random 4 KiB read, cold", "ops/s", cold=3)
    def read(self) -> Outcome:
        budget_s = self.sizes.random_s
        # No page twice, and at most half of the file: what read-ahead brought must not be the most.
        pages = self._pages[: len(self._pages) // 2]

        def work(worker: int) -> Tally:
            descriptor = os.open(self._path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            try:
                return each_timed(
                    pages[worker :: self.processes], partial(_read_page, descriptor), budget_s
                )
            finally:
                os.close(descriptor)

        return _by_time(self.together(work, budget_s))

    @step("random 4 KiB write + fsync", "ops/s", synced=True)
    def write(self) -> Outcome:
        budget_s = self.sizes.random_s

        def work(worker: int) -> Tally:
            descriptor = os.open(self._path, os.O_WRONLY)
            try:
                return each_timed(
                    self._pages[worker :: self.processes],
                    partial(_write_page, descriptor),
                    budget_s,
                )
            finally:
                os.close(descriptor)

        return _by_time(self.together(work, budget_s))


def _write_block(file: io.FileIO, number: int) -> None:
    block = memoryview(number.to_bytes(8, "big") + _BLOCK[8:])
    while block:
        block = block[file.write(block) :]


def _read_block(file: io.FileIO, buffer: bytearray, number: int) -> None:
    view = memoryview(buffer)
    filled = 0
    while filled < MIB:
        count = file.readinto(view[filled:])
        if not count:
            raise OSError(errno.ENODATA, "the file ends early")
        filled += count
    if int.from_bytes(view[:8], "big") != number or view[-64:] != _BLOCK[-64:]:
        raise OSError(errno.EBADMSG, "content differs")


def _read_page(descriptor: int, page: int) -> None:
    content = os.pread(descriptor, PAGE, page * PAGE)
    place = page * PAGE % MIB
    # The first bytes of a block are its number.
    if content[8:] != _BLOCK[place + 8 : place + PAGE]:
        raise OSError(errno.EBADMSG, "content differs")


def _write_page(descriptor: int, page: int) -> None:
    os.pwrite(descriptor, _CONTENT, page * PAGE)
    os.fsync(descriptor)


def _in_megabytes(outcome: Outcome) -> Outcome:
    """Blocks of 1 MiB as megabytes."""
    outcome.operations *= MIB / 1e6
    return outcome


def _by_time(outcome: Outcome) -> Outcome:
    """A row that is meant to last as long as its budget was not cut short by it."""
    outcome.cut_short = False
    return outcome


class Append(Scene):
    """Logs, one for each process."""

    @step("append 4 KiB + fsync", "ops/s", synced=True)
    def append(self) -> Outcome:
        budget_s = self.sizes.metadata_s

        def work(worker: int) -> Tally:
            with open(self.top / f"log{worker}", "ab", buffering=0) as file:

                def append(_: int) -> None:
                    file.write(_CONTENT)
                    os.fsync(file)

                tally = each_timed(range(self.sizes.appends // self.processes), append, budget_s)
                if os.fstat(file.fileno()).st_size != PAGE * tally.operations:
                    tally.fail("size differs")
            return tally

        return self.together(work, budget_s)


# --- real tools -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Archive:
    """A tar file of a source tree."""

    path: Path
    files: int
    marked: int
    """So many files contain MARK."""


MARK = b"XNEEDLEX"


def make_archive(path: Path, files: int) -> Archive:
    """Write a tar file of `files` texts of 200 B to 200 KB, most of them small, always the same."""
    dice = random.Random(4242)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(dice.choices(letters, k=dice.randint(2, 9))) for _ in range(2000)]
    lines = [" ".join(dice.choices(words, k=10)) for _ in range(20_000)]
    text = "\n".join(lines).encode()
    directories = ["tree"]
    for number in range(max(10, files // 20)):
        parent = dice.choice(directories) if dice.random() < 0.7 else "tree"
        directories.append(f"{parent}/dir{number:03}")
    marked = 0
    with tarfile.open(path, "w") as tar:
        for name in directories:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, 1_700_000_000
            tar.addfile(entry)
        for number in range(files):
            start = dice.randrange(len(text) - 200_001)
            content = text[start : start + int(200 * 1000 ** dice.random())]
            if number % 10 == 0:
                content = MARK + content[len(MARK) :]
                marked += 1
            entry = tarfile.TarInfo(f"{directories[number % len(directories)]}/file{number:05}.txt")
            entry.size, entry.mode, entry.mtime = len(content), 0o644, 1_700_000_000 + number
            tar.addfile(entry, io.BytesIO(content))
    return Archive(path, files, marked)


_GIT = "git -c gc.auto=0 -c safe.directory='*'"


class Tools(Scene):
    """What people run, on a tree of source files.  The unit is files of that tree."""

    def build(self) -> None:
        self._env = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
        self._env |= {
            "LC_ALL": "C",
            "HOME": "/",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CEILING_DIRECTORIES": "/",
            "GIT_AUTHOR_NAME": "bench",
            "GIT_AUTHOR_EMAIL": "bench@localhost",
            "GIT_COMMITTER_NAME": "bench",
            "GIT_COMMITTER_EMAIL": "bench@localhost",
        }

    def _tool(self, argv: list[str] | str, expect: str | None = None, within: str = ".") -> Outcome:
        """Time a command; what it prints has to be `expect`, if that is given."""
        budget_s = self.sizes.tool_s
        outcome, printed = command(argv, self.archive.files, budget_s, self.top / within, self._env)
        if expect is not None and not outcome.cut_short and printed.strip() != expect:
            outcome.failures[f"printed {printed.strip()[:40]!r}, not {expect!r}"] = 1
        return outcome

    @step("untar", "files/s")
    def untar(self) -> Outcome:
        return self._tool(["tar", "xf", str(self.archive.path)])

    @step("find, cold", "files/s", cold=2)
    def find(self) -> Outcome:
        return self._tool("find tree -type f | wc -l", expect=str(self.archive.files))

    @step("du, cold", "files/s", cold=2)
    def du(self) -> Outcome:
        return self._tool(["du", "-s", "tree"])

    @step("grep -r, cold", "files/s", cold=3)
    def grep(self) -> Outcome:
        pattern = shlex.quote(MARK.decode())
        return self._tool(f"grep -rl {pattern} tree | wc -l", expect=str(self.archive.marked))

    @step("cp -r", "files/s")
    def copy(self) -> Outcome:
        return self._tool(["cp", "-r", "tree", "copy"])

    @step("diff -r", "files/s")
    def diff(self) -> Outcome:
        return self._tool(["diff", "-r", "tree", "copy"], expect="")

    @step("rm -rf", "files/s")
    def remove(self) -> Outcome:
        return self._tool(["rm", "-rf", "copy"])

    @step("git init + add + commit", "files/s")
    def git_commit(self) -> Outcome:
        return self._tool(
            f"{_GIT} init -q . && {_GIT} add -A && {_GIT} commit -qm all", within="tree"
        )

    @step("git status, cold", "files/s", cold=3)
    def git_status(self) -> Outcome:
        return self._tool(f"{_GIT} status --porcelain", expect="", within="tree")


class Database(Scene):
    """SQLite as it comes: a rollback journal, and the disk waited for."""

    @step("sqlite transaction", "txn/s", synced=True)
    def transactions(self) -> Outcome:
        budget_s = self.sizes.tool_s

        def work(_: int) -> Tally:
            database = sqlite3.connect(self.top / "database", isolation_level=None, timeout=5)
            try:
                database.execute("PRAGMA journal_mode=DELETE")
                database.execute("PRAGMA synchronous=FULL")
                database.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, k TEXT, v BLOB)")
                tally = each_timed(
                    range(self.sizes.transactions), partial(_transaction, database), budget_s
                )
                (rows,) = database.execute("SELECT count(*) FROM t").fetchone()
                (check,) = database.execute("PRAGMA integrity_check").fetchone()
            except sqlite3.Error as error:
                raise OSError(errno.EIO, str(error)) from error
            finally:
                database.close()
            if rows != tally.operations or check != "ok":
                tally.fail(f"{rows} rows of {tally.operations}, integrity {check}")
            return tally

        return self.together(work, budget_s)


def _transaction(database: sqlite3.Connection, number: int) -> None:
    key = hashlib.sha1(str(number).encode()).hexdigest()
    database.execute("BEGIN IMMEDIATE")
    database.execute("INSERT INTO t(k, v) VALUES(?, ?)", (key, b"x" * 100))
    database.execute("COMMIT")


@dataclass(frozen=True)
class Part:
    """A scene with so many processes."""

    scene: type[Scene]
    processes: int

    @property
    def name(self) -> str:
        return f"{self.scene.__name__.lower()}{self.processes}"

    def rows(self) -> Iterable[Step]:
        return self.scene.steps()


PARTS = [
    Part(Calls, 1),
    Part(Calls, 4),
    Part(Contents, 1),
    Part(Stream, 1),
    Part(Random, 1),
    Part(Random, 4),
    Part(Append, 1),
    Part(Append, 4),
    Part(Tools, 1),
    Part(Database, 1),
]
