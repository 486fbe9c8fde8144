"""What a leader has under way to a peer, against a plain list."""

import msgspec
from group import CONFIG, entry
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mountfs.raft.log import ENTRY_OVERHEAD_BYTES
from mountfs.raft.messages import NodeId
from mountfs.raft.progress import Flow, Progress
from mountfs.types import LogIndex

LIMITS = msgspec.structs.replace(CONFIG, inflight_messages_max=4, inflight_bytes_max=1_000)


class Windows(RuleBasedStateMachine):
    """`sent`: the last entry and the size of each message that is not answered."""

    def __init__(self) -> None:
        super().__init__()
        self.peer = Progress(NodeId(2), LogIndex(1), 0)
        self.sent: list[tuple[int, int]] = []

    def _size(self) -> int:
        return sum(size for _, size in self.sent)

    @precondition(lambda self: self.peer.may_send(LIMITS))
    @rule(sizes=st.lists(st.integers(0, 300), max_size=3))
    def send(self, sizes: list[int]) -> None:
        if self.peer.flow is Flow.REPLICATE:
            assert len(self.sent) < 4
            assert self._size() < 1_000
        first = self.peer.next
        entries = tuple(entry(first + at, 1, b"x" * size) for at, size in enumerate(sizes))
        self.peer.sent(entries)
        if self.peer.flow is Flow.PROBE:
            assert self.peer.next == first  # nobody knows yet whether it is the place
            assert not self.peer.may_send(LIMITS)
        elif entries:
            size = sum(size + ENTRY_OVERHEAD_BYTES for size in sizes)
            self.sent.append((entries[-1].index, size))
            assert self.peer.next == entries[-1].index + 1

    @rule(ahead=st.integers(-3, 6))
    def answered(self, ahead: int) -> None:
        index = LogIndex(max(self.peer.match + ahead, 0))
        news = self.peer.matched(index)
        assert news is (ahead > 0)
        self.sent = [one for one in self.sent if one[0] > index]

    @rule()
    def replicate(self) -> None:
        self.peer.replicate()
        self.sent = []
        assert self.peer.next == self.peer.match + 1

    @rule(back=st.integers(-3, 6))
    def probe(self, back: int) -> None:
        self.peer.probe(LogIndex(self.peer.match + back))
        self.sent = []
        assert self.peer.may_send(LIMITS)

    @rule(ahead=st.integers(1, 9))
    def snapshot(self, ahead: int) -> None:
        self.peer.send_snapshot(LogIndex(self.peer.match + ahead))
        self.sent = []
        assert not self.peer.may_send(LIMITS)

    @invariant()
    def is_as_told(self) -> None:
        assert self.peer.match < self.peer.next
        assert self.peer.inflight == len(self.sent)
        assert self.peer._inflight_bytes == self._size()


Windows.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestWindows = Windows.TestCase
