"""Questions to the nodes of a cluster, for the commands that ask them."""

import argparse
import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import trio

from mountfs.errors import Fault, FsError, unwrapped

DEADLINE_S = 15.0
LOOK_S = 3.0
DEFAULT = "127.0.0.1:7410"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--at", metavar="HOST[:PORT],...", help="nodes to ask; default: this machine's"
    )
    parser.add_argument("--tls", type=Path, metavar="DIR", help="certificates, of mountfs pki")


def ask(
    arguments: argparse.Namespace, method: str, body: object, *, deadline_s: float = DEADLINE_S
) -> Any:
    """Ask whoever leads among the nodes at `--at`."""
    from mountfs.cli.node import addresses

    places = addresses(arguments.at or DEFAULT)
    with unwrapped():
        return trio.run(_ask, places, arguments.tls, method, body, deadline_s)


async def _ask(
    places: list[str], tls: Path | None, method: str, body: object, deadline_s: float
) -> Any:
    from mountfs.cli.trust import Trust
    from mountfs.meta import admin
    from mountfs.rpc.client import open_client

    trust = Trust(tls, kind=None)
    async with open_client(trust.cluster, trust.credentials) as client:
        return await admin.ask(client, places, method, body, deadline_s=deadline_s)


class Looked(NamedTuple):
    nodes: Any
    """The leader's list of them, or why there is none, as a string."""
    said: dict[str, Any]
    """What each node says of itself, or why it does not, by its address."""
    bytes: dict[str, Any] | None
    """What the leader says of them (`chunks.overview.Overview`); None: nobody does."""


async def look_at_all(places: list[str], tls: Path | None) -> Looked:
    """Raises UNAVAILABLE when not one of `places` answers."""
    from mountfs.cli.trust import Trust
    from mountfs.meta import admin
    from mountfs.rpc.client import open_client

    trust = Trust(tls, kind=None)
    found: dict[str, Any] = {}
    async with open_client(trust.cluster, trust.credentials) as client:

        async def one(place: str) -> None:
            try:
                found[place] = await admin.ask(client, [place], "Status", None, deadline_s=LOOK_S)
            except FsError as error:
                found[place] = str(error)

        async def each(more: list[str]) -> None:
            async with trio.open_nursery() as nursery:
                for place in more:
                    if place not in found:
                        nursery.start_soon(one, place)

        nodes: Any
        bytes_: dict[str, Any] | None = None
        await each(places)
        if not any(isinstance(said, dict) for said in found.values()):
            raise FsError(Fault.UNAVAILABLE, "; ".join(map(str, found.values())))
        known = [said["leader_rpc"] for said in found.values() if isinstance(said, dict)]
        leaders = list(filter(None, [*known, *places]))
        try:
            nodes = await admin.ask(client, leaders, "Nodes", None, deadline_s=LOOK_S)
        except FsError as error:
            nodes = str(error)
            others = [said["nodes"] for said in found.values() if isinstance(said, dict)]
            await each([node["rpc"] for some in others for node in some])
        else:
            await each([node["rpc"] for node in nodes])
            with contextlib.suppress(FsError):  # one that is older does not know
                bytes_ = await admin.ask(client, leaders, "Health", None, deadline_s=LOOK_S)
    return Looked(nodes, found, bytes_)
