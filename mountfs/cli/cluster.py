"""mountfs cluster: begin one; go on with what is left of one."""

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from mountfs.cli import show
from mountfs.errors import Fault, FsError

if TYPE_CHECKING:
    from mountfs.meta.recovery import Found, Survivor
    from mountfs.vfs.home import Home

SUMMARY = "begin a cluster; go on with what is left of one"
DESCRIPTION = """\
init     make the home of the first node of a new cluster.
recover  when a majority of the metaservers is lost for good: let one that is left go on alone.
"""
EPILOG = """\
examples:
  mountfs cluster init /srv/mountfs                 then: mountfs node --home /srv/mountfs ...
  mountfs cluster init /srv/mountfs --tls DIR       a cluster whose certificates are there already
  mountfs cluster recover /srv/mountfs              what this node has; nothing is changed
  mountfs cluster recover /srv/mountfs --yes        go on with that, alone

Recover is the last resort.  Operations that were acknowledged by the others and had not come here
are lost, and nobody can say which.  Look at all homes that are left, with all of their nodes
stopped, and choose the one with the greatest "last term", and of several the greatest "last entry".
The others must not run again: they are refused by this one, and should be emptied and joined anew.
All mounts must be mounted again.

exit status: 0 done; 1 failed, or recover was not told --yes; 2 wrong call
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["init", "recover"])
    parser.add_argument("home", type=Path, metavar="HOME", help="directory of what the node keeps")
    parser.add_argument("--tls", type=Path, metavar="DIR", help="init: certificates of the cluster")
    parser.add_argument("--yes", action="store_true", help="recover: do it")
    parser.add_argument("--json", action="store_true", help="a JSON object")


def run(arguments: argparse.Namespace) -> int:
    if arguments.action == "init":
        return _init(arguments)
    return _recover(arguments)


def _init(arguments: argparse.Namespace) -> int:
    import uuid

    import trio

    from mountfs.cli import node_homes
    from mountfs.cli.trust import Trust
    from mountfs.vfs.home import read_format

    home: Path = arguments.home
    if (home / "format.json").exists():
        raise FsError(
            Fault.EXISTS,
            f"{home} is a home already; to serve what is in it: mountfs node --home {home} "
            "--listen HOST",
        )
    trust = Trust(arguments.tls, kind=None)
    trio.run(node_homes.found, home, trust.cluster or uuid.uuid4().hex)
    cluster = read_format(home).id
    if arguments.json:
        show.print_json({"home": str(home), "cluster": cluster})
        return show.EXIT_OK
    print(f"{home} is the first home of cluster {cluster}.")
    print(f"Start its node:         mountfs node --home {home} --listen HOST")
    if arguments.tls is None:
        print(f"To have certificates:   mountfs pki init DIR --cluster {cluster}")
    return show.EXIT_OK


def _recover(arguments: argparse.Namespace) -> int:
    from mountfs.meta.recovery import Survivor
    from mountfs.raft.messages import NodeId
    from mountfs.vfs.home import open_home

    home = open_home(arguments.home, create=False)
    try:
        home.format.require_metadata(home.path)
        home.hold("mountfs cluster recover")
        survivor = Survivor(home.path / "meta", home.id, NodeId(home.format.node))
        try:
            return _judge(arguments, home, survivor)
        finally:
            survivor.close()
    finally:
        home.close()


def _judge(arguments: argparse.Namespace, home: "Home", survivor: "Survivor") -> int:
    found = survivor.found()
    node = home.format.node
    unfinished = home.path / UNFINISHED
    if found.voters == (node,) and not unfinished.exists():
        raise FsError(
            Fault.INVALID, f"{home.path} is the only voter of its cluster: there is no one to lose"
        )
    done = False
    if arguments.yes:
        unfinished.touch()
        if found.voters != (node,):
            survivor.go_on_alone()
        generation = home.format.generation + 1
        home.write_format(msgspec.structs.replace(home.format, generation=generation))
        unfinished.unlink()
        done = True
    if arguments.json:
        show.print_json({**msgspec.to_builtins(found), "node": node, "recovered": done})
    else:
        _print(found, node, done)
    return show.EXIT_OK if done else show.EXIT_FAILED


UNFINISHED = "recovering"


def _print(found: "Found", node: int, done: bool) -> None:
    names = {record.number: record.name for record in found.nodes}
    lost = [names.get(number, str(number)) for number in found.voters if number != node]
    last = datetime.fromtimestamp(found.last_time / 1e9, UTC)
    rows = [
        ("node", f"{names.get(node, '?')} (number {node})"),
        ("last term", str(found.last_term)),
        ("last entry", f"{found.last_index:,}, of {last:%Y-%m-%d %H:%M:%S} UTC"),
        ("known to be acknowledged", f"up to entry {found.committed:,}"),
        ("files", f"{found.inodes:,}"),
        ("voters", ", ".join(names.get(number, str(number)) for number in found.voters)),
    ]
    show.out().print(show.facts(rows))
    what = f"without {', '.join(lost)}, and without what only they had"
    if done:
        print(f"This node goes on alone, {what}.  Start it, let others join, mount again.")
    else:
        print(f"Nothing was changed.  With --yes this node goes on alone, {what}.")
