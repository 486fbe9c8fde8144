"""What is measured: mountfs, a plain directory, and peers, each started fresh and ended completely.

Each is a context manager: it gives a directory to work in, and when it is left, for whatever
reason, its mount, its processes and its data are gone.  Everything listens on 127.0.0.1 only.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measure import now, with_children

START_S = 60
"""For a server to answer, or a mount to appear."""
STOP_S = 120
"""For an unmounted daemon to write what it holds and end."""


class CannotStart(Exception):
    """A filesystem that is not measured, with the reason."""


@dataclass
class Mounted:
    """A filesystem that is up."""

    name: str
    top: Path
    """The directory to work in: empty at first."""
    version: str
    durability: str
    """What survives which accident, as it is run here."""
    fsync_reaches_disk: bool
    roots: list[int] = field(default_factory=list)
    """Its processes; their children belong to it as well."""

    def pids(self) -> list[int]:
        return with_children(self.roots)


def choose(names: Sequence[str]) -> dict[str, Callable[[Path], AbstractContextManager[Mounted]]]:
    """The filesystems of these names, by name, in the order of the table."""
    unknown = set(names) - set(FILESYSTEMS)
    if unknown:
        known = ", ".join(FILESYSTEMS)
        raise ValueError(f"unknown: {', '.join(sorted(unknown))} (there are: {known})")
    return {name: start for name, start in FILESYSTEMS.items() if name in names}


# --- the filesystems ------------------------------------------------------------------------------


@contextmanager
def mountfs(scratch: Path) -> Iterator[Mounted]:
    home, point = scratch / "home", scratch / "mount"
    point.mkdir(parents=True)
    with ExitStack() as stack:
        stack.callback(_stop_mountfs, home, point)
        done = subprocess.run(
            [sys.executable, "-m", "mountfs.cli.mount_dfs", str(home), str(point)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_S,
        )
        if done.returncode:
            raise CannotStart(done.stderr.strip() or f"mount.dfs returned {done.returncode}")
        from mountfs import __version__

        yield Mounted(
            name="mountfs",
            top=point,
            version=__version__,
            durability="one copy. A returned fsync is on the disk (fdatasync of log and volume "
            "before the answer). A returned change of names survives the daemon, and without "
            "fsync may be lost with the machine.",
            fsync_reaches_disk=True,
            roots=[int((home / "pid").read_text())],
        )


@contextmanager
def plain(scratch: Path) -> Iterator[Mounted]:
    scratch.mkdir(parents=True)
    yield Mounted(
        name="plain",
        top=scratch,
        version="the disk under everything else here",
        durability="one copy. A returned fsync is on the disk. Names are in memory until the "
        "journal is written (seconds), unless synced.",
        fsync_reaches_disk=True,
    )


@contextmanager
def juicefs(scratch: Path) -> Iterator[Mounted]:
    program, redis = _find("juicefs"), _find("redis-server")
    data, logs, point = _directories(scratch, "redis", "mount")
    port = _free_port()
    meta = f"redis://127.0.0.1:{port}/1"
    with ExitStack() as stack:
        server = stack.enter_context(
            _serving(
                [
                    redis, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(data / "redis"),
                    "--save", "", "--appendonly", "yes", "--appendfsync", "everysec",
                    "--daemonize", "no",
                ],
                logs / "redis.log",
            )
        )  # fmt: skip
        _wait_for(lambda: _accepts(port), "Redis", server)
        _run(
            [
                program, "format", "--no-update", "--storage", "file",
                "--bucket", f"{data}/objects/", meta, "bench",
            ]
        )  # fmt: skip
        stack.callback(_unmount, point)
        daemon = stack.enter_context(
            _serving(
                [
                    program, "mount", "--no-usage-report", "--no-syslog",
                    "--cache-dir", str(data / "cache"), "--metrics", f"127.0.0.1:{_free_port()}",
                    meta, str(point),
                ],
                logs / "mount.log",
            )
        )  # fmt: skip
        # Left before the daemon is ended: an unmounted daemon ends by itself.
        stack.callback(_unmount, point)
        _wait_for(lambda: _is_mount(point), "juicefs mount", daemon)
        yield Mounted(
            name="juicefs",
            top=point,
            version=_version([program, "--version"]),
            durability="one copy: Redis (append-only file, synced once a second) and objects as "
            "files on the same disk. fsync does not sync: objects are written and never synced, "
            "and the last second of metadata is in memory.",
            fsync_reaches_disk=False,
            roots=[server.pid, daemon.pid],
        )


@contextmanager
def seaweedfs(scratch: Path) -> Iterator[Mounted]:
    program = _find("weed")
    data, logs, point = _directories(scratch, "server", "mount")
    master, volume, filer = _free_port(), _free_port(), _free_port()
    with ExitStack() as stack:
        server = stack.enter_context(
            _serving(
                [
                    program, "server", f"-dir={data / 'server'}", "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1", f"-master.port={master}", "-master.telemetry=false",
                    f"-volume.port={volume}", "-volume.max=100", "-volume.preStopSeconds=0",
                    "-filer", f"-filer.port={filer}", f"-filer.localSocket={data}/filer.sock",
                ],
                logs / "server.log",
            )
        )  # fmt: skip
        _wait_for(lambda: _answers(f"http://127.0.0.1:{filer}/"), "weed filer", server)
        assign = f"http://127.0.0.1:{master}/dir/assign"
        _wait_for(lambda: b"fid" in _get(assign), "weed master", server)
        daemon = stack.enter_context(
            _serving(
                [
                    program, "mount", f"-filer=127.0.0.1:{filer}", f"-dir={point}",
                    f"-cacheDir={data}/cache", f"-localSocket={data}/mount.sock",
                ],
                logs / "mount.log",
            )
        )  # fmt: skip
        stack.callback(_unmount, point)
        _wait_for(lambda: _is_mount(point), "weed mount", daemon)
        yield Mounted(
            name="seaweedfs",
            top=point,
            version=_version([program, "version"]),
            durability="one copy: master, filer (LevelDB) and volume server in one process. "
            "fsync does not sync: it means that the servers have the data, in memory.",
            fsync_reaches_disk=False,
            roots=[server.pid, daemon.pid],
        )


FILESYSTEMS: dict[str, Callable[[Path], AbstractContextManager[Mounted]]] = {
    "mountfs": mountfs,
    "plain": plain,
    "juicefs": juicefs,
    "seaweedfs": seaweedfs,
}


# --- processes ------------------------------------------------------------------------------------


def _find(program: str) -> str:
    found = shutil.which(program)
    if not found:
        raise CannotStart(f"{program} is not installed")
    return found


def _directories(scratch: Path, data: str, mount: str) -> tuple[Path, Path, Path]:
    """(where data goes, where logs go, an empty mount point)."""
    (scratch / "data" / data).mkdir(parents=True)
    (scratch / "logs").mkdir()
    (scratch / mount).mkdir()
    return scratch / "data", scratch / "logs", scratch / mount


@contextmanager
def _serving(argv: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server in the background, ended by its pid with all its children."""
    with open(log, "wb") as output:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=log.parent,
            start_new_session=True,  # the terminal's Ctrl-C is for us; we end it in order
        )
    try:
        yield process
    finally:
        family = with_children([process.pid])
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(15)
        for pid in family[1:]:
            _end(pid)


def _end(pid: int) -> None:
    """End a child of a server that has been ended, if it did not end with it."""
    born = _start_time(pid)
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        deadline = now() + 5
        while _start_time(pid) == born is not None and now() < deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal_number)
            time.sleep(0.1)


def _start_time(pid: int) -> str | None:
    """What tells this process from a later one of the same pid; None when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=START_S)
    if done.returncode:
        raise CannotStart(f"{argv[0]} {argv[1]}: {done.stderr.strip()[-300:]}")


def _version(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=START_S)
    return (done.stdout or done.stderr).strip().splitlines()[0]


def _wait_for(condition: Callable[[], bool], what: str, process: subprocess.Popen[bytes]) -> None:
    deadline = now() + START_S
    while not condition():
        if process.poll() is not None:
            raise CannotStart(f"{what} ended with {process.returncode}")
        if now() > deadline:
            raise CannotStart(f"{what} was not there after {START_S} s")
        time.sleep(0.1)


# --- mounts ---------------------------------------------------------------------------------------


def _stop_mountfs(home: Path, point: Path) -> None:
    try:
        pid = int((home / "pid").read_text())
    except (OSError, ValueError):
        pid = None  # it did not come up, or has ended
    born = _start_time(pid) if pid else None
    _unmount(point)
    if pid is None or born is None:
        return
    deadline = now() + STOP_S
    while _start_time(pid) == born:
        if now() > deadline:
            _end(pid)
            raise RuntimeError(f"mountfs (process {pid}) did not end {STOP_S} s after its unmount")
        time.sleep(0.05)


def _is_mount(point: Path) -> bool:
    # From the table, not by stat: a mount whose daemon has died must be found too.
    named = str(point).replace(" ", "\\040")
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return any(line.split()[1] == named for line in mounts)


def _unmount(point: Path) -> None:
    """Unmount, if it is mounted; lazily if somebody keeps it busy."""
    if not _is_mount(point):
        return
    argv = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
    for _ in range(20):
        done = subprocess.run([*argv, str(point)], capture_output=True, text=True)
        if done.returncode == 0 or not _is_mount(point):
            return
        time.sleep(0.25)
    lazy = "-l" if os.geteuid() == 0 else "-z"
    subprocess.run([*argv, lazy, str(point)], capture_output=True, check=False)
    print(f"{point} was busy and has been detached: {done.stderr.strip()}", file=sys.stderr)


# --- ports ----------------------------------------------------------------------------------------

_given_ports: set[int] = set()


def _free_port() -> int:
    """A port that nobody has, and nobody has 10,000 above it, where SeaweedFS puts its gRPC."""
    for port in range(21000, 31000):
        if port in _given_ports or _taken(port) or _taken(port + 10000):
            continue
        _given_ports.add(port)
        return port
    raise CannotStart("no free port on 127.0.0.1")


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _get(url: str) -> bytes:
    """The body, or nothing while nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            body: bytes = reply.read()
    except (urllib.error.URLError, OSError, json.JSONDecodeError):
        return b""
    return body


def _answers(url: str) -> bool:
    return bool(_get(url))
