"""Mounts of a cluster: several at once, one whose machine is gone, and all of them when nobody
answers.
"""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from mounted import Node
from nodes import Nodes, until, wait_for

SOON_S: Final = 30
SEEN_S_MAX: Final = 10
"""Generous: names and attributes are believed for a second."""


@pytest.fixture
def dead(impatient: Nodes) -> Iterator[Nodes]:
    """A cluster with nobody alive, once `kill_all` was called."""
    yield impatient
    impatient.calm()
    impatient.restart(*(member for member in impatient.members.values() if not member.runs))
    impatient.wait_for_voters(3)


def kill_all(cluster: Nodes) -> None:
    for member in cluster.members.values():
        member.kill()


def locked(path: Path, how: str, *, wait: bool = False) -> bool:
    """Whether another process gets the lock."""
    program = f"""
import fcntl, os, sys
fd = os.open({str(path)!r}, os.O_RDWR)
try:
    {how}(fd, fcntl.LOCK_EX | {0 if wait else fcntl.LOCK_NB})
except OSError:
    sys.exit(3)
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=SOON_S)
    assert done.returncode in (0, 3), done
    return done.returncode == 0


# -- several at once


def test_what_was_closed_is_read_by_who_opens_afterwards(two: tuple[Node, Node]) -> None:
    one, other = (node.point / "here/file" for node in two)
    for number in range(20):
        writer, reader = (one, other) if number % 2 else (other, one)
        data = os.urandom(1 + number * 700) if number < 18 else os.urandom(200_000)
        writer.write_bytes(data)
        assert reader.read_bytes() == data, f"round {number}"


def test_what_was_appended_by_turns_is_all_there(two: tuple[Node, Node]) -> None:
    one, other = (node.point / "here/log" for node in two)
    for number in range(20):
        with open((one, other)[number % 2], "a") as file:
            file.write(f"{number}\n")
    assert one.read_text() == other.read_text() == "".join(f"{n}\n" for n in range(20))


def test_names_that_one_mount_changes_are_seen_by_the_other(two: tuple[Node, Node]) -> None:
    one, other = (node.point / "here" for node in two)
    (one / "new").write_text("text")
    assert (other / "new").read_text() == "text"
    (one / "new").rename(one / "renamed")
    until(lambda: not (other / "new").exists(), SEEN_S_MAX, lambda: "the old name stays")
    assert (other / "renamed").read_text() == "text"
    (other / "renamed").unlink()
    until(lambda: not (one / "renamed").exists(), SEEN_S_MAX, lambda: "what is gone stays")
    assert os.listdir(one) == os.listdir(other) == []


def test_attributes_that_one_mount_changes_are_seen_by_the_other(two: tuple[Node, Node]) -> None:
    one, other = (node.point / "here/file" for node in two)
    one.write_bytes(b"x" * 10)
    assert other.stat().st_size == 10
    one.chmod(0o600)
    os.truncate(one, 5)
    until(lambda: other.stat().st_mode & 0o777 == 0o600, SEEN_S_MAX, lambda: "the mode stays")
    until(lambda: other.stat().st_size == 5, SEEN_S_MAX, lambda: "the size stays")


def test_exclusive_creation_succeeds_once(two: tuple[Node, Node]) -> None:
    tops = [node.point / "here" for node in two]
    program = """
import os, sys
won = 0
for number in range(100):
    try:
        os.close(os.open(f"{sys.argv[1]}/{number}", os.O_CREAT | os.O_EXCL))
        won += 1
    except FileExistsError:
        pass
print(won)
"""
    running = [
        subprocess.Popen([sys.executable, "-c", program, top], stdout=subprocess.PIPE, text=True)
        for top in tops
    ]
    assert sum(int(process.communicate(timeout=SOON_S)[0]) for process in running) == 100


@pytest.mark.parametrize("how", ["fcntl.flock", "fcntl.lockf"])
def test_locks_hold_across_mounts(two: tuple[Node, Node], how: str) -> None:
    one, other = (node.point / "here/file" for node in two)
    one.write_text("text")
    with open(one, "r+b") as file:
        (fcntl.flock if how == "fcntl.flock" else fcntl.lockf)(file, fcntl.LOCK_EX)
        assert not locked(other, how)
        assert not locked(one, how)
    assert locked(other, how, wait=True)


# -- one whose machine is gone


def test_what_a_mount_held_is_free_when_its_machine_is_gone(two: tuple[Node, Node]) -> None:
    """Its locks, and the files that it had open without a name."""
    one, other = two
    path = one.point / "here/file"
    path.write_text("text")
    program = f"""
import fcntl, os, sys
fd = os.open({str(path)!r}, os.O_RDWR)
fcntl.flock(fd, fcntl.LOCK_EX)
fcntl.lockf(fd, fcntl.LOCK_EX)
held = os.open({str(path.with_name("gone"))!r}, os.O_RDWR | os.O_CREAT)
os.write(held, bytes(100000))
os.fsync(held)
os.unlink({str(path.with_name("gone"))!r})
print("held", flush=True)
sys.stdin.read()
"""
    inodes = os.statvfs(other.point).f_files - os.statvfs(other.point).f_ffree
    holder = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert not locked(other.point / "here/file", "fcntl.flock")
        one.kill()
    finally:
        holder.kill()
        holder.communicate()
    for how in ("fcntl.flock", "fcntl.lockf"):
        assert locked(other.point / "here/file", how, wait=True)

    def used() -> int:
        found = os.statvfs(other.point)
        return found.f_files - found.f_ffree

    until(lambda: used() <= inodes, SOON_S, lambda: f"{used()} inodes are used, before {inodes}")


# -- when nobody answers


@pytest.mark.parametrize("how", ["umount", "fusermount3", "SIGTERM"])
def test_a_mount_of_a_dead_cluster_can_be_unmounted(dead: Nodes, how: str) -> None:
    node = dead.mount()
    (node.point / "file").write_text("text")
    kill_all(dead)
    if how == "SIGTERM":
        node.signal(signal.SIGTERM)
    else:
        words = ["umount"] if how == "umount" else ["fusermount3", "-u"]
        done = subprocess.run([*words, node.point], capture_output=True, text=True, timeout=SOON_S)
        assert done.returncode == 0, done.stderr
    node.wait(60)
    assert not node.is_mounted


def test_a_soft_mount_says_that_the_time_is_over(dead: Nodes) -> None:
    node = dead.mount(options="soft=3")
    (node.point / "file").write_text("text")
    kill_all(dead)
    for call in (
        lambda: (node.point / "new").mkdir(),
        lambda: (node.point / "other").write_text("text"),
        lambda: os.stat(node.point / "nothing"),
        lambda: os.rename(node.point / "file", node.point / "renamed"),
    ):
        begun = time.monotonic()
        with pytest.raises(OSError) as refused:
            call()
        assert refused.value.errno == errno.ETIMEDOUT
        assert time.monotonic() - begun < SOON_S
    node.unmount()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_program_that_waits_for_a_dead_cluster_can_be_ended(
    dead: Nodes, number: signal.Signals
) -> None:
    node = dead.mount()
    calls = (
        "os.mkdir('new')", "os.stat('name')", "open('other', 'w')", "os.listdir('.')",
        "os.chmod(file.fileno(), 0o600)", "os.fsync(file.fileno())", "file.close()",
    )  # fmt: skip
    programs = []
    for at, call in enumerate(calls):
        program = "\n".join(
            [
                "import os, signal",
                "signal.signal(signal.SIGINT, signal.SIG_DFL)",
                f"os.chdir({str(node.point)!r})",
                f"file = open('file-{at}', 'w', buffering=1)",
                "file.write('something\\n')",
                "print(flush=True)",
                "input()",
                call,
            ]
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        dead.workers.append(process)
        programs.append((call, process))
    for _, process in programs:
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == b"\n"
    kill_all(dead)
    for call, process in programs:
        assert process.stdin is not None
        with process.stdin:
            process.stdin.write(b"\n")
        until(lambda p=process: _waits(p.pid), SOON_S, lambda c=call: f"{c} does not wait")
        process.send_signal(number)
        assert wait_for(process, SOON_S, call) != 0
        dead.workers.remove(process)


def _waits(pid: int) -> bool:
    """For an answer of the filesystem."""
    with contextlib.suppress(OSError):
        return "request_wait_answer" in Path(f"/proc/{pid}/stack").read_text()
    return False
