"""A measurement leaves nothing behind, whatever happens to it."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mountfs.cli import bench
from mountfs.cli.bench import Row, large_file_bytes
from mountfs.errors import Fault, FsError
from mountfs.types import MIB

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "LARGE_BYTES_MAX", 16 * MIB)


def test_every_row_measures_and_says_what_is_durable(tmp_path: Path, run: Run) -> None:
    status, out, _ = run("bench", tmp_path, "--seconds", "1", "--json")
    assert status == 0
    rows = json.loads(out)["rows"]
    assert len(rows) == 11
    for row in rows:
        assert row["operations"] > 0, row
        assert row["per_s"] > 0, row
        assert row["durable"].split(":")[0] in ("yes", "no", "read"), row
    assert os.listdir(tmp_path) == []


def test_a_table_for_people(tmp_path: Path, run: Run) -> None:
    status, out, _ = run("bench", tmp_path, "--seconds", "0.5")
    assert status == 0
    assert "not a mount of mountfs" in out
    assert "append 4 KiB, fsync each" in out


def test_interrupted_it_cleans_up(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> Row:
        assert os.listdir(tmp_path)  # something was written
        raise KeyboardInterrupt

    monkeypatch.setattr(bench.Bench, "rename", interrupted)
    assert run("bench", tmp_path, "--seconds", "1")[0] == 130
    assert os.listdir(tmp_path) == []


def test_a_failure_cleans_up_and_is_one_sentence(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Row:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench.Bench, "write", full)
    status, _, err = run("bench", tmp_path, "--seconds", "1")
    assert status == 1
    assert "No space left" in err
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_refused() -> None:
    with pytest.raises(FsError) as refused:
        large_file_bytes("/mnt", 300 * MIB)
    assert refused.value.fault is Fault.NO_SPACE
    assert large_file_bytes("/mnt", 320 * MIB) == 16 * MIB


def test_what_is_no_directory_is_refused(tmp_path: Path, run: Run) -> None:
    (tmp_path / "file").touch()
    status, _, err = run("bench", tmp_path / "file")
    assert status == 1
    assert "not a directory" in err
