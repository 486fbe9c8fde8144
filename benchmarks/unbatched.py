"""A node without what makes the log fast: `python -m benchmarks.unbatched WITHOUT node ...`.

WITHOUT is `batching` (every entry has a write and a sync of the disk, a message and an envelope of
its own), `pipelining` (the next message leaves when the last is answered) or `both`.  That neither
is a setting of the product is on purpose: nobody has a use for it but whoever asks what they bring.
"""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from mountfs.cli import main
from mountfs.meta import server
from mountfs.raft.config import Config
from mountfs.raft.driver import Group, Node
from mountfs.raft.envelope import open_, seal
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
                self._pump_all()
                self._send_all()
                self._sync()
                self._synced()

    def _send_all(self) -> None:
        outbox, self._outbox = self._outbox, {}
        for node, messages in outbox.items():
            for one in messages:
                self._outbox = {node: [one]}
                super()._send_all()


def run(without: str, argv: list[str]) -> int:
    assert without in ("batching", "pipelining", "both"), without
    instead: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    if without != "pipelining":
        instead["Node"] = Unbatched
        limits["append_entries_max"] = 1
    if without != "batching":
        limits["inflight_messages_max"] = 1
    assert {"Node", "Config"} <= set(vars(server))
    vars(server).update(instead, Config=partial(Config, **limits))
    return main.main(argv)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2:]))
