"""However a test session ends, nothing of it stays: ../../conftest.py sees to that."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
LEAVING = Path(__file__).with_name("leaving.py")
STARTS_S = 30
ENDS_S = 30

pytestmark = [
    pytest.mark.skipif(
        os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
    ),
    pytest.mark.skipif(
        not os.path.exists("/dev/loop-control") or shutil.which("mkfs.ext4") is None,
        reason="there are no loop devices here, or no mkfs.ext4",
    ),
]


class Session:
    """A pytest that runs one test of leaving.py."""

    def __init__(self, test: str, place: Path, before: Callable[[], object] | None = None) -> None:
        self.said = place / "said"
        self.temporary = place / "temporary"
        self.temporary.mkdir()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider",
             "-c", CHECKOUT / "pyproject.toml", "--rootdir", place, f"{LEAVING}::{test}"],
            cwd=place,
            env={
                **os.environ,
                "TMPDIR": str(self.temporary),
                "PYTHONPATH": str(CHECKOUT),
            },
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            preexec_fn=before or _hears_of_a_hangup,
        )  # fmt: skip

    def everything_is_there(self) -> None:
        until = time.monotonic() + STARTS_S
        while not (self.said.exists() and self.said.read_text().count("\n") == 3):
            assert self._process.poll() is None, self._process.communicate()[0]
            assert time.monotonic() < until
            time.sleep(0.02)
        assert self.left() != []

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def ends(self) -> tuple[int, str]:
        """(exit status, output)"""
        try:
            output, _ = self._process.communicate(timeout=ENDS_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise
        return self._process.returncode, output

    def left(self) -> list[str]:
        """What is there of what the test has made."""
        top, *pids = self.said.read_text().splitlines()
        table = Path("/proc/self/mountinfo").read_text().replace("\\040", " ")
        found = [line for line in table.splitlines() if top in line]
        found += [pid for pid in pids if _runs(int(pid))]
        for file in Path("/sys/block").glob("loop*/loop/backing_file"):
            found += [path for path in [file.read_text().strip()] if path.startswith(top)]
        found += [top] if os.path.exists(top) else []
        return found


def _hears_of_a_hangup() -> None:
    """Even when these tests run under nohup(1), and so do not."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_nothing_behind(tmp_path: Path, number: int) -> None:
    session = Session("test_that_is_interrupted", tmp_path)
    session.everything_is_there()
    session.signal(number)
    status, output = session.ends()
    assert status == pytest.ExitCode.INTERRUPTED, output
    assert session.left() == []
    assert list(session.temporary.glob("mountfs-*")) == []


def test_a_signal_in_a_test_of_trio_leaves_nothing_behind(tmp_path: Path) -> None:
    session = Session("test_that_is_interrupted_in_trio", tmp_path)
    session.everything_is_there()
    session.signal(signal.SIGTERM)
    status, output = session.ends()
    assert status == pytest.ExitCode.INTERRUPTED, output
    assert "TrioInternalError" not in output
    assert session.left() == []


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_interrupt_the_cleaning_up(tmp_path: Path, first: int) -> None:
    session = Session("test_that_is_interrupted", tmp_path)
    session.everything_is_there()
    session.signal(first)
    for _ in range(20):
        session.signal(signal.SIGTERM)
        session.signal(signal.SIGHUP)
        time.sleep(0.01)
    session.ends()
    assert session.left() == []


def test_a_signal_ends_a_session_in_the_background_too(tmp_path: Path) -> None:
    """What a shell script runs with & ignores SIGINT."""
    ignore = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731 for the child alone
    session = Session("test_that_is_interrupted", tmp_path, before=ignore)
    session.everything_is_there()
    session.signal(signal.SIGTERM)
    status, output = session.ends()
    assert status == pytest.ExitCode.INTERRUPTED, output
    assert session.left() == []


def test_a_test_that_cleans_up_does_so_when_it_is_interrupted(tmp_path: Path) -> None:
    session = Session("test_that_cleans_up", tmp_path)
    session.everything_is_there()
    session.signal(signal.SIGTERM)
    status, output = session.ends()
    assert status == pytest.ExitCode.INTERRUPTED, output
    assert session.left() == []


def test_what_a_test_forgets_fails_the_session_and_is_removed(tmp_path: Path) -> None:
    session = Session("test_that_forgets_everything", tmp_path)
    status, output = session.ends()
    assert "1 passed" in output
    assert status == pytest.ExitCode.TESTS_FAILED, output
    for kind in ("mount ", "process ", "loop device ", "(sleep"):
        assert kind in output.partition("left behind")[2], output
    assert session.left() == []
