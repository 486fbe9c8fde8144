"""One word for a cluster, from what its nodes say."""

from typing import Any

from mountfs.cli.cluster_status import judge
from mountfs.meta.diagnosis import Cause

CLUSTER = "ab" * 16


def node(number: int, **changes: Any) -> dict[str, Any]:
    said = {
        "cluster": CLUSTER, "generation": 0, "node": number, "name": f"n{number}",
        "rpc": f"h{number}:1", "health": "healthy", "why": "",
        "nodes": [{"number": n, "name": f"n{n}", "rpc": f"h{n}:1"} for n in (1, 2, 3)],
    }  # fmt: skip
    return {**said, **changes}


def members(leader: int) -> list[dict[str, Any]]:
    return [
        {"number": n, "name": f"n{n}", "leader": n == leader, "lag": 0, "role": "voter"}
        for n in (1, 2, 3)
    ]


def word(found: Any, **said: Any) -> tuple[str, str]:
    report = judge(found, {f"h{name[1]}:1": what for name, what in said.items()})
    return report.health, report.why


def test_all_is_well() -> None:
    report = judge(members(2), {f"h{n}:1": node(n) for n in (3, 1, 2)})
    assert report.well
    assert report.leader == "n2"
    assert [one["name"] for one in report.nodes] == ["n1", "n2", "n3"]


def test_a_node_that_does_not_answer_is_named() -> None:
    health, why = word(members(2), n1=node(1), n2=node(2), n3="connection refused")
    assert health == "degraded"
    assert "n3" in why
    assert "connection refused" in why


def test_what_is_worse_is_said_first() -> None:
    full = node(3, health="full", why="no space left")
    health, why = word(members(2), n1=node(1, health="degraded", why="x"), n2=node(2), n3=full)
    assert (health, why) == ("full", "node n3 says: no space left")


def test_without_a_leader_it_is_leaderless_whatever_else_is_wrong() -> None:
    health, why = word("nobody leads", n1=node(1, health="leaderless"), n2="gone", n3="gone")
    assert health == "leaderless"
    assert "nobody leads" in why


def test_contents_with_too_few_copies_are_not_well_though_all_nodes_are_there() -> None:
    said = {f"h{n}:1": node(n) for n in (1, 2, 3)}
    for causes, health in (({}, "healthy"), ({Cause.LAST.value: 2}, "degraded")):
        volumes = {
            "causes": causes, "held_up": "", "looked": True, "bytes_to_copy": 0, "unreadable": [],
        }  # fmt: skip
        report = judge(members(1), said, {"volumes": volumes, "nodes": []})
        assert report.health == health
        assert report.bytes is not None
        assert ("one copy is left of 2 volumes" in report.why) == bool(causes)


def test_nodes_of_two_clusters_are_not_counted_together() -> None:
    assert word(members(1), n1=node(1), n2=node(2, cluster="cd" * 16))[0] == "mixed"
    assert word(members(1), n1=node(1, generation=1), n2=node(2))[0] == "mixed"
