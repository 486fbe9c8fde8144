"""What is measured: mountfs, a plain directory, and peers, each started fresh and ended completely.

Each is a context manager: it gives a directory to work in, and when it is left, for whatever
reason, its mount, its processes and its data are gone.  Everything listens on 127.0.0.1 only.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks import clusters
from benchmarks.clusters import NODES
from benchmarks.measure import now, with_children
from benchmarks.processes import (
    START_S,
    CannotStart,
    accepts,
    answers,
    end,
    find,
    free_port,
    get,
    run,
    serving,
    start_time,
    taken,
    version,
    wait_for,
)

MOUNTFS = (sys.executable, "-m", "mountfs.cli.main")
STOP_S = 120
"""For an unmounted daemon to write what it holds and end."""


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


Start = Callable[[Path], AbstractContextManager[Mounted]]


def choose(names: Sequence[str], against: Path | None = None) -> dict[str, Start]:
    """The filesystems of these names, by name, in the order of the table; with that of the checkout
    `against`, if there is one.
    """
    unknown = set(names) - set(FILESYSTEMS)
    if unknown:
        known = ", ".join(FILESYSTEMS)
        raise ValueError(f"unknown: {', '.join(sorted(unknown))} (there are: {known})")
    found = {name: start for name, start in FILESYSTEMS.items() if name in names}
    if against is not None:
        found["mountfs-before"] = partial(mountfs_before, against)
    return found


# --- the filesystems ------------------------------------------------------------------------------


@contextmanager
def mountfs(scratch: Path) -> Iterator[Mounted]:
    from mountfs import __version__

    home, point = scratch / "home", scratch / "mount"
    with _mounted(str(home), home, point) as pid:
        yield Mounted(
            name="mountfs",
            top=point,
            version=__version__,
            durability="one copy. A returned fsync is on the disk (fdatasync of log and volume "
            "before the answer). A returned change of names survives the daemon, and without "
            "fsync may be lost with the machine.",
            fsync_reaches_disk=True,
            roots=[pid],
        )


@contextmanager
def mountfs_before(checkout: Path, scratch: Path) -> Iterator[Mounted]:
    """Another version of mountfs, with the same dependencies."""
    home, point = scratch / "home", scratch / "mount"
    with _mounted(str(home), home, point, checkout) as pid:
        code = Path(f"/proc/{pid}/environ").read_bytes()
        assert f"PYTHONPATH={checkout}\0".encode() in code, "it would measure itself"
        yield Mounted(
            name="mountfs-before",
            top=point,
            version=version(["git", "-C", str(checkout), "log", "-1", "--format=%h %s"]),
            durability="as mountfs, at that time",
            fsync_reaches_disk=True,
            roots=[pid],
        )


@contextmanager
def mountfs_cluster(copies: int, scratch: Path) -> Iterator[Mounted]:
    """`copies` of the bytes of every file, on so many of three nodes."""
    from mountfs.cli.places import mount_directory

    point = scratch / "mount"
    own = mount_directory(str(point))
    with clusters.mountfs(scratch / "nodes") as cluster, ExitStack() as stack:
        stack.callback(shutil.rmtree, own, ignore_errors=True)
        source = f"{','.join(cluster.at)}:"
        pid = stack.enter_context(_mounted(source, own, point))
        if copies != NODES:
            run([*MOUNTFS, "replication", "set", str(point), str(copies)])
        yield Mounted(
            name="mountfs-cluster" if copies == NODES else f"mountfs-cluster-{copies}",
            top=point,
            version=cluster.version,
            durability="three nodes on this machine and disk. Every returned change of names is "
            "synced (fdatasync) on two of them. When close or fsync returns, contents are synced "
            f"in {copies} of 3 volumes, or (up to 4 KiB; with fsync up to 64 KiB) with the names.",
            fsync_reaches_disk=True,
            roots=[pid, *cluster.roots],
        )


@contextmanager
def mounted_cluster(cluster: clusters.Cluster, point: Path) -> Iterator[Path]:
    """One more mount of a cluster."""
    from mountfs.cli.places import mount_directory

    own = mount_directory(str(point))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, own, ignore_errors=True)
        stack.enter_context(_mounted(f"{','.join(cluster.at)}:", own, point))
        yield point


@contextmanager
def _mounted(
    source: str, directory: Path, point: Path, checkout: Path | None = None
) -> Iterator[int]:
    """Mount `source`; gives the pid of the daemon, whose own things are in `directory`.

    `checkout`: where its code is; None: here.
    """
    point.mkdir(parents=True)
    with ExitStack() as stack:
        stack.callback(_stop_mountfs, directory, point)
        done = subprocess.run(
            [sys.executable, "-m", "mountfs.cli.mount_dfs", source, str(point)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_S,
            cwd=checkout,
            env=os.environ | ({"PYTHONPATH": str(checkout)} if checkout else {}),
        )
        if done.returncode:
            raise CannotStart(done.stderr.strip() or f"mount.dfs returned {done.returncode}")
        yield int((directory / "pid").read_text())


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
    program, redis = find("juicefs"), find("redis-server")
    data, logs, point = _directories(scratch, "redis", "mount")
    port = free_port()
    meta = f"redis://127.0.0.1:{port}/1"
    with ExitStack() as stack:
        server = stack.enter_context(
            serving(
                [
                    redis, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(data / "redis"),
                    "--save", "", "--appendonly", "yes", "--appendfsync", "everysec",
                    "--daemonize", "no",
                ],
                logs / "redis.log",
            )
        )  # fmt: skip
        wait_for(lambda: accepts(port), "Redis", server)
        run(
            [
                program, "format", "--no-update", "--storage", "file",
                "--bucket", f"{data}/objects/", meta, "bench",
            ]
        )  # fmt: skip
        stack.callback(_unmount, point)
        daemon = stack.enter_context(
            serving(
                [
                    program, "mount", "--no-usage-report", "--no-syslog",
                    "--cache-dir", str(data / "cache"), "--metrics", f"127.0.0.1:{free_port()}",
                    meta, str(point),
                ],
                logs / "mount.log",
            )
        )  # fmt: skip
        # Left before the daemon is ended: an unmounted daemon ends by itself.
        stack.callback(_unmount, point)
        wait_for(lambda: _is_mount(point), "juicefs mount", daemon)
        yield Mounted(
            name="juicefs",
            top=point,
            version=version([program, "--version"]),
            durability="one copy: Redis (append-only file, synced once a second) and objects as "
            "files on the same disk. fsync does not sync: objects are written and never synced, "
            "and the last second of metadata is in memory.",
            fsync_reaches_disk=False,
            roots=[server.pid, daemon.pid],
        )


@contextmanager
def seaweedfs(scratch: Path) -> Iterator[Mounted]:
    program = find("weed")
    data, logs, point = _directories(scratch, "server", "mount")
    master, volume, filer = free_port(), free_port(), free_port()
    with ExitStack() as stack:
        server = stack.enter_context(
            serving(
                [
                    program, "server", f"-dir={data / 'server'}", "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1", f"-master.port={master}", "-master.telemetry=false",
                    f"-volume.port={volume}", "-volume.max=100", "-volume.preStopSeconds=0",
                    "-filer", f"-filer.port={filer}", f"-filer.localSocket={data}/filer.sock",
                ],
                logs / "server.log",
            )
        )  # fmt: skip
        wait_for(lambda: answers(f"http://127.0.0.1:{filer}/"), "weed filer", server)
        assign = f"http://127.0.0.1:{master}/dir/assign"
        wait_for(lambda: b"fid" in get(assign), "weed master", server)
        daemon = stack.enter_context(
            serving(
                [
                    program, "mount", f"-filer=127.0.0.1:{filer}", f"-dir={point}",
                    f"-cacheDir={data}/cache", f"-localSocket={data}/mount.sock",
                ],
                logs / "mount.log",
            )
        )  # fmt: skip
        stack.callback(_unmount, point)
        wait_for(lambda: _is_mount(point), "weed mount", daemon)
        yield Mounted(
            name="seaweedfs",
            top=point,
            version=version([program, "version"]),
            durability="one copy: master, filer (LevelDB) and volume server in one process. "
            "fsync does not sync: it means that the servers have the data, in memory.",
            fsync_reaches_disk=False,
            roots=[server.pid, daemon.pid],
        )


@contextmanager
def seaweedfs_cluster(copies: int, scratch: Path, *, fsync: bool = False) -> Iterator[Mounted]:
    """Master, three volume servers, filer and mount, a process each; `copies` of all bytes."""
    program = find("weed")
    data, logs, point = _directories(scratch, "master", "mount")
    replication = f"00{copies - 1}"
    master, filer = free_port(), free_port()
    at = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    with ExitStack() as stack:

        def serve(name: str, *argv: str) -> subprocess.Popen[bytes]:
            return stack.enter_context(serving([program, *argv], logs / f"{name}.log"))

        roots = [
            serve(
                "master", "master", *at, f"-port={master}", f"-mdir={data / 'master'}",
                "-peers=none", "-telemetry=false", f"-defaultReplication={replication}",
                "-volumeSizeLimitMB=1024",
            )
        ]  # fmt: skip
        wait_for(
            lambda: answers(f"http://127.0.0.1:{master}/cluster/status"), "weed master", roots[0]
        )
        for number in range(1, NODES + 1):
            directory = data / f"v{number}"
            directory.mkdir()
            # One rack: 002 is two more copies on other servers of the same rack.
            roots.append(
                serve(
                    f"volume{number}", "volume", *at, f"-port={free_port()}", f"-dir={directory}",
                    "-max=100", f"-master=127.0.0.1:{master}", "-dataCenter=dc", "-rack=rack",
                    "-preStopSeconds=0",
                )
            )  # fmt: skip
        roots.append(
            serve(
                "filer", "filer", *at, f"-port={filer}", f"-master=127.0.0.1:{master}",
                f"-defaultStoreDir={data}", f"-localSocket={data}/filer.sock",
                f"-defaultReplicaPlacement={replication}",
            )
        )  # fmt: skip
        wait_for(lambda: answers(f"http://127.0.0.1:{filer}/"), "weed filer", roots[-1])
        assign = f"http://127.0.0.1:{master}/dir/assign?replication={replication}"
        wait_for(lambda: b"fid" in get(assign), "weed volume", roots[1])
        if fsync:
            _weed_shell(program, master, filer, "fs.configure -locationPrefix=/ -fsync -apply")
        daemon = serve(
            "mount", "mount", f"-filer=127.0.0.1:{filer}", f"-dir={point}",
            f"-cacheDir={data}/cache", f"-localSocket={data}/mount.sock",
            f"-replication={replication}",
        )  # fmt: skip
        stack.callback(_unmount, point)
        wait_for(lambda: _is_mount(point), "weed mount", daemon)
        promise = (
            "volume servers sync before they answer (fs.configure -fsync); the filer does not"
            if fsync
            else "fsync does not sync: it means that the servers have the data, in memory"
        )
        yield Mounted(
            name=f"seaweedfs-{copies}" + ("-fsync" if fsync else ""),
            top=point,
            version=version([program, "version"]),
            durability=f"replication {replication}: {copies} of 3 volume servers have the bytes, "
            f"one filer (LevelDB) the names. {promise}.",
            fsync_reaches_disk=fsync,
            roots=[*(server.pid for server in roots), daemon.pid],
        )


def _weed_shell(program: str, master: int, filer: int, command: str) -> None:
    done = subprocess.run(
        [program, "shell", f"-master=127.0.0.1:{master}", f"-filer=127.0.0.1:{filer}"],
        input=f"lock\n{command}\nunlock\n", capture_output=True, text=True, timeout=START_S,
    )  # fmt: skip
    if done.returncode or "error" in done.stdout.lower():
        raise CannotStart(f"weed shell, {command}: {(done.stderr or done.stdout).strip()[-300:]}")


@contextmanager
def gluster(scratch: Path) -> Iterator[Mounted]:
    """Three bricks on this machine with a copy each, mounted by its own client.

    What ends by itself when the volume is stopped is ended by the pids that glusterd has noted if
    it does not.
    """
    program, control, client = find("glusterd"), find("gluster"), find("glusterfs")
    data, logs, point = _directories(scratch, "state", "mount")
    run_directory, door = data / "run", data / "glusterd.socket"
    run_directory.mkdir()
    bricks = [data / f"brick{number}" for number in range(1, NODES + 1)]
    for brick in bricks:
        brick.mkdir()
    try:
        os.setxattr(data, "trusted.bench", b"1")
    except OSError as error:
        raise CannotStart(
            f"bricks need attributes of the class trusted: {error.strerror}"
        ) from None
    if taken(GLUSTER_PORT, GLUSTER_HOST):
        raise CannotStart(f"port {GLUSTER_PORT} of {GLUSTER_HOST} is taken")
    options = {
        "working-directory": data / "state",
        "run-directory": run_directory,
        "transport-type": "socket",
        "transport.address-family": "inet",
        "transport.socket.bind-address": GLUSTER_HOST,
        "transport.socket.listen-port": GLUSTER_PORT,
        "glusterd-sockfile": door,
    }
    lines = [f"    option {name} {value}" for name, value in options.items()]
    volfile = data / "glusterd.vol"
    volfile.write_text(
        "\n".join(["volume management", "    type mgmt/glusterd", *lines, "end-volume", ""])
    )

    def asking(*argv: str) -> list[str]:
        return [control, "--mode=script", f"--glusterd-sock={door}", "volume", *argv]

    def noted() -> list[int]:
        """The processes that glusterd has started."""
        return [int(path.read_text()) for path in run_directory.rglob("*.pid")]

    def end_noted() -> None:
        for pid in noted():
            end(pid)

    with ExitStack() as stack:
        stack.callback(end_noted)
        server = stack.enter_context(
            serving(
                [
                    program, "--no-daemon", f"--volfile={volfile}",
                    f"--log-file={logs}/glusterd.log", f"--pid-file={data}/glusterd.pid",
                ],
                logs / "glusterd.out",
            )
        )  # fmt: skip
        wait_for(lambda: taken(GLUSTER_PORT, GLUSTER_HOST) and door.exists(), "glusterd", server)
        # "force": bricks on the disk of the system, and all of them on one machine.
        at = [f"{GLUSTER_HOST}:{brick}" for brick in bricks]
        run(asking("create", "bench", "replica", str(NODES), *at, "force"))
        run(asking("start", "bench"))
        stack.callback(subprocess.run, asking("stop", "bench", "force"), capture_output=True)
        daemon = stack.enter_context(
            serving(
                [
                    client, "--no-daemon", f"--volfile-server={GLUSTER_HOST}",
                    "--volfile-id=bench", f"--log-file={logs}/mount.log", str(point),
                ],
                logs / "mount.out",
            )
        )  # fmt: skip
        stack.callback(_unmount, point)
        wait_for(lambda: _is_mount(point), "the mount of GlusterFS", daemon, logs / "mount.log")
        yield Mounted(
            name="gluster",
            top=point,
            version=version([control, "--version"]),
            durability="replica 3: three bricks on this machine and disk have each file as a file. "
            "A returned fsync is on the disk, in all of them. Other changes are in the memory of "
            "all three.",
            fsync_reaches_disk=True,
            roots=[server.pid, daemon.pid, *noted()],
        )


GLUSTER_HOST = "127.0.0.2"
"""It takes no bricks of 127.0.0.1."""
GLUSTER_PORT = 24007
"""Bricks ask for no other."""


DEFAULT = ("mountfs-cluster", "plain", "juicefs", "seaweedfs")
CLUSTERS = (
    "plain", "mountfs-cluster", "mountfs-cluster-1", "seaweedfs-3", "seaweedfs-3-fsync",
    "seaweedfs-1", "gluster",
)  # fmt: skip
FILESYSTEMS: dict[str, Start] = {
    "mountfs": mountfs,
    "mountfs-cluster": partial(mountfs_cluster, 3),
    "mountfs-cluster-1": partial(mountfs_cluster, 1),
    "plain": plain,
    "juicefs": juicefs,
    "seaweedfs": seaweedfs,
    "seaweedfs-3": partial(seaweedfs_cluster, 3),
    "seaweedfs-3-fsync": partial(seaweedfs_cluster, 3, fsync=True),
    "seaweedfs-1": partial(seaweedfs_cluster, 1),
    "gluster": gluster,
}


def _directories(scratch: Path, data: str, mount: str) -> tuple[Path, Path, Path]:
    """(where data goes, where logs go, an empty mount point)."""
    (scratch / "data" / data).mkdir(parents=True)
    (scratch / "logs").mkdir()
    (scratch / mount).mkdir()
    return scratch / "data", scratch / "logs", scratch / mount


# --- mounts ---------------------------------------------------------------------------------------


def _stop_mountfs(home: Path, point: Path) -> None:
    try:
        pid = int((home / "pid").read_text())
    except (OSError, ValueError):
        pid = None  # it did not come up, or has ended
    born = start_time(pid) if pid else None
    _unmount(point)
    if pid is None or born is None:
        return
    deadline = now() + STOP_S
    while start_time(pid) == born:
        if now() > deadline:
            end(pid)
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
