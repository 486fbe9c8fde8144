"""What servers say to each other, and what they keep.

Every message carries the term of its sender (paper 5.1).  A message may be lost, doubled, delayed
and overtaken: no rule relies on more.
"""

from enum import IntEnum
from typing import NewType

import msgspec

from mountfs.types import LogIndex

NodeId = NewType("NodeId", int)
"""Number of a server: 1 and up, never given to another one.  0: nobody."""

Term = NewType("Term", int)
"""Terms number the elections; there is at most one leader in a term.  0: before the first."""

NOBODY = NodeId(0)


class EntryKind(IntEnum):
    COMMAND = 0
    """Data for the state machine."""
    EMPTY = 1
    """A new leader's first, so that there is one of its own term to commit (paper 8)."""
    MEMBERSHIP = 2
    """Data is a `Membership`, in force from the moment it is in the log (paper 6)."""


class Entry(msgspec.Struct, frozen=True, array_like=True):
    index: LogIndex
    term: Term
    kind: EntryKind
    data: bytes


class Membership(msgspec.Struct, frozen=True, array_like=True):
    """Who counts.  While `outgoing` is not empty, two memberships are in force and every decision
    needs a majority of both (joint consensus, paper 6).
    """

    voters: tuple[NodeId, ...]
    outgoing: tuple[NodeId, ...] = ()
    """The voters that were, during a change."""
    learners: tuple[NodeId, ...] = ()
    """They get the log and count for nothing (thesis 4.2.1)."""

    @property
    def is_joint(self) -> bool:
        return bool(self.outgoing)

    @property
    def everyone(self) -> frozenset[NodeId]:
        return frozenset((*self.voters, *self.outgoing, *self.learners))

    def votes(self, node: NodeId) -> bool:
        return node in self.voters or node in self.outgoing


class HardState(msgspec.Struct, frozen=True, array_like=True):
    """What must be on disk before a promise is made (paper figure 2, persistent state)."""

    term: Term = Term(0)
    vote: NodeId = NOBODY
    """Who got our vote in this term."""
    committed: LogIndex = LogIndex(0)
    """A hint that saves time after a restart; it may lag behind."""


class SnapshotHead(msgspec.Struct, frozen=True, array_like=True):
    """Where a snapshot of the state machine stands in the log."""

    index: LogIndex
    term: Term
    membership: Membership


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    source: NodeId
    target: NodeId
    term: Term


class Vote(Message, frozen=True, array_like=True):
    """RequestVote of the paper (5.2); with `pre`, the question whether it would be granted, at the
    term that would be next (thesis 9.6).
    """

    last_index: LogIndex
    last_term: Term
    pre: bool = False
    called: bool = False
    """The leader asked for this election (thesis 3.10): its good health is no reason to refuse."""


class VoteReply(Message, frozen=True, array_like=True):
    granted: bool
    pre: bool = False


class Append(Message, frozen=True, array_like=True):
    """AppendEntries of the paper (5.3)."""

    prev_index: LogIndex
    prev_term: Term
    entries: tuple[Entry, ...]
    committed: LogIndex


class AppendReply(Message, frozen=True, array_like=True):
    """Taken up to `index`; or, `rejected`, the entry before does not match."""

    index: LogIndex
    """The last that matches and is on disk; of a rejection, the `prev_index` that was refused."""
    rejected: bool = False
    hint_index: LogIndex = LogIndex(0)
    """Of a rejection: the last place where the logs may agree, and the term of our entry there."""
    hint_term: Term = Term(0)


class Heartbeat(Message, frozen=True, array_like=True):
    committed: LogIndex
    """Never more than what the target is known to have."""
    round: int
    """Comes back in the answer: what was asked before it was sent may rely on it (thesis 6.4)."""
    rest: bool = False
    """The last one for now: the leader rests, and so may the target if it lacks nothing."""


class HeartbeatReply(Message, frozen=True, array_like=True):
    round: int


class InstallSnapshot(Message, frozen=True, array_like=True):
    """The state machine up to `head` lies complete at the target, on disk: the shell has brought it
    there in pieces (paper 7).
    """

    head: SnapshotHead


class TimeoutNow(Message, frozen=True, array_like=True):
    """Stand for election at once (thesis 3.10)."""


class ReadIndex(Message, frozen=True, array_like=True):
    """A follower asks how far it must have applied to answer a read (thesis 6.4)."""

    request: int


class ReadIndexReply(Message, frozen=True, array_like=True):
    request: int
    index: LogIndex


AnyMessage = (
    Vote
    | VoteReply
    | Append
    | AppendReply
    | Heartbeat
    | HeartbeatReply
    | InstallSnapshot
    | TimeoutNow
    | ReadIndex
    | ReadIndexReply
)
"""For decoding."""


def encode_membership(membership: Membership) -> bytes:
    return msgspec.msgpack.encode(membership)


def decode_membership(data: bytes) -> Membership:
    return msgspec.msgpack.decode(data, type=Membership)
