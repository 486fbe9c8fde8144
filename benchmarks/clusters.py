"""Three nodes on this machine, of mountfs or of etcd, with the durability that is their default.

Each is a context manager: when it is left, for whatever reason, its processes have ended.  What
they keep stays in the directory, so that a cluster can be started again on it.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import now, with_children
from benchmarks.processes import (
    START_S,
    CannotStart,
    accepts,
    find,
    free_port,
    run,
    serving,
    version,
    wait_for,
)

NODES = 3


@dataclass
class Cluster:
    """One that is up: all vote, and somebody leads."""

    system: str
    version: str
    durability: str
    at: list[str]
    """host:port of each, for clients."""
    administration: list[str]
    roots: list[int]
    leader: int
    """Index of who leads, in the lists."""

    def pids(self) -> list[int]:
        return with_children(self.roots)


Start = Callable[[Path], AbstractContextManager[Cluster]]

ORDINARY = (sys.executable, "-m", "mountfs.cli.main", "node")


@contextmanager
def mountfs(scratch: Path, program: Sequence[str] = ORDINARY) -> Iterator[Cluster]:
    """`program`: what runs a node, when it is not `mountfs node` as it is."""
    from mountfs import __version__

    ports = [free_ports() for _ in range(NODES)]
    first = f"127.0.0.1:{ports[0]}"
    begin(scratch)
    with ExitStack() as stack:
        nodes = []
        for number, port in enumerate(ports, 1):
            argv = node_command(scratch, number, port, first if number > 1 else None, program)
            log = scratch / f"n{number}.log"
            node = stack.enter_context(serving(argv, log))
            wait_for(partial(accepts, port + 1), f"node {number}", node, log)
            nodes.append(node)
        found = all_vote(first, [str(port) for port in ports])
        leader = next(i for i, node in enumerate(found) if node["leader"])
        yield Cluster(
            system="mountfs",
            version=__version__,
            durability="three nodes; an answered command is synced (fdatasync) on two of them",
            at=[f"127.0.0.1:{port + 1}" for port in ports],
            administration=[f"127.0.0.1:{port}" for port in ports],
            roots=[node.pid for node in nodes],
            leader=leader,
        )


def begin(scratch: Path) -> None:
    """Make the home of the first node."""
    scratch.mkdir(parents=True, exist_ok=True)
    run([sys.executable, "-m", "mountfs.cli.main", "cluster", "init", str(scratch / "n1")])


def node_command(
    scratch: Path, number: int, port: int, join: str | None, program: Sequence[str] = ORDINARY
) -> list[str]:
    return [
        *program, "--home", str(scratch / f"n{number}"), "--name", f"n{number}",
        "--listen", f"127.0.0.1:{port}", "--location", f"/rack/n{number}",
        *(["--join", join] if join else []),
    ]  # fmt: skip


@contextmanager
def etcd(scratch: Path) -> Iterator[Cluster]:
    program = find("etcd")
    scratch.mkdir(parents=True, exist_ok=True)
    clients = [f"127.0.0.1:{free_port()}" for _ in range(NODES)]
    peers = [f"127.0.0.1:{free_port()}" for _ in range(NODES)]
    everyone = ",".join(f"e{i}=http://{peer}" for i, peer in enumerate(peers))
    with ExitStack() as stack:
        members = []
        for i, (client, peer) in enumerate(zip(clients, peers, strict=True)):
            argv = [
                program, "--name", f"e{i}", "--data-dir", str(scratch / f"e{i}"),
                "--listen-client-urls", f"http://{client}",
                "--advertise-client-urls", f"http://{client}",
                "--listen-peer-urls", f"http://{peer}",
                "--initial-advertise-peer-urls", f"http://{peer}",
                "--initial-cluster", everyone, "--initial-cluster-state", "new",
                "--logger", "zap", "--log-level", "warn",
            ]  # fmt: skip
            members.append(stack.enter_context(serving(argv, scratch / f"e{i}.log")))
        yield Cluster(
            system="etcd",
            version=version([program, "--version"]).removeprefix("etcd Version: "),
            durability="three members; an answered put is synced (fdatasync) on two of them",
            at=clients,
            administration=clients,
            roots=[member.pid for member in members],
            leader=_etcd_leader(clients),
        )


# --- who is there ---------------------------------------------------------------------------------


def node_list(at: str) -> list[dict[str, Any]]:
    """What `mountfs node list` says; nothing while nobody can tell."""
    argv = [*ORDINARY, "list", "--json", "--at", at]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=START_S)
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)
    except json.JSONDecodeError:
        return []
    return found


def all_vote(at: str, ports: list[str]) -> list[dict[str, Any]]:
    """All nodes, in the order of `ports`, once each of them votes and one leads."""
    deadline = now() + START_S
    while now() < deadline:
        found = node_list(at)
        if (
            len(found) == NODES
            and all(node["alive"] and node["role"] == "voter" for node in found)
            and any(node["leader"] for node in found)
        ):
            return sorted(found, key=lambda node: ports.index(node["rpc"].rpartition(":")[2]))
        time.sleep(0.1)
    raise CannotStart(f"the nodes of mountfs were no cluster after {START_S} s: {node_list(at)}")


def _etcd_leader(clients: list[str]) -> int:
    argv = ["etcdctl", "--endpoints", ",".join(clients), "endpoint", "status", "-w", "json"]
    deadline = now() + START_S
    while now() < deadline:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=START_S)
        if done.returncode == 0:
            found = json.loads(done.stdout)
            leads = [
                clients.index(one["Endpoint"])
                for one in found
                if one["Status"]["leader"] == one["Status"]["header"]["member_id"]
            ]
            if len(found) == NODES and leads:
                return leads[0]
        time.sleep(0.1)
    raise CannotStart(f"the members of etcd elected nobody within {START_S} s")


def free_ports() -> int:
    """A port that nobody has, as the two behind it: those of a node."""
    while True:
        ports = [free_port() for _ in range(3)]
        if ports[2] == ports[0] + 2:
            return ports[0]
