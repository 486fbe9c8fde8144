"""mountfs health: is all data there, with as many copies as wanted; what is done about the rest."""

import argparse
import sys
import time
from typing import Any, Final, NamedTuple

import msgspec
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mountfs.cli import cluster_calls, show
from mountfs.errors import FsError
from mountfs.meta.diagnosis import Cause
from mountfs.meta.reports import ASYNC

SUMMARY = "whether a cluster has all data, with as many copies as wanted; what is being repaired"
DESCRIPTION = """\
Ask the leader of a cluster how the bytes of its files are: one word and the reason, the nodes that
keep them, what is wrong with which number of volumes, what is being done about it and how long that
will take, and what hinders it.  (How the metadata is, tells: mountfs status --at HOST.)
"""
EPILOG = """\
examples:
  mountfs health --at 10.0.0.1             is all data there?
  mountfs health --at 10.0.0.1 --watch     the same again and again, until Ctrl-C
  mountfs health --json | jq .volumes.causes

the word is the worst of:
  healthy       all data is there, with as many copies as wanted, on nodes that are there
  tidying       it is; copies that are not needed any more are moved or removed
  degraded      it is; but a node is missing, or has a disk that fails
  healing       some volumes have too few copies, or a copy that is damaged: copies are made
  at risk       of some volumes one copy is left
  unreadable    of some volumes no copy is there: bring back the nodes that have them
  looking       the leader has only just begun, and has not looked at all volumes
  safe mode     after a cold start: see mountfs safemode --help

A volume is a set of pieces of files, up to 1 GiB, with a copy on each of several nodes.  A node
that is silent is given some time to come back before what it has is copied from elsewhere: five
minutes, unless the nodes were started with another --heal-after.

exit status: 0 healthy or tidying; 1 anything else, or nobody leads; 2 wrong call
"""
WATCH_S: Final = 2.0
SHOWN_MAX: Final = 10
_TIDY: Final = {one.value for one in (Cause.DRAINING, Cause.OVER, Cause.STRAY, Cause.UNKNOWN)}
"""What is wrong with volumes that have all copies, where they belong."""
WELL: Final = ("healthy", "tidying")


class Verdict(NamedTuple):
    word: str
    why: str

    @property
    def well(self) -> bool:
        return self.word in WELL


def judge(told: dict[str, Any]) -> Verdict:
    """One word for what the leader tells (`chunks.overview.Overview`), and the reason."""
    volumes = told["volumes"]
    causes = volumes["causes"]
    if volumes["held_up"]:
        return Verdict("safe mode", volumes["held_up"])
    if count := causes.get(Cause.MISSING.value):
        some = ", ".join(map(str, volumes["unreadable"][:SHOWN_MAX]))
        return Verdict("unreadable", f"no copy is there of {_volumes(count)}: {some}")
    if count := causes.get(Cause.LAST.value):
        return Verdict("at risk", f"one copy is left of {_volumes(count)}")
    if wrong := [cause for cause in causes if cause not in _TIDY]:
        worst = max(wrong, key=lambda cause: causes[cause])
        return Verdict("healing", f"{_volumes(causes[worst])}: {worst}")
    for node in told["nodes"]:
        if (why := _trouble(node, told["grace_ms"])) and not node["leaving"]:
            return Verdict("degraded", f"node {node['name']}: {why}")
    if not volumes["looked"]:
        return Verdict("looking", "not all volumes have been looked at since this leader began")
    if causes:
        worst = max(causes, key=lambda cause: causes[cause])
        return Verdict("tidying", f"{_volumes(causes[worst])}: {worst}")
    return Verdict("healthy", "")


def _trouble(node: dict[str, Any], grace_ms: int) -> str:
    """What is wrong with a node that keeps slices; empty: nothing."""
    view = node["view"]
    if view["standing"] == "silent":
        grace = f"after {seconds(grace_ms / 1e3)} of silence others get what it has"
        return f"not heard of for {seconds(view['heard_ms_ago'] / 1e3)}; {grace}"
    if view["standing"] == "dead":
        return f"not heard of for {seconds(view['heard_ms_ago'] / 1e3)}: it counts as lost"
    if view["standing"] == "unsteady":
        return "it comes and goes, and is not relied on until it has been there for a while"
    if view["troubles"]:
        return str(view["troubles"][0])
    return "full" if view["full"] else ""


def in_a_line(told: dict[str, Any]) -> str:
    """For `mountfs status`."""
    verdict = judge(told)
    found = verdict.word + (f": {verdict.why}" if verdict.why else "")
    progress = _progress(told["volumes"])
    return found + (f"; {progress}" if progress else "")


def warnings(told: dict[str, Any]) -> list[str]:
    """What is to be known, though nothing is wrong."""
    found = [told["lacking"], told["risk"]]
    early = [one["name"] for one in told["nodes"] if one["view"].get("durability") == ASYNC]
    if early:
        found.append(
            f"what is written is not waited for on the disks of {', '.join(early)} (--durability "
            "async): if all nodes with a copy lose power at once, the last of it is lost"
        )
    return [one for one in found if one]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cluster_calls.add_arguments(parser)
    parser.add_argument("--watch", action="store_true", help="again and again, until Ctrl-C")
    parser.add_argument(
        "--json", action="store_true", help="a JSON object; with --watch, one a line"
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.watch:
        _watch(arguments)
    told = cluster_calls.ask(arguments, "Health", None)
    verdict = judge(told)
    if arguments.json:
        show.print_json(_as_json(told))
    else:
        show.out().print(shown(told))
    return show.EXIT_OK if verdict.well else show.EXIT_FAILED


def _watch(arguments: argparse.Namespace) -> None:
    """Until Ctrl-C.  Between two leaders there is nobody to ask: that is waited for."""
    is_terminal = sys.stdout.isatty() and not arguments.json
    screen = Live(auto_refresh=False, console=show.out()) if is_terminal else None
    if screen is not None:
        screen.start()
    try:
        while True:
            try:
                told = cluster_calls.ask(arguments, "Health", None)
            except FsError as error:
                found: RenderableType = Text(str(error), style="red")
                line = msgspec.json.encode({"word": "unknown", "why": str(error)}).decode()
            else:
                found = shown(told)
                line = msgspec.json.encode(_as_json(told)).decode()
            if screen is not None:
                screen.update(found, refresh=True)
            elif arguments.json:
                print(line, flush=True)
            else:
                show.out().print(found)
                sys.stdout.flush()
            time.sleep(WATCH_S)
    finally:
        if screen is not None:
            screen.stop()


def _as_json(told: dict[str, Any]) -> dict[str, Any]:
    verdict = judge(told)
    return {"word": verdict.word, "why": verdict.why, "warnings": warnings(told), **told}


# -- for people


def shown(told: dict[str, Any]) -> Group:
    verdict = judge(told)
    style = "green" if verdict.well else "red"
    parts: list[RenderableType] = [Text.assemble((verdict.word, style), f" {verdict.why}".rstrip())]
    parts.append(show.facts([*_facts(told)]))
    parts.append(_nodes(told["nodes"]))
    volumes = told["volumes"]
    if volumes["causes"]:
        parts.append(_counts("volumes", volumes["causes"]))
    for title, lines in (
        ("under way", list(volumes["under_way"])),
        ("stuck", [f"{_volumes(count)}: {why}" for why, count in volumes["stuck"].items()]),
        ("trouble", _all_troubles(told)),
    ):
        parts += [Text(f"  {title}: {line}") for line in lines[:SHOWN_MAX]]
        if len(lines) > SHOWN_MAX:
            parts.append(Text(f"  {title}: and {len(lines) - SHOWN_MAX} more"))
    parts += [Text(f"  warning: {one}", style="yellow") for one in warnings(told)]
    return Group(*parts)


def _facts(told: dict[str, Any]) -> list[tuple[str, str]]:
    volumes = told["volumes"]
    found = [
        ("volumes", f"{volumes['volumes']:,}"),
        ("copies", f"{told['copies_possible']} of {told['copies_wanted']} that are wanted"),
    ]
    if progress := _progress(volumes):
        found.append(("to copy", progress))
    if balancing := balancing_in_a_line(told["balancing"]):
        found.append(("balancing", balancing))
    return found


def balancing_in_a_line(state: dict[str, Any]) -> str:
    """How far it is; empty: it was never begun."""
    if not state["active"] and not state["why"]:
        return ""
    found = f"{_volumes(state['moved'])} moved ({show.size(state['moved_bytes'])})"
    if state["failed"]:
        found += f", {state['failed']:,} not, the last because {state['failure']}"
    if not state["active"]:
        return f"{found}; it has ended: {state['why']}"
    found += f", about {show.size(state['left_bytes'])} left"
    return f"{found}; it waits for {state['waits_for']}" if state["waits_for"] else found


def _progress(volumes: dict[str, Any]) -> str:
    if not volumes["bytes_to_copy"]:
        return ""
    found = f"{show.size(volumes['bytes_to_copy'])} to copy"
    if not volumes["seconds_left"]:
        return found
    return (
        f"{found} at {show.size(volumes['bytes_per_second'])}/s, "
        f"about {seconds(volumes['seconds_left'])} left"
    )


def _nodes(nodes: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in _TITLES:
        table.add_column(title, justify="right" if title in _RIGHT else "left")
    for node in nodes:
        view = node["view"]
        style = "green" if view["standing"] == "alive" else "red"
        table.add_row(
            node["name"],
            Text(view["standing"], style=style),
            what_leaves(node),
            f"{view['volumes']:,}",
            f"{view['writing']:,}",
            show.size(view["free_bytes"]) + (" (full)" if view["full"] else ""),
            show.size(view["total_bytes"]),
            "slow" if view["slow"] else "",
            f"{view['scrubbed'] * 100:.0f} %",
            node["location"],
        )
    return table


_TITLES: Final = (
    "node", "state", "", "volumes", "open", "free", "of", "", "verified", "location",
)  # fmt: skip
_RIGHT: Final = ("volumes", "open", "free", "of", "verified")


def what_leaves(node: dict[str, Any]) -> str:
    """Of a node that is emptied: how far that is; empty: it is not."""
    if not node["leaving"] and not node["draining"]:
        return ""
    what = "leaving" if node["leaving"] else "draining"
    if node["lost"]:
        return f"{what}, lost"
    left = node["volumes_left"]
    return f"{what}, {'?' if left is None else f'{left:,}'} volumes left"


def _counts(title: str, counts: dict[str, int]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(title, justify="right")
    table.add_column("what is wrong with them")
    for what, count in sorted(counts.items(), key=lambda one: -one[1]):
        table.add_row(f"{count:,}", what)
    return table


def _all_troubles(told_of: dict[str, Any]) -> list[str]:
    found = []
    for node in told_of["nodes"]:
        view = node["view"]
        told = list(view["troubles"])
        if view["standing"] != "alive":
            told.insert(0, _trouble(node, told_of["grace_ms"]))
        found += [f"node {node['name']}: {one}" for one in told]
    return found


def _volumes(count: int) -> str:
    return show.count_of(count, "volume")


def seconds(seconds: float) -> str:
    """
    >>> seconds(0.4), seconds(75), seconds(7_260)
    ('1 s', '1 min 15 s', '2 h 1 min')
    """
    whole = max(round(seconds), 1)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"
