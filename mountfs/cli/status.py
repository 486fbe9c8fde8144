"""mountfs status: what is mounted, how full it is, what is not well; how a cluster is."""

import argparse
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from rich.table import Table
from rich.text import Text

from mountfs.cli import cluster_calls, show
from mountfs.cli.places import Place, mount_table, mounts_in, place_of
from mountfs.errors import Fault, FsError
from mountfs.vfs import control
from mountfs.vfs.home import read_format

SUMMARY = "what is mounted, how full it is, what is not well; how a cluster is"
DESCRIPTION = """\
Ask the daemons behind mounts of mountfs how they are.  Without a name: all mounts in sight.
A home that is not mounted is named as such; nothing of it is read but its format.
With --at, ask nodes of a cluster instead: one word for its health and the reason, and for each node
how far its log and its state are.
"""
EPILOG = """\
examples:
  mountfs status                     all mounts
  mountfs status /mnt/data           one mount
  mountfs status /srv/home           a home, mounted or not
  mountfs status --json | jq '.[].troubles'
  mountfs status --at 10.0.0.1       a cluster: all of its nodes, whichever is asked

what the lines mean:
  not yet written   bytes that programs have written and that are in memory only; fsync writes them
  log               commands since the last checkpoint: what the next mount would have to replay
  to compact        overwritten parts of files, and deleted bytes that still take space
  troubles          work in the background that fails at the moment, and is tried again

of a cluster:
  healthy           all nodes are there, and one leads
  degraded          it works, but a node is missing: the next one that fails may stop it; or some
                    contents have too few copies: see mountfs health
  safe mode         after a cold start: see mountfs safemode --help
  full, troubled, damaged    of a node: its disk has no room, work fails, its copy is of no use
  leaderless        no majority: reads and writes wait
  lag               entries of the log that a node is known to lack

exit status: 0 all is well; 1 a mount or node does not answer or is not well; 2 wrong call
"""

ANSWER_S = 5.0
OTHERS: Final = "another user's"


class Report(msgspec.Struct, omit_defaults=False):
    """One mount or home.  `state`: "mounted", "not mounted", "not answering", "damaged" or
    "another user's".
    """

    home: str
    mountpoint: str | None
    state: str
    problem: str | None = None
    """Why it does not answer, or what is wrong with it."""
    status: dict[str, Any] = {}
    """What the daemon says."""

    @property
    def well(self) -> bool:
        return self.problem is None and self.state != OTHERS and not self.status.get("troubles")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("place", nargs="?", metavar="HOME|MOUNTPOINT", help="default: all mounts")
    cluster_calls.add_arguments(parser)
    parser.add_argument(
        "--json", action="store_true", help="a JSON array, one object a mount; of a cluster, one"
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.at is not None:
        return _run_on_cluster(arguments)
    table = mount_table()
    named = arguments.place is not None
    places = [place_of(arguments.place, table)] if named else mounts_in(table)
    reports = [report_on(place) for place in places]
    if arguments.json:
        show.print_json([_as_json(report) for report in reports])
    elif reports:
        _print(reports)
    else:
        print("No mountfs is mounted.  To mount one: mount.dfs /mnt/data")
    # Who asks for all mounts does not mean those of others; who names one wants an answer.
    well = all(report.well or (report.state == OTHERS and not named) for report in reports)
    return show.EXIT_OK if well else show.EXIT_FAILED


def _run_on_cluster(arguments: argparse.Namespace) -> int:
    from mountfs.cli import cluster_status
    from mountfs.cli.node import addresses

    if arguments.place is not None:
        arguments.parser.error("name a mount, or the nodes of a cluster with --at")
    report = cluster_status.report_on(addresses(arguments.at), arguments.tls)
    if arguments.json:
        show.print_json(msgspec.to_builtins(report))
    else:
        cluster_status.show_report(report)
    return show.EXIT_OK if report.well else show.EXIT_FAILED


def report_on(place: Place) -> Report:
    home, mountpoint = str(place.home), place.mountpoint
    if place.cluster is not None and not place.home.exists():
        # A daemon of ours would have its directory there.
        return Report(home, mountpoint, OTHERS)
    try:
        answer = control.ask(place.control, "status", seconds=ANSWER_S)
    except FsError as error:
        if mountpoint is None and error.fault is Fault.NOT_FOUND:
            return _report_on_unmounted(place)
        if mountpoint is not None and error.fault is Fault.DENIED:
            return Report(home, mountpoint, OTHERS)
        problem = f"{error}; see: mountfs doctor {mountpoint or home}"
        return Report(home, mountpoint, "not answering", problem)
    return Report(home, mountpoint or answer.get("mountpoint"), "mounted", status=answer)


def _report_on_unmounted(place: Place) -> Report:
    try:
        format = read_format(place.home)
    except FsError as error:
        return Report(str(place.home), None, "damaged", str(error))
    return Report(str(place.home), None, "not mounted", status={"id": format.id})


def _as_json(report: Report) -> dict[str, Any]:
    """What the daemon says, and beside it what we know without it."""
    known: dict[str, Any] = msgspec.to_builtins(report)
    return {**known.pop("status"), **known}


def _print(reports: list[Report]) -> None:
    console = show.out()
    for number, report in enumerate(reports):
        if number:
            console.print()
        console.print(Text(report.mountpoint or report.home, style="bold"))
        console.print(_facts(report))
        for work, trouble in report.status.get("troubles", {}).items():
            console.print(Text(f"  trouble: {work}: {trouble}", style="red"))
        if report.problem:
            console.print(Text(f"  problem: {report.problem}", style="red"))


def _facts(report: Report) -> Table:
    said = report.status
    rows = [("home", report.home)]
    if report.state != "mounted":
        rows.append(("state", report.state))
        if report.state == "not mounted":
            rows.append(("to mount it", f"mount.dfs {report.home} MOUNTPOINT"))
        if report.state == OTHERS:
            rows.append(("to see more", "ask as that user, or as root"))
        return show.facts(rows)
    if "source" in said:
        return show.facts([*_facts_of_cluster(said)])
    rows += [
        ("process", f"{said.get('pid', '?')}, {_door(said)}"),
        ("files", f"{said['inodes']:,} with {show.size(said['used_bytes'])}"),
        ("disk", f"{show.size(said['disk_free_bytes'])} free of "
                 f"{show.size(said['disk_total_bytes'])}"),
        ("not yet written", f"{show.size(said['dirty_bytes'])} of "
                            f"{show.count_of(said['unwritten_files'], 'file')}"),
        ("log", f"{show.size(said['log_bytes'])}, "
                f"{show.count_of(said['commands'] - said['commands_synced'], 'command')} "
                "not yet on disk"),
        ("checkpoint", f"{show.count_of(said['rows_to_checkpoint'], 'row')} to write"),
        ("to compact", _debt(said)),
    ]  # fmt: skip
    if said.get("dropped_at_start"):
        lost = show.count_of(said["dropped_at_start"], "unsynced operation")
        rows.append(("after the last crash", f"{lost} could not be kept"))
    if said.get("bugs"):
        rows.append(("bugs", f"{said['bugs']}: please report them, with {report.home}/log"))
    return show.facts(rows)


def _facts_of_cluster(said: dict[str, Any]) -> Iterator[tuple[str, str]]:
    names = {node["number"]: node["name"] for node in said["nodes"]}
    yield "cluster", said["source"]
    yield "process", f"{said.get('pid', '?')}, {_door(said)}"
    leader = names.get(said["leader"], "nobody")
    yield "nodes", f"{', '.join(names.values())}; {leader} leads"
    yield "session", str(said["session"])
    if "inodes" in said:
        yield "files", f"{said['inodes']:,} with {show.size(said['used_bytes'])}"
    yield (
        "disks",
        (f"{show.size(said['disk_free_bytes'])} free of {show.size(said['disk_total_bytes'])}"),
    )
    yield (
        "not yet written",
        (f"{show.size(said['dirty_bytes'])} of {show.count_of(said['unwritten_files'], 'file')}"),
    )
    if said.get("bugs"):
        yield "bugs", f"{said['bugs']}: please report them"


def _door(said: dict[str, Any]) -> str:
    if "binding" not in said:
        return "no mount"
    if "fuse_protocol" in said:
        return f"{said['binding']} binding, FUSE {said['fuse_protocol']}"
    # libfuse has agreed on a protocol with the kernel, and tells nobody which.
    return f"pyfuse3 binding, pyfuse3 {said['pyfuse3']}"


def _debt(said: dict[str, Any]) -> str:
    parts = [
        show.count_of(said["tangled_chunks"], "chunk") + " with overwritten parts",
        show.count_of(said["garbage_slices"], "slice") + " to delete",
    ]
    if "garbage_bytes" in said:
        parts.append(f"{show.size(said['garbage_bytes'])} of deleted bytes in volumes")
    return ", ".join(parts)
