"""Python's own tests with their files in the mount: what passes on the disk beneath passes here."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

MODULES = ["test_os", "test_shutil", "test_tempfile", "test_mmap", "test_fcntl", "test_pathlib",
           "test_glob", "test_file", "test_fileio", "test_posix"]  # fmt: skip
SECONDS_MAX = 110


def failures(module: str, directory: Path) -> set[str]:
    """Tests of a module that fail when everything temporary is in `directory`."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "unittest", "-v", f"test.{module}"],
            cwd=directory, env={**os.environ, "TMPDIR": str(directory)}, timeout=SECONDS_MAX,
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"did not end"}
    if "No module named" in done.stderr and not re.search(r"^Ran \d+", done.stderr, re.M):
        pytest.skip(f"this Python comes without test.{module}")
    assert re.search(r"^Ran [1-9]\d* test", done.stderr, re.M), done.stderr[-2000:]
    return set(re.findall(r"^(?:FAIL|ERROR): (.*)$", done.stderr, re.M))


@pytest.mark.parametrize("module", MODULES)
def test_what_passes_on_a_plain_disk_passes_here(here: Path, module: str) -> None:
    failed = failures(module, here)
    if not failed:
        return
    with tempfile.TemporaryDirectory() as plain:
        failed -= failures(module, Path(plain))
    assert not failed
