"""One word for the bytes of a cluster, from what its leader tells."""

import json
from typing import Any

import pytest

from mountfs.cli import cluster_calls
from mountfs.cli.health import in_a_line, judge, shown, warnings
from mountfs.cli.node_leaving import drained, removed
from mountfs.cli.show import out
from mountfs.meta.diagnosis import Cause


def node(name: str, **changes: Any) -> dict[str, Any]:
    view = {
        "node": 1, "standing": "alive", "heard_ms_ago": 300.0, "total_bytes": 1 << 40,
        "free_bytes": 1 << 39, "volumes": 7, "writing": 2, "busy": 0.0, "scrubbed": 0.5,
        "slow": False, "full": False, "troubles": [],
    }  # fmt: skip
    said = {
        "number": int(name[1:]), "name": name, "location": "/rack/x", "leaving": False,
        "draining": False, "lost": False, "volumes_left": None,
    }  # fmt: skip
    return {**said, "view": {**view, **changes.pop("view", {})}, **changes}


def told(*nodes: dict[str, Any], **volumes: Any) -> dict[str, Any]:
    said = {
        "looked": True, "volumes": 100, "causes": {}, "unreadable": [], "bytes_to_copy": 0,
        "bytes_per_second": 0.0, "seconds_left": 0.0, "under_way": [], "stuck": {}, "held_up": "",
    }  # fmt: skip
    return {
        "volumes": {**said, **volumes},
        "nodes": list(nodes) or [node("n1"), node("n2"), node("n3")],
        "balancing": {"active": False, "why": ""},
        "grace_ms": 90_000,
        "copies_wanted": 3, "copies_possible": 3, "lacking": "", "risk": "",
    }  # fmt: skip


def causes(**counts: int) -> dict[str, int]:
    return {Cause[name].value: count for name, count in counts.items()}


@pytest.mark.parametrize(
    ("counts", "word"),
    [
        ({}, "healthy"),
        ({"STRAY": 2, "DRAINING": 1}, "tidying"),
        ({"STRAY": 9, "MISPLACED": 1}, "healing"),
        ({"SHORT": 5, "DAMAGED": 1}, "healing"),
        ({"SHORT": 5, "LAST": 1}, "at risk"),
        ({"LAST": 5, "MISSING": 1}, "unreadable"),
    ],
)
def test_the_worst_is_said(counts: dict[str, int], word: str) -> None:
    verdict = judge(told(causes=causes(**counts)))
    assert verdict.word == word
    assert verdict.well == (word in ("healthy", "tidying"))


def test_volumes_without_a_copy_are_named() -> None:
    verdict = judge(told(causes=causes(MISSING=2), unreadable=[17, 18]))
    assert "17, 18" in verdict.why


@pytest.mark.parametrize(
    ("view", "why"),
    [
        ({"standing": "silent", "heard_ms_ago": 75_000.0}, "not heard of for 1 min 15 s"),
        ({"standing": "silent"}, "after 1 min 30 s of silence others get what it has"),
        ({"standing": "dead", "heard_ms_ago": 7_260_000.0}, "counts as lost"),
        ({"troubles": ["disk /d takes nothing more: I/O error"]}, "I/O error"),
        ({"full": True}, "full"),
    ],
)
def test_a_node_that_is_not_well_is_named(view: dict[str, Any], why: str) -> None:
    verdict = judge(told(node("n1"), node("n2", view=view)))
    assert verdict.word == "degraded"
    assert verdict.why.startswith("node n2: ")
    assert why in verdict.why


def test_who_takes_slices_before_they_are_on_disk_is_named() -> None:
    found = told(node("n1"), node("n2", view={"durability": "async"}))
    assert judge(found).word == "healthy"
    (warning,) = warnings(found)
    assert "on the disks of n2 (--durability async)" in warning


def test_one_that_leaves_may_be_gone() -> None:
    gone = node("n3", leaving=True, view={"standing": "dead"})
    assert judge(told(node("n1"), gone)).word == "healthy"


def test_before_all_volumes_were_looked_at_nobody_says_that_all_is_well() -> None:
    assert judge(told(looked=False)).word == "looking"
    assert judge(told(looked=False, causes=causes(LAST=1))).word == "at risk"


def test_safe_mode_comes_first() -> None:
    verdict = judge(told(held_up="2 of 9 volumes", causes=causes(MISSING=7)))
    assert verdict == ("safe mode", "2 of 9 volumes")


def test_a_line_says_how_long_it_takes() -> None:
    rate = {"bytes_per_second": 50 * 2.0**20, "seconds_left": 61.4}
    line = in_a_line(told(causes=causes(SHORT=3), bytes_to_copy=3 << 30, **rate))
    assert line == (
        "healing: 3 volumes: too few copies; 3 GiB to copy at 50 MiB/s, about 1 min 1 s left"
    )


def text(found: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    out().print(shown(found))
    return capsys.readouterr().out


def test_people_see_what_is_under_way_and_what_is_stuck(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(
        node("n1"),
        node("n2", draining=True, volumes_left=1_200),
        causes=causes(DRAINING=1_200),
        under_way=[f"volume {one}: copy" for one in range(30)],
        stuck={"nobody has room": 4},
    )
    said = text({**found, "lacking": "add 1 on another host"}, capsys)
    assert "draining, 1,200 volumes left" in said
    assert "volume 9: copy" in said
    assert "and 20 more" in said
    assert "4 volumes: nobody has room" in said
    assert "warning: add 1 on another host" in said


def test_the_command_says_it_in_json_and_by_its_exit_status(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for counts, status in (({}, 0), ({"SHORT": 1}, 1)):
        answer = told(causes=causes(**counts))
        monkeypatch.setattr(cluster_calls, "ask", lambda *_, answer=answer: answer)
        left, said, _ = run("health", "--at", "127.0.0.1", "--json")
        assert left == status
        assert json.loads(said)["word"] == judge(answer).word


def test_who_removes_a_node_is_told_what_it_means() -> None:
    answer = {"name": "n3", "holdings": {"volumes": 5, "only": 0}}
    assert "let it run" in removed(answer, lost=False)
    assert "5 volumes had a copy there; others" in removed(answer, lost=True)
    answer["holdings"] = {"volumes": 5, "only": 2}
    assert "2 of them their only one" in removed(answer, lost=True)
    answer["holdings"] = {"volumes": 0, "only": 0}
    assert removed(answer, lost=False) == "node n3 leaves; see: mountfs node list"
    assert "stays a node" in drained(answer, undo=False)
