"""What a leader knows of a peer's log, and how much it has under way to it."""

from collections import deque
from enum import Enum

from mountfs.raft.config import Config
from mountfs.raft.log import ENTRY_OVERHEAD_BYTES
from mountfs.raft.messages import Entry, NodeId
from mountfs.types import LogIndex


class Flow(Enum):
    PROBE = "probe"
    """We do not know where its log agrees with ours: one message, then wait for the answer."""
    REPLICATE = "replicate"
    """It agrees: messages leave before the last is answered (thesis 10.2.1)."""
    SNAPSHOT = "snapshot"
    """What it lacks is no longer in our log."""


class Progress:
    """Invariant: match < next."""

    def __init__(self, node: NodeId, next: LogIndex, now: int) -> None:
        self.node = node
        self.flow = Flow.PROBE
        self.match = LogIndex(0)
        """The last entry that is known to be in its log, on its disk."""
        self.next = next
        """The next entry to send."""
        self.heard = now
        """When it last answered, by our clock; a new leader gives everybody the benefit."""
        self.nudged = now
        """When it was last asked whether something was lost."""
        self.answered_round = 0
        """The last round of heartbeats that it answered."""
        self.committed_sent = LogIndex(0)
        """The highest commit index that it was told."""
        self.probing = False
        """A probe is under way."""
        self.snapshot = LogIndex(0)
        """The index of the snapshot that is under way."""
        self.retry_snapshot_at = 0
        self._inflight: deque[tuple[LogIndex, int]] = deque()
        self._inflight_bytes = 0

    def may_send(self, config: Config) -> bool:
        if self.flow is Flow.SNAPSHOT:
            return False
        if self.flow is Flow.PROBE:
            return not self.probing
        return (
            len(self._inflight) < config.inflight_messages_max
            and self._inflight_bytes < config.inflight_bytes_max
        )

    def sent(self, entries: tuple[Entry, ...]) -> None:
        """An Append with these is on its way."""
        if self.flow is Flow.PROBE:
            self.probing = True
        elif entries:
            last = entries[-1].index
            self.next = LogIndex(last + 1)
            size = sum(len(entry.data) + ENTRY_OVERHEAD_BYTES for entry in entries)
            self._inflight.append((last, size))
            self._inflight_bytes += size

    def matched(self, index: LogIndex) -> bool:
        """It has everything up to `index`.  Returns whether that is news."""
        while self._inflight and self._inflight[0][0] <= index:
            self._inflight_bytes -= self._inflight.popleft()[1]
        news = index > self.match
        self.match = max(self.match, index)
        self.next = max(self.next, LogIndex(index + 1))
        assert self.match < self.next, (self.match, self.next)
        return news

    def replicate(self) -> None:
        self._become(Flow.REPLICATE)
        self.next = LogIndex(self.match + 1)

    def probe(self, next: LogIndex) -> None:
        """Find out where the logs agree, from `next` on."""
        self._become(Flow.PROBE)
        self.next = max(next, LogIndex(self.match + 1))

    def send_snapshot(self, index: LogIndex) -> None:
        self._become(Flow.SNAPSHOT)
        self.snapshot = index

    def _become(self, flow: Flow) -> None:
        self.flow = flow
        self.probing = False
        self.snapshot = LogIndex(0)
        self._inflight.clear()
        self._inflight_bytes = 0

    @property
    def inflight(self) -> int:
        """Messages that are not answered yet."""
        return len(self._inflight)
