"""A node without what makes the log fast: `python -m benchmarks.unbatched WITHOUT MS node ...`.

WITHOUT is `nothing`, `batching` (every entry has a write and a sync of the disk, a message and an
envelope of its own), `pipelining` (the next message leaves when the last is answered) or `both`.
MS is for how long each message to another node is kept back, as a wire between two towns would.
That these are no settings of the product is on purpose: nobody has a use for them but whoever asks
what batching and pipelining bring.
"""

import sys
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

import trio

from mountfs.cli import main, node_meta
from mountfs.meta import server
from mountfs.raft.config import Config
from mountfs.raft.driver import Group, Node
from mountfs.raft.envelope import open_, seal
from mountfs.raft.links import Links
from mountfs.raft.messages import NodeId


class Unbatched(Node):
    def _propose(self, group: Group) -> None:
        if self._saving or self._sync_begun is not None:
            return  # `_synced` wakes the group
        waiting = group.queue[1:]
        del group.queue[1:]
        super()._propose(group)
        group.queue[:0] = waiting

    def _synced(self) -> None:
        super()._synced()
        for group in self.groups.values():
            if group.queue:
                self.wake(group)

    def received(self, source: NodeId, bodies: Sequence[bytes | memoryview]) -> None:
        for body in bodies:
            for one in open_(body):
                super().received(source, [seal([one])])
                self._pump_all(propose=True)
                self._send_all()
                self._sync()
                self._synced()

    def _send_all(self) -> None:
        outbox, self._outbox = self._outbox, {}
        for node, messages in outbox.items():
            for one in messages:
                self._outbox = {node: [one]}
                super()._send_all()


class Slow(Links):
    delay_s = 0.0

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._late: deque[tuple[float, NodeId, bytes]] = deque()
        self._more = trio.Event()

    def send(self, node: NodeId, body: bytes) -> None:
        self._late.append((trio.current_time() + self.delay_s, node, body))
        self._more.set()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(super().run)
            while True:
                while self._late:
                    due, node, body = self._late.popleft()
                    await trio.sleep_until(due)
                    super().send(node, body)
                self._more = trio.Event()
                await self._more.wait()


def run(without: str, delay_ms: float, argv: list[str]) -> int:
    assert without in ("nothing", "batching", "pipelining", "both"), without
    instead: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    if without in ("batching", "both"):
        instead["Node"] = Unbatched
        limits["append_entries_max"] = 1
    if without in ("pipelining", "both"):
        limits["inflight_messages_max"] = 1
    assert {"Node", "Config"} <= set(vars(server))
    vars(server).update(instead, Config=partial(Config, **limits))
    if delay_ms:
        assert "Links" in vars(node_meta)
        Slow.delay_s = delay_ms / 1000
        vars(node_meta)["Links"] = Slow
    return main.main(argv)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], float(sys.argv[2]), sys.argv[3:]))
