"""Questions to the nodes of a cluster, for the commands that ask them."""

import argparse
from pathlib import Path
from typing import Any

import trio

from mountfs.errors import FsError
from mountfs.meta import admin
from mountfs.rpc.client import open_client
from mountfs.rpc.identity import Credentials, Pems
from mountfs.tls.reload import Identities

DEADLINE_S = 15.0
DEFAULT = "127.0.0.1:7410"


def ask(arguments: argparse.Namespace, method: str, body: object) -> Any:
    """Ask whoever leads among the nodes at `--at`."""
    from mountfs.cli.node import addresses

    places = addresses(arguments.at or DEFAULT)
    return trio.run(_ask, places, arguments.tls, method, body)


async def _ask(places: list[str], tls: Path | None, method: str, body: object) -> Any:
    cluster, credentials = trust(tls)
    async with open_client(cluster, credentials) as client:
        return await admin.ask(client, places, method, body, deadline_s=DEADLINE_S)


def trust(tls: Path | None) -> tuple[str, Credentials | None]:
    """(cluster, credentials); without TLS, any cluster."""
    if tls is None:
        return "", None
    identities = Identities(tls)
    now = identities.current()

    def pems() -> Pems:
        found = identities.current()
        return Pems(found.authorities_pem, found.certificate_pem, found.key_pem)

    return now.cluster, pems


async def ask_each(places: list[str], tls: Path | None, method: str) -> dict[str, Any]:
    """What each says, or why it does not, as a string."""
    cluster, credentials = trust(tls)
    found: dict[str, Any] = {}

    async def one(place: str) -> None:
        try:
            found[place] = await admin.ask(client, [place], method, None, deadline_s=3)
        except FsError as error:
            found[place] = str(error)

    async with open_client(cluster, credentials) as client, trio.open_nursery() as nursery:
        for place in places:
            nursery.start_soon(one, place)
    return found
