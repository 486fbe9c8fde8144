"""The commands on a real mount, also when its daemon is stopped or dead."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mountfs.cli import doctor, status
from mountfs.types import MIB

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

Run = Callable[..., tuple[int, str, str]]
ENDS_S = 30


def mount_dfs(home: Path, point: Path, options: str = "rw") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mountfs.cli.mount_dfs", home, point, "-o", options]
    return subprocess.run(command, check=True, timeout=60, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """(home, mount point)"""
    home, point = tmp_path / "home", tmp_path / "mnt"
    point.mkdir()
    mount_dfs(home, point)
    try:
        yield home, point
    finally:
        while subprocess.run(["umount", "-l", point], capture_output=True).returncode == 0:
            pass
        wait_for_end(home)


def wait_for_end(home: Path) -> None:
    """The daemon has closed the home, or is dead."""
    deadline = time.monotonic() + ENDS_S
    while doctor.state_of(doctor.read_pid(home)) not in ("", "Z"):
        assert time.monotonic() < deadline, "the daemon does not end"
        time.sleep(0.02)


def test_status(mounted: tuple[Path, Path], run: Run) -> None:
    home, point = mounted
    (point / "file").write_bytes(bytes(10_000))
    for name in (home, point, point / "file"):
        code, out, _ = run("status", name, "--json")
        (report,) = json.loads(out)
        assert (code, report["state"]) == (0, "mounted")
        assert (report["home"], report["mountpoint"]) == (str(home), str(point))
        assert report["inodes"] == 2
        assert report["pid"] == doctor.read_pid(home)
    code, out, _ = run("status")
    assert str(point) in out
    assert "native binding, FUSE 7." in out


def test_status_of_the_other_binding(mounted: tuple[Path, Path], run: Run) -> None:
    pyfuse3 = pytest.importorskip("pyfuse3")
    home, point = mounted
    subprocess.run(["umount", point], check=True)
    wait_for_end(home)
    mount_dfs(home, point, "binding=pyfuse3")
    code, out, _ = run("status", point)
    assert code == 0
    assert f"pyfuse3 binding, pyfuse3 {pyfuse3.__version__}" in out
    assert "?" not in out


def test_info_follows_a_file_to_its_bytes(mounted: tuple[Path, Path], run: Run) -> None:
    home, point = mounted
    path = point / "file"
    path.write_bytes(os.urandom(5 * MIB))
    with open(path, "r+b") as file:
        file.seek(100_000)
        file.write(os.urandom(300_000))
        os.fsync(file.fileno())
    os.setxattr(path, "user.colour", b"blue")
    code, out, _ = run("info", path, "--json")
    said = json.loads(out)
    assert code == 0
    assert (said["ino"], said["size"]) == (path.stat().st_ino, 5 * MIB)
    assert said["xattrs"] == ["user.colour"]
    assert len(said["slices"]) >= 2
    for one in said["slices"]:
        where = one["where"]
        assert where["file"].startswith(str(home / "chunks" / "volumes"))
        # Where the needle of this slice begins: its name is 24 bytes behind.
        needle = Path(where["file"]).read_bytes()[where["offset"] :][:48]
        assert needle[:4] == b"ndl\n"
        assert int.from_bytes(needle[24:32], "little") == one["slice"]
    code, out, _ = run("info", path)
    assert "5,242,880 bytes" in out


def test_info_of_what_has_no_slices(mounted: tuple[Path, Path], run: Run) -> None:
    _, point = mounted
    (point / "small").write_bytes(b"small")
    (point / "link").symlink_to("small")
    assert "5 bytes, kept with the inode" in run("info", point / "small")[1]
    assert "points to" in run("info", point / "link")[1]
    assert "entries" in run("info", point)[1]


def test_info_outside_of_a_mount(mounted: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    code, _, err = run("info", tmp_path)
    assert code == 1
    assert str(mounted[1]) in err  # where one could look instead


def test_stats_counts_what_programs_do(mounted: tuple[Path, Path], run: Run) -> None:
    _, point = mounted
    maker = subprocess.Popen(
        ["sh", "-c", 'i=0; while [ $i -lt 2000 ]; do : > "$1/$i"; i=$((i+1)); done', "-", point]
    )
    try:
        code, out, _ = run("stats", point, "--interval", "0.3", "--count", "1", "--json")
    finally:
        maker.kill()
        maker.wait()
    said = json.loads(out)
    assert code == 0
    assert said["per_s"] > 0
    assert any(rate["operation"] in ("create", "lookup") for rate in said["operations"])
    assert 0 <= said["rows_from_memory_percent"] <= 100


def test_fsck_and_doctor_of_a_mount_that_is_well(mounted: tuple[Path, Path], run: Run) -> None:
    home, point = mounted
    for name in (home, point):
        code, _, err = run("fsck", name)
        assert code == 8
        assert f"umount {point}" in err
    code, out, _ = run("doctor", point)
    assert code == 0, out


def test_a_daemon_that_is_stopped_hangs_nobody(
    mounted: tuple[Path, Path], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, point = mounted
    monkeypatch.setattr(doctor, "ANSWER_S", 0.5)
    monkeypatch.setattr(status, "ANSWER_S", 0.5)
    pid = doctor.read_pid(home)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        code, out, _ = run("doctor", point)
        assert code == 1
        assert f"kill -CONT {pid}" in out
        code, out, _ = run("status", point, "--json")
        assert (code, json.loads(out)[0]["state"]) == (1, "not answering")
    finally:
        os.kill(pid, signal.SIGCONT)


def test_after_the_daemon_was_killed(mounted: tuple[Path, Path], run: Run) -> None:
    home, point = mounted
    pid = doctor.read_pid(home)
    assert pid is not None
    kept = os.urandom(2 * MIB)
    with open(point / "kept", "wb") as file:
        file.write(kept)
        os.fsync(file.fileno())
    os.kill(pid, signal.SIGKILL)
    wait_for_end(home)
    code, out, _ = run("doctor", point)
    assert code == 1
    assert f"it was process {pid}" in out
    assert run("fsck", home)[0] == 0
    mount_dfs(home, point)
    assert (point / "kept").read_bytes() == kept
    assert run("doctor", point)[0] == 0


def test_a_missing_volume_is_said_by_mount_status_and_doctor(
    mounted: tuple[Path, Path], run: Run
) -> None:
    home, point = mounted
    (point / "large").write_bytes(os.urandom(MIB))
    (point / "small").write_bytes(b"kept with its inode")
    subprocess.run(["umount", point], check=True)
    wait_for_end(home)
    volume = home / "chunks" / "volumes" / "00000001.vol"
    volume.rename(home / "aside")
    done = mount_dfs(home, point)
    assert "00000001.vol: the file is missing" in done.stderr
    assert f"mountfs fsck {home}" in done.stderr
    assert (point / "small").read_bytes() == b"kept with its inode"
    with pytest.raises(OSError, match="Input/output error"):
        (point / "large").read_bytes()
    (point / "new").write_bytes(os.urandom(MIB))
    code, out, _ = run("status", point, "--json")
    assert code == 1
    assert any(str(volume) in one["troubles"] for one in json.loads(out))
    assert "00000001.vol" in run("status", point)[1].replace("\n", "")
    code, out, _ = run("doctor", str(point))
    assert code != 0
    assert "00000001.vol" in out.replace("\n", "")


def test_a_damaged_index_is_made_anew_and_said(mounted: tuple[Path, Path], run: Run) -> None:
    home, point = mounted
    data = os.urandom(MIB)
    (point / "large").write_bytes(data)
    for again in range(2):  # the second time LevelDB writes its log to a table
        subprocess.run(["umount", point], check=True)
        wait_for_end(home)
        if again == 0:
            assert mount_dfs(home, point).stderr == ""
    table = max((home / "chunks" / "index").glob("*.ldb"))
    flipped = bytearray(table.read_bytes())
    flipped[5] ^= 4
    table.write_bytes(flipped)
    done = mount_dfs(home, point)
    assert "made anew from the volumes" in done.stderr
    assert (point / "large").read_bytes() == data
    (said,) = json.loads(run("status", home, "--json")[1])
    assert str(home / "chunks" / "index") in said["troubles"]
    assert "chunks/index" in (home / "log").read_text()


def test_locks_are_listed(mounted: tuple[Path, Path], run: Run) -> None:
    _, point = mounted
    path = point / "file"
    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        code, out, _ = run("locks", "list", path, "--json")
        assert code == 0
        (held,) = json.loads(out)["held"]
        assert (held["kind"], held["exclusive"], held["pid"]) == ("flock", False, os.getpid())
    code, out, _ = run("locks", "list", path)
    assert (code, out) == (0, "nobody holds a lock on it, and nobody waits for one\n")
