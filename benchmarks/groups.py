"""What groups cost that have nothing to do: `scripts/bench groups`.

Three nodes, a process each, connected as metaservers are, with a journal each on the disk.  Each
has a server of so many groups, whose machines do nothing.  When every group has a leader and has
been left alone for a while, CPU, bytes and saves are counted.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Final

import trio

from benchmarks.__main__ import ending_in_order, scratch_directory
from benchmarks.measure import cpu_s, machine, memory_mib, now
from benchmarks.processes import START_S, free_port
from benchmarks.report import columns, save
from mountfs.kv.journal import Journal
from mountfs.raft.config import Config
from mountfs.raft.driver import Group, Node
from mountfs.raft.links import MESSAGES, Links
from mountfs.raft.log_record import GroupId
from mountfs.raft.messages import Entry, HardState, Membership, NodeId, SnapshotHead, Term
from mountfs.raft.storage import Storage
from mountfs.types import MIB, LogIndex
from mountfs.wire.config import Limits
from mountfs.wire.connection import Body
from mountfs.wire.frames import Hello, Parts
from mountfs.wire.service import Peer, Service

SCHEMA = "mountfs-groups/1"
NODES: Final = (1, 2, 3)
HELLO: Final = Hello(cluster=bytes(16), role="benchmark", name="benchmark")
ELECT_S: Final = 120
SETTLE_S: Final = 5.0
"""After the last election, before anything is counted."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench groups", description=__doc__)
    parser.add_argument("--groups", default="1,100,1000", help="how many; default 1,100,1000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="on the disk to measure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--node", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--ports", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.node:
        ports = [int(port) for port in arguments.ports.split(",")]
        trio.run(be_node, arguments.node, ports, int(arguments.groups), arguments.dir)
        return
    results: dict[str, Any] = {"schema": SCHEMA, "complete": False, "rows": []}
    try:
        with ending_in_order(), scratch_directory(arguments.dir) as scratch:
            run(results, scratch, arguments)
    finally:
        if results["rows"]:
            save(arguments.out, "groups", results, text(results))


# --- a node ---------------------------------------------------------------------------------------


class Nothing:
    """A machine whose commands do nothing."""

    applied = LogIndex(0)

    def apply(self, entry: Entry, subject: Any) -> object:
        self.applied = entry.index
        return None

    def skip(self, index: LogIndex) -> None:
        self.applied = index

    def install(self, head: SnapshotHead) -> None:
        self.applied = head.index


async def be_node(number: int, ports: list[int], groups: int, directory: Path) -> None:
    """Until the standard input ends; each line of it is answered with the figures."""
    journal = Journal(directory, segment_bytes=16 * MIB)
    storage = Storage(journal)
    links = Links(NodeId(number), HELLO)
    node = Node(NodeId(number), storage, links, Config())
    links.received, links.unreachable = node.received, node.unreachable
    links.set_peers({NodeId(n): ("127.0.0.1", ports[n - 1]) for n in NODES if n != number})
    everybody = Membership(tuple(NodeId(n) for n in NODES))
    for group in range(1, groups + 1):
        storage.create(GroupId(group), SnapshotHead(LogIndex(0), Term(0), everybody), HardState())
        node.start(GroupId(group), Nothing())

    async def handle(peer: Peer, method: int, body: Body) -> Parts:
        return b""

    def admit(peer: Peer) -> None:
        def noted(method: int, body: Body) -> None:
            if method == MESSAGES:
                links.take(body)

        peer.noted = noted
        peer.noted_all = links.deliver

    service = Service(handle, HELLO, limits=Limits(poll_us=0), admit=admit)
    listeners = await trio.open_tcp_listeners(ports[number - 1], host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.serve, listeners)
        nursery.start_soon(links.run)
        nursery.start_soon(node.run)
        print("ready", flush=True)
        while await trio.to_thread.run_sync(sys.stdin.readline):
            figures = node.figures
            leads = sum(_leads(group) for group in node.groups.values())
            print(
                json.dumps(
                    {
                        "leads": leads,
                        "elections": figures.elections_won,
                        "messages": figures.messages,
                        "envelopes": figures.envelopes,
                        "sent_bytes": figures.sent_bytes,
                        "saves": figures.batches,
                    }
                ),
                flush=True,
            )
        nursery.cancel_scope.cancel()


def _leads(group: Group) -> bool:
    return group.is_leader and group.raft.state.proven


# --- the measurement ------------------------------------------------------------------------------


class Running:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.pid = process.pid
        self._ask: IO[str] = process.stdin
        self._answers: IO[str] = process.stdout
        assert self._answers.readline() == "ready\n", "a node did not start"

    def figures(self) -> dict[str, int]:
        self._ask.write("\n")
        self._ask.flush()
        found: dict[str, int] = json.loads(self._answers.readline())
        return found


@contextmanager
def nodes(scratch: Path, groups: int) -> Iterator[list[Running]]:
    ports = [str(free_port()) for _ in NODES]
    with ExitStack() as stack:
        processes = []
        for number in NODES:
            (scratch / f"n{number}").mkdir(parents=True)
            argv = [
                sys.executable, "-m", "benchmarks.groups", "--node", str(number),
                "--ports", ",".join(ports), "--groups", str(groups),
                "--dir", str(scratch / f"n{number}"),
            ]  # fmt: skip
            process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.callback(process.wait, START_S)
            stack.callback(process.kill)
            processes.append(process)
        yield [Running(process) for process in processes]


def run(results: dict[str, Any], scratch: Path, arguments: argparse.Namespace) -> None:
    counts = [int(one) for one in arguments.groups.split(",")]
    results |= {
        "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "machine": machine(scratch),
        "load_average": os.getloadavg()[0],
        "rows": [{"groups": groups, "measurements": []} for groups in counts],
    }
    for round_number in range(arguments.rounds):
        order = results["rows"] if round_number % 2 == 0 else results["rows"][::-1]
        for row in order:
            found = _measure(
                scratch / f"{row['groups']}-{round_number}", row["groups"], arguments.seconds
            )
            row["measurements"].append(found)
            print(f"{row['groups']:6} groups: {found}", flush=True)
    results["complete"] = True


def _measure(scratch: Path, groups: int, seconds: float) -> dict[str, Any]:
    with nodes(scratch, groups) as running:
        begun = now()
        while sum(one.figures()["leads"] for one in running) < groups:
            if now() > begun + ELECT_S:
                raise RuntimeError(f"not all of {groups} groups have a leader after {ELECT_S} s")
            time.sleep(0.2)
        elected_s = now() - begun
        time.sleep(SETTLE_S)
        before = [(one.figures(), cpu_s([one.pid]), now()) for one in running]
        time.sleep(seconds)
        after = [(one.figures(), cpu_s([one.pid]), now()) for one in running]
        memory = [memory_mib([one.pid])[0] for one in running]

    def per_s(key: str) -> float:
        """Of one node, the mean of the three."""
        rates = [
            (b[0][key] - a[0][key]) / (b[2] - a[2]) for a, b in zip(before, after, strict=True)
        ]
        return round(sum(rates) / len(rates), 2)

    cpu = [(b[1] - a[1]) / (b[2] - a[2]) for a, b in zip(before, after, strict=True)]
    return {
        "elected_s": round(elected_s, 1),
        "leads": [b[0]["leads"] for b in after],
        "elections": sum(
            b[0]["elections"] - a[0]["elections"] for a, b in zip(before, after, strict=True)
        ),
        "cpu_percent": round(100 * sum(cpu) / len(cpu), 2),
        "sent_bytes_per_s": per_s("sent_bytes"),
        "messages_per_s": per_s("messages"),
        "envelopes_per_s": per_s("envelopes"),
        "saves_per_s": per_s("saves"),
        "rss_mib": round(sum(memory) / len(memory), 1),
    }


def text(results: dict[str, Any]) -> str:
    about = results["machine"]
    rows = []
    base: dict[str, Any] = {}
    for row in results["rows"]:
        if not row["measurements"]:
            continue
        found = sorted(row["measurements"], key=lambda one: one["cpu_percent"])
        middle = found[len(found) // 2]
        base = base or {"groups": row["groups"], "rss": middle["rss_mib"]}
        more = row["groups"] - base["groups"]
        per_group = 1024 * (middle["rss_mib"] - base["rss"]) / more if more else None
        rows.append(
            [
                f"{row['groups']:,}",
                f"{middle['cpu_percent']:.2f}",
                f"{10_000 * middle['cpu_percent'] / row['groups']:,.0f}",
                f"{middle['sent_bytes_per_s']:,.0f}",
                f"{middle['sent_bytes_per_s'] / row['groups']:,.0f}",
                f"{middle['messages_per_s']:,.0f}",
                f"{middle['envelopes_per_s']:,.1f}",
                f"{middle['rss_mib']:.0f}",
                "-" if per_group is None else f"{per_group:.1f}",
                f"{middle['elected_s']:.1f}",
            ]
        )
    head = [
        "groups", "CPU %", "CPU us/s a group", "bytes/s", "a group", "messages/s", "envelopes/s",
        "RSS MiB", "KiB a group", "all elected s",
    ]  # fmt: skip
    return "\n".join(
        [
            f"{results['started']}, medians of {results['rounds']} rounds of "
            f"{results['seconds']:g} s{'' if results['complete'] else '  STOPPED'}; "
            f"{about['cpus']} CPUs ({about['cpu']}), load average at the start "
            f"{results['load_average']:.1f}",
            "",
            "One node of three that are all idle (mean of the three); sent bytes are those of the",
            "envelopes.  KiB a group is what a group has more than the first row's.",
            "",
            *columns(head, rows, left=[]),
        ]
    )


if __name__ == "__main__":
    main()
