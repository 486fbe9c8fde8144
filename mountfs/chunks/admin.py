"""What operators ask about bytes, over gRPC: the leader answers, as far as its nodes have told."""

from typing import Any, Final

import msgspec
import trio

from mountfs.chunks.leading import Leading
from mountfs.chunks.overview import Overview, look
from mountfs.meta.admin import Admin
from mountfs.meta.server import MetaServer
from mountfs.rpc.server import Call

LOOK_S: Final = 2.0


class ChunkAdmin:
    """On every node that has the metadata; it answers where that leads."""

    def __init__(self, admin: Admin, server: MetaServer, leading: Leading) -> None:
        self._server = server
        self._leading = leading
        self.latest: Overview | None = None
        """As it was a moment ago, for threads; None: this node does not lead."""
        admin.register("Health", self._health)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            group = self._server.group
            leads = group.is_leader and group.raft.state.proven
            self.latest = look(self._server, self._leading) if leads else None
            await trio.sleep(LOOK_S)

    async def _health(self, body: bytes, call: Call) -> Any:
        return msgspec.to_builtins(look(self._server, self._leading))
