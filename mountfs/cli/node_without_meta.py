"""A node that has no metadata: what it knows of its cluster, it asks for as a client does.

It votes on nothing and nobody sends it the log.  It finds the others by what it has written down of
them, and writes that down anew as they come and go.
"""

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, TypeVar

import msgspec
import trio

from mountfs.chunks.reporter import Reporter
from mountfs.cli.node_ground import Ground
from mountfs.cli.node_homes import read_seeds, write_seeds
from mountfs.cli.standing import removed
from mountfs.errors import Fault, FsError
from mountfs.meta import admin
from mountfs.meta.client import Address, Router, address_of
from mountfs.meta.command import Query
from mountfs.meta.ops.nodes import NodeRecord
from mountfs.meta.protocol import Cluster, Method, Read, decode_reply, encode
from mountfs.meta.reports import FSYNC
from mountfs.meta.to_leader import ByAsking
from mountfs.rpc.server import Call, Handler
from mountfs.wire.connection import Body, Disconnected
from mountfs.wire.frames import Parts
from mountfs.wire.service import Peer

log = logging.getLogger(__name__)

R = TypeVar("R")

LOOK_S: Final = 2.0
ANSWER_S: Final = 3.0
"""To find who leads, and be answered."""
ASK_S: Final = 5.0


class ClusterRenamed(FsError):
    """The cluster was recovered without a majority, and goes by another name since.  It is written
    down: start anew.
    """


class WithoutMeta:
    """Use `without_meta`."""

    meta = None

    def __init__(self, ground: Ground, nursery: trio.Nursery) -> None:
        self._ground = ground
        known = read_seeds(ground.home.path)
        self.router = Router(nursery, _doors(known, ground.settings.join), ground.options)
        self.router.learn(Cluster(0, known))
        self.link = self.router.link_to
        self.to_leader = ByAsking(self.router, ground.client, ground.place.disk)
        self._trouble: Callable[[], str] = lambda: ""
        """What keeps this node from its work; empty: nothing."""
        self._durability = FSYNC
        self._problem = ""
        for method in admin.METHODS | admin.MORE:
            ground.server.register(admin.SERVICE, method, self._answer(method))

    def reports(self, reporter: Reporter) -> None:
        """What this node keeps is told by it."""
        self._trouble = lambda: reporter.problem
        self._durability = reporter.durability

    def overview(self) -> None:
        """It never leads."""

    # -- what others ask

    async def handle(self, peer: Peer, method: int, body: Body) -> Parts:
        where = ", ".join(node.door for node in self.router.nodes if node.has_metadata)
        raise FsError(
            Fault.NOT_IMPLEMENTED,
            f"node {self._ground.place.name} keeps slices, and has no metadata: ask {where}",
        )

    def admit(self, peer: Peer) -> None:
        """Whoever belongs to the cluster."""

    def _answer(self, method: str) -> Handler:
        async def answer(body: bytes, call: Call) -> bytes:
            if method == "Status":
                return msgspec.msgpack.encode(self._status())
            if method == "Leader":
                leader = self.router.leader_record
                return msgspec.msgpack.encode("" if leader is None else leader.rpc)
            raise FsError(
                Fault.NOT_LEADER,
                f"node {self._ground.place.name} keeps slices, and has no metadata: it never leads",
            )

        return answer

    def _status(self) -> dict[str, Any]:
        """As `Admin` tells it of a node, without what there is of the metadata."""
        home, place = self._ground.home, self._ground.place
        trouble = self._trouble()
        leader = self.router.leader_record
        return {
            "cluster": home.format.id,
            "generation": home.format.generation,
            "node": place.number,
            "name": place.name,
            "rpc": place.rpc,
            "door": place.door,
            "health": "degraded" if trouble else "healthy",
            "why": trouble,
            "role": "no member",
            "roles": place.roles,
            "location": place.location,
            "durability": self._durability,
            "leader": self.router.leader_number,
            "leader_rpc": None if leader is None else leader.rpc,
            "nodes": [
                {"number": node.number, "name": node.name, "rpc": node.rpc}
                for node in self.router.nodes
            ],
        }

    # -- what it asks

    async def ask_metadata(self, query: Query[R]) -> R:
        """As of now, of whoever leads.  Raises what that says, and UNAVAILABLE."""
        with trio.move_on_after(ANSWER_S):
            link = await self.router.leader()
            try:
                answer = await link.call(Method.READ, encode(Read(0, query)))
            except Disconnected as error:
                self.router.forget(link)
                raise FsError(Fault.UNAVAILABLE, str(error)) from error
            except FsError as error:
                if error.fault is Fault.NOT_LEADER:
                    self.router.forget(link)
                raise
            return decode_reply(query, answer)  # type: ignore[no-any-return]
        raise FsError(Fault.UNAVAILABLE, f"the metadata does not answer within {ANSWER_S:g} s")

    async def run(self) -> None:
        """Until cancelled.  Raises BAD_HOME when this node was removed."""
        while True:
            try:
                await self._look()
            except FsError as error:
                if error.fault is Fault.BAD_HOME:
                    raise
                self._failed(error)
                await self._look_for_another_name()
            else:
                self._problem = ""
            await trio.sleep(LOOK_S)

    async def _look(self) -> None:
        """Who there is, and whether they know where we are.  Raises what keeps us from it."""
        before = self.router.nodes
        with trio.move_on_after(ANSWER_S) as waited:
            link = await self.router.leader()
            try:
                told = await link.call(Method.CLUSTER)
            except Disconnected as error:
                self.router.forget(link)
                raise FsError(Fault.UNAVAILABLE, str(error)) from error
        if waited.cancelled_caught:
            raise FsError(Fault.TIMED_OUT, f"the leader does not answer within {ANSWER_S:g} s")
        cluster = msgspec.msgpack.decode(told, type=Cluster)
        self.router.learn(cluster)
        if self.router.nodes != before:
            write_seeds(self._ground.home.path, self.router.nodes)
        place = self._ground.place
        mine = next((node for node in cluster.nodes if node.number == place.number), None)
        if mine is None or mine.disk != place.disk:
            await self._require_standing()
            return
        news = place.introduction(mine)
        if news is not None:
            await self._ask("Move", news)

    async def _require_standing(self) -> None:
        """One that has only just begun to lead may not know us yet.  Raises BAD_HOME when we do not
        belong to the cluster any more.
        """
        nodes = await self._ask("Nodes", None)
        place = self._ground.place
        ours = (place.number, place.disk)
        if all((node["number"], node["disk"]) != ours for node in nodes):
            raise removed(place, nodes)

    async def _look_for_another_name(self) -> None:
        """Who was recovered refuses those who call the cluster as it was called before, but tells
        its new name.  Raises ClusterRenamed, and BAD_HOME when we do not belong to it.
        """
        home = self._ground.home
        found = 0

        async def ask(rpc: str) -> None:
            nonlocal found
            with contextlib.suppress(FsError):
                said = await admin.ask(
                    self._ground.client, [rpc], "Status", None, deadline_s=ANSWER_S
                )
                found = max(found, said["generation"])

        async with trio.open_nursery() as nursery:
            for node in self.router.nodes:
                if node.has_metadata:
                    nursery.start_soon(ask, node.rpc)
        if found <= home.format.generation:
            return
        try:
            await self._require_standing()
        except FsError as error:
            if error.fault is Fault.BAD_HOME:
                raise
            return
        home.write_format(msgspec.structs.replace(home.format, generation=found))
        raise ClusterRenamed(Fault.BAD_HOME, "the cluster was recovered, and has another name")

    async def _ask(self, method: str, body: object) -> Any:
        others = [node.rpc for node in self.router.nodes if node.has_metadata]
        return await admin.ask(self._ground.client, others, method, body, deadline_s=ASK_S)

    def _failed(self, error: FsError) -> None:
        told = error.fault in (Fault.NOT_LEADER, Fault.UNAVAILABLE, Fault.TIMED_OUT)
        if not told and self._problem != str(error):  # that nobody leads, the reports tell
            log.warning("asking the cluster who belongs to it: %s", error)
        self._problem = str(error)

    async def hand_over(self) -> None:
        """There is nothing that others would have to take over."""

    async def end(self) -> None:
        """What is said to be on disk is there."""


@contextlib.asynccontextmanager
async def without_meta(ground: Ground) -> AsyncIterator[WithoutMeta]:
    async with trio.open_nursery() as nursery:
        yield WithoutMeta(ground, nursery)
        nursery.cancel_scope.cancel()


def _doors(known: tuple[NodeRecord, ...], join: tuple[str, ...]) -> list[Address]:
    """Where clients find those who have the metadata, and who was named to be asked."""
    found = [address_of(node.door) for node in known if node.has_metadata]
    for place in map(address_of, join):
        if place is not None:
            found.append((place[0], place[1] + 1))
    return list(dict.fromkeys(address for address in found if address is not None))
