"""Work that people do in a file system: building, git, rsync, databases, fio."""

import hashlib
import json
import os
import pwd
import random
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest


def run(*command: Any, cwd: Path | None = None, timeout: float = 100, **environment: str) -> str:
    """Output of a command that has to succeed."""
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, timeout=timeout, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "LC_ALL": "C", **environment},
    )  # fmt: skip
    assert done.returncode == 0, f"{command}: exit {done.returncode}: {done.stdout[-3000:]}"
    return done.stdout


def needs(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def digests(top: Path) -> dict[str, str]:
    return {
        str(path.relative_to(top)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(top.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


MAKEFILE = """\
objects := $(patsubst %.c,%.o,$(wildcard source/*.c))
program: $(objects)
\t$(CC) -o $@ $^
source/%.o: source/%.c include/all.h
\t$(CC) -Iinclude -O1 -c -o $@ $<
clean:
\trm -f program source/*.o
"""


def c_project(top: Path, files: int = 50) -> None:
    """A program of so many files; it prints the sum of 0 to files - 1."""
    (top / "source").mkdir(parents=True)
    (top / "include").mkdir()
    (top / "Makefile").write_text(MAKEFILE)
    numbers = range(files)
    (top / "include/all.h").write_text("".join(f"int f{n}(void);\n" for n in numbers))
    for n in numbers:
        padding = "".join(f"int g{n}_{k}(int x) {{ return x * {k}; }}\n" for k in range(20))
        text = f'#include "all.h"\n#include <stdio.h>\n{padding}int f{n}(void) {{ return {n}; }}\n'
        (top / f"source/f{n}.c").write_text(text)
    calls = " + ".join(f"f{n}()" for n in numbers)
    main = f'#include "all.h"\n#include <stdio.h>\nint main(void) {{ printf("%d\\n", {calls}); }}\n'
    (top / "source/main.c").write_text(main)


def test_untar_and_build_a_c_project(here: Path, tmp_path: Path, remount: Callable[[], None]):
    needs("make", "cc", "tar")
    c_project(tmp_path / "project")
    with tarfile.open(tmp_path / "project.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "project", "project")
    run("tar", "xzf", tmp_path / "project.tar.gz", cwd=here)
    project = here / "project"
    assert digests(project) == digests(tmp_path / "project")
    run("make", "-j2", cwd=project)
    assert run(project / "program") == f"{sum(range(50))}\n"
    assert "up to date" in run("make", cwd=project)
    os.utime(project / "source/f7.c")
    assert run("make", cwd=project).count("-c -o") == 1
    remount()
    assert run(project / "program") == f"{sum(range(50))}\n"
    assert "up to date" in run("make", cwd=project)
    run("make", "clean", cwd=project)
    assert digests(project) == digests(tmp_path / "project")


def test_git(here: Path, remount: Callable[[], None]):
    needs("git")
    alone = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    who = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.org")
    source = here / "source"
    c_project(source)

    def git(*arguments: Any, cwd: Path = source) -> str:
        return run("git", *who, *arguments, cwd=cwd, **alone)

    git("init", "-q", "-b", "main")
    for number in range(5):
        (source / "include/all.h").write_text(f"// {number}\n" * 100)
        git("add", ".")
        git("commit", "-q", "-m", f"number {number}")
    git("clone", "-q", source, here / "clone", cwd=here)
    git("clone", "-q", "--no-local", source, here / "copied", cwd=here)
    remount()
    for repository in (source, here / "clone", here / "copied"):
        git("fsck", "--full", "--strict", cwd=repository)
        git("gc", "-q", "--prune=now", cwd=repository)
        git("fsck", "--full", "--strict", cwd=repository)
        assert git("status", "--porcelain", cwd=repository) == ""
        assert git("rev-parse", "HEAD", cwd=repository) == git("rev-parse", "HEAD")
    git("checkout", "-q", "-b", "other", "HEAD~3")
    git("merge", "-q", "main")
    git("worktree", "add", "-q", here / "tree", "HEAD~2")
    assert digests(here / "tree" / "source") == digests(source / "source")


def test_rsync_there_and_back(here: Path, tmp_path: Path, remount: Callable[[], None]):
    needs("rsync", "setfacl", "getfacl", "setfattr", "getfattr")
    one, back = tmp_path / "one", tmp_path / "back"
    _varied_tree(one)
    options = ("-aHAX", "--numeric-ids", "--delete")
    run("rsync", *options, f"{one}/", here / "copy")
    remount()
    assert run("rsync", *options, "-n", "-i", "--checksum", f"{one}/", here / "copy") == ""
    run("rsync", *options, f"{here}/copy/", back)
    assert digests(back) == digests(one)
    for command in (
        ("getfacl", "-R", "-n", "-p", "."),
        ("getfattr", "-R", "-h", "-d", "-m", "-", "-e", "hex", "."),
        ("find", ".", "-printf", "%P %y %m %U %G %n %T@ %l\n"),
    ):
        lists = [sorted(run(*command, cwd=top).split("\n")) for top in (one, here / "copy", back)]
        assert lists[0] == lists[2], command
        if command[0] != "find":  # how many links a directory has is for each file system to say
            assert lists[0] == lists[1], command
    assert (back / "link").stat().st_ino == (back / "file-1").stat().st_ino


def _varied_tree(top: Path) -> None:
    chance = random.Random(1)
    (top / "deep" / "er").mkdir(parents=True)
    for number in range(40):
        path = top / chance.choice(["", "deep", "deep/er"]) / f"file-{number}"
        if number < 3:
            path = top / f"file-{number}"
        path.write_bytes(chance.randbytes(chance.choice([0, 10, 5_000, 200_000])))
        path.chmod(chance.choice([0o600, 0o644, 0o4755, 0o2755]))
        os.chown(path, chance.choice([0, 1000, 65_534]), chance.choice([0, 50]))
        os.utime(path, ns=(number * 10**9 + 123_456_789, number * 10**15 + 987_654_321))
    os.link(top / "file-1", top / "link")
    os.symlink("nowhere/at/all", top / "symlink")
    os.mkfifo(top / "fifo")
    (top / "sticky").mkdir()
    (top / "sticky").chmod(0o1777)
    with open(top / "sparse", "wb") as file:
        file.truncate(3_000_000)
        file.seek(1_500_000)
        file.write(b"in the middle")
    (top / "n\u00e4me \n\\ with *").write_text("odd")
    run("setfattr", "-n", "user.colour", "-v", "blue", top / "file-0")
    run("setfattr", "-n", "trusted.secret", "-v", "yes", top / "deep")
    run("setfacl", "-m", "u:1000:rw,g:50:r", top / "file-2")
    run("setfacl", "-d", "-m", "u:1000:rwx", top / "deep")
    for path in (*sorted(top.rglob("*"), reverse=True), top):
        if not path.name.startswith("file-"):
            os.utime(path, ns=(10**18, 10**18 + 7), follow_symlinks=False)  # rsync sees seconds


WRITER = """
import sqlite3, sys
path, who, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
base = sqlite3.connect(path, timeout=60, isolation_level=None)
for number in range(count):
    base.execute("BEGIN IMMEDIATE")
    base.execute("INSERT INTO entries VALUES (?, ?, ?)", (who, number, "x" * (number * 37 % 2000)))
    base.execute("UPDATE total SET count = count + 1")
    base.execute("COMMIT")
"""


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_sqlite_with_four_writers(here: Path, mode: str, remount: Callable[[], None]):
    path, writers, count = here / "base", 4, 40
    with sqlite3.connect(path) as base:
        base.execute(f"PRAGMA journal_mode={mode}")
        base.execute("CREATE TABLE entries (who INT, number INT, text TEXT, UNIQUE (who, number))")
        base.execute("CREATE TABLE total (count INT)")
        base.execute("INSERT INTO total VALUES (0)")
    base.close()
    running = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, str(who), str(count)])
        for who in range(writers)
    ]
    assert [one.wait(100) for one in running] == [0] * writers
    remount()
    base = sqlite3.connect(path)
    assert base.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert base.execute("SELECT count(*) FROM entries").fetchone() == (writers * count,)
    assert base.execute("SELECT count FROM total").fetchone() == (writers * count,)
    base.close()


@pytest.mark.parametrize("engine", ["psync", "libaio", "mmap"])
@pytest.mark.parametrize("pattern", ["write", "randwrite"])
def test_fio_verifies(here: Path, engine: str, pattern: str):
    needs("fio")
    listed = run("fio", "--enghelp")
    if engine not in listed:
        pytest.skip(f"this fio has no engine {engine}")
    said = run(
        "fio", "--name=verify", f"--directory={here}", f"--ioengine={engine}", f"--rw={pattern}",
        *(("--size=8M", "--bs=4k") if engine == "mmap" else ("--size=24M", "--bsrange=4k-128k")),
        "--iodepth=8",
        "--verify=crc32c", "--do_verify=1", "--verify_fatal=1",
        "--verify_state_save=0", "--numjobs=2", "--fsync=64",
        "--randrepeat=1", "--verify_state_save=0", "--output-format=json", "--fallocate=none",
    )  # fmt: skip
    jobs = json.loads(said[said.index("{") : said.rindex("}") + 1])["jobs"]
    assert [job["error"] for job in jobs] == [0, 0]
    assert all(job["read"]["io_bytes"] >= 8 << 20 for job in jobs)


def test_fio_direct(here: Path):
    needs("fio")
    run(
        "fio", "--name=direct", f"--directory={here}", "--ioengine=libaio", "--rw=randrw",
        "--direct=1", "--size=16M", "--bs=16k", "--iodepth=16", "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0", "--verify_backlog=64", "--verify_state_save=0",
    )  # fmt: skip


def test_tar_there_and_back(here: Path, tmp_path: Path):
    needs("tar")
    _varied_tree(here / "tree")
    archive = tmp_path / "all.tar"
    options = ("--acls", "--xattrs", "--xattrs-include=*", "--sparse")
    run("tar", "cf", archive, *options, "-C", here, "tree")
    run("tar", "xpf", archive, *options, "-C", tmp_path)
    assert digests(tmp_path / "tree") == digests(here / "tree")
    assert (here / "tree" / "sparse").stat().st_blocks * 512 < 1_000_000


def test_many_threads_make_and_remove_files(here: Path):
    def work(who: int) -> None:
        chance = random.Random(who)
        for number in range(150):
            path = here / f"{who}-{number % 20}"
            data = chance.randbytes(chance.choice([10, 5000, 200_000]))
            path.write_bytes(data)
            path.rename(here / f"{who}-moved")
            assert (here / f"{who}-moved").read_bytes() == data
            (here / f"{who}-moved").unlink()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert list(here.iterdir()) == []


def _postgres() -> Path:
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not places:
        pytest.skip("PostgreSQL is not installed")
    return places[-1]


@pytest.mark.timeout(300)
def test_postgres(here: Path, remount: Callable[[], None]):
    binaries = _postgres()
    needs("runuser")
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        user = pwd.getpwnam("nobody")
    data = here / "data"
    data.mkdir(mode=0o700)
    os.chown(data, user.pw_uid, user.pw_gid)
    seconds = 20 if os.environ.get("MOUNTFS_LONG") else 3

    def as_user(program: str, *arguments: Any) -> str:
        command = ("runuser", "-u", user.pw_name, "--", binaries / program, *arguments)
        return run(*command, cwd=Path("/"), timeout=200)

    as_user("initdb", "-D", data, "-A", "trust", "--no-locale")
    server = ("-D", data, "-w", "-t", "60")
    listen = f"-c listen_addresses= -c unix_socket_directories={data}"
    as_user("pg_ctl", *server, "-l", data / "log", "-o", listen, "start")
    try:
        as_user("pgbench", "-h", data, "-i", "-q", "-s", "2", "postgres")
        said = as_user("pgbench", "-h", data, "-c", "4", "-T", seconds, "postgres")
        assert "number of failed transactions: 0" in said
    finally:
        as_user("pg_ctl", *server, "-m", "fast", "stop")
    remount()
    as_user("pg_ctl", *server, "-l", data / "log", "-o", listen, "start")
    try:
        branches = "(SELECT sum(bbalance) FROM pgbench_branches)"
        query = f"SELECT sum(abalance) = {branches} FROM pgbench_accounts"
        assert as_user("psql", "-h", data, "-At", "-c", query, "postgres").strip() == "t"
        as_user("pg_amcheck", "-h", data, "--install-missing", "postgres")
    finally:
        as_user("pg_ctl", *server, "-m", "fast", "stop")
