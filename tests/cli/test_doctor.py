"""Each check by plain data, and that nothing that hangs can hang it."""

import json
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mountfs.cli import doctor
from mountfs.cli.child import NoAnswer, ask_child
from mountfs.cli.doctor import (
    check_device,
    check_files,
    check_helper,
    check_kernel,
    judge_daemon,
    judge_log,
    judge_space,
    state_of,
)
from mountfs.cli.places import Place
from mountfs.types import MIB
from mountfs.vfs.home import Holder, open_home

Run = Callable[..., tuple[int, str, str]]
HOME = Path("/srv/home")
MOUNTED = Place(HOME, "/mnt/data")
NOT_MOUNTED = Place(HOME, None)


def test_an_old_kernel_is_a_warning() -> None:
    assert check_kernel("4.19.0-amd64").level == "warn"
    assert check_kernel("5.10.0-28-amd64").level == "ok"
    assert check_kernel("6.1.0").level == "ok"
    assert check_kernel("custom").level == "ok"


def test_the_device(tmp_path: Path) -> None:
    assert check_device(str(tmp_path / "fuse"), 0).level == "fail"
    assert "modprobe" in check_device(str(tmp_path / "fuse"), 0).next
    (tmp_path / "file").touch()
    assert "not a device" in check_device(str(tmp_path / "file"), 0).what


def test_the_helper_must_be_there_and_set_user_id(tmp_path: Path) -> None:
    assert "fuse3" in check_helper(None).next
    program = tmp_path / "fusermount3"
    program.touch()
    assert check_helper(str(program)).level == "fail"
    program.chmod(0o4755)
    assert check_helper(str(program)).level == "ok"


def test_open_files() -> None:
    assert check_files(256, None).level == "warn"
    assert check_files(resource.RLIM_INFINITY, None).level == "ok"
    assert check_files(20_000, (999, 1_000)).level == "fail"


@pytest.mark.parametrize(
    ("place", "pid", "holder", "state", "level", "says"),
    [
        (MOUNTED, 5, Holder(5, "/mnt/data"), "S", "ok", "process 5 is running"),
        (MOUNTED, 5, Holder(5, "/mnt/data"), "T", "fail", "stopped"),
        (MOUNTED, 5, Holder(5, "/mnt/data"), "D", "warn", "disk"),
        (MOUNTED, 5, None, "", "fail", "the daemon of the mount is gone (it was process 5)"),
        (NOT_MOUNTED, None, None, "", "ok", "not mounted"),
    ],
)
def test_the_daemon(
    place: Place, pid: int | None, holder: Holder | None, state: str, level: str, says: str
) -> None:
    found = judge_daemon(place, pid, holder, state)
    assert (found.level, says in found.what) == (level, True)
    assert found.level == "ok" or found.next


def test_the_state_of_a_process() -> None:
    assert state_of(os.getpid()) == "R"
    assert state_of(None) == ""


def test_space() -> None:
    gib = 1024 * MIB
    assert judge_space(HOME, 50 * gib, 100 * gib, 10**6).level == "ok"
    assert judge_space(HOME, gib // 2, 100 * gib, 10**6).level == "warn"
    assert judge_space(HOME, gib // 2, 2 * gib, 10**6).level == "ok"  # a small disk
    assert judge_space(HOME, 10 * MIB, 100 * gib, 10**6).level == "fail"
    assert judge_space(HOME, 50 * gib, 100 * gib, 3).level == "fail"
    assert judge_space(HOME, 50 * gib, 100 * gib, None).level == "ok"  # counts no inodes


def test_errors_in_the_log_are_shown() -> None:
    lines = [f"2026-01-01 INFO mountfs: {number}" for number in range(9)]
    assert judge_log(HOME, lines).level == "ok"
    found = judge_log(HOME, [*lines, "2026-01-01 ERROR mountfs: flush: no space"])
    assert found.level == "warn"
    assert "flush: no space" in found.what


def test_a_child_answers() -> None:
    assert ask_child(lambda: ["x" * 200_000, 2], 10) == ["x" * 200_000, 2]


def test_the_error_of_a_child_is_ours() -> None:
    with pytest.raises(FileNotFoundError):
        ask_child(lambda: os.stat("/no/such/file"), 10)


def test_a_child_that_hangs_is_left_behind() -> None:
    begun = time.monotonic()
    with pytest.raises(NoAnswer):
        ask_child(lambda: time.sleep(60), 0.2)
    assert time.monotonic() - begun < 5


def test_a_child_that_dies_is_no_answer() -> None:
    with pytest.raises(NoAnswer):
        ask_child(lambda: os.kill(os.getpid(), signal.SIGKILL), 10)


def test_a_sound_home(home: Path, run: Run) -> None:
    status, out, _ = run("doctor", home, "--json")
    found = {finding["check"]: finding for finding in json.loads(out)}
    if os.path.exists("/dev/fuse") and os.geteuid() == 0:
        assert status == 0, found
    assert found["format"]["level"] == found["metadata"]["level"] == "ok"


@pytest.mark.parametrize(
    ("part", "check"),
    [("format.json", "format"), ("meta/store/CURRENT", "parts"), ("chunks/volumes", "parts")],
)
def test_a_part_that_is_missing_is_named(home: Path, run: Run, part: str, check: str) -> None:
    (home / part).rename(home / "away")
    status, out, _ = run("doctor", home, "--json")
    failed = [finding for finding in json.loads(out) if finding["level"] == "fail"]
    assert status == 1
    assert [finding["check"] for finding in failed if finding["check"] != "device"] == [check]
    assert part in failed[-1]["what"] or check == "format"


def test_a_volume_that_cannot_be_opened_is_named(home: Path, run: Run) -> None:
    volume = home / "chunks" / "volumes" / "00000001.vol"
    volume.write_bytes(b"noise" * 2000)
    status, out, _ = run("doctor", home, "--json")
    (failed,) = [one for one in json.loads(out) if one["check"] == "volumes"]
    assert (status, failed["level"]) == (1, "fail")
    assert str(volume) in failed["what"]


def test_a_damaged_log_is_found(home: Path, run: Run, damage: Callable[..., None]) -> None:
    segment = min((home / "meta" / "log").glob("*.seg"))
    damage(segment, 4096 + 60)
    status, out, _ = run("doctor", home)
    assert status == 1
    assert str(segment) in out.replace("\n", "")


def test_a_home_whose_node_does_not_answer(
    home: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "ANSWER_S", 0.5)
    held = open_home(home, create=False)
    held.hold("")
    try:
        status, out, _ = run("doctor", home, "--json")
    finally:
        held.close()
    failed = [finding["check"] for finding in json.loads(out) if finding["level"] == "fail"]
    assert status == 1
    assert "control socket" in failed


def test_any_other_directory_is_no_place(tmp_path: Path, run: Run) -> None:
    status, out, _ = run("doctor", tmp_path)
    assert status == 1
    assert "nor a home" in out
