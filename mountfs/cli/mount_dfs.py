"""mount.dfs: mount a filesystem, as mount(8) calls it or by hand.

Returns 0 only after the kernel has said INIT and one operation has gone round; otherwise says why
on stderr and returns as mount(8) documents: 1 wrong call or permission, 32 the mount failed.
"""

import argparse
import contextlib
import logging
import logging.handlers
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

import trio

from mountfs.cli.cluster_source import client_options, cluster_addresses, hold_directory
from mountfs.cli.places import cluster_in, default_home, mount_directory
from mountfs.errors import Fault, FsError, disk_error, unwrapped
from mountfs.fuse import mount as mounting
from mountfs.fuse.binding import Binding, native_binding
from mountfs.fuse.options import MountOptions, parse_options
from mountfs.fuse.pyfuse3_binding import pyfuse3_binding
from mountfs.meta.client import Address
from mountfs.vfs import answers, control
from mountfs.vfs.cluster import ClusterMount, cluster_mount
from mountfs.vfs.embedded import EmbeddedNode, embedded_node
from mountfs.vfs.home import holder_of

log = logging.getLogger(__name__)

EXIT_USAGE = 1
EXIT_FAILED = 32

START_S = 120
"""To open the home, replay its log and mount."""
HANDOVER_S = 30
"""How long an unmounted node may still be writing before the next one gives up waiting for the
home.
"""
DETACH_S = 10
"""After SIGTERM: how long programs may go on using a mount that is already out of sight."""
QUIET_S = 0.2
"""They have ended their work when they ask for nothing for so long."""
_NO_WORK: Final = frozenset(
    ("flush", "getattr", "statfs", "release", "releasedir", "forget", "batch_forget", "interrupt")
)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LOG_BYTES = 4 << 20
WARNINGS_MAX = 10
"""Said on stderr by a mount; `mountfs status` has all of them."""
_OK = "ok\n"

_DESCRIPTION = """\
Mount a mountfs filesystem.

With one argument, the default home is used; with two, the first is the home directory that holds
the data, which is made if it does not exist, or the nodes of a cluster, with a colon at the end.
The command returns when the mount works.
"""

_EXAMPLES = """\
examples:
  mount.dfs /mnt/data                          the default home, mounted at /mnt/data
  mount.dfs /srv/home /mnt/data -o ro,noatime  another home, read only
  mount.dfs n1,n2,n3: /mnt/data                what a cluster has; see: mountfs node --help
  umount /mnt/data                             unmount; data stays in the home

in /etc/fstab:
  /srv/home  /mnt/data  dfs  defaults,nofail  0  0
"""


def main(argv: list[str] | None = None) -> int:
    arguments = _parse(sys.argv[1:] if argv is None else argv)
    try:
        options = parse_options(",".join(arguments.options))
        mountpoint = mounting.check_mountpoint(arguments.mountpoint)
        origin = _origin(arguments.home, mountpoint, options)
        mounting.check_machine(mountpoint, options)
        if arguments.fake:
            return 0
        if arguments.foreground:
            _log_to(None, arguments.verbose)
            return _run(
                origin,
                mountpoint,
                options,
                lambda troubles: sys.stderr.write(warning_of(troubles, origin)),
            )
        return _start(origin, mountpoint, options, arguments.verbose)
    except FsError as error:
        return _say(error)


class Origin(NamedTuple):
    """Where the filesystem comes from."""

    source: str
    """As the mount table has it."""
    home: Path
    """The home; of a cluster, the directory of the mount's own things."""
    nodes: tuple[Address, ...]
    """Of a cluster; none: the home has the filesystem."""


def _origin(named: str | None, mountpoint: str, options: MountOptions) -> Origin:
    nodes = cluster_in(named) if named else None
    if nodes is not None:
        return Origin(f"{nodes}:/", mount_directory(mountpoint), cluster_addresses(nodes))
    if options.soft_s is not None or options.tls is not None:
        raise FsError(Fault.INVALID, "options soft and tls are for the mount of a cluster")
    home = Path(named or default_home()).absolute()
    return Origin(str(home), home, ())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """As mount(8) documents it: 2 would be an error of the system."""
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: {message}; see: {self.prog} --help\n")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="mount.dfs",
        usage="mount.dfs [HOME|NODES:] MOUNTPOINT [-o OPTIONS] [--foreground] [-v] [-f]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("places", nargs="+", metavar="[HOME|NODES:] MOUNTPOINT")
    parser.add_argument(
        "-o", dest="options", action="append", default=[], metavar="OPTIONS",
        help="comma-separated mount options; see docs/operations.md",
    )  # fmt: skip
    parser.add_argument(
        "--foreground", action="store_true", help="stay in the foreground, log to stderr"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    parser.add_argument(
        "-f", "--fake", action="store_true", help="check the arguments, do not mount"
    )
    parser.add_argument(
        "-n", action="store_true", help=argparse.SUPPRESS
    )  # no mtab: nobody has one
    parser.add_argument("-s", action="store_true", help=argparse.SUPPRESS)  # tolerate odd options
    parser.add_argument("-t", metavar="TYPE", help=argparse.SUPPRESS)  # mount(8) passes it on
    arguments = parser.parse_args(argv)
    if len(arguments.places) > 2:
        parser.error("give a mount point, or a home and a mount point")
    arguments.mountpoint = arguments.places[-1]
    arguments.home = arguments.places[0] if len(arguments.places) == 2 else None
    if arguments.home in ("", "none", "mountfs", "default"):
        arguments.home = None
    return arguments


def _say(error: FsError) -> int:
    print(f"mount.dfs: {_told(error)}", file=sys.stderr)
    return EXIT_FAILED


_NEXT_STEP: Final = {
    Fault.NO_SPACE: "a mount needs a few MiB on the disk of its home: make room there, but not in "
    "the home, where nothing is safe to delete",
    Fault.READ_ONLY: "a home is written to even by a mount with -o ro: make its disk writable "
    "(mount -o remount,rw), or copy the home to one that is",
}
"""What to do about a disk that does not let us mount."""


def _told(error: FsError) -> str:
    step = _NEXT_STEP.get(error.fault)
    return f"{error}; {step}" if step else str(error)


def warning_of(troubles: dict[str, str], origin: Origin) -> str:
    """What a mount that works, but not with everything, says on stderr; empty: all is well."""
    if not troubles:
        return ""
    lines = [f"{what}: {why}" for what, why in islice(troubles.items(), WARNINGS_MAX)]
    if len(troubles) > WARNINGS_MAX:
        lines.append(f"{len(troubles) - WARNINGS_MAX} more: mountfs status {origin.home}")
    lines[-1] += " (it is mounted all the same"
    lines[-1] += ")" if origin.nodes else f"; mountfs fsck {origin.home} names damaged files)"
    return "".join(f"mount.dfs: warning: {line}\n" for line in lines)


def _start(origin: Origin, mountpoint: str, options: MountOptions, verbose: bool) -> int:
    """Mount in a process of its own, and wait until it works."""
    report_read, report_write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork() == 0:
        os.close(report_read)
        _become_daemon(origin, mountpoint, options, verbose, report_write)
    os.close(report_write)
    with os.fdopen(report_read, "rb") as report:
        said = report.read().decode("utf-8", "replace")
    if said.startswith(_OK):
        sys.stderr.write(said.removeprefix(_OK))
        return 0
    print(
        f"mount.dfs: {said or 'the daemon died; see ' + str(origin.home / 'log')}", file=sys.stderr
    )
    return EXIT_FAILED


def _become_daemon(
    origin: Origin, mountpoint: str, options: MountOptions, verbose: bool, report: int
) -> NoReturn:
    home = origin.home
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)

    def ready(troubles: dict[str, str]) -> None:
        os.write(report, (_OK + warning_of(troubles, origin)).encode("utf-8", "backslashreplace"))
        os.close(report)

    code = EXIT_FAILED
    try:
        code = _run(origin, mountpoint, options, ready, log_to=home / "log", verbose=verbose)
    except FsError as error:
        with contextlib.suppress(
            OSError
        ):  # already reported, and serving since: then the log has it
            os.write(report, _told(error).encode())
        log.error("%s", error)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(report, f"{type(error).__name__}: {error}; see {home / 'log'}".encode())
        log.critical("the daemon dies", exc_info=True)
    finally:
        logging.shutdown()
        os._exit(code)


def _run(
    origin: Origin,
    mountpoint: str,
    options: MountOptions,
    ready: Any,
    *,
    log_to: Path | None = None,
    verbose: bool = False,
) -> int:
    with unwrapped():
        trio.run(_serve, origin, mountpoint, options, ready, log_to, verbose)
    return 0


def _log_later() -> logging.handlers.MemoryHandler:
    """Keep what is logged until there is a home to log to."""
    early = logging.handlers.MemoryHandler(1_000, flushLevel=logging.CRITICAL + 1)
    logging.basicConfig(handlers=[early], level=logging.INFO)
    return early


def _log_to(
    path: Path | None, verbose: bool, early: logging.handlers.MemoryHandler | None = None
) -> None:
    handler: logging.Handler = logging.StreamHandler()
    if path is not None:
        handler = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=1)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    if early is not None:
        early.setTarget(handler)
        early.flush()
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(handlers=[handler], level=level, force=True)


async def _serve(
    origin: Origin,
    mountpoint: str,
    options: MountOptions,
    ready: Any,
    log_to: Path | None,
    verbose: bool,
) -> None:
    home = origin.home
    await _wait_for_home(home)
    early = _log_later() if log_to is not None else None
    settings = {
        "kernel": True,
        "read_only": options.read_only,
        "access_time": options.access_time,
        "directory_access_time": options.directory_access_time,
        "sync_writes": options.sync_writes,
        "sync_directories": options.sync_directories,
        "dirty_bytes_max": options.dirty_bytes,
    }
    async with _opened(origin, mountpoint, options, settings) as node:
        if early is not None:
            _log_to(log_to, verbose, early)
        if isinstance(node, EmbeddedNode):
            log.info("home %s opened, %d entries replayed", home, node.meta.replayed)
            if node.meta.cut:
                log.warning("%d unsynced operations at the end of the log were lost", node.meta.cut)
        else:
            log.info("session %d with the cluster at %s", node.meta.session, origin.source)
        with _mounted(node, origin.source, mountpoint, options) as binding:
            await _serve_mount(node, origin, mountpoint, binding, ready)


@contextlib.asynccontextmanager
async def _opened(
    origin: Origin, mountpoint: str, options: MountOptions, settings: dict[str, Any]
) -> AsyncIterator[EmbeddedNode | ClusterMount]:
    if not origin.nodes:
        async with embedded_node(origin.home, mountpoint=mountpoint, **settings) as node:
            yield node
        return
    with hold_directory(origin.home, mountpoint):
        about = f"{os.uname().nodename}:{mountpoint} (process {os.getpid()})"
        async with cluster_mount(
            origin.source, origin.nodes, client_options(options, about), **settings
        ) as mount:
            yield mount


async def _serve_mount(
    node: EmbeddedNode | ClusterMount, origin: Origin, mountpoint: str, binding: Binding, ready: Any
) -> None:
    for number in _SIGNALS:
        # From the mount's first moment to the daemon's last: what is flushed after the mount has
        # gone must not be interrupted by a second signal.
        signal.signal(number, signal.SIG_IGN)
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            stop = nursery.cancel_scope
            nursery.start_soon(_unmount_on_signal, signals, node, mountpoint, binding, stop)
            nursery.start_soon(control.serve, origin.home / "control", _answers(node, binding))
            nursery.start_soon(_say_ready, node, mountpoint, binding, ready)
            await binding.serve()
            log.info("unmounted")
            stop.cancel()


@contextlib.contextmanager
def _mounted(
    node: EmbeddedNode | ClusterMount, source: str, mountpoint: str, options: MountOptions
) -> Iterator[Binding]:
    if options.binding == "pyfuse3":
        with pyfuse3_binding(node.filesystem, mountpoint, source, options) as binding:
            yield binding
        return
    fd = mounting.mount(mountpoint, source, options)
    try:
        yield native_binding(node.filesystem, fd, mountpoint, options)
    finally:
        os.close(fd)
        if mounting.find_mount(mountpoint, source=source) is not None:
            mounting.unmount(mountpoint, lazy=True)


async def _say_ready(
    node: EmbeddedNode | ClusterMount, mountpoint: str, binding: Binding, ready: Any
) -> None:
    """One operation through the kernel and back, then the mount is worth telling of."""
    with trio.move_on_after(START_S) as waited:
        await binding.initialized.wait()
        try:
            await trio.to_thread.run_sync(os.stat, mountpoint, abandon_on_cancel=True)
        except OSError as error:
            raise disk_error(error, f"{mountpoint}: mounted, but it does not work") from error
    if waited.cancelled_caught:
        raise FsError(
            Fault.TIMED_OUT, f"{mountpoint}: mounted, but there was no answer for {START_S} s"
        )
    if os.geteuid() == 0:
        mounting.set_readahead(mountpoint, binding.readahead_kib)
    log.info("mounted at %s", mountpoint)
    ready(node.all_troubles())


async def _unmount_on_signal(
    signals: AsyncIterator[int],
    node: EmbeddedNode | ClusterMount,
    mountpoint: str,
    binding: Binding,
    scope: trio.CancelScope,
) -> None:
    async for number in signals:
        if number != signal.SIGHUP:  # the terminal that started us is gone: we need none
            log.info("signal %d: unmounting", number)
            break
    try:
        await trio.to_thread.run_sync(mounting.unmount, mountpoint)
    except FsError as error:
        log.warning("%s: detaching it", error)
        try:
            await trio.to_thread.run_sync(mounting.detach, mountpoint)
        except FsError as worse:
            log.error("%s", worse)
        with trio.move_on_after(DETACH_S):
            await _until_quiet(node, binding)
        scope.cancel()


async def _until_quiet(node: EmbeddedNode | ClusterMount, binding: Binding) -> None:
    """Until programs that still have files open have ended what they are in the middle of."""
    before = -1
    while (work := _work(binding)) != before:
        before = work
        try:
            await node.filesystem.flush_all()
            await node.durable()
        except FsError as error:
            log.warning("flushing: %s", error)  # those who wrote it may yet free some space
        await trio.sleep(QUIET_S)


def _work(binding: Binding) -> int:
    """Requests so far, without those that a process sends that only has a file open: it forks, it
    looks whether there is more.
    """
    operations = binding.stats()["operations"]
    return sum(int(operations[name]["calls"]) for name in operations.keys() - _NO_WORK)


async def _wait_for_home(home: Path) -> None:
    """A node that is unmounted already may still be writing: wait for it, but not for one that is
    mounted.
    """
    deadline = time.monotonic() + HANDOVER_S
    while time.monotonic() < deadline:
        try:
            holder = holder_of(home)
        except OSError:
            return  # opening it will fail too, and says it better
        if holder is None or (
            holder.mountpoint and mounting.find_mount(holder.mountpoint, source=str(home))
        ):
            return
        await trio.sleep(0.05)


def _answers(node: EmbeddedNode | ClusterMount, binding: Binding) -> dict[str, control.Answerer]:
    node_answers = answers.answers(node)

    async def status(args: dict[str, Any]) -> Any:
        return {**await node_answers["status"](args), **binding.status()}

    async def stats(_: dict[str, Any]) -> Any:
        return {**binding.stats(), "caches": node.stats()}

    return {**node_answers, "status": status, "stats": stats}


if __name__ == "__main__":
    sys.exit(main())
