"""What a server knows: the figures that elections, replication, membership and reads work on."""

from collections import deque
from collections.abc import Callable
from enum import Enum

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.raft.config import Config
from mountfs.raft.log import Log
from mountfs.raft.messages import NOBODY, HardState, Membership, Message, NodeId
from mountfs.raft.progress import Progress
from mountfs.types import LogIndex


class Role(Enum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    """It asks whether it could win, before it disturbs anybody (thesis 9.6)."""
    CANDIDATE = "candidate"
    LEADER = "leader"


class Read(msgspec.Struct, frozen=True, array_like=True):
    """A read that waits to know how far the state must have come."""

    source: NodeId
    """Who asked: ourselves, or a follower."""
    request: int


NEVER = 1 << 62
"""A time that does not come."""


class State:
    """`random(n)` is a number from 0 to n - 1."""

    def __init__(
        self,
        node: NodeId,
        config: Config,
        log: Log,
        hard: HardState,
        random: Callable[[int], int],
        now: int,
    ) -> None:
        self.node = node
        self.config = config
        self.log = log
        self.random = random
        self.now = now
        """Milliseconds, as told last.  Only grows."""
        self.term = hard.term
        self.vote = hard.vote
        self.role = Role.FOLLOWER
        self.leader = NOBODY
        """Who leads in this term, as far as we know."""
        self.leader_heard = now if hard.term else now - config.election_ms
        """When a leader was last heard.  A server that starts does not know whom it heard before
        it went down: for the sake of leases it refuses votes as if that were just now.
        """
        self.deadline = now + config.election_ms + random(config.election_ms)
        """When to stand for election, unless a leader is heard."""
        self.resting = False
        """Nothing happens in the group: no heartbeats, and nobody stands (`rest`)."""
        self.active_at = now
        """When something happened last."""
        self.votes: dict[NodeId, bool] = {}
        """Of our election."""

        # A leader's:
        self.peers: dict[NodeId, Progress] = {}
        """All others that are in force."""
        self.heartbeat_at = 0
        self.round = 0
        """Of heartbeats; numbered through all terms."""
        self.rounds_sent: list[tuple[int, int]] = []
        """(round, when) of those that no quorum has answered yet, and the last that one has."""
        self.leased = True
        """Whether a quorum's answer is worth a lease: not after we asked somebody to take over."""
        self.waiting: list[tuple[int, LogIndex, Read]] = []
        """Reads that wait for a quorum to answer a round, and the index that will be theirs."""
        self.unproven: list[Read] = []
        """Reads that wait for the first entry of our term to be committed."""
        self.transferee = NOBODY
        self.transfer_deadline = 0
        self.uncommitted: deque[tuple[LogIndex, int]] = deque()
        """Proposals: the last entry of each, and its size."""
        self.uncommitted_bytes = 0
        """Of those."""

        # What is to be told outside:
        self.outbox: list[Message] = []
        self.reads: list[tuple[int, LogIndex]] = []
        """(request, index): may be answered once that is applied."""
        self.refused: list[int] = []
        """Reads that have to be asked again, of somebody else."""
        self.snapshots: list[NodeId] = []
        """Who needs one from us."""

    @property
    def membership(self) -> Membership:
        return self.log.membership

    @property
    def is_leader(self) -> bool:
        return self.role is Role.LEADER

    @property
    def is_alone(self) -> bool:
        """Whether we are a quorum by ourselves."""
        return not self.membership.is_joint and self.membership.voters == (self.node,)

    @property
    def hard(self) -> HardState:
        return HardState(self.term, self.vote, self.log.committed)

    @property
    def proven(self) -> bool:
        """Whether we have committed an entry of our term: only then is `committed` known to be all
        that ever was (paper 8).
        """
        return self.log.term(self.log.committed) == self.term

    def send(self, message: Message) -> None:
        assert message.target != self.node, message
        self.outbox.append(message)

    def require_leader(self) -> None:
        if not self.is_leader:
            raise not_leader(self.leader)

    def reset_deadline(self) -> None:
        """By chance, so that two do not stand at once for ever (paper 5.2)."""
        election_ms = self.config.election_ms
        self.deadline = self.now + election_ms + self.random(election_ms)


def not_leader(leader: NodeId) -> FsError:
    where = f"node {leader} leads" if leader else "nobody is known to lead"
    return FsError(Fault.NOT_LEADER, f"this node does not lead its group; {where}")
