"""The clocks of the metaservers: each tells its own, and who leads asks the others.

What follows from that is decided in `meta.proven_time`.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from mountfs.errors import Fault, FsError
from mountfs.meta.ops.nodes import NodeRecord
from mountfs.meta.proven_time import Groups, ProvenTime
from mountfs.meta.records import NS
from mountfs.meta.replica import steady_ns
from mountfs.raft.messages import Membership
from mountfs.rpc.client import Client
from mountfs.rpc.server import Call, Server

if TYPE_CHECKING:
    from mountfs.raft.driver import Group

SERVICE: Final = "mountfs.Clocks"
METHOD: Final = "Tell"
ASK_S: Final = 1.0
AGAIN_NS: Final = 60 * NS
APART_NS: Final = 60 * NS
"""Clocks that are further apart than that are a trouble that somebody should be told of."""


class Clocks:
    """`stored`: what was proven before this process started."""

    def __init__(
        self,
        own: int,
        group: "Group",
        server: Server,
        client: Client,
        node_of: Callable[[int], NodeRecord | None],
        stored: int,
    ) -> None:
        self._group = group
        self._client = client
        self._node_of = node_of
        self.steady: Callable[[], int] = steady_ns
        self.proven = ProvenTime(own, time.time_ns(), self.steady(), stored)
        self._membership: Membership | None = None
        self._groups: Groups = ()
        server.register(SERVICE, METHOD, self._tell)

    def now(self) -> int:
        """For an entry of the log; 0: nothing is known for certain."""
        return self.proven.now(self._voters(), self.steady())

    async def ask(self) -> None:
        """Those whose clocks are not known, or were asked long ago.  Raises DEVICE where they are
        far apart: somebody should be told.
        """
        if not self._group.is_leader:
            return
        voters = {node for group in self._voters() for node in group}
        now = self.steady()
        wanted = self.proven.wants(voters, now, AGAIN_NS)
        async with trio.open_nursery() as nursery:
            for node in wanted:
                nursery.start_soon(self._ask, node)
        apart = {
            node: ahead
            for node, ahead in self.proven.ahead(self.steady()).items()
            if node in voters and abs(ahead) > APART_NS
        }
        if apart:
            told = "; ".join(f"that of node {node} {_far(ahead)}" for node, ahead in apart.items())
            raise FsError(
                Fault.DEVICE,
                f"the clocks of the metaservers do not agree: {told} this node's; set them right "
                "and start those nodes anew",
            )

    def _voters(self) -> Groups:
        membership = self._group.raft.log.membership
        if membership is not self._membership:
            self._membership = membership
            self._groups = (membership.voters, membership.outgoing)
        return self._groups

    async def _ask(self, node: int) -> None:
        record = self._node_of(node)
        if record is None:
            return
        try:
            answer = await self._client.call(record.rpc, SERVICE, METHOD, b"", deadline_s=ASK_S)
            told = msgspec.msgpack.decode(answer, type=int)
        except (FsError, msgspec.MsgspecError):
            return  # whether it is there is others' business
        self.proven.hear(node, told, self.steady())

    async def _tell(self, body: bytes, call: Call) -> bytes:
        return msgspec.msgpack.encode(self.proven.own(self.steady()))


def _far(nanoseconds: int) -> str:
    seconds = abs(nanoseconds) / NS
    return f"is {seconds:,.0f} s {'ahead of' if nanoseconds > 0 else 'behind'}"
