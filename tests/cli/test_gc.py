"""What a cluster has to throw away, in words."""

import json
from typing import Any

import pytest

from mountfs.cli import cluster_calls
from mountfs.cli.gc import deleted, orphans


def debt(**changes: Any) -> dict[str, Any]:
    said = {"slices": 0, "bytes": 0, "more": False, "kept_by": {}, "seconds_left": 0.0}
    figures = {
        "rounds": 1, "looked": 30, "orphans": 2, "missing": 0, "closed": 5, "finished_at": 0.0,
    }  # fmt: skip
    found = {
        "deleted": {**said, **changes.pop("deleted", {})},
        "orphans": {**figures, **changes.pop("figures", {})},
        "volumes": 100, "is_hurried": False, "round_seconds_left": 35.0, "grace_seconds": 3600.0,
        "dead": [
            {"node": 1, "name": "n1", "total_bytes": 10 << 20, "dead_bytes": 6 << 20,
             "worth_bytes": 5 << 20},
        ],
    }  # fmt: skip
    return {**found, **changes}


def test_what_is_deleted_has_an_end() -> None:
    assert deleted(debt()) == "nothing that is still there"
    said = {"slices": 8_000, "bytes": 3 << 30, "seconds_left": 9.8}
    assert deleted(debt(deleted=said)) == "8,000 pieces with 3 GiB, gone in about 10 s"
    kept = {**said, "more": True, "seconds_left": None, "kept_by": {2: "no answer"}}
    assert deleted(debt(deleted=kept)).startswith("more than 8,000 pieces")
    assert "as long as nodes keep some" in deleted(debt(deleted=kept))


def test_a_round_is_followed() -> None:
    assert orphans(debt()) == (
        "2 found and deleted; 30 of 100 volumes looked at, the rest in about 35 s"
    )
    assert "without pauses" in orphans(debt(is_hurried=True))
    ended = orphans(debt(figures={"finished_at": 86_400.0}))
    assert ended.endswith("the last round ended 1970-01-02 00:00:00 UTC")


def test_a_round_is_begun_only_if_asked_for(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def ask(arguments: Any, method: str, body: Any) -> Any:
        asked.append((method, body))
        return debt(deleted={"kept_by": {1: "it does not answer"}}, figures={"missing": 3})

    monkeypatch.setattr(cluster_calls, "ask", ask)
    status, said, _ = run("gc")
    assert status == 0
    assert "kept by node n1: it does not answer" in said
    assert "missing: 3" in said
    assert "6 MiB" in said
    status, said, _ = run("gc", "--now", "--json")
    assert json.loads(said)["volumes"] == 100
    assert asked == [("Garbage", {"now": False}), ("Garbage", {"now": True})]
