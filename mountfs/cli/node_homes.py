"""The home of a node: made when a cluster begins, when a machine joins it, and anew when what it
had of the metadata is damaged.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import trio

from mountfs.cli.trust import Trust
from mountfs.errors import Fault, FsError, disk_error
from mountfs.kv.journal import Journal
from mountfs.meta.admin import Join, Joined, Rejoin, ask_raw
from mountfs.meta.ops.nodes import META, NodeRecord
from mountfs.meta.replica import META_GROUP
from mountfs.meta.server import SEGMENT_BYTES
from mountfs.raft.messages import HardState, Membership, SnapshotHead, Term
from mountfs.raft.storage import Storage
from mountfs.rpc.client import open_client
from mountfs.types import LogIndex
from mountfs.vfs.embedded import embedded_node
from mountfs.vfs.home import FORMAT, NODE_MARK, Format, Home, make_home, open_home, sync_directory

log = logging.getLogger(__name__)

SEEDS: Final = "nodes.json"
"""Where the nodes of the cluster were when it was written last."""
FRESH: Final = "meta.new"
DAMAGED: Final = "meta.damaged"
JOIN_S: Final = 60.0
FIND_S: Final = 15.0
"""How long nobody may lead, or answer."""


async def found(home: Path, cluster: str | None = None) -> None:
    """Make the first home of a cluster; or bring one that a mount has left in disorder to where a
    node can open it.
    """
    if cluster is not None:
        await trio.to_thread.run_sync(
            make_home, home, lambda disk: Format(FORMAT, cluster), lambda path: None
        )
    async with embedded_node(home, create=True) as node:
        node.meta.end_session()
    (home / NODE_MARK).touch()


async def join(home: Path, asked: Join, places: Sequence[str], trust: Trust) -> None:
    """Make the home of a new node of a cluster that is found at `places`.

    `asked.disk` is filled in here.
    """
    told: Joined | None = None

    async def ask_leader(disk: str) -> Format:
        nonlocal told
        answer = await _ask(places, trust, "Join", msgspec.structs.replace(asked, disk=disk))
        told = msgspec.msgpack.decode(answer, type=Joined)
        return Format(FORMAT, told.cluster, told.number, disk, told.generation, asked.roles)

    def fill(path: Path) -> None:
        assert told is not None
        if META in asked.roles:
            _begin_log(path / "meta" / "log", bytes.fromhex(told.cluster), told.membership)
        write_seeds(path, told.nodes)
        (path / NODE_MARK).touch()

    await trio.to_thread.run_sync(
        make_home, home, lambda disk: trio.from_thread.run(ask_leader, disk), fill
    )


async def rejoin(path: Path, why: FsError, places: Sequence[str], trust: Trust) -> None:
    """What this node has of the metadata is damaged: put it aside, and begin with nothing.

    It cannot know any more what it has promised, so it must not vote with what is left.  The others
    agree first that it is no member (which needs their majority); then it follows as one that has
    just come, and gets all of it.  Raises `why`, with what to do, when there are no others.
    """
    home = open_home(path, create=False)
    try:
        home.hold("node that rejoins")
        others = [node.rpc for node in read_seeds(path) if node.number != home.format.node]
        places = list(dict.fromkeys([*others, *places]))
        if not places:
            raise FsError(
                why.fault,
                f"{why}; no other node is known that has what is lost here: restore the home from "
                "a backup, or name a node of its cluster with --join",
            )
        log.error("%s; it is put aside, and this node joins its cluster anew", why)
        try:
            answer = await _ask(places, trust, "Rejoin", Rejoin(home.format.node, home.disk))
        except FsError as error:
            raise FsError(error.fault, f"{why}; joining the cluster anew: {error}") from error
        told = msgspec.msgpack.decode(answer, type=Joined)
        await trio.to_thread.run_sync(_put_aside, home, told.membership)
        write_seeds(path, told.nodes)
    finally:
        home.close()


def settle(path: Path) -> None:
    """Finish what a crash has interrupted in `rejoin`."""
    fresh = path / FRESH
    if fresh.exists():
        if (path / "meta").exists():
            shutil.rmtree(fresh)
        else:
            os.rename(fresh, path / "meta")


def _put_aside(home: Home, membership: Membership) -> None:
    """Only the newest damaged part is kept: it is for people to look at."""
    fresh, meta, damaged = home.path / FRESH, home.path / "meta", home.path / DAMAGED
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        for part in ("store", "log"):
            (fresh / part).mkdir(parents=True, mode=0o700)
        _begin_log(fresh / "log", home.id, membership)
        sync_directory(fresh)
        shutil.rmtree(damaged, ignore_errors=True)
        os.rename(meta, damaged)
        os.rename(fresh, meta)
        sync_directory(home.path)
    except OSError as error:
        raise disk_error(error, f"{meta}: putting it aside") from error


def _begin_log(directory: Path, home: bytes, membership: Membership) -> None:
    journal = Journal(directory, home=home, segment_bytes=SEGMENT_BYTES)
    try:
        head = SnapshotHead(LogIndex(0), Term(0), membership)
        Storage(journal).create(META_GROUP, head, HardState())
        journal.sync()
    finally:
        journal.close()


async def _ask(places: Sequence[str], trust: Trust, method: str, body: object) -> bytes:
    log.info("asking %s for up to %g s", ", ".join(places), FIND_S)
    async with open_client(trust.cluster, trust.credentials) as client:
        return await ask_raw(client, list(places), method, body, deadline_s=JOIN_S, find_s=FIND_S)


# -- where the others are


def read_seeds(home: Path) -> tuple[NodeRecord, ...]:
    try:
        return msgspec.json.decode((home / SEEDS).read_bytes(), type=tuple[NodeRecord, ...])
    except FileNotFoundError:
        return ()
    except msgspec.MsgspecError as error:
        raise FsError(Fault.BAD_HOME, f"{home / SEEDS} is damaged ({error}); remove it") from None


def write_seeds(home: Path, nodes: Sequence[NodeRecord]) -> None:
    """Best effort: what is lost is only a hint."""
    new = home / f"{SEEDS}.new"
    with contextlib.suppress(OSError):
        new.write_bytes(msgspec.json.encode(tuple(nodes)))
        os.rename(new, home / SEEDS)
