"""mountfs bench: a quick measurement of a directory, which says what each number rests on.

One process, one operation at a time, so this measures how long one takes and not how many can go on
at once.
"""

import argparse
import contextlib
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from types import FrameType

import msgspec
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from mountfs.cli import show
from mountfs.cli.places import mount_above
from mountfs.errors import Fault, FsError, disk_error
from mountfs.types import KIB, MIB

SUMMARY = "a quick measurement of a mount, or of any directory"
DESCRIPTION = """\
Measure a directory: small files, a large one, and writes that wait for the disk.  Run it on a
mount and on a plain directory of the same disk to see what the mount costs.  What it writes goes
into a directory of its own below DIR, which is removed at the end, also after Ctrl-C.
"""
EPILOG = """\
examples:
  mountfs bench /mnt/data                  about 12 seconds
  mountfs bench /mnt/data --seconds 60     the same work for longer: numbers that repeat better
  mountfs bench /var/tmp                   what the plain disk does, for comparison

how to read it:
  One process, one operation after the other.  "per s" of each row is the mean; "slowest" is one
  operation.  Where "durable" says no, a loss of power may take what was written, as on any
  filesystem: only rows with fsync waited for the disk.  Reads come from memory where they can, and
  each row says whose.

exit status: 0 measured; 1 failed, or too little space; 2 wrong call; 130 interrupted
"""

FILES_MAX = 20_000
SMALL_BYTES = 4 * KIB
BLOCK_BYTES = MIB
LARGE_BYTES_MAX = 512 * MIB
SPARE_BYTES = 256 * MIB
"""What must be free beside what is written."""
_ROWS = 11


class Row(msgspec.Struct):
    """One measurement."""

    work: str
    operations: int
    seconds: float
    slowest_s: float
    bytes: int
    """Read or written in all; 0 where operations are what counts."""
    durable: str
    """Whether a loss of power can take it, or where the bytes that were read came from."""

    @property
    def per_s(self) -> float:
        return self.operations / self.seconds if self.seconds else 0.0

    @property
    def mb_per_s(self) -> float:
        return self.bytes / 1e6 / self.seconds if self.seconds else 0.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("place", metavar="DIR", help="a directory where you may write")
    parser.add_argument(
        "--seconds", type=_seconds, default=12.0, metavar="N", help="in all, about (default: 12)"
    )
    parser.add_argument("--json", action="store_true", help="a JSON object")


def run(arguments: argparse.Namespace) -> int:
    where = os.path.realpath(arguments.place)
    large_bytes = room_for(where)
    each = arguments.seconds / _ROWS
    rows: list[Row] = []
    with _interruptible(), _directory(where) as directory, _progress() as say:
        bench = Bench(directory, each, large_bytes)
        for name, work in bench.works():
            say(name)
            rows.append(work(name))
    mount = mount_above(where)
    if arguments.json:
        show.print_json(
            {
                "directory": where,
                "home": str(mount.home) if mount else None,
                "rows": [
                    {**msgspec.to_builtins(row), "per_s": row.per_s, "mb_per_s": row.mb_per_s}
                    for row in rows
                ],
            }
        )
    else:
        what = f"mountfs, home {mount.home}" if mount else "not a mount of mountfs"
        print(f"{show.name(where)} ({what}), one process")
        show.out().print(table_of(rows))
    return show.EXIT_OK


def room_for(where: str) -> int:
    """How large the large file may be.  Raises NO_SPACE, NOT_DIRECTORY or DENIED."""
    try:
        if not os.path.isdir(where):
            raise FsError(Fault.NOT_DIRECTORY, f"{where} is not a directory")
        found = os.statvfs(where)
    except OSError as error:
        raise disk_error(error, where) from error
    if found.f_flag & os.ST_RDONLY:
        raise FsError(Fault.READ_ONLY, f"{where} is mounted read-only, so it cannot be measured")
    return large_file_bytes(where, found.f_bavail * found.f_frsize)


def large_file_bytes(where: str, free: int) -> int:
    """A quarter of what is free, within bounds."""
    wanted = min(LARGE_BYTES_MAX, (free - SPARE_BYTES) // 4) & -BLOCK_BYTES
    if wanted < 16 * MIB:
        raise FsError(
            Fault.NO_SPACE,
            f"{where}: {show.size(free)} are free, and a measurement needs "
            f"{show.size(SPARE_BYTES + 64 * MIB)}: make room first",
        )
    return wanted


class Bench:
    """The work, row after row; later rows use the files of earlier ones."""

    def __init__(self, directory: str, each_s: float, large_bytes: int) -> None:
        self._names = f"{directory}/names"
        self._small = f"{directory}/small"
        self._large = f"{directory}/large"
        self._log = f"{directory}/log"
        self._each_s = each_s
        self._large_bytes = large_bytes
        self._random = random.Random(1)  # the same order every time
        self._made = 0
        self._filled = 0
        self._written = 0
        os.mkdir(self._names)
        os.mkdir(self._small)

    def works(self) -> Iterator[tuple[str, Callable[[str], Row]]]:
        yield "create empty files", self.create
        yield "create 4 KiB files", self.create_small
        yield "stat", self.stat
        yield "open, read 4 KiB, close", self.open_read
        yield "rename", self.rename
        yield "unlink", self.unlink
        yield "write 1 MiB blocks, fsync at the end", self.write
        yield "read 1 MiB blocks", self.read
        yield "read 4 KiB at random", self.read_random
        yield "write 4 KiB at random, fsync each", self.write_random
        yield "append 4 KiB, fsync each", self.append

    def create(self, name: str) -> Row:
        def one(number: int) -> None:
            os.close(os.open(f"{self._names}/{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))

        row = self._repeat(name, one, FILES_MAX, "no: not synced")
        self._made = row.operations
        return row

    def create_small(self, name: str) -> Row:
        data = os.urandom(SMALL_BYTES)

        def one(number: int) -> None:
            fd = os.open(f"{self._small}/{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            try:
                os.write(fd, data)
            finally:
                os.close(fd)

        row = self._repeat(name, one, FILES_MAX, "no: not synced")
        self._filled = row.operations
        return row

    def stat(self, name: str) -> Row:
        order = self._shuffled(self._filled)

        def one(number: int) -> None:
            os.stat(f"{self._small}/{order[number % len(order)]}")

        return self._repeat(name, one, None, "read: from memory, mostly the kernel's")

    def open_read(self, name: str) -> Row:
        order = self._shuffled(self._filled)

        def one(number: int) -> None:
            fd = os.open(f"{self._small}/{order[number % len(order)]}", os.O_RDONLY)
            try:
                os.read(fd, SMALL_BYTES)
            finally:
                os.close(fd)

        return self._repeat(name, one, None, "read: from memory")

    def rename(self, name: str) -> Row:
        def one(number: int) -> None:
            os.rename(f"{self._names}/{number}", f"{self._names}/new-{number}")

        return self._repeat(name, one, self._made, "no: not synced")

    def unlink(self, name: str) -> Row:
        def one(number: int) -> None:
            os.unlink(f"{self._small}/{number}")

        return self._repeat(name, one, self._filled, "no: not synced")

    def write(self, name: str) -> Row:
        data = _aligned(BLOCK_BYTES)
        with _opened(self._large, os.O_CREAT | os.O_EXCL | os.O_WRONLY) as fd:

            def one(number: int) -> None:
                os.pwrite(fd, data, number * BLOCK_BYTES)

            begun = time.perf_counter()
            row = self._repeat(name, one, self._large_bytes // BLOCK_BYTES, "yes: one fsync, timed")
            os.fsync(fd)
            row.seconds = time.perf_counter() - begun
        self._written = row.bytes = row.operations * BLOCK_BYTES
        return row

    def read(self, name: str) -> Row:
        buffer = _aligned(BLOCK_BYTES)
        with _opened(self._large, os.O_RDONLY) as fd:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

            def one(number: int) -> None:
                os.preadv(fd, [buffer], number * BLOCK_BYTES)

            row = self._repeat(
                name, one, self._written // BLOCK_BYTES, "read: file dropped from the cache first"
            )
        row.bytes = row.operations * BLOCK_BYTES
        return row

    def read_random(self, name: str) -> Row:
        blocks = self._written // SMALL_BYTES
        with _opened(self._large, os.O_RDONLY) as fd:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)

            def one(_: int) -> None:
                os.pread(fd, SMALL_BYTES, self._random.randrange(blocks) * SMALL_BYTES)

            row = self._repeat(name, one, None, "read: file dropped from the cache first")
        row.bytes = row.operations * SMALL_BYTES
        return row

    def write_random(self, name: str) -> Row:
        blocks = self._written // SMALL_BYTES
        data = os.urandom(SMALL_BYTES)
        with _opened(self._large, os.O_WRONLY) as fd:

            def one(_: int) -> None:
                os.pwrite(fd, data, self._random.randrange(blocks) * SMALL_BYTES)
                os.fsync(fd)

            return self._repeat(name, one, None, "yes: each one")

    def append(self, name: str) -> Row:
        data = os.urandom(SMALL_BYTES)
        with _opened(self._log, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND) as fd:

            def one(_: int) -> None:
                os.write(fd, data)
                os.fsync(fd)

            return self._repeat(name, one, None, "yes: each one")

    def _repeat(
        self, name: str, one: Callable[[int], None], count: int | None, durable: str
    ) -> Row:
        """Do it until the time of a row is over, or `count` times."""
        now = time.perf_counter
        begun = last = now()
        deadline = begun + self._each_s
        slowest = 0.0
        done = 0
        while last < deadline and (count is None or done < count):
            one(done)
            done += 1
            before, last = last, now()
            slowest = max(slowest, last - before)
        return Row(name, done, last - begun, slowest, 0, durable)

    def _shuffled(self, count: int) -> list[int]:
        order = list(range(count))
        self._random.shuffle(order)
        return order


def table_of(rows: list[Row]) -> Table:
    table = Table(box=None, padding=(0, 2))
    table.add_column("work")
    for heading in ("per s", "MB/s", "mean", "slowest"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("durable")
    for row in rows:
        table.add_row(
            row.work,
            show.rounded(round(row.per_s, 1)),
            show.rounded(row.mb_per_s) if row.bytes else "",
            show.duration(row.seconds * 1e9 / max(row.operations, 1)),
            show.duration(row.slowest_s * 1e9),
            row.durable,
        )
    return table


def _aligned(size: int) -> mmap.mmap:
    """A page-aligned buffer of bytes that do not compress."""
    buffer = mmap.mmap(-1, size)
    buffer.write(os.urandom(size))
    return buffer


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    fd = os.open(path, flags, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _directory(where: str) -> Iterator[str]:
    """A directory of our own, that is gone afterwards, whatever happens."""
    try:
        directory = tempfile.mkdtemp(prefix=".mountfs-bench-", dir=where)
    except OSError as error:
        raise disk_error(error, f"{where}: making a directory in it") from error
    try:
        yield directory
    except OSError as error:
        raise disk_error(error, f"{error.filename or directory}") from error
    finally:
        _remove(directory)


def _remove(directory: str) -> None:
    """Remove it; a second Ctrl-C meanwhile does not leave half of it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        shutil.rmtree(directory)
    except OSError as error:
        print(f"mountfs bench: {directory} is left: {error}; remove it", file=sys.stderr)
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end it as Ctrl-C does, with everything removed."""

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Says on a terminal what goes on."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    console = show.err()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal,
        auto_refresh=False,
    ) as progress:  # fmt: skip
        task = progress.add_task("")

        def say(what: str) -> None:
            progress.update(task, description=what)
            progress.refresh()

        yield say


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.5 <= value <= 3_600:
        raise argparse.ArgumentTypeError("from 0.5 to 3600 seconds")
    return value
