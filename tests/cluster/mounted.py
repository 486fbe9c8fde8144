"""A home and its mount point in a directory of their own, for tests with real processes.

Whatever a test did to it, `destroy` leaves no mount, process or file behind.
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

MOUNT_SECONDS_MAX: Final = 60
END_SECONDS_MAX: Final = 60

MOUNT_DFS: Final = [sys.executable, "-m", "mountfs.cli.mount_dfs"]
SMALL_NODE: Final = [sys.executable, str(Path(__file__).with_name("small_node.py"))]
"""The same program with limits so small that everything rare happens often."""


class Node:
    """`top`/home, mounted at `top`/mnt by a daemon of its own, or not mounted.

    With `source`, that is mounted, and the home has only what is the mount's own.  `before` comes
    before the command: who runs it, or where.
    """

    def __init__(
        self,
        top: Path,
        *,
        home: Path | None = None,
        source: str | None = None,
        before: Sequence[str] = (),
    ) -> None:
        self.top = top
        self.home = home or top / "home"
        self.source = source or str(self.home)
        self.before = before
        self.point = top / "mnt"
        self.point.mkdir()
        self._pidfd: int | None = None
        self.pid = 0

    def mount(self, options: str = "", *, command: list[str] = MOUNT_DFS) -> None:
        """Raises AssertionError with what mount.dfs said if it fails."""
        done = self.try_mount(options, command=command)
        assert done.returncode == 0, f"exit {done.returncode}: {done.stderr}\n{self.said()}"

    def try_mount(
        self, options: str = "", *, command: list[str] = MOUNT_DFS
    ) -> subprocess.CompletedProcess[str]:
        self._forget_daemon()
        asked = ["-o", options] if options else []
        done = subprocess.run(
            [*self.before, *command, self.source, str(self.point), *asked],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=MOUNT_SECONDS_MAX,
        )
        if done.returncode == 0:
            self.pid = int((self.home / "pid").read_text())
            self._pidfd = os.pidfd_open(self.pid)
        return done

    def unmount(self) -> None:
        """umount(8), and wait until the daemon has written everything and ended."""
        done = subprocess.run(
            ["umount", str(self.point)], capture_output=True, text=True, timeout=END_SECONDS_MAX
        )
        assert done.returncode == 0, f"{done.stderr}in use by: {users_of(self.point) or 'nobody'}"
        self.wait()

    def kill(self) -> None:
        """kill -9 the daemon.  What it had mounted stays, dead."""
        self.signal(signal.SIGKILL)
        self.wait()

    def signal(self, number: int) -> None:
        assert self._pidfd is not None, "not mounted"
        signal.pidfd_send_signal(self._pidfd, number)

    def wait(self, seconds: float = END_SECONDS_MAX) -> None:
        """Until the daemon has ended."""
        assert self._pidfd is not None, "not mounted"
        ready, _, _ = select.select([self._pidfd], [], [], seconds)
        assert ready, f"daemon {self.pid} still runs after {seconds} s: {self.said()}"
        self._forget_daemon()

    def detach(self) -> None:
        """umount -l"""
        subprocess.run(["umount", "-l", str(self.point)], check=True, timeout=END_SECONDS_MAX)

    def said(self) -> str:
        """The log of the daemon."""
        try:
            return (self.home / "log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    @property
    def is_mounted(self) -> bool:
        return is_mounted(self.point)

    def destroy(self) -> None:
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
            self.wait()
        while self.is_mounted:
            self.detach()

    def _forget_daemon(self) -> None:
        if self._pidfd is not None:
            os.close(self._pidfd)
        self._pidfd = None


def users_of(directory: Path) -> list[str]:
    """The processes that have something below a directory open, and what."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        links = [process / "cwd", process / "root", process / "exe"]
        with contextlib.suppress(OSError):
            links += (process / "fd").iterdir()
        for link in links:
            with contextlib.suppress(OSError):
                target = os.readlink(link)
                if target == str(directory) or target.startswith(f"{directory}/"):
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found.append(f"{process.name} ({command.strip()}): {target}")
    return found


@contextlib.contextmanager
def fresh_node(*, home: Path | None = None) -> Iterator[Node]:
    """A node that is not mounted yet; without `home`, its home does not exist yet."""
    top = Path(tempfile.mkdtemp(prefix="mountfs-test-"))
    top.chmod(0o755)
    node = Node(top, home=home)
    try:
        yield node
    finally:
        node.destroy()
        shutil.rmtree(top)


def is_mounted(point: Path) -> bool:
    """Asks the kernel's table and not the directory: a mount whose daemon hangs would hang us."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split(" ")[4] == str(point) for line in lines)
