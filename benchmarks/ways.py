"""How bytes get from a volume to a socket: `scripts/bench ways`.

A file is read at random, by one process, as a chunkserver does it: from memory or from the disk, by
threads or with io_uring (if `liburing` is installed: pip install liburing).  And pieces of it that
are in memory are sent over loopback: read, summed up and sent, or by sendfile(2).
"""

import argparse
import importlib
import os
import random
import resource
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import trio
from crc32c import crc32c

from benchmarks.__main__ import scratch_directory
from benchmarks.measure import machine
from benchmarks.report import columns, save
from mountfs.chunks import needle
from mountfs.chunks.client import POLL_S, POLLED_BYTES
from mountfs.types import CHECKSUM_BYTES, KIB, MIB

SCHEMA: Final = "mountfs-ways/1"
FILE_BYTES: Final = 128 * MIB
UNDER_WAY: Final = 16
SIZES: Final = {"4 KiB": 4 * KIB, "64 KiB": 64 * KIB, "1 MiB": MIB}
ROUNDS_MAX: Final = 9


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench ways", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.5, help="for one measurement")
    parser.add_argument("--rounds", type=int, default=3, choices=range(1, ROUNDS_MAX + 1))
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="on the disk to measure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"schema": SCHEMA, "rows": []}
    with scratch_directory(arguments.dir) as scratch:
        results |= {
            "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "seconds": arguments.seconds,
            "rounds": arguments.rounds,
            "machine": machine(scratch),
        }
        fd = _file(scratch / "volume")
        try:
            for _ in range(arguments.rounds):
                for row in _round(fd, arguments.seconds):
                    results["rows"].append(row)
                    print(*(f"{row[key]:>12}" for key in row), flush=True)
        finally:
            os.close(fd)
    save(arguments.out, "ways", results, text(results))


def _file(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    block = os.urandom(MIB)
    for _ in range(FILE_BYTES // MIB):
        os.write(fd, block)
    os.fsync(fd)
    return fd


def _round(fd: int, seconds: float) -> Iterator[dict[str, Any]]:
    for size in ("64 KiB", "1 MiB"):
        for name, way in SENDS.items():
            yield {"what": "send", "size": size, "way": name} | _send(way, fd, SIZES[size], seconds)
    for temperature in ("memory", "disk"):
        for size in SIZES:
            for name, read in READS.items():
                if name == "at once" and temperature == "disk":
                    continue
                if name == "polled" and (temperature == "memory" or SIZES[size] > POLLED_BYTES):
                    continue
                if temperature == "disk":
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                else:
                    for at in range(0, FILE_BYTES, MIB):
                        os.pread(fd, MIB, at)
                found = trio.run(_read, read, fd, SIZES[size], seconds, temperature == "disk")
                yield {"what": temperature, "size": size, "way": name} | found


# --- sending --------------------------------------------------------------------------------------

Send = Callable[[socket.socket, int, int, list[int], memoryview], None]
"""(socket, file, offset, checksums of its pieces, memory that may be used)"""


def _all(sock: socket.socket, parts: list[bytes | memoryview]) -> None:
    head, data = parts
    sent = sock.sendmsg([head, data]) - len(head)
    while sent < len(data):
        sent += sock.send(data[sent:])


def _summed_twice(
    sock: socket.socket, fd: int, at: int, sums: list[int], memory: memoryview
) -> None:
    """Verified against the sums in the needle, and then summed up for the client."""
    os.preadv(fd, [memory], at)
    assert needle.first_bad(memory, sums) is None
    _all(sock, [crc32c(memory).to_bytes(4, "little"), memory])


def _summed_once(
    sock: socket.socket, fd: int, at: int, sums: list[int], memory: memoryview
) -> None:
    """The sum for the client is made of those in the needle."""
    os.preadv(fd, [memory], at)
    assert needle.first_bad(memory, sums) is None
    _all(sock, [needle.joined(sums, len(memory)).to_bytes(4, "little"), memory])


def _sendfile(sock: socket.socket, fd: int, at: int, sums: list[int], memory: memoryview) -> None:
    """The client verifies."""
    sock.send(needle.joined(sums, len(memory)).to_bytes(4, "little"), socket.MSG_MORE)
    stop = at + len(memory)
    while at < stop:
        at += os.sendfile(sock.fileno(), fd, at, stop - at)


SENDS: Final[dict[str, Send]] = {
    "read, summed twice": _summed_twice,
    "read, summed once": _summed_once,
    "sendfile": _sendfile,
}


def _send(way: Send, fd: int, size: int, seconds: float) -> dict[str, Any]:
    places = range(0, FILE_BYTES - size, size)
    sums = {at: list(_sums(fd, at, size)) for at in places[:64]}
    memory = memoryview(bytearray(size))
    with _drain() as sock:
        count, cpu, begun = 0, time.process_time(), time.perf_counter()
        while time.perf_counter() < begun + seconds:
            at = places[count % len(sums)]
            way(sock, fd, at, sums[at], memory)
            count += 1
        cpu, wall = time.process_time() - cpu, time.perf_counter() - begun
    return _row(count, size, cpu, wall)


def _sums(fd: int, at: int, size: int) -> Iterator[int]:
    for piece in range(at, at + size, CHECKSUM_BYTES):
        yield crc32c(os.pread(fd, CHECKSUM_BYTES, piece))


@contextmanager
def _drain() -> Iterator[socket.socket]:
    """A connection to a process that reads, and does nothing else."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        child = os.fork()
        if not child:
            status = 1
            try:
                with socket.create_connection(server.getsockname()) as sock:
                    memory = bytearray(256 * KIB)
                    while sock.recv_into(memory):
                        pass
                status = 0
            finally:
                os._exit(status)
        try:
            sock, _ = server.accept()
            with sock:
                yield sock
        finally:
            os.waitpid(child, 0)


# --- reading --------------------------------------------------------------------------------------

Read = Callable[[int, int, memoryview], Awaitable[None]]
Reading = Callable[[trio.Nursery], Awaitable[Read]]


async def _threads(nursery: trio.Nursery) -> Read:
    limiter = trio.CapacityLimiter(UNDER_WAY)

    async def read(fd: int, at: int, memory: memoryview) -> None:
        await trio.to_thread.run_sync(os.preadv, fd, [memory], at, limiter=limiter)

    return read


async def _at_once(nursery: trio.Nursery) -> Read:
    async def read(fd: int, at: int, memory: memoryview) -> None:
        os.preadv(fd, [memory], at, os.RWF_NOWAIT)
        await trio.lowlevel.checkpoint()

    return read


async def _polled(nursery: trio.Nursery) -> Read:
    """As `LocalReads`: the disk begins, and is asked for a while whether it is done."""
    in_a_thread = await _threads(nursery)

    async def read(fd: int, at: int, memory: memoryview) -> None:
        os.posix_fadvise(fd, at, len(memory), os.POSIX_FADV_WILLNEED)
        begun = time.perf_counter()
        while time.perf_counter() < begun + POLL_S:
            try:
                if os.preadv(fd, [memory], at, os.RWF_NOWAIT) == len(memory):
                    return
            except BlockingIOError:
                pass
            await trio.lowlevel.checkpoint()
        await in_a_thread(fd, at, memory)

    return read


async def _uring(nursery: trio.Nursery) -> Read:
    ring, found = uring.Ring(), uring.Cqe()
    uring.io_uring_queue_init(2 * UNDER_WAY, ring)
    event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    uring.io_uring_register_eventfd(ring, event)
    waiting: dict[int, trio.lowlevel.Task] = {}
    numbers = iter(range(1, 1 << 60))
    asked = 0

    async def read(fd: int, at: int, memory: memoryview) -> None:
        nonlocal asked
        number = next(numbers)
        entry = uring.io_uring_get_sqe(ring)
        uring.io_uring_prep_read(entry, fd, memory.obj, at)
        uring.io_uring_sqe_set_data64(entry, number)
        waiting[number] = trio.lowlevel.current_task()
        if not asked:
            os.eventfd_write(event, 1)  # so that somebody submits it
        asked += 1
        await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)

    async def submit() -> None:
        """Once in a turn, for all who have asked in it."""
        nonlocal asked
        while True:
            if asked:
                asked = 0
                uring.io_uring_submit(ring)
            ready = uring.io_uring_cq_ready(ring)
            if not ready:
                await trio.lowlevel.wait_readable(event)
                os.eventfd_read(event)
                continue
            for _ in range(ready):  # one at a time: behind the end of the ring it crashes
                uring.io_uring_wait_cqe(ring, found)
                entry = found[0]
                assert entry.res > 0, entry.res
                trio.lowlevel.reschedule(waiting.pop(entry.user_data))
                uring.io_uring_cq_advance(ring, 1)
            await trio.lowlevel.checkpoint()

    async def run() -> None:
        try:
            await trio.lowlevel.checkpoint()
            await submit()
        finally:
            uring.io_uring_queue_exit(ring)
            os.close(event)

    nursery.start_soon(run)
    return read


READS: dict[str, Reading] = {"at once": _at_once, "threads": _threads, "polled": _polled}
try:
    uring: Any = importlib.import_module("liburing")
except ImportError:
    print("io_uring is not measured: pip install liburing")
else:
    READS["io_uring"] = _uring


async def _read(reading: Reading, fd: int, size: int, seconds: float, cold: bool) -> dict[str, Any]:
    chance = random.Random(size)
    places = [at * size for at in range(FILE_BYTES // size)]
    chance.shuffle(places)
    count, ended = 0, False

    async def client(read: Read) -> None:
        nonlocal count, ended
        memory = memoryview(bytearray(size))
        while not ended and time.perf_counter() < begun + seconds:
            if cold and count >= len(places):
                ended = True  # all of it is in memory now
                return
            count += 1
            await read(fd, places[count % len(places)], memory)

    async with trio.open_nursery() as helpers:
        read = await reading(helpers)
        before, begun = _cpu_s(), time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(UNDER_WAY):
                nursery.start_soon(client, read)
        cpu, wall = _cpu_s() - before, time.perf_counter() - begun
        helpers.cancel_scope.cancel()
    return _row(count, size, cpu, wall)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# --- the page -------------------------------------------------------------------------------------


def _row(count: int, size: int, cpu: float, wall: float) -> dict[str, Any]:
    return {
        "per_s": round(count / wall, 1),
        "cpu_us": round(1e6 * cpu / count, 2),
        "cpu_s_per_gb": round(cpu / (count * size / 1e9), 3),
    }


def text(results: dict[str, Any]) -> str:
    about = results["machine"]
    lines = [
        f"{results['started']}, {results['rounds']} rounds of {results['seconds']:g} s; "
        f"{about['cpus']} CPUs ({about['cpu']}), disk: {about['disk']}.  Medians.",
        "",
        "Sent: what is in memory, over loopback, to a process that only reads.  Read: at random, "
        f"{UNDER_WAY} reads under way.",
        "",
    ]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in results["rows"]:
        groups.setdefault((row["what"], row["size"], row["way"]), []).append(row)
    table = []
    for (what, size, way), rows in groups.items():
        about_it = {"send": "sent", "memory": "read, in memory", "disk": "read, from disk"}[what]
        cells = [_middle(rows, key) for key in ("per_s", "cpu_us", "cpu_s_per_gb")]
        table.append(
            [about_it, size, way, f"{cells[0]:,.0f}", f"{cells[1]:,.1f}", f"{cells[2]:.2f}"]
        )
    head = ["", "size", "way", "per s", "CPU us", "CPU s per GB"]
    return "\n".join(lines + columns(head, table, left=[0, 1, 2]))


def _middle(rows: list[dict[str, Any]], key: str) -> float:
    values = sorted(float(row[key]) for row in rows)
    return values[len(values) // 2]


if __name__ == "__main__":
    main()
