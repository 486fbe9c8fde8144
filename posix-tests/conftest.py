"""Our POSIX cases run against a real mount; this is where the mount comes from.

`--mount DIR` or MOUNTFS_TEST_DIR names a directory to use as it is (of any filesystem).  Without
either an embedded node is mounted on temporary directories, once for the session, and unmounted
however the tests end.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `calls` and `people`, whatever the import mode

from known import KNOWN, reason_to_skip

MOUNT_SECONDS_MAX: Final = 30
UMOUNT_SECONDS_MAX: Final = 10


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mountfs")
    group.addoption("--mount", metavar="DIR", help="existing directory to run the POSIX cases in")
    group.addoption(
        "--binding",
        choices=sorted(KNOWN),
        default="native",
        help="FUSE binding to mount with, and whose table of known gaps applies",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = Path(__file__).parent
    for item in items:
        if item.path.parent != ours:
            continue
        test_id = f"{item.path.name}::{item.nodeid.split('::', 1)[1]}"
        if reason := reason_to_skip(config.getoption("--binding"), test_id):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def mount_point(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory on the filesystem under test, open to every user."""
    given = request.config.getoption("--mount") or os.environ.get("MOUNTFS_TEST_DIR")
    if os.geteuid() != 0:
        pytest.skip("these cases change users, owners and devices: they need root")
    if given:
        yield Path(given).resolve(strict=True)
        return
    with embedded_node(request.config.getoption("--binding")) as mounted:
        yield mounted


@pytest.fixture
def here(mount_point: Path) -> Iterator[Path]:
    """A fresh directory in the mount, mode 0755, owned by root."""
    directory = Path(tempfile.mkdtemp(prefix="here-", dir=mount_point))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.fixture(autouse=True)
def calm() -> Iterator[None]:
    """Umask 022, and both it and the working directory as they were afterwards."""
    umask = os.umask(0o022)
    directory = Path.cwd()
    try:
        yield
    finally:
        os.chdir(directory)
        os.umask(umask)


@contextlib.contextmanager
def embedded_node(binding: str) -> Iterator[Path]:
    """Mount an embedded node with a home of its own.  Unmounts it, and removes both, at the end."""
    top = Path(tempfile.mkdtemp(prefix="mountfs-posix-"))
    top.chmod(0o755)
    home, mounted = top / "home", top / "mnt"
    home.mkdir(mode=0o700)
    mounted.mkdir()
    try:
        _mount(home, mounted, binding)
        try:
            yield mounted
        finally:
            _close_all_below(mounted)
            _unmount(home, mounted)
    finally:
        if not _is_mounted(mounted):  # never delete through a mount that could not be undone
            shutil.rmtree(top)


def _mount(home: Path, mounted: Path, binding: str) -> None:
    command = [sys.executable, "-m", "mountfs.cli.mount_dfs", str(home), str(mounted)]
    command += ["-o", f"binding={binding},allow_other"]
    with tempfile.TemporaryFile() as said:  # not a pipe: the daemon may keep it open
        code = _run(command, MOUNT_SECONDS_MAX, said)
        if code == 0 and _is_mounted(mounted):
            return
        said.seek(0)
        why = said.read().decode(errors="replace").strip()
    _unmount(home, mounted)
    pytest.exit(f"{' '.join(command)}: exit {code}: {why}", returncode=3)


def _close_all_below(mounted: Path) -> None:
    """Close what a failed test left open: the mount would be busy."""
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if Path(os.readlink(f"/proc/self/fd/{entry}")).is_relative_to(mounted):
                os.close(int(entry))


def _unmount(home: Path, mounted: Path) -> None:
    """`umount`; if that does not come about, detach the mount and kill the daemon that held it."""
    daemon = _daemon_of(home)
    if not _is_mounted(mounted) or _run(["umount", str(mounted)], UMOUNT_SECONDS_MAX) == 0:
        until = time.monotonic() + UMOUNT_SECONDS_MAX
        while daemon and _is_running(daemon) and time.monotonic() < until:
            time.sleep(0.02)  # it still flushes and closes its home
        if not daemon or not _is_running(daemon):
            return
    if _is_mounted(mounted):
        _run(["umount", "-l", str(mounted)], UMOUNT_SECONDS_MAX)
    if daemon:
        with contextlib.suppress(ProcessLookupError):
            os.kill(daemon, signal.SIGKILL)
    pytest.fail(f"{mounted} could not be unmounted: detached it, killed daemon {daemon}")


def _run(command: list[str], seconds: float, said: IO[bytes] | None = None) -> int:
    """Exit code of a command that gets no longer than `seconds`; -1 if it took longer."""
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, timeout=seconds
        ).returncode
    except subprocess.TimeoutExpired:
        return -1


def _is_mounted(mounted: Path) -> bool:
    """Asks the kernel's table and not the directory: a mount whose daemon hangs would hang us."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split(" ")[4] == str(mounted) for line in lines)


def _daemon_of(home: Path) -> int | None:
    try:
        return int((home / "pid").read_text())
    except (FileNotFoundError, ValueError):
        return None


def _is_running(pid: int) -> bool:
    """Whether the process is there and has not ended (one that nobody has waited for has)."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
