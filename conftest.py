"""What every test session shares: however it ends, it leaves nothing behind.

SIGTERM and SIGHUP end a session as Ctrl-C does: fixtures are torn down.  Then what is left all the
same, because a test was interrupted in its own clean-up or forgot some, is removed: mounts,
processes and loop devices, and the directory that has all of the session's temporary files.  A
session that was not interrupted fails if there was any.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final

import pytest

from mountfs.fuse.mount import parse_mountinfo

END_SECONDS_MAX: Final = 5
"""How long what a test has told to end may take."""


class Scratch:
    """Where a session has its temporary files.

    Processes are known as the session's by TMPDIR in their environment; a session that a test has
    started has its directory in this one.
    """

    def __init__(self, kept: Path) -> None:
        self.kept = kept
        """Where `tmp_path` is: of the last few sessions, pytest keeps those files to look at."""
        self.path = Path(tempfile.mkdtemp(prefix="mountfs-"))  # short: sockets go into it
        self.path.chmod(0o711)  # tests become other users, who must be able to pass
        self._before = tempfile.gettempdir()
        self._use(str(self.path))

    def _use(self, directory: str) -> None:
        tempfile.tempdir = directory
        os.environ["TMPDIR"] = directory

    def left(self) -> list[str]:
        """What is there that should not be."""
        return [
            *(f"mount {point}" for point in self._mounts()),
            *(f"process {pid} ({_command(pid)})" for pid in self._processes()),
            *(f"loop device {device}" for device in self._loop_devices()),
        ]

    def clear(self) -> None:
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for point in reversed(self._mounts()):
            subprocess.run(_detach(point), check=False)
        for device in self._loop_devices():
            subprocess.run(["losetup", "-d", device], check=False)
        if not self._mounts():  # never delete through a mount that could not be undone
            shutil.rmtree(self.path, ignore_errors=True)
        self._use(self._before)

    def _mounts(self) -> list[str]:
        """Mount points, in the order in which they were mounted."""
        table = parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())
        return [info.mountpoint for info in table if self._has(info.mountpoint)]

    def _processes(self) -> Iterator[int]:
        mine = f"\0TMPDIR={self.path}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # gone meanwhile, or not ours
                if mine in b"\0" + (process / "environ").read_bytes():
                    yield int(process.name)

    def _loop_devices(self) -> Iterator[str]:
        for device in Path("/sys/block").glob("loop*"):
            with contextlib.suppress(OSError):  # it has no file
                if self._has((device / "loop" / "backing_file").read_text().strip()):
                    yield f"/dev/{device.name}"

    def _has(self, path: str) -> bool:
        return Path(path).is_relative_to(self.path) or Path(path).is_relative_to(self.kept)


ENDING: Final = (signal.SIGTERM, signal.SIGHUP)
SCRATCH: Final = pytest.StashKey[Scratch]()


def pytest_sessionstart(session: pytest.Session) -> None:
    def interrupt(number: int, frame: FrameType | None) -> None:
        _let_it_clean_up()
        # A test of trio makes of the interruption an error of its own, and the next would begin.
        session.shouldstop = signal.Signals(number).name
        # Not an exception of our own: a running trio must choose where to raise it.
        signal.raise_signal(signal.SIGINT)

    for number in ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup(1) ignores SIGHUP: so do we
            signal.signal(number, interrupt)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so starts what a script has run with &
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _scratch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    request.config.stash[SCRATCH] = Scratch(tmp_path_factory.getbasetemp())


def _let_it_clean_up() -> None:
    """One signal is enough: the next would interrupt the clean-up."""
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # not SIG_IGN, which programs would inherit


def pytest_keyboard_interrupt(excinfo: pytest.ExceptionInfo[BaseException]) -> None:
    _let_it_clean_up()
    print(f"\nThe session was interrupted ({excinfo.typename}); cleaning up.", flush=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """All fixtures have been torn down."""
    _let_it_clean_up()
    scratch = session.config.stash.get(SCRATCH, None)
    if scratch is None:
        return
    until = time.monotonic() + END_SECONDS_MAX
    while (left := scratch.left()) and _ended_well(exitstatus) and time.monotonic() < until:
        time.sleep(0.05)
    scratch.clear()
    if left and _ended_well(exitstatus):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print("\nThe tests left behind, and it was removed:", *left, sep="\n    ")


def _ended_well(exitstatus: int) -> bool:
    return exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)


def _detach(point: str) -> list[str]:
    if os.geteuid() == 0:
        return ["umount", "-l", point]
    return ["fusermount3", "-u", "-z", point]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return "?"
