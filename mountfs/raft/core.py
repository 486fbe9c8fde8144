"""A server of a group, as a machine without I/O: tell it what happened, do what `ready` says.

The order is the contract:

1. `Ready.now` may be sent at once.
2. `Ready.save` goes to disk, after all earlier saves; then `saved` is called with it.
3. `Ready.after` is sent when this and all earlier saves are on disk: it promises what they hold.
4. `Ready.committed` is applied, in order; then `applied` is called.

1, 2 and 4 may go on side by side, and `ready` may be called again meanwhile: that is what makes the
log pipelined.
"""

from collections.abc import Callable, Sequence

import msgspec

from mountfs.raft import election, membership, reads, replication, rest
from mountfs.raft.config import Config
from mountfs.raft.log import Log, LogReader, StoredLog
from mountfs.raft.messages import (
    NOBODY,
    Append,
    AppendReply,
    Entry,
    HardState,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    NodeId,
    ReadIndex,
    ReadIndexReply,
    SnapshotHead,
    Term,
    TimeoutNow,
    Vote,
    VoteReply,
)
from mountfs.raft.state import Role, State
from mountfs.types import LogIndex


class Save(msgspec.Struct, frozen=True):
    """What has to be on disk before `Ready.after` is sent."""

    hard: HardState | None
    entries: tuple[Entry, ...]
    """They take the place of all that the log has from the index of the first on."""
    snapshot: SnapshotHead | None
    """The log is empty behind it; entries, if any, come after."""
    synced: bool
    """Whether it must survive a power loss: not if only the commit index is new."""
    last_index: LogIndex
    cuts: int


class Ready(msgspec.Struct, frozen=True):
    save: Save | None
    now: tuple[Message, ...]
    after: tuple[Message, ...]
    committed: tuple[Entry, ...]
    reads: tuple[tuple[int, LogIndex], ...]
    """(request, index): may be answered from a state that has applied `index`."""
    refused: tuple[int, ...]
    """Reads that must be asked again."""
    snapshots: tuple[NodeId, ...]
    """Who needs a snapshot; `snapshot_sent` says how it went.  The `InstallSnapshot` at its end has
    the term of now, when we lead, not that of when it is sent.
    """


_PROMISES = (Vote, VoteReply, AppendReply)
"""What says that something is on disk: a vote (a candidate's own too), or entries."""


class Raft:
    """`applied`: how far the state machine on disk has come.  `random(n)`: from 0 to n - 1."""

    def __init__(
        self,
        node: NodeId,
        config: Config,
        stored: StoredLog,
        hard: HardState,
        applied: LogIndex,
        reader: LogReader,
        *,
        random: Callable[[int], int],
        now: int,
    ) -> None:
        log = Log(stored, reader, cached_bytes_max=config.cached_bytes_max)
        log.start_at(hard.committed, applied)
        self._state = State(node, config, log, hard, random, now)
        self._handed = hard
        """The hard state that was handed out last."""
        self._saved_term = hard.term
        """The term that is on disk."""
        self._restored: SnapshotHead | None = None

    # -- what happens

    def tick(self, now: int) -> None:
        """It is so late, in milliseconds of a clock that does not go backwards or stand still."""
        self._clock(now)
        election.tick(self._state)
        self._settle()

    def step(self, message: Message, now: int) -> None:
        """A message came."""
        state = self._state
        self._clock(now)
        assert message.target == state.node, (message, state.node)
        if message.source == state.node:
            return
        if not isinstance(message, Heartbeat | HeartbeatReply):
            rest.wake(state)  # before anybody asks whether a leader is heard
        if message.term > state.term:
            if not self._later_term(message):
                return
        elif message.term < state.term:
            self._earlier_term(message)
            return
        self._dispatch(message)
        self._settle()

    def propose(self, commands: Sequence[bytes], now: int) -> tuple[LogIndex, Term]:
        """Put commands into the log: the index of the first, and the term.  They act if entries of
        that term are applied there; if others are, they are gone.  Raises NOT_LEADER or BUSY.
        """
        self._happens(now)
        return replication.propose(self._state, commands), self._state.term

    def read(self, request: int, now: int) -> None:
        """A read wants to know how far the state must be: `Ready.reads` has the answer, or
        `Ready.refused`; neither may come, if a message is lost.  Raises NOT_LEADER or BUSY.

        `request`: a number that this server has not used before, not before a restart either: the
        answer to an older one may come late, with an index that is too low.
        """
        self._happens(now)
        reads.ask(self._state, request)
        self._settle()

    def read_now(self, now: int) -> LogIndex | None:
        """How far the state must be for a read to be answered at once, if a lease or being alone
        allows that; or else `read` has to be asked.
        """
        self._clock(now)
        index = reads.at_once(self._state)
        if index is not None:
            self._state.active_at = self._state.now
        return index

    def change_membership(
        self, voters: Sequence[NodeId], learners: Sequence[NodeId], now: int
    ) -> None:
        """Raises NOT_LEADER, BUSY or INVALID, and changes nothing then."""
        self._happens(now)
        membership.change(self._state, frozenset(voters), frozenset(learners))
        self._settle()

    def transfer(self, target: NodeId, now: int) -> None:
        """Let another one lead.  Raises NOT_LEADER, BUSY or INVALID."""
        self._happens(now)
        replication.transfer(self._state, target)

    def campaign(self, now: int) -> None:
        """Stand for election without waiting, if nobody leads: for a group of one at its start.

        Others wait as long as a leader that was heard, perhaps before a restart, may hold a lease.
        """
        self._clock(now)
        state = self._state
        free = state.is_alone or not election.hears_a_leader(state)
        if election.may_stand(state) and not state.leader and free:
            election.campaign(state, pre=True)
            self._settle()

    def unreachable(self, node: NodeId, now: int) -> None:
        """The connection with it is lost, and so may be what was sent."""
        self._clock(now)
        replication.unreachable(self._state, node)
        rest.lost(self._state, node)

    def snapshot_sent(self, node: NodeId, *, whole: bool, now: int) -> None:
        """A snapshot that was asked for is at its target, and an `InstallSnapshot` was stepped
        there; or it failed.
        """
        self._clock(now)
        replication.snapshot_sent(self._state, node, whole=whole)

    def saved(self, save: Save) -> None:
        """A `Ready.save` is on disk."""
        state = self._state
        if save.hard is not None:
            self._saved_term = max(self._saved_term, save.hard.term)
        state.log.saved_to(save.last_index, save.cuts)
        if state.is_leader:
            replication.commit(state)
        self._settle()

    def applied(self, index: LogIndex) -> None:
        """The state machine has taken in everything up to `index`."""
        self._state.log.applied_to(index)

    def compacted(self, index: LogIndex) -> None:
        """The log was shortened: entries up to `index` are no longer there."""
        self._state.log.compacted(index)

    # -- what to do

    def ready(self) -> Ready:
        """All that is to be done now.  Each thing is said once.  Raises CORRUPT or DEVICE if what
        is to be applied cannot be read back: then nothing has been said.
        """
        state = self._state
        committed = state.log.take_committed(state.config.apply_bytes_max)
        save = self._take_save()
        now, after = self._sort(state.outbox)
        ready = Ready(
            save,
            now,
            after,
            committed,
            tuple(state.reads),
            tuple(state.refused),
            tuple(state.snapshots),
        )
        state.outbox, state.reads, state.refused, state.snapshots = [], [], [], []
        return ready

    def _take_save(self) -> Save | None:
        state = self._state
        hard = state.hard
        entries = state.log.take_unsaved()
        restored, self._restored = self._restored, None
        if hard == self._handed and not entries and restored is None:
            return None
        synced = bool(entries) or restored is not None
        synced = synced or (hard.term, hard.vote) != (self._handed.term, self._handed.vote)
        if not synced and hard.committed - self._handed.committed < _COMMITS_UNSAVED:
            return None
        changed = hard if hard != self._handed else None
        self._handed = hard
        return Save(changed, entries, restored, synced, state.log.last_index, state.log.cuts)

    def _sort(self, outbox: list[Message]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
        """What may be sent at once, and what after the save.

        Nothing may say a term that is not on disk: after a crash we could be in that term again,
        and say something else.
        """
        if self._saved_term < self._state.term:
            return (), tuple(outbox)
        now = tuple(message for message in outbox if not isinstance(message, _PROMISES))
        after = tuple(message for message in outbox if isinstance(message, _PROMISES))
        return now, after

    # -- what is known

    @property
    def node(self) -> NodeId:
        return self._state.node

    @property
    def term(self) -> Term:
        return self._state.term

    @property
    def role(self) -> Role:
        return self._state.role

    @property
    def leader(self) -> NodeId:
        """Who leads, as far as we know; 0: nobody."""
        return self._state.leader

    @property
    def log(self) -> Log:
        """To look at."""
        return self._state.log

    @property
    def state(self) -> State:
        """To look at: for `status` and for checks."""
        return self._state

    @property
    def wakes_at(self) -> int:
        """When `tick` has something to do, if nothing happens before."""
        state = self._state
        return state.heartbeat_at if state.is_leader else state.deadline

    # -- within

    def _clock(self, now: int) -> None:
        self._state.now = max(self._state.now, now)

    def _happens(self, now: int) -> None:
        """Somebody wants something."""
        self._clock(now)
        rest.wake(self._state)

    def _settle(self) -> None:
        """What follows from a commit."""
        state = self._state
        if state.is_leader and state.proven:
            if state.unproven:
                reads.proven(state)
            membership.committed(state)

    def _later_term(self, message: Message) -> bool:
        """Whether a message of a term that we do not know yet is to be heard (paper 5.1)."""
        state = self._state
        if isinstance(message, Vote):
            if not message.called and election.hears_a_leader(state):
                return False
            if message.pre:
                return True
        if isinstance(message, VoteReply) and message.pre and message.granted:
            return True  # it has the term of a question
        leads = isinstance(message, Append | Heartbeat | InstallSnapshot)
        election.follow(state, message.term, message.source if leads else NOBODY)
        return True

    def _earlier_term(self, message: Message) -> None:
        state = self._state
        if isinstance(message, Append | Heartbeat | InstallSnapshot):
            replication.stale_leader(state, message.source)
        elif isinstance(message, Vote) and message.pre:
            state.send(VoteReply(state.node, message.source, state.term, False, True))

    def _dispatch(self, message: Message) -> None:
        state = self._state
        match message:
            case Append() | Heartbeat() | InstallSnapshot():
                self._hear_leader(message.source)
                self._from_leader(message)
            case AppendReply():
                replication.on_append_reply(state, message)
            case HeartbeatReply():
                reads.on_heartbeat_reply(state, message)
                replication.nudge(state, message.source)
            case Vote():
                election.on_vote(state, message)
            case VoteReply():
                election.on_vote_reply(state, message)
            case TimeoutNow():
                election.on_timeout_now(state, message)
            case ReadIndex():
                reads.on_read_index(state, message)
            case ReadIndexReply():
                reads.on_read_index_reply(state, message)
            case _:
                raise AssertionError(message)

    def _from_leader(self, message: Message) -> None:
        state = self._state
        if isinstance(message, Append):
            replication.on_append(state, message)
        elif isinstance(message, Heartbeat):
            replication.on_heartbeat(state, message)
            reads.answer_round(state, message)
            if message.rest:
                rest.follow(state)
        elif isinstance(message, InstallSnapshot) and replication.on_snapshot(state, message):
            self._restored = message.head

    def _hear_leader(self, leader: NodeId) -> None:
        state = self._state
        if state.role is not Role.FOLLOWER or state.leader != leader:
            election.follow(state, state.term, leader)
        state.leader_heard = state.now
        state.resting = False
        state.reset_deadline()


_COMMITS_UNSAVED = 1_000
"""A commit index that is this much newer is worth a save of its own."""
