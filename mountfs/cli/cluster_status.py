"""How a cluster is: what each of its nodes says, and one word for all of it."""

from pathlib import Path
from typing import Any

import msgspec
import trio
from rich.table import Table
from rich.text import Text

from mountfs.cli import cluster_calls, health, show
from mountfs.errors import unwrapped
from mountfs.meta.reports import ASYNC


class Report(msgspec.Struct):
    health: str
    """One word: "healthy", or what is wrong first."""
    why: str
    cluster: str | None
    leader: str | None
    nodes: list[dict[str, Any]]
    """What each says of itself, or its address and `problem`."""
    bytes: str | None = None
    """How the contents of files are, in a line (`mountfs health`); None: nobody says."""

    @property
    def well(self) -> bool:
        return self.health == "healthy"


def report_on(places: list[str], tls: Path | None) -> Report:
    """Raises FsError when not one of `places` answers."""
    with unwrapped():
        looked = trio.run(cluster_calls.look_at_all, places, tls)
    return judge(*looked)


def judge(
    members: list[dict[str, Any]] | str,
    said: dict[str, dict[str, Any] | str],
    bytes_told: dict[str, Any] | None = None,
) -> Report:
    """`members`: what the leader says of all, or why nobody does; `said`: what each says of itself,
    by address, or why it does not; `bytes_told`: what the leader says of contents.
    """
    answers = [one for one in said.values() if isinstance(one, dict)]
    names = {place: "" for place in said}
    for one in answers:
        names |= {node["rpc"]: node["name"] for node in one["nodes"]}
    nodes: list[dict[str, Any]] = []
    for place, answer in said.items():
        if isinstance(answer, dict):
            nodes.append({**answer, "problem": None})
        else:
            nodes.append({"rpc": place, "name": names.get(place, ""), "problem": answer})
    nodes.sort(key=lambda node: (node.get("node", 1 << 32), node["rpc"]))
    clusters = {(one["cluster"], one["generation"]) for one in answers}
    cluster = answers[0]["cluster"] if answers else None
    if isinstance(members, list):
        leader = next((node["name"] for node in members if node["leader"]), None)
        roles = {node["number"]: node for node in members}
        for node in nodes:
            if (member := roles.get(node.get("node", 0))) is not None:
                node["lag"] = member["lag"]
                node["member"] = member["role"]
    else:
        leader = None
    word, why = _health(members, nodes, len(clusters))
    told = None
    if bytes_told is not None:
        told = health.in_a_line(bytes_told)
        verdict = health.judge(bytes_told)
        if word == "healthy" and verdict.word in _BYTES_MATTER:
            word, why = "degraded", f"{told}; see: mountfs health"
    return Report(word, why, cluster, leader, nodes, told)


_BYTES_MATTER = ("unreadable", "at risk", "healing")


def _health(
    members: list[dict[str, Any]] | str, nodes: list[dict[str, Any]], clusters: int
) -> tuple[str, str]:
    if clusters > 1:
        return (
            "mixed",
            "these nodes are of several clusters, or were left behind by a recovery",
        )
    if not isinstance(members, list):
        return "leaderless", f"nothing can be changed now: {members}"
    for state in ("damaged", "full", "troubled", "safe mode", "degraded"):
        for node in nodes:
            if node.get("health") == state:
                return state, f"node {node['name']} says: {node['why']}"
    for node in nodes:
        if node["problem"] is not None:
            return "degraded", f"node {node['name'] or node['rpc']}: {node['problem']}"
        if node["health"] != "healthy":
            return "degraded", f"node {node['name']} is {node['health']}: {node['why']}"
    return "healthy", ""


def show_report(report: Report) -> None:
    console = show.out()
    style = "green" if report.well else "red"
    console.print(Text(report.health, style=style), Text(report.why))
    if report.cluster is not None:
        facts = [("cluster", report.cluster), ("leader", report.leader or "-")]
        if report.bytes is not None:
            facts.append(("bytes", report.bytes))
        console.print(show.facts(facts))
    table = Table(box=None, pad_edge=False)
    for title in _TITLES:
        table.add_column(title, justify="left" if title in ("node", "role", "state") else "right")
    for node in report.nodes:
        if node["problem"] is not None:
            table.add_row(node["name"] or node["rpc"], "", Text("no answer", style="red"))
            continue
        state = Text(node["health"], style="green" if node["health"] == "healthy" else "red")
        if "meta" not in node.get("roles", ("meta",)):  # older nodes do not say
            table.add_row(node["name"], ",".join(node["roles"]), state)
            continue
        figures = node["figures"]
        table.add_row(
            node["name"],
            "leader" if node["role"] == "leader" else node.get("member", node["role"]),
            state,
            f"{node['term']:,}",
            f"{node['committed']:,}",
            f"{node['applied']:,}",
            "" if node.get("lag") is None else f"{node['lag']:,}",
            show.size(node["log_bytes"]),
            f"{node['sessions']:,}",
            _ms(figures["commit_s_p50"]),
            _ms(figures["sync_s_p50"]),
        )
    console.print(table)
    for node in report.nodes:
        if node["problem"] is not None:
            console.print(Text(f"  node {node['name']} at {node['rpc']}: {node['problem']}"))
        if node.get("durability") == ASYNC:
            console.print(Text(f"  node {node['name']}: {TAKEN_EARLY}", style="yellow"))
        for what, why in (node.get("troubles") or {}).items():
            console.print(Text(f"  node {node['name']}: {what}: {why}", style="red"))


TAKEN_EARLY = "it says that it has slices before they are on its disks (--durability async)"
_TITLES = (
    "node", "role", "state", "term", "committed", "applied", "lag", "log", "sessions",
    "commit p50", "sync p50",
)  # fmt: skip


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"<{show.duration(seconds * 1e9)}"
