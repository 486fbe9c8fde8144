"""How a piece of work is timed: processes with one start, daemons with their CPU and memory.

Nothing here knows a filesystem or a workload.
"""

import errno
import json
import os
import random
import selectors
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

FAILURES_MAX = 50
"""Failed operations after which a worker gives up."""
GRACE_S = 30.0
"""How far past twice its budget a worker may be before it is killed as stuck."""
TICK_S = 1 / os.sysconf("SC_CLK_TCK")

now = time.monotonic


@dataclass
class Tally:
    """What one worker did."""

    operations: int = 0
    started: float = 0.0
    """Seconds on the monotonic clock, as `stopped`: the same clock in every process."""
    stopped: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)
    cut_short: bool = False
    """The budget was over before the work was."""
    latencies_s: list[float] = field(default_factory=list)

    def fail(self, error: OSError | str) -> bool:
        """Count a failure; true when there were too many to go on."""
        self.failures[error if isinstance(error, str) else error_name(error)] += 1
        return self.failures.total() >= FAILURES_MAX


@dataclass
class Outcome:
    """What all workers of one measurement did, between the first start and the last stop."""

    operations: float
    seconds: float
    failures: dict[str, int]
    cut_short: bool = False
    p50_ms: float | None = None
    p99_ms: float | None = None

    @property
    def rate(self) -> float | None:
        return self.operations / self.seconds if self.seconds and self.operations else None


def error_name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


# --- operations, one after the other, within a budget ---------------------------------------------


def each(items: Iterable[T], operation: Callable[[T], None], budget_s: float) -> Tally:
    """Do `operation` to every item, until done or `budget_s` is over."""
    tally = Tally(started=now())
    end = tally.started + budget_s
    for item in items:
        if now() >= end:
            tally.cut_short = True
            break
        try:
            operation(item)
        except OSError as error:
            if tally.fail(error):
                break
        else:
            tally.operations += 1
    tally.stopped = now()
    return tally


def each_timed(items: Iterable[T], operation: Callable[[T], None], budget_s: float) -> Tally:
    """`each`, which also keeps how long every operation took."""
    latencies: list[float] = []

    def timed(item: T) -> None:
        started = now()
        operation(item)
        latencies.append(now() - started)

    tally = each(items, timed, budget_s)
    tally.latencies_s = latencies
    return tally


def again_and_again(one_pass: Callable[[float], Tally], for_s: float, budget_s: float) -> Tally:
    """Whole passes until `for_s` are spent: a single warm pass can be too short to time."""
    total = Tally(started=now())
    while now() - total.started < for_s and not total.cut_short:
        tally = one_pass(total.started + budget_s - now())
        total.operations += tally.operations
        total.failures += tally.failures
        total.cut_short = tally.cut_short
        if not tally.operations:
            break
    total.stopped = now()
    return total


# --- several processes ----------------------------------------------------------------------------


def in_processes(work: list[Callable[[], Tally]], budget_s: float) -> Outcome:
    """Run each of `work` in a process of its own, all started at one moment."""
    gate_out, gate_in = os.pipe()
    workers: dict[int, int] = {}  # pid -> where it writes its tally
    for one in work:
        report_out, report_in = os.pipe()
        pid = os.fork()
        if pid == 0:
            _be_worker(one, gate_out, report_in, close=[gate_in, report_out, *workers.values()])
        os.close(report_in)
        workers[pid] = report_out
    os.close(gate_out)
    try:
        for report in workers.values():
            os.read(report, 1)  # it is ready
        os.close(gate_in)
        replies = _collect(workers, now() + 2 * budget_s + GRACE_S)
    finally:
        # Also when interrupted: no worker stays behind.
        for pid, report in workers.items():
            os.close(report)
            _end_worker(pid)
    return _together(replies)


def _be_worker(work: Callable[[], Tally], gate: int, report: int, close: Iterable[int]) -> None:
    """The life of a forked worker.  Does not return: what the parent has to tidy is not ours."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for descriptor in close:
            os.close(descriptor)
        os.write(report, b"R")
        os.read(gate, 1)  # ends when the parent closes the other end, for all at once
        try:
            tally = work()
        except OSError as error:
            tally = Tally()
            tally.fail(error)
        body = memoryview(json.dumps(vars(tally)).encode())
        while body:
            body = body[os.write(report, body) :]
        status = 0
    finally:
        os._exit(status)


def _collect(workers: dict[int, int], deadline: float) -> list[bytes]:
    """What each worker wrote until `deadline`; a stuck one is killed and has written nothing."""
    received = {report: bytearray() for report in workers.values()}
    with selectors.DefaultSelector() as selector:
        for report in received:
            selector.register(report, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - now()))
            if not ready:
                break
            for key, _ in ready:
                piece = os.read(key.fd, 1 << 16)
                received[key.fd] += piece
                if not piece:
                    selector.unregister(key.fd)
        stuck = {key.fd for key in selector.get_map().values()}
    return [b"" if report in stuck else bytes(body) for report, body in received.items()]


def _end_worker(pid: int) -> None:
    """Kill and reap; a process stuck in the kernel is not waited for without end."""
    for attempt in range(50):
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        if attempt == 10:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _together(replies: list[bytes]) -> Outcome:
    tallies = [json.loads(reply) for reply in replies if reply]
    failures: Counter[str] = Counter()
    for tally in tallies:
        failures.update(tally["failures"])
    if len(tallies) < len(replies):
        failures["stuck or died"] += len(replies) - len(tallies)
    ran = [tally for tally in tallies if tally["stopped"]]
    seconds = (
        max(tally["stopped"] for tally in ran) - min(tally["started"] for tally in ran)
        if ran
        else 0.0
    )
    latencies = sorted(one for tally in tallies for one in tally["latencies_s"])
    return Outcome(
        operations=sum(tally["operations"] for tally in tallies),
        seconds=seconds,
        failures=dict(failures),
        cut_short=any(tally["cut_short"] for tally in tallies),
        p50_ms=_percentile_ms(latencies, 0.50),
        p99_ms=_percentile_ms(latencies, 0.99),
    )


def _percentile_ms(ordered_s: list[float], share: float) -> float | None:
    if not ordered_s:
        return None
    return round(1000 * ordered_s[min(len(ordered_s) - 1, int(share * len(ordered_s)))], 3)


# --- commands -------------------------------------------------------------------------------------


def command(
    argv: list[str] | str, operations: int, budget_s: float, cwd: Path, env: dict[str, str]
) -> tuple[Outcome, str]:
    """Time a command that handles `operations` things; also gives back what it printed.

    A command that is stopped by its budget has done nothing that can be counted here.
    """
    started = now()
    process = subprocess.Popen(
        argv,
        shell=isinstance(argv, str),
        cwd=cwd,
        env=env,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # so that its children can be ended with it
    )
    cut_short = False
    try:
        printed, complaint = process.communicate(timeout=budget_s)
    except subprocess.TimeoutExpired:
        cut_short = True
        printed = complaint = ""
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(GRACE_S)
    seconds = now() - started
    failures = {}
    if process.returncode and not cut_short:
        last = complaint.strip().splitlines()[-1:] or [""]
        failures[f"exit {process.returncode}: {last[0][-120:]}"] = 1
    done = 0 if cut_short else operations
    return Outcome(done, seconds, failures, cut_short), printed


# --- the machine and the daemons ------------------------------------------------------------------


def drop_caches(level: int) -> None:
    """Empty the kernel's caches: 2 for names and attributes, 3 for contents too.  Root only."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text(str(level))


def may_drop_caches() -> bool:
    return os.access("/proc/sys/vm/drop_caches", os.W_OK) and os.geteuid() == 0


def machine_cpu_s() -> tuple[float, float]:
    """(busy, stolen) CPU seconds of all CPUs since boot."""
    with open("/proc/stat") as stat:
        user, nice, system, idle, iowait, irq, softirq, steal = map(
            int, stat.readline().split()[1:9]
        )
    del idle, iowait
    return (user + nice + system + irq + softirq) * TICK_S, steal * TICK_S


def own_cpu_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


def with_children(pids: Iterable[int]) -> list[int]:
    """These processes and all their descendants, those that are there."""
    found: list[int] = []
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        try:
            children = [
                int(child)
                for task in Path(f"/proc/{pid}/task").iterdir()
                for child in (task / "children").read_text().split()
            ]
        except OSError:
            continue  # it has ended
        found.append(pid)
        waiting += children
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds that these processes, and children they have reaped, have used."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # it has ended
        total += sum(map(int, fields[11:15]))
    return total * TICK_S


def memory_mib(pids: Iterable[int]) -> tuple[float, float]:
    """(now, peak) resident memory, summed over these processes."""
    kib = Counter[str]()
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue  # it has ended
        for line in status.splitlines():
            if line.startswith(("VmRSS:", "VmHWM:")):
                name, value, _ = line.split()
                kib[name] += int(value)
    return kib["VmRSS:"] / 1024, kib["VmHWM:"] / 1024


def wait_until_quiet(pids: Callable[[], list[int]], limit_s: float) -> None:
    """Return when the daemons have finished what they put off, at the latest after `limit_s`.

    Quiet is less than a tenth of one CPU over 0.2 s.  What they burn until then belongs to the
    work that caused it, and must not run beside the work of the next filesystem.
    """
    end = now() + limit_s
    before = cpu_s(pids())
    while now() < end:
        time.sleep(0.2)
        after = cpu_s(pids())
        if after - before < 0.02:
            return
        before = after


def machine(at: Path) -> dict[str, object]:
    """What a reader has to know to compare numbers: the hardware, and how fast it is just now."""
    cpu = "unknown"
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    same, across = _pipe_round_trip_us()
    return {
        "cpu": cpu,
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "kernel": os.uname().release,
        "disk": filesystem_type(at),
        "fsync_us": _fsync_us(at),
        "pipe_round_trip_one_cpu_us": same,
        "pipe_round_trip_two_cpus_us": across,
    }


def filesystem_type(path: Path) -> str:
    """The type of the filesystem that `path` is on, from the kernel's mount table."""
    real = os.path.realpath(path)
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        point, its_kind = line.split()[1:3]
        point = point.replace("\\040", " ")
        if (real + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best):
            best, kind = point, its_kind
    return kind


def _fsync_us(at: Path) -> int:
    """The median of a 4 KiB append and fdatasync on the disk below everything."""
    path = at / "fsync-probe"
    samples = []
    with open(path, "wb", buffering=0) as file:
        for _ in range(200):
            started = now()
            file.write(random.randbytes(4096))
            os.fdatasync(file)
            samples.append(now() - started)
    path.unlink()
    return round(1e6 * sorted(samples)[len(samples) // 2])


def _pipe_round_trip_us() -> tuple[float, float]:
    """A byte to another process and back: (both on one CPU, on two).  What a FUSE call pays."""
    cpus = sorted(os.sched_getaffinity(0))
    try:
        return _round_trip_us(cpus[0], cpus[0]), _round_trip_us(cpus[0], cpus[-1])
    finally:
        os.sched_setaffinity(0, cpus)


def _round_trip_us(mine: int, its: int, seconds: float = 0.3) -> float:
    there_out, there_in = os.pipe()
    back_out, back_in = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(there_in)
        os.sched_setaffinity(0, [its])
        while os.read(there_out, 1):
            os.write(back_in, b"x")
        os._exit(0)
    os.close(there_out)
    os.close(back_in)
    os.sched_setaffinity(0, [mine])
    trips = 0
    started = now()
    while now() - started < seconds:
        os.write(there_in, b"x")
        os.read(back_out, 1)
        trips += 1
    spent = now() - started
    os.close(there_in)
    os.close(back_out)
    os.waitpid(pid, 0)
    return round(1e6 * spent / trips, 1)
