"""mountfs node remove, drain: nodes leave, or are emptied, and how far that is."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mountfs.cli import cluster_calls, show
from mountfs.errors import Fault, FsError

LOOK_S: Final = 1.0


def remove(arguments: argparse.Namespace) -> int:
    body = {"node": arguments.node, "force": arguments.force, "yes": arguments.yes}
    answer = cluster_calls.ask(arguments, "Remove", body)
    if arguments.json and not arguments.wait:
        show.print_json(answer)
    elif not arguments.json:
        print(removed(answer, lost=arguments.force))
    if arguments.wait:
        _wait(arguments, answer, lambda node: node is None)
        _print_end(arguments, answer, "has left the cluster; its home is of no use any more")
    return show.EXIT_OK


def drain(arguments: argparse.Namespace) -> int:
    answer = cluster_calls.ask(arguments, "Drain", {"node": arguments.node, "undo": arguments.undo})
    waits = arguments.wait and not arguments.undo
    if arguments.json and not waits:
        show.print_json(answer)
    elif not arguments.json:
        print(drained(answer, undo=arguments.undo))
    if waits:
        _wait(arguments, answer, lambda node: node is None or node["volumes_left"] == 0)
        _print_end(arguments, answer, "keeps no slices any more; its disks may be taken out")
    return show.EXIT_OK


def removed(answer: dict[str, Any], *, lost: bool) -> str:
    """What has been begun, for people."""
    name, holdings = answer["name"], answer["holdings"]
    count = holdings["volumes"]
    if lost and count:
        gone = holdings["only"]
        return (
            f"node {name} is given up: it leaves at once, and what it has is not waited for.  "
            f"{show.count_of(count, 'volume')} had a copy there"
            + (f", {gone:,} of them their only one: what is in those is lost" if gone else "")
            + "; others get one instead.  See: mountfs health"
        )
    if count and not lost:
        return (
            f"node {name} leaves when others have what it keeps ({show.count_of(count, 'volume')});"
            " until then, let it run.  See: mountfs node list, or mountfs health"
        )
    return f"node {name} leaves; see: mountfs node list"


def drained(answer: dict[str, Any], *, undo: bool) -> str:
    name = answer["name"]
    if undo:
        return f"node {name} may have slices again; mountfs balance moves some there"
    count = show.count_of(answer["holdings"]["volumes"], "volume")
    return (
        f"node {name} gets no new slices, and what it keeps ({count}) is copied to others; it "
        "stays a node.  See: mountfs node list, or mountfs health"
    )


def _print_end(arguments: argparse.Namespace, answer: dict[str, Any], what: str) -> None:
    if arguments.json:
        show.print_json({**answer, "done": True})
    else:
        print(f"node {answer['name']} {what}")


def _wait(
    arguments: argparse.Namespace,
    answer: dict[str, Any],
    is_done: Callable[[dict[str, Any] | None], bool],
) -> None:
    """Until it is so, or Ctrl-C.  Who leads may change meanwhile."""
    name = answer["name"]
    most = max(answer["holdings"]["volumes"], 1)
    hindrance = ""
    with _progress(f"node {name}", most) as tell:
        while True:
            try:
                nodes = cluster_calls.ask(arguments, "Nodes", None)
                node = next((one for one in nodes if one["number"] == answer["number"]), None)
                if is_done(node):
                    tell(0)
                    return
                if node is not None and node["volumes_left"] is not None:
                    tell(node["volumes_left"])
                told = cluster_calls.ask(arguments, "Health", None)
            except FsError as error:
                if error.fault not in (Fault.NOT_LEADER, Fault.UNAVAILABLE, Fault.TIMED_OUT):
                    raise
            else:
                stuck = next(iter(told["volumes"]["stuck"]), told["volumes"]["held_up"])
                if stuck and stuck != hindrance:
                    show.err().print(f"waiting: {stuck}")
                hindrance = stuck
            time.sleep(LOOK_S)


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields what is told how many volumes are left: a bar on a terminal, else a line whenever it
    has changed.
    """
    if sys.stderr.isatty():
        bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]} left"),
            TimeRemainingColumn(), console=show.err(),
        )  # fmt: skip
        with bar:
            task = bar.add_task(title, total=total, left=show.count_of(total, "volume"))
            yield lambda left: bar.update(
                task, completed=max(total - left, 0), left=show.count_of(left, "volume")
            )
        return
    last = -1

    def tell(left: int) -> None:
        nonlocal last
        if left != last:
            show.err().print(f"{title}: {show.count_of(left, 'volume')} left")
        last = left

    yield tell
