"""What operators ask about bytes, over gRPC: the leader answers, as far as its nodes have told."""

from typing import Any, Final

import msgspec
import trio

from mountfs.chunks import garbage
from mountfs.chunks.balancer import RATE_BYTES_PER_S
from mountfs.chunks.deletion import Deletion
from mountfs.chunks.leading import Leading
from mountfs.chunks.overview import Overview, look
from mountfs.meta.admin import Admin
from mountfs.meta.balancing import Plan
from mountfs.meta.server import MetaServer
from mountfs.raft.snapshots import require_node
from mountfs.rpc.server import Call

LOOK_S: Final = 2.0


class CollectNow(msgspec.Struct, frozen=True):
    """About garbage."""

    now: bool = False
    """Begin a round."""


class Balance(msgspec.Struct, frozen=True):
    """About volumes that move to emptier nodes: neither `begin` nor `stop`: what would be done."""

    begin: bool = False
    stop: bool = False
    rate: float = RATE_BYTES_PER_S
    """Bytes a second, at most; 0: there is no limit."""


class ChunkAdmin:
    """On every node that has the metadata; it answers where that leads."""

    def __init__(
        self, admin: Admin, server: MetaServer, leading: Leading, deletion: Deletion
    ) -> None:
        self._server = server
        self._leading = leading
        self._deletion = deletion
        self.latest: Overview | None = None
        """As it was a moment ago, for threads; None: this node does not lead."""
        admin.register("Health", self._health)
        admin.register("Garbage", self._garbage)
        admin.register("Balance", self._balance)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            group = self._server.group
            leads = group.is_leader and group.raft.state.proven
            self.latest = look(self._server, self._leading) if leads else None
            await trio.sleep(LOOK_S)

    async def _health(self, body: bytes, call: Call) -> Any:
        return msgspec.to_builtins(look(self._server, self._leading))

    async def _garbage(self, body: bytes, call: Call) -> Any:
        asked = msgspec.msgpack.decode(body, type=CollectNow)
        collector = self._leading.collector
        if asked.now:
            require_node(call)
            self._server.safe_mode.require_writable()
            collector.hurry()
        return msgspec.to_builtins(await garbage.look(self._server, collector, self._deletion))

    async def _balance(self, body: bytes, call: Call) -> Any:
        asked = msgspec.msgpack.decode(body, type=Balance)
        balancer = self._leading.balancer
        if asked.begin or asked.stop:
            require_node(call)
        plan: Any = None
        if asked.stop:
            balancer.stop("an operator has stopped it")
        else:
            plan = await balancer.look()
        if asked.begin:
            self._server.safe_mode.require_writable()
            balancer.begin(asked.rate)
        return {
            "plan": None if plan is None else _plain(plan),
            "balancing": msgspec.to_builtins(balancer.state),
        }


def _plain(plan: Plan) -> dict[str, Any]:
    """With names, for JSON."""
    return {**plan._asdict(), "moves": [move._asdict() for move in plan.moves]}
