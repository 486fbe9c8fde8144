"""What mountfs session and locks say of what they are told."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from mountfs.cli import cluster_calls, locks
from mountfs.vfs import control

Run = Callable[..., tuple[int, str, str]]

SESSION = {
    "number": 7, "about": "host:/mnt (process 5)", "silent_ms": 65_000, "locks": 2, "waits": 1,
    "unnamed": 0,
}  # fmt: skip
HELD = {
    "kind": "fcntl", "exclusive": True, "start": 5, "stop": 15, "pid": 41, "session": 7,
    "about": "host:/mnt", "waits_ms": 0,
}  # fmt: skip
WAITS = {**HELD, "kind": "flock", "start": 0, "stop": None, "exclusive": False, "waits_ms": 3_000}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What the leader is asked."""
    found: list[tuple[str, Any]] = []

    def ask(_: object, method: str, body: Any) -> Any:
        found.append((method, body))
        return [SESSION] if method == "Sessions" else {**SESSION, "evicted": body["yes"]}

    monkeypatch.setattr(cluster_calls, "ask", ask)
    return found


def test_sessions_are_listed(run: Run, asked: list[Any]) -> None:
    code, out, _ = run("session", "list")
    assert code == 0
    assert out.splitlines()[1].split() == [
        "7", "1", "min", "5", "s", "ago", "2", "1", "0", "host:/mnt", "(process", "5)",
    ]  # fmt: skip
    assert out.splitlines()[-1] == "1 session"
    code, out, _ = run("session", "list", "--json")
    assert json.loads(out) == [SESSION]


def test_without_yes_nobody_is_evicted(run: Run, asked: list[Any]) -> None:
    code, out, _ = run("session", "evict", "7")
    assert code == 0
    assert asked == [("Evict", {"session": 7, "yes": False})]
    assert "would lose 2 locks and its place among those who wait for 1 lock" in out
    assert "Nothing is done without --yes" in out


def test_who_is_evicted_is_told(run: Run, asked: list[Any]) -> None:
    code, out, _ = run("session", "evict", "7", "--yes")
    assert code == 0
    assert asked == [("Evict", {"session": 7, "yes": True})]
    assert out.startswith("session 7 (host:/mnt (process 5)) is evicted: it has lost 2 locks")


@pytest.mark.parametrize("words", [["evict"], ["list", "7"], ["list", "--yes"], ["evict", "x"]])
def test_wrong_calls_ask_nobody(run: Run, asked: list[Any], words: list[str]) -> None:
    code, _, err = run("session", *words)
    assert code == 2
    assert "mountfs session --help" in err
    assert asked == []


def test_locks_are_listed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {"held": [HELD], "waiting": [WAITS]}
    monkeypatch.setattr(locks, "mount_table", list)
    monkeypatch.setattr(locks, "locate", lambda *_: (SimpleNamespace(control=None), 9))
    monkeypatch.setattr(control, "ask", lambda *_, ino: told if ino == 9 else None)
    code, out, _ = run("locks", "list", "/mnt/file")
    assert code == 0
    held, waits = (line.split() for line in out.splitlines()[1:])
    assert held == ["held", "fcntl", "write", "5-14", "41", "7", "host:/mnt"]
    assert waits == ["waits", "for", "3", "s", "flock", "read", "all", "41", "7", "host:/mnt"]
    code, out, _ = run("locks", "list", "/mnt/file", "--json")
    assert json.loads(out) == {"path": "/mnt/file", **told}
    told = {"held": [], "waiting": []}
    code, out, _ = run("locks", "list", "/mnt/file")
    assert (code, out) == (0, "nobody holds a lock on it, and nobody waits for one\n")
