"""mountfs worm, as far as no mount is needed."""

import argparse
from typing import Any

import pytest

from mountfs.cli import worm
from mountfs.meta.records import NS

DAY = 86_400 * NS


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["hold", "f"], "on or off"),
        (["get", "f", "on"], "on or off"),
        (["get", "f", "--mode", "none"], "for set and default"),
        (["set", "f"], "set needs --mode"),
        (["set", "f", "--mode", "none", "--for", "1d"], "no time"),
        (["set", "f", "--mode", "governance", "--for", "1d", "--until", "2030-01-01"], "either"),
        (["set", "f", "--for", "1d"], "set needs --mode"),
        (["default", "d", "--for", "1d"], "needs --mode"),
        (["default", "d", "--mode", "governance", "--until", "2030-01-01"], "--for so long"),
        (["default", "d", "--mode", "governance"], "needs --for"),
        (["set", "f", "--mode", "governance", "--for", "1d", "--idle", "1h"], "for default"),
        (["hold", "f", "on", "--bypass-governance"], "for set"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_told_what_is_missing(run: Any, words: list[str], hint: str) -> None:
    code, _, err = run("worm", *words)
    assert code == 2
    assert hint in err
    assert "mountfs worm --help" in err


def test_a_path_that_is_in_no_mount(run: Any, tmp_path: Any) -> None:
    (tmp_path / "f").touch()
    code, _, err = run("worm", "get", tmp_path / "f")
    assert code == 1
    assert "not in a mount of mountfs" in err


def test_a_time_that_is_none_is_said_before_anything_is_done(run: Any, tmp_path: Any) -> None:
    words = ("set", tmp_path, "--mode", "governance")
    for wrong in (("--for", "5m"), ("--until", "tomorrow")):
        code, _, err = run("worm", *words, *wrong)
        assert code == 1
        assert wrong[1] in err


def test_compliance_is_not_set_by_accident(run: Any, tmp_path: Any) -> None:
    code, _, err = run("worm", "set", tmp_path, "--mode", "compliance", "--for", "1d")
    assert code == 1
    assert "--yes" in err


def test_a_dry_run_says_what_would_be_done(run: Any, tmp_path: Any) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "b").touch()
    words = ("set", tmp_path, "-r", "--mode", "compliance", "--for", "1d", "--dry-run")
    assert run("worm", *words)[:2] == (0, "would set compliance for 1d: 2 files\n")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"mode": "none", "hold": False}, "not retained"),
        ({"mode": "none", "hold": True}, "a legal hold"),
        (
            {"mode": "governance", "until_ns": DAY, "kept": True, "hold": True},
            "governance until 1970-01-02T00:00:00Z; a legal hold",
        ),
        (
            {"mode": "compliance", "until_ns": DAY, "kept": False, "hold": False},
            "compliance until 1970-01-02T00:00:00Z, which is over",
        ),
    ],
)
def test_retention_in_words(said: dict[str, Any], words: str) -> None:
    assert worm._in_words(said) == words


@pytest.mark.parametrize(
    ("idle", "at_close", "words"),
    [
        (0, True, "governance for 30d, when a file is closed"),
        (3_600 * NS, False, "governance for 30d, when it was left alone for 1h"),
        (
            3_600 * NS,
            True,
            "governance for 30d, when a file is closed or when it was left alone for 1h",
        ),
    ],
)
def test_a_default_in_words(idle: int, at_close: bool, words: str) -> None:
    said = {
        "mode": "governance", "duration_ns": 30 * DAY, "idle_ns": idle, "at_close": at_close,
        "directory": None,
    }  # fmt: skip
    assert worm._default_in_words(said) == words


def test_the_help_teaches() -> None:
    parser = argparse.ArgumentParser()
    worm.add_arguments(parser)
    assert "--bypass-governance" in parser.format_help()
    assert "compliance" in worm.DESCRIPTION
