"""What may be answered from the state, without an entry in the log (thesis 6.4).

The leader notes its commit index and makes sure that it still led after that: a quorum answers a
round of heartbeats that began later, or holds a lease.  All reads that come meanwhile share the
next round.
"""

from contextlib import suppress

from mountfs.errors import Fault, FsError
from mountfs.raft import quorum
from mountfs.raft.messages import (
    Heartbeat,
    HeartbeatReply,
    ReadIndex,
    ReadIndexReply,
)
from mountfs.raft.state import Read, State, not_leader
from mountfs.types import LogIndex


def ask(state: State, request: int) -> None:
    """A read of our own.  Raises NOT_LEADER when nobody leads, BUSY when too many wait."""
    if state.is_leader:
        _take(state, Read(state.node, request))
    elif state.leader:
        state.send(ReadIndex(state.node, state.leader, state.term, request))
    else:
        raise not_leader(state.leader)


def on_read_index(state: State, message: ReadIndex) -> None:
    if state.is_leader:
        with suppress(FsError):  # too many wait: the follower asks again when its patience ends
            _take(state, Read(message.source, message.request))


def on_read_index_reply(state: State, message: ReadIndexReply) -> None:
    state.reads.append((message.request, message.index))


def _take(state: State, read: Read) -> None:
    if len(state.waiting) + len(state.unproven) >= state.config.reads_pending_max:
        raise FsError(Fault.BUSY, "too many reads wait for a majority; try again later")
    if not state.proven:
        state.unproven.append(read)
    elif (index := at_once(state)) is not None:
        _answer(state, read, index)
    else:
        _wait(state, read)


def at_once(state: State) -> LogIndex | None:
    """The index for a read that need not wait to know it."""
    if state.is_leader and state.proven and (state.is_alone or has_lease(state)):
        return state.log.committed
    return None


def _wait(state: State, read: Read) -> None:
    """For a round that begins now; while one is under way, for the one after it."""
    under_way = bool(state.rounds_sent) and state.rounds_sent[-1][0] > _answered_round(state)
    state.waiting.append((state.round + 1, state.log.committed, read))
    if not under_way:
        begin_round(state)


def proven(state: State) -> None:
    """The first entry of our term is committed."""
    held, state.unproven = state.unproven, []
    for read in held:
        _take(state, read)


def _answer(state: State, read: Read, index: LogIndex) -> None:
    if read.source == state.node:
        state.reads.append((read.request, index))
    else:
        state.send(ReadIndexReply(state.node, read.source, state.term, read.request, index))


# -- rounds of heartbeats


def begin_round(state: State, *, rest: bool = False) -> None:
    """Ask everybody whether we still lead; with `rest`, for the last time for now."""
    _forget(state, _answered_round(state))
    state.round += 1
    state.rounds_sent.append((state.round, state.now))
    # On the beat: those of all groups of a node go together, in one envelope.
    beat = state.config.heartbeat_ms
    state.heartbeat_at = (state.now // beat + 1) * beat
    for peer in state.peers.values():
        known = min(peer.match, state.log.committed)
        state.send(Heartbeat(state.node, peer.node, state.term, known, state.round, rest))
    _answer_waiting(state, _answered_round(state))  # nobody else may be left to confirm them


def answer_round(state: State, message: Heartbeat) -> None:
    state.send(HeartbeatReply(state.node, message.source, state.term, message.round))


def on_heartbeat_reply(state: State, message: HeartbeatReply) -> None:
    peer = state.peers.get(message.source)
    if not state.is_leader or peer is None:
        return
    peer.heard = state.now
    peer.answered_round = max(peer.answered_round, message.round)
    answered = _answered_round(state)
    _forget(state, answered)
    _answer_waiting(state, answered)
    if answered == state.round and state.waiting:  # for the next one
        begin_round(state)


def _answer_waiting(state: State, answered: int) -> None:
    ready = [one for one in state.waiting if one[0] <= answered]
    if ready:
        state.waiting = [one for one in state.waiting if one[0] > answered]
        for _, index, read in ready:
            _answer(state, read, index)


def _forget(state: State, answered: int) -> None:
    """The rounds before: a lease runs from the last that was answered."""
    sent = state.rounds_sent
    while len(sent) > 1 and sent[1][0] <= answered:
        del sent[0]


def _answered_round(state: State) -> int:
    """The last round that a quorum has answered."""
    peers = state.peers
    return quorum.agreed(
        state.membership,
        lambda node: state.round if node == state.node else peers[node].answered_round,
        nothing=0,
    )


# -- the lease


def has_lease(state: State) -> bool:
    """Whether nobody else can lead now: a quorum answered a round that was sent less than
    `lease_ms` ago, and until then its members elect nobody (thesis 6.4.1).
    """
    if not (state.config.lease_reads and state.leased and state.rounds_sent):
        return False
    number, sent_at = state.rounds_sent[0]
    return number <= _answered_round(state) and state.now < sent_at + state.config.lease_ms


def forget_lease(state: State) -> None:
    """Answers to rounds that were sent before now are worth no lease."""
    state.rounds_sent = []
    for peer in state.peers.values():
        assert peer.answered_round <= state.round, (peer.answered_round, state.round)


def give_up(state: State) -> None:
    """We do not lead: whoever waits has to ask again.  (A follower's request runs into its own
    deadline.)
    """
    for read in (*(read for _, _, read in state.waiting), *state.unproven):
        if read.source == state.node:
            state.refused.append(read.request)
    state.waiting = []
    state.unproven = []
    state.rounds_sent = []
