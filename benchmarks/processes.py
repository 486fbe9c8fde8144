"""Servers in the background: started, waited for, and ended completely by their pids."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import now, with_children

START_S = 60
"""For a server to answer, or a mount to appear."""


class CannotStart(Exception):
    """What is not measured, with the reason."""


def find(program: str) -> str:
    found = shutil.which(program)
    if not found:
        raise CannotStart(f"{program} is not installed")
    return found


@contextmanager
def serving(argv: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
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
            end(pid)


def end(pid: int) -> None:
    """End a child of a server that has been ended, if it did not end with it."""
    born = start_time(pid)
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        deadline = now() + 5
        while start_time(pid) == born is not None and now() < deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal_number)
            time.sleep(0.1)


def start_time(pid: int) -> str | None:
    """What tells this process from a later one of the same pid; None when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def run(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=START_S)
    if done.returncode:
        raise CannotStart(f"{argv[0]} {argv[1]}: {done.stderr.strip()[-300:]}")


def version(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=START_S)
    return (done.stdout or done.stderr).strip().splitlines()[0]


def wait_for(
    condition: Callable[[], bool],
    what: str,
    process: subprocess.Popen[bytes],
    log: Path | None = None,
) -> None:
    """Raises CannotStart, with the last that is in `log`."""
    deadline = now() + START_S
    while not condition():
        if process.poll() is None and now() < deadline:
            time.sleep(0.1)
            continue
        said = log.read_text(errors="replace").strip()[-300:] if log else ""
        why = "was not there" if process.poll() is None else f"ended with {process.returncode}"
        raise CannotStart(f"{what} {why}. {said}".strip())


# --- ports ----------------------------------------------------------------------------------------

_given_ports: set[int] = set()


def free_port() -> int:
    """A port that nobody has, and nobody has 10,000 above it, where SeaweedFS puts its gRPC."""
    for port in range(21000, 31000):
        if port in _given_ports or taken(port) or taken(port + 10000):
            continue
        _given_ports.add(port)
        return port
    raise CannotStart("no free port on 127.0.0.1")


def taken(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # but for who listens
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def get(url: str) -> bytes:
    """The body, or nothing while nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            body: bytes = reply.read()
    except (urllib.error.URLError, OSError, json.JSONDecodeError):
        return b""
    return body


def answers(url: str) -> bool:
    return bool(get(url))
