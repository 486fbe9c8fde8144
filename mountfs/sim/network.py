"""Messages between servers: late, lost, doubled, overtaken, and cut off."""

from collections.abc import Callable

from mountfs.raft.messages import Message, NodeId
from mountfs.sim.world import MS, World


class Network:
    """`deliver(message)` is called when one arrives."""

    def __init__(self, world: World, deliver: Callable[[Message], None]) -> None:
        self._world = world
        self._deliver = deliver
        self.delay_us = MS // 2
        """On average."""
        self.loss = 0.0
        self.doubled = 0.0
        self.straggling = 0.0
        """How many take a hundred times as long as the others."""
        self.snapshot_ms: tuple[int, ...] = (5, 50, 500, 3_000)
        """How long it may take to send one."""
        self.sent: Callable[[Message], None] = lambda message: None
        """Called for each message, after it was sent."""
        self.cut: set[tuple[NodeId, NodeId]] = set()
        """(source, target) pairs between which nothing passes."""

    def send(self, message: Message) -> None:
        lost = (message.source, message.target) in self.cut or self._world.chance(self.loss)
        if not lost:
            self._carry(message)
            if self.doubled and self._world.chance(self.doubled):
                self._carry(message)
        self.sent(message)

    def _carry(self, message: Message) -> None:
        delay = int(self._world.random.expovariate(1 / self.delay_us)) + 100
        if self.straggling and self._world.chance(self.straggling):
            delay *= 100
        self._world.after(delay, lambda: self._arrive(message))

    def _arrive(self, message: Message) -> None:
        if (message.source, message.target) not in self.cut:
            self._world.note_message(message)
            self._deliver(message)

    def connects(self, one: NodeId, other: NodeId) -> bool:
        """Both ways."""
        return (one, other) not in self.cut and (other, one) not in self.cut

    def heal(self) -> None:
        self.cut.clear()
