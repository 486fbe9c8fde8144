"""Locks between mounts, and what becomes of mounts whose session ends: three nodes, two mounts."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
from mounted import Node
from network import Network
from nodes import CLIENT, MOUNTFS, TTL_S, Nodes, fresh_cluster, until, wait_for
from program import Program

from mountfs.vfs import control

HANDED_S_MAX: Final = 2.0
"""Generous for a few milliseconds, and less than any time after which somebody asks again."""
SOON_S: Final = 30
KINDS: Final = {
    "flock": "fcntl.flock(fd, fcntl.LOCK_{0})",
    "fcntl": "fcntl.lockf(fd, fcntl.LOCK_{0})",
    "ofd": "ofd(fd, fcntl.F_{1}LCK)",
}


@pytest.fixture
def program() -> Iterator[Callable[[Path], Program]]:
    """Programs that have a file open as `fd`."""
    programs: list[Program] = []

    def begin(path: Path, flags: str = "os.O_RDWR | os.O_CREAT") -> Program:
        programs.append(Program())
        assert programs[-1].ask(f"fd = os.open({str(path)!r}, {flags}, 0o644)") == "None"
        return programs[-1]

    yield begin
    for one in programs:
        one.end()


def lock(kind: str) -> str:
    return KINDS[kind].format("EX", "WR")


def unlock(kind: str) -> str:
    return KINDS[kind].format("UN", "UN")


def until_waiting(node: Node, path: Path, count: int = 1) -> None:
    """Until so many wait for a lock on a file."""
    ino = path.stat().st_ino

    def waiting() -> int:
        return len(control.ask(node.home / "control", "locks", ino=ino)["waiting"])

    until(lambda: waiting() == count, SOON_S, lambda: f"{waiting()} wait, not {count}")


def mountfs(cluster: Nodes, *words: str) -> Any:
    """The answer of a command, from JSON."""
    at = ["--at", ",".join(member.rpc for member in cluster.running)]
    done = cluster.run(*MOUNTFS, *words, *at, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def session_of(node: Node) -> int:
    found: int = control.ask(node.home / "control", "status")["session"]
    return found


# -- locks


@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_is_handed_over_between_mounts(
    two: tuple[Node, Node], program: Any, kind: str
) -> None:
    one, other = (program(node.point / "here/file") for node in two)
    assert one.ask(lock(kind)) == "None"
    for holder, waiter in ((one, other), (other, one)):
        waiter.begin(lock(kind))
        until_waiting(two[0], two[0].point / "here/file")
        begun = time.monotonic()
        assert holder.ask(unlock(kind)) == "None"
        assert waiter.answer() == "None"
        assert time.monotonic() - begun < HANDED_S_MAX


@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_is_free_when_its_program_dies(
    two: tuple[Node, Node], program: Any, kind: str
) -> None:
    one, other = (program(node.point / "here/file") for node in two)
    one.ask(lock(kind))
    other.begin(lock(kind))
    until_waiting(two[1], two[1].point / "here/file")
    begun = time.monotonic()
    one.end()
    assert other.answer() == "None"
    assert time.monotonic() - begun < HANDED_S_MAX


def test_a_circle_over_two_mounts_is_refused(two: tuple[Node, Node], program: Any) -> None:
    one, other = (program(node.point / "here/a") for node in two)
    for each, node in zip((one, other), two, strict=True):
        each.ask(f"b = os.open({str(node.point / 'here/b')!r}, os.O_RDWR | os.O_CREAT)")
    assert one.ask("fcntl.lockf(fd, fcntl.LOCK_EX)") == "None"
    assert other.ask("fcntl.lockf(b, fcntl.LOCK_EX)") == "None"
    one.begin("fcntl.lockf(b, fcntl.LOCK_EX)")
    until_waiting(two[0], two[0].point / "here/b")
    assert other.ask("fcntl.lockf(fd, fcntl.LOCK_EX)") == "EDEADLK"
    assert other.ask("fcntl.lockf(b, fcntl.LOCK_UN)") == "None"
    assert one.answer() == "None"


def test_who_waits_for_another_mount_can_be_interrupted(
    two: tuple[Node, Node], program: Any
) -> None:
    one, other = (program(node.point / "here/file") for node in two)
    one.ask(lock("fcntl"))
    other.ask("import signal")
    raised = "(_ for _ in ()).throw(InterruptedError(errno.EINTR, ''))"
    other.ask(f"signal.signal(signal.SIGUSR1, lambda *_: {raised})")
    other.begin(lock("fcntl"))
    until_waiting(two[0], two[0].point / "here/file")
    other.process.send_signal(signal.SIGUSR1)
    assert other.answer() == "EINTR"
    until_waiting(two[0], two[0].point / "here/file", 0)
    assert one.ask(unlock("fcntl")) == "None"
    assert one.ask(lock("fcntl")) == "None"


def test_locks_and_those_who_wait_outlive_the_leader(
    impatient: Nodes, two: tuple[Node, Node], program: Any
) -> None:
    one, other = (program(node.point / "here/file") for node in two)
    third = program(two[1].point / "here/file")
    one.ask(lock("flock"))
    other.begin(lock("flock"))
    until_waiting(two[0], two[0].point / "here/file")
    leader = impatient.wait_for_leader()
    leader.kill()
    try:
        impatient.wait_for_leader()
        until_waiting(two[0], two[0].point / "here/file")
        assert third.ask("fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)") == "EAGAIN"
        assert one.ask(unlock("flock")) == "None"
        assert other.answer() == "None"
    finally:
        impatient.restart(leader)
        impatient.wait_for_voters(3)


def test_what_was_written_under_a_lock_is_seen_by_who_has_it_next(
    two: tuple[Node, Node], program: Any
) -> None:
    """Nobody closes or syncs anything, and both kernels have the file in their caches."""
    one, other = (program(node.point / "here/file") for node in two)
    assert one.ask("os.pwrite(fd, bytes(10000), 0)") == "10000"
    for number in range(1, 21):
        writer, reader = (one, other) if number % 2 else (other, one)
        for each in (one, other):  # so that it is cached
            each.ask("os.pread(fd, 20000, 0)[:1]")
        assert writer.ask(lock("fcntl")) == "None"
        size = 10_000 + number
        assert writer.ask(f"os.pwrite(fd, bytes([{number}]) * {size}, 0)") == str(size)
        assert writer.ask(unlock("fcntl")) == "None"
        assert reader.ask(lock("fcntl")) == "None"
        assert reader.ask("os.fstat(fd).st_size") == str(size)
        assert reader.ask(f"os.pread(fd, 20000, 0) == bytes([{number}]) * {size}") == "True"
        assert reader.ask(unlock("fcntl")) == "None"


def test_the_locks_of_a_file_are_listed(
    impatient: Nodes, two: tuple[Node, Node], program: Any
) -> None:
    path = two[0].point / "here/file"
    one, other = (program(node.point / "here/file") for node in two)
    one.ask("fcntl.lockf(fd, fcntl.LOCK_EX, 10, 5)")
    other.begin(lock("fcntl"))
    until_waiting(two[0], path)
    done = impatient.run(*MOUNTFS, "locks", "list", str(path), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    (held,), (waiting,) = told["held"], told["waiting"]
    assert (held["kind"], held["exclusive"], held["start"], held["stop"]) == ("fcntl", True, 5, 15)
    assert held["pid"] == one.process.pid
    assert (waiting["start"], waiting["stop"], waiting["pid"]) == (0, None, other.process.pid)
    assert [held["session"], waiting["session"]] == [session_of(node) for node in two]
    assert str(two[0].point) in held["about"]
    done = impatient.run(*MOUNTFS, "locks", "list", str(path))
    assert "held" in done.stdout and "5-14" in done.stdout and "waits for" in done.stdout


# -- sessions


def test_an_evicted_mount_tells_those_who_have_lost_something_and_goes_on(
    impatient: Nodes, two: tuple[Node, Node], program: Any
) -> None:
    here, elsewhere = two[0].point / "here", two[1].point / "here"
    (here / "clean").write_text("text")
    (here / "dirty").write_text("old")
    for name in ("flock", "record", "unnamed"):
        (here / name).write_text("text")  # where there is nothing to read, the kernel does not ask
    flocks, records = program(here / "flock"), program(here / "record")
    unlocked, unnamed = program(here / "unlocked"), program(here / "unnamed")
    clean, synced = program(here / "clean"), program(here / "synced")
    dirty, reads_dirty = program(here / "dirty"), program(here / "dirty", "os.O_RDONLY")
    holders = {"flock": flocks, "record": records}
    assert flocks.ask("fcntl.flock(fd, fcntl.LOCK_EX)") == "None"
    assert records.ask("fcntl.lockf(fd, fcntl.LOCK_EX)") == "None"
    assert unlocked.ask("fcntl.flock(fd, fcntl.LOCK_EX)") == "None"
    assert unlocked.ask("fcntl.flock(fd, fcntl.LOCK_UN)") == "None"
    os.unlink(here / "unnamed")
    assert synced.ask("os.write(fd, b'synced')") == "6"
    assert synced.ask("os.fsync(fd)") == "None"
    before = session_of(two[0])
    row = next(row for row in mountfs(impatient, "session", "list") if row["number"] == before)
    assert (row["locks"], row["unnamed"]) == (2, 1)
    assert mountfs(impatient, "session", "evict", str(before))["evicted"] is False
    assert dirty.ask("os.pwrite(fd, b'new and not written', 0)") == "19"
    assert reads_dirty.ask("os.pread(fd, 100, 0)") == "b'new and not written'"
    assert mountfs(impatient, "session", "evict", str(before), "--yes")["evicted"] is True
    until(lambda: session_of(two[0]) != before, SOON_S, two[0].said)

    for name in ("pread(fd, 1, 0)", "write(fd, b'x')", "fsync(fd)", "pread(fd, 1, 0)"):
        assert {who: each.ask(f"os.{name}") for who, each in holders.items()} == {
            "flock": "EIO", "record": "EIO",
        }  # fmt: skip
        assert dirty.ask(f"os.{name}") == "EIO"
    for name in ("pread(fd, 1, 0)", "fsync(fd)"):
        assert unnamed.ask(f"os.{name}") == "ESTALE"
    for each in (clean, synced, unlocked):
        assert each.ask("os.pwrite(fd, b'more', 0)") == "4"
        assert each.ask("os.fsync(fd)") == "None"
    assert reads_dirty.ask("os.pread(fd, 100, 0)") == "b'old'"
    assert (elsewhere / "dirty").read_text() == "old"
    assert (elsewhere / "clean").read_text() == "more"

    trouble = control.ask(two[0].home / "control", "status")["troubles"]["lost"]
    assert trouble.startswith("4 open files")
    for each in (*holders.values(), dirty):
        assert each.ask("os.close(fd)") == "EIO"
    for name in holders:
        again, rival = program(here / name), program(elsewhere / name)
        assert again.ask("fcntl.flock(fd, fcntl.LOCK_EX)") == "None"
        assert again.ask("os.write(fd, b'x')") == "1"
        assert rival.ask("fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)") == "EAGAIN"
    said = two[0].said()
    assert f"session {before} has ended" in said
    assert "19 bytes that were written to inode" in said


def test_who_is_not_there_is_not_evicted(impatient: Nodes) -> None:
    done = impatient.run(
        *MOUNTFS, "session", "evict", "99999", "--yes", "--at", impatient.running[0].rpc
    )
    assert done.returncode == 1
    assert "there is no session 99999; see: mountfs session list" in done.stderr


def test_a_mount_that_slept_for_longer_than_its_session_goes_on(
    impatient: Nodes, two: tuple[Node, Node], program: Any
) -> None:
    one, other = two
    holder, reader = program(one.point / "here/held"), program(one.point / "here/read")
    rival = program(other.point / "here/held")
    holder.ask("fcntl.flock(fd, fcntl.LOCK_EX)")
    before = session_of(one)
    one.signal(signal.SIGSTOP)
    try:
        assert rival.ask("fcntl.flock(fd, fcntl.LOCK_EX)") == "None"
    finally:
        one.signal(signal.SIGCONT)
    (one.point / "here/new").mkdir()  # it need not be done twice
    until(lambda: session_of(one) != before, SOON_S, one.said)
    assert holder.ask("os.write(fd, b'x')") == "EIO"
    assert reader.ask("os.write(fd, b'x')") == "1"
    assert (other.point / "here/new").is_dir()
    assert f"session {before} has fallen silent" in impatient.said()


@pytest.fixture(scope="module")
def apart(network: Network) -> Iterator[Nodes]:
    """The same, with mounts on a machine of their own."""
    with fresh_cluster(network=network, options=["--session-ttl", str(TTL_S)]) as cluster:
        yield cluster
        network.heal_all()


@pytest.mark.parametrize("how_long", ["shorter", "longer"])
def test_a_mount_that_is_cut_off_and_comes_back(
    apart: Nodes, network: Network, program: Any, how_long: str
) -> None:
    """If that was shorter than its session nobody notices; if it was longer, those who lost
    something do, and nobody else.
    """
    node = apart.mount()
    path = node.point / how_long
    holder, waiter, reader = program(path), program(path), program(node.point / "other")
    assert holder.ask(lock("flock")) == "None"
    waiter.begin(lock("flock"))
    until_waiting(node, path)
    before = session_of(node)
    for member in apart.members.values():
        network.cut_both(CLIENT, member.name)
    if how_long == "shorter":
        time.sleep(TTL_S / 3)
    else:
        ended = f"session {before} has fallen silent"
        until(lambda: ended in apart.said(), SOON_S, apart.said)
    network.heal_all()
    assert reader.ask("os.write(fd, b'x')") == "1"
    assert reader.ask("os.fsync(fd)") == "None"
    (node.point / f"new-{how_long}").mkdir()
    assert (session_of(node) == before) == (how_long == "shorter")
    if how_long == "shorter":
        until_waiting(node, path)
        assert holder.ask("os.write(fd, b'x')") == "1"
        assert holder.ask(unlock("flock")) == "None"
    else:
        assert holder.ask("os.write(fd, b'x')") == "EIO"
    assert waiter.answer() == "None"
    assert waiter.ask("os.write(fd, b'y')") == "1"
    for each in (holder, waiter, reader):
        each.end()
    apart.calm()


# -- programs that rely on locks

_ADD = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
for number in range(int(sys.argv[2])):
    fcntl.%s(fd, fcntl.LOCK_EX)
    count = int(os.pread(fd, 20, 0))
    assert os.pwrite(fd, b"%%20d" %% (count + 1), 0) == 20
    fcntl.%s(fd, fcntl.LOCK_UN)
"""


@pytest.mark.parametrize("how", ["lockf", "flock"])
def test_what_many_count_under_a_lock_is_right_though_the_leader_dies(
    impatient: Nodes, two: tuple[Node, Node], how: str
) -> None:
    """Nobody syncs, closes or looks again: the lock is all there is."""
    times, paths = 40, [node.point / "here/count" for node in two]
    paths[0].write_bytes(b"%20d" % 0)
    running = [
        subprocess.Popen([sys.executable, "-c", _ADD % (how, how), path, str(times)])
        for path in (*paths, *paths)
    ]
    until(lambda: int(paths[0].read_bytes()) > times, SOON_S, lambda: "nobody counts")
    leader = impatient.wait_for_leader()
    leader.kill()
    try:
        ended = [wait_for(process, 2 * SOON_S, "counting") for process in running]
    finally:
        impatient.restart(leader)
        impatient.wait_for_voters(3)
    assert ended == [0, 0, 0, 0]
    assert [int(path.read_bytes()) for path in paths] == [4 * times, 4 * times]


_COUNT = """
import sqlite3, sys
path, times = sys.argv[1], int(sys.argv[2])
database = sqlite3.connect(path, timeout=60, isolation_level=None)
for number in range(times):
    database.execute("BEGIN IMMEDIATE")
    (count,) = database.execute("SELECT count FROM counter").fetchone()
    database.execute("UPDATE counter SET count = ?", (count + 1,))
    database.execute("INSERT INTO rows VALUES (?, ?)", (sys.argv[3], "x" * (number * 37 % 2000)))
    database.execute("COMMIT")
"""


def test_a_database_that_two_mounts_change_at_once_stays_sound(two: tuple[Node, Node]) -> None:
    times, paths = 12, [node.point / "here/database" for node in two]
    with closing(sqlite3.connect(paths[0])) as database, database:
        database.execute("CREATE TABLE counter (count INTEGER)")
        database.execute("CREATE TABLE rows (who TEXT, what TEXT)")
        database.execute("INSERT INTO counter VALUES (0)")
    running = [
        subprocess.Popen([sys.executable, "-c", _COUNT, path, str(times), str(number)])
        for number, path in enumerate(paths)
    ]
    assert [wait_for(process, 2 * SOON_S, "sqlite") for process in running] == [0, 0]
    for path in paths:
        with closing(sqlite3.connect(path)) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert database.execute("SELECT count FROM counter").fetchone() == (2 * times,)
            assert database.execute("SELECT count(*) FROM rows").fetchone() == (2 * times,)


_COMMITS = """
set -eu
cd "$1"
export GIT_INDEX_FILE="$1/.git/index-$2"
parent=
for number in $(seq 1 "$3"); do
    echo "$2 $number" > "file-$2"
    git update-index --add "file-$2"
    tree=$(git write-tree)
    parent=$(git commit-tree -m "$number" ${parent:+-p "$parent"} "$tree")
    git update-ref "refs/heads/$2" "$parent"
done
"""


def test_a_repository_that_two_mounts_commit_to_at_once_stays_sound(
    two: tuple[Node, Node], tmp_path: Path
) -> None:
    times, paths = 12, [node.point / "here/repository" for node in two]
    who = {f"GIT_{role}_{part}": "a@b" for role in ("AUTHOR", "COMMITTER")
           for part in ("NAME", "EMAIL")}  # fmt: skip
    environment = {**os.environ, **who, "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}

    def git(path: Path, *words: str) -> str:
        done = subprocess.run(
            ["git", "-C", path, "-c", "safe.directory=*", *words], env=environment,
            capture_output=True, text=True, timeout=SOON_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    (tmp_path / ".gitconfig").write_text("[safe]\n\tdirectory = *\n")
    paths[0].mkdir()
    git(paths[0], "init", "-q")
    running = [
        subprocess.Popen(["sh", "-c", _COMMITS, "sh", path, name, str(times)], env=environment)
        for name, path in zip(("one", "other"), paths, strict=True)
    ]
    assert [wait_for(process, 2 * SOON_S, "git") for process in running] == [0, 0]
    for path in paths:
        said = git(path, "fsck", "--full", "--strict")
        assert "error" not in said and "missing" not in said, said
        for name in ("one", "other"):
            assert git(path, "rev-list", "--count", name).strip() == str(times)
