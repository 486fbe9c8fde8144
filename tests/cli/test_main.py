"""The command as a whole: help that teaches, exit statuses, one sentence for an error."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mountfs import __version__
from mountfs.cli.main import COMMANDS

Run = Callable[..., tuple[int, str, str]]


def test_help_names_every_command(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    for name in COMMANDS:
        assert re.search(rf"^\s+{name}\s+\S", out, re.MULTILINE), name


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_has_examples_and_exit_statuses(run: Run, name: str) -> None:
    status, out, _ = run(name, "--help")
    assert status == 0
    assert f"\n  mountfs {name}" in out
    assert "exit status" in out


def test_a_command_does_not_wait_for_what_others_need() -> None:
    code = (
        "import sys; from mountfs.cli.main import parser; parser(['status']); "
        "sys.exit('mountfs.cli.sim' in sys.modules or 'mountfs.cli.status' not in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"mountfs {__version__}\n", "")


def test_a_wrong_call_says_where_help_is(run: Run) -> None:
    status, out, err = run("status", "--wrong")
    assert (status, out) == (2, "")
    assert "mountfs status --help" in err


@pytest.mark.parametrize("name", ["status", "stats", "info"])
def test_a_place_that_is_no_mount_is_one_sentence(run: Run, name: str, tmp_path: Path) -> None:
    status, out, err = run(name, tmp_path)
    assert (status, out) == (1, "")
    assert err.startswith(f"mountfs {name}: {tmp_path}")
    assert err.count("\n") == 1
