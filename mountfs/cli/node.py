"""mountfs node: run a node of a cluster; list, drain, remove, hand over."""

import argparse
import gc
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio
from rich.table import Table

from mountfs.cli import cluster_calls, node_leaving, show
from mountfs.cli.health import what_leaves
from mountfs.errors import Fault, FsError, unwrapped
from mountfs.meta.reports import ASYNC, FSYNC

if TYPE_CHECKING:
    from mountfs.cli.node_settings import Settings

SUMMARY = "run a node of a cluster; list, drain, remove, hand over"
DESCRIPTION = """\
Run a node: a machine that has the metadata of a cluster, together with others, or keeps slices of
its files, or both.  What a home that was mounted alone has, a node can serve: other machines join
it, and get what it has, live.
"""
EPILOG = """\
examples:
  mountfs cluster init /srv/mountfs                            begin a cluster
  mountfs node --home /srv/mountfs --listen 10.0.0.1           its first node; the home may as well
                                                               be one that was mounted before
  mountfs node --home /srv/mountfs --listen 10.0.0.2 --join 10.0.0.1      another one
  mountfs node --home /srv/mountfs --listen 10.0.0.4 --join 10.0.0.1 --roles chunk \\
               --location /rack-2/host-4               one that keeps slices only
  mountfs node list --at 10.0.0.1                              who there is, who leads, who lags
  mountfs node transfer-leader n2 --at 10.0.0.1                let n2 lead, before maintenance
  mountfs node drain n3 --at 10.0.0.1 --wait                   n3 stays, but keeps no slices
  mountfs node remove n3 --at 10.0.0.1 --wait                  n3 leaves; others get what it keeps
  mountfs node remove n3 --at 10.0.0.1 --force                 n3 is lost: it is not waited for
  mount.dfs 10.0.0.1,10.0.0.2,10.0.0.3: /mnt/data              mount what they have

Two nodes are one voter and one that follows: an even number of voters tolerates no more failures
than one voter less.  When a third joins, all three vote, and the cluster survives the loss of one.

A node takes three ports: that of --listen (7410 unless named) for other nodes, the next one for
clients, and the one after that for Prometheus.

Without --tls anybody who reaches them can read and change everything: that is allowed on
a loopback address, or with --insecure.  For certificates see: mountfs pki --help

exit status: 0 done, or ended by SIGTERM; 1 failed; 2 wrong call
"""
PORT: Final = 7410
SESSION_TTL_S_MIN: Final = 2.0
"""An election must not look to mounts as if they were gone."""
SESSION_TTL_S_MAX: Final = 3600.0
COPY_RATE_MIN: Final = 2
"""MB/s: slower, and the leader would not wait for a part of a volume."""
COPY_RATE_MAX: Final = 100_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action", nargs="?", default="run",
        choices=["run", "list", "drain", "remove", "transfer-leader"], help="default: run",
    )  # fmt: skip
    parser.add_argument("node", nargs="?", metavar="NODE", help="name or number, for an action")
    parser.add_argument("--home", type=Path, help="directory of what the node keeps")
    parser.add_argument("--listen", metavar="HOST[:PORT]", help="where others reach this node")
    parser.add_argument("--join", metavar="HOST[:PORT],...", help="nodes of the cluster to join")
    parser.add_argument("--name", help="of the node; default: the machine's")
    parser.add_argument(
        "--roles", metavar="ROLE[,ROLE]", help="what the node does: meta, to have the metadata; "
        "chunk, to keep slices; default: what it did before, or both",
    )  # fmt: skip
    parser.add_argument(
        "--location", metavar="/RACK/HOST", help="what fails together has the same beginning; "
        "default: /rack/HOST, with the host of --listen",
    )  # fmt: skip
    parser.add_argument(
        "--data", action="append", default=[], metavar="DIR[,DIR...]",
        help="more directories for volumes, each on a disk of its own; may be named several times",
    )  # fmt: skip
    parser.add_argument(
        "--metrics", metavar="HOST:PORT", help="where Prometheus reads; or: off; default: PORT + 2"
    )
    parser.add_argument(
        "--copy-rate", type=float, default=100.0, metavar="MB/S",
        help="what the node copies from others when volumes are repaired or moved, at most; 0: as "
        "much as there is; default: 100",
    )  # fmt: skip
    parser.add_argument(
        "--durability", choices=[FSYNC, ASYNC], default=FSYNC,
        help="fsync: a slice is taken when it is on the disk; async: earlier, and it is there "
        "within a second or so; default: fsync",
    )  # fmt: skip
    parser.add_argument("--insecure", action="store_true", help="allow a network without TLS")
    cluster_calls.add_arguments(parser)
    parser.add_argument(
        "--session-ttl", type=float, default=60.0, metavar="SECONDS",
        help="a mount that is not heard of for so long loses its locks; the same on all nodes; "
        "default: 60",
    )  # fmt: skip
    parser.add_argument(
        "--wait", action="store_true",
        help="remove, drain: return when it is done; Ctrl-C ends the waiting, and nothing else",
    )  # fmt: skip
    parser.add_argument(
        "--heal-after", type=float, default=300.0, metavar="SECONDS",
        help="others get copies of what a node has that is silent for so long; the same on all "
        "nodes that have the metadata; default: 300",
    )  # fmt: skip
    parser.add_argument("--undo", action="store_true", help="drain: it may have slices again")
    parser.add_argument(
        "--force", action="store_true", help="remove at once, though that costs the majority, or "
        "copies of what it keeps; others get them from the copies that are left",
    )  # fmt: skip
    parser.add_argument(
        "--yes", action="store_true", help="remove --force, though what it keeps is lost for ever"
    )
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    if arguments.action == "run":
        return _run(arguments)
    if arguments.yes and not arguments.force:
        arguments.parser.error("--yes is for remove --force")
    if arguments.action != "list" and arguments.node is None:
        arguments.parser.error(f"{arguments.action} needs the name of a node")
    if arguments.action == "list":
        found = cluster_calls.ask(arguments, "Nodes", None)
        if arguments.json:
            show.print_json(found)
        else:
            _print_nodes(found)
        return show.EXIT_OK if all(node["alive"] for node in found) else show.EXIT_FAILED
    if arguments.action == "remove":
        return node_leaving.remove(arguments)
    if arguments.action == "drain":
        return node_leaving.drain(arguments)
    answer = cluster_calls.ask(arguments, "Transfer", {"node": arguments.node})
    if arguments.json:
        show.print_json(answer)
    else:
        print(f"node {answer['leader']} leads, after {answer['took_ms']} ms")
    return show.EXIT_OK


def _run(arguments: argparse.Namespace) -> int:
    from mountfs.cli import node_server

    if arguments.node is not None:
        arguments.parser.error(f"unknown argument: {arguments.node}")
    settings = _settings(arguments)
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    sys.setswitchinterval(0.0005)  # threads of gRPC wait for the one that does all the work
    with unwrapped():
        settings = _prepared(settings)
        gc.freeze()
        trio.run(node_server.serve, settings)
    return show.EXIT_OK


def _prepared(settings: "Settings") -> "Settings":
    """See to it that there is a home that a node can open.  Returns what it is to be run with: its
    home knows its roles.
    """
    from mountfs.cli import node_homes
    from mountfs.cli.node_ports import require_free
    from mountfs.cli.node_roles import ROLES, kept_roles
    from mountfs.cli.trust import Trust
    from mountfs.meta.admin import Join
    from mountfs.vfs.home import NODE_MARK, read_format

    home = settings.home
    if (home / "format.json").exists():
        roles = kept_roles(home, read_format(home), settings.roles)
        if not (home / NODE_MARK).exists():  # it was mounted alone last
            trio.run(node_homes.found, home)
    elif settings.join:
        roles = settings.roles or ROLES
        trio.run(require_free, settings)
        asked = Join(settings.name, settings.rpc, settings.door, "", roles, settings.location)
        trio.run(node_homes.join, home, asked, settings.join, Trust(settings.tls))
    else:
        raise FsError(
            Fault.NOT_FOUND,
            f"{home} is no home yet: to begin a cluster there: mountfs cluster init {home}; to "
            "join one that runs, name one of its nodes: --join HOST.  (If this node ran before, "
            "is its disk mounted?)",
        )
    return msgspec.structs.replace(settings, roles=roles)


def _settings(arguments: argparse.Namespace) -> "Settings":
    from mountfs.cli.node_roles import ROLES
    from mountfs.cli.node_settings import Settings
    from mountfs.meta.ops.nodes import check_location
    from mountfs.meta.patience import GRACE_S_MAX, GRACE_S_MIN

    if arguments.home is None or arguments.listen is None:
        arguments.parser.error("to run a node, name --home and --listen")
    roles = None if arguments.roles is None else tuple(arguments.roles.split(","))
    if unknown := sorted(set(roles or ()) - set(ROLES)):
        arguments.parser.error(f"unknown roles: {', '.join(unknown)}; there are {', '.join(ROLES)}")
    if not SESSION_TTL_S_MIN <= arguments.session_ttl <= SESSION_TTL_S_MAX:
        arguments.parser.error(
            f"--session-ttl takes {SESSION_TTL_S_MIN:g} to {SESSION_TTL_S_MAX:g} seconds"
        )
    if not GRACE_S_MIN <= arguments.heal_after <= GRACE_S_MAX:
        arguments.parser.error(f"--heal-after takes {GRACE_S_MIN:g} to {GRACE_S_MAX:g} seconds")
    if arguments.copy_rate and not COPY_RATE_MIN <= arguments.copy_rate <= COPY_RATE_MAX:
        arguments.parser.error(
            f"--copy-rate takes {COPY_RATE_MIN} to {COPY_RATE_MAX:,} MB/s, or 0: no limit"
        )
    host, port = place(arguments.listen)
    location = arguments.location or f"/rack/{host}"
    check_location(location)
    if arguments.tls is None and not arguments.insecure and not _is_loopback(host):
        raise FsError(
            Fault.DENIED,
            f"{host} can be reached by others, and there is no --tls: they could read and change "
            "everything.  Make certificates (mountfs pki --help), or say --insecure",
        )
    return Settings(
        home=arguments.home,
        host=host,
        port=port,
        name=arguments.name or os.uname().nodename,
        roles=tuple(role for role in ROLES if role in (roles or ())),
        location=location,
        data=tuple(Path(one) for some in arguments.data for one in some.split(",") if one),
        copy_bytes_per_s=arguments.copy_rate * 1e6,
        durability=arguments.durability,
        join=tuple(addresses(arguments.join)) if arguments.join else (),
        tls=arguments.tls,
        heal_after_s=arguments.heal_after,
        session_ttl_ms=round(arguments.session_ttl * 1000),
        metrics=_metrics(arguments.metrics, host, port),
        metrics_must=arguments.metrics is not None,
    )


def _metrics(asked: str | None, host: str, port: int) -> tuple[str, int] | None:
    if asked == "off":
        return None
    return (host, port + 2) if asked is None else place(asked)


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def place(text: str) -> tuple[str, int]:
    """HOST[:PORT]; raises INVALID."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        return text.strip("[]"), PORT
    if not port.isdigit() or not 0 < int(port) < 65_535:
        raise FsError(Fault.INVALID, f"{text!r} is not HOST or HOST:PORT")
    return host.strip("[]"), int(port)


def addresses(text: str) -> list[str]:
    """HOST[:PORT],... as host:port, for gRPC."""
    found = []
    for one in filter(None, text.split(",")):
        host, port = place(one)
        found.append(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    if not found:
        raise FsError(Fault.INVALID, f"{text!r} names no node")
    return found


def _print_nodes(nodes: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in _TITLES:
        table.add_column(title, justify="right" if title in ("node", "lag") else "left")
    for node in nodes:
        state = "leads" if node["leader"] else "answers" if node["alive"] else "does not answer"
        table.add_row(
            str(node["number"]), node["name"], ",".join(node["roles"]), _votes(node),
            state, "" if node["lag"] is None else str(node["lag"]), node["location"], node["rpc"],
            node["door"],
        )  # fmt: skip
    show.out().print(table)


_TITLES: Final = (
    "node", "name", "roles", "member", "state", "lag", "location", "nodes at", "clients at",
)  # fmt: skip


def _votes(node: dict[str, Any]) -> str:
    role = node["role"] if "meta" in node["roles"] else ""
    if "chunk" not in node["roles"]:
        return "leaving" if node["leaving"] else role
    left = what_leaves(node)
    return left if node["leaving"] else ", ".join(filter(None, [role, left]))
