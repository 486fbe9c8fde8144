"""The log becomes the same everywhere (paper 5.3), and what a quorum has is committed (5.4.2).

In batches, as large as a message may be; and pipelined: once the place is known where a peer's log
agrees with ours, the next batch leaves before the last is answered (thesis 10.2.1).
"""

from collections.abc import Sequence

from mountfs.errors import Fault, FsError
from mountfs.raft import quorum
from mountfs.raft.log import ENTRY_OVERHEAD_BYTES
from mountfs.raft.messages import (
    Append,
    AppendReply,
    Entry,
    EntryKind,
    Heartbeat,
    InstallSnapshot,
    NodeId,
    TimeoutNow,
)
from mountfs.raft.progress import Flow, Progress
from mountfs.raft.state import State
from mountfs.types import LogIndex

# -- a leader's side


def track_peers(state: State, next: LogIndex) -> None:
    """Know of everybody who is in force, and of nobody else; newcomers are asked about `next`."""
    everyone = state.membership.everyone
    for node in sorted(everyone - {state.node}):
        if node not in state.peers:
            state.peers[node] = Progress(node, next, state.now)
    for node in state.peers.keys() - everyone:
        del state.peers[node]


def propose(state: State, commands: Sequence[bytes]) -> LogIndex:
    """Add commands to the log; returns the index of the first.  Raises NOT_LEADER, or BUSY when
    too much is not committed yet or somebody else is about to lead.
    """
    state.require_leader()
    if state.transferee:
        raise FsError(Fault.BUSY, f"node {state.transferee} is about to lead")
    size = sum(len(command) + ENTRY_OVERHEAD_BYTES for command in commands)
    if state.uncommitted_bytes and (
        state.uncommitted_bytes + size > state.config.uncommitted_bytes_max
    ):
        raise FsError(
            Fault.BUSY, f"{state.uncommitted_bytes} bytes wait for a majority; try again later"
        )
    first = append(state, EntryKind.COMMAND, commands)
    state.uncommitted.append((state.log.last_index, size))
    state.uncommitted_bytes += size
    return first


def append(state: State, kind: EntryKind, data: Sequence[bytes]) -> LogIndex:
    """Append entries of our term, and let everybody have them.  Returns the index of the first."""
    first = LogIndex(state.log.last_index + 1)
    state.log.append(
        [Entry(LogIndex(first + at), state.term, kind, one) for at, one in enumerate(data)]
    )
    broadcast(state)
    return first


def broadcast(state: State) -> None:
    for peer in state.peers.values():
        _send_all(state, peer)


def _send_all(state: State, peer: Progress) -> None:
    """What the window has room for."""
    while peer.next <= state.log.last_index and peer.may_send(state.config):
        if not _send_append(state, peer):
            return


def _send_append(state: State, peer: Progress) -> bool:
    log = state.log
    previous = LogIndex(peer.next - 1)
    previous_term = log.term(previous)
    if previous_term is None:
        _need_snapshot(state, peer)
        return False
    config = state.config
    entries = log.entries(
        peer.next,
        LogIndex(log.last_index + 1),
        config.append_bytes_max,
        config.append_entries_max,
    )
    state.send(
        Append(state.node, peer.node, state.term, previous, previous_term, entries, log.committed)
    )
    peer.committed_sent = max(peer.committed_sent, log.committed)
    peer.sent(entries)
    return bool(entries)


def _ask(state: State, peer: Progress) -> None:
    """Whether all that was sent has arrived: an empty Append, for which a full window has room."""
    previous = LogIndex(peer.next - 1)
    term = state.log.term(previous)
    if term is None:
        _need_snapshot(state, peer)
    else:
        committed = state.log.committed
        state.send(Append(state.node, peer.node, state.term, previous, term, (), committed))


def _need_snapshot(state: State, peer: Progress) -> None:
    if state.now < peer.retry_snapshot_at:
        return
    peer.send_snapshot(state.log.applied)
    state.snapshots.append(peer.node)


def retry_snapshots(state: State) -> None:
    for peer in state.peers.values():
        if peer.flow is Flow.PROBE and 0 < peer.retry_snapshot_at <= state.now:
            peer.retry_snapshot_at = 0
            _send_all(state, peer)


def snapshot_sent(state: State, node: NodeId, *, whole: bool) -> None:
    """The transfer that `snapshots` asked for has ended."""
    peer = state.peers.get(node)
    if peer is None or peer.flow is not Flow.SNAPSHOT:
        return
    if whole:
        # Its answer says what it has; until then, look whether what follows is taken.
        peer.probe(LogIndex(peer.snapshot + 1))
        peer.retry_snapshot_at = 0
    else:
        peer.probe(LogIndex(peer.match + 1))
        peer.retry_snapshot_at = state.now + state.config.snapshot_retry_ms


def unreachable(state: State, node: NodeId) -> None:
    """What is under way to a peer may be lost."""
    peer = state.peers.get(node)
    if peer is not None and peer.flow is Flow.REPLICATE:
        peer.probe(LogIndex(peer.match + 1))


def nudge(state: State, node: NodeId) -> None:
    """A peer is alive but lacks entries: whatever was under way to it may be lost."""
    peer = state.peers.get(node)
    if not state.is_leader or peer is None or peer.match >= state.log.last_index:
        return
    if peer.flow is Flow.SNAPSHOT or peer.retry_snapshot_at > state.now:
        return
    if state.now < peer.nudged + state.config.heartbeat_ms // 2:
        return  # rounds for reads may be many, and its disk slow
    peer.nudged = state.now
    if peer.flow is Flow.PROBE:
        peer.probing = False
        _send_append(state, peer)
        return
    _send_all(state, peer)
    if peer.flow is Flow.REPLICATE:
        _ask(state, peer)


def on_append_reply(state: State, message: AppendReply) -> None:
    peer = state.peers.get(message.source)
    if not state.is_leader or peer is None:
        return
    peer.heard = state.now
    if message.rejected:
        _back_up(state, peer, message)
    else:
        _advance(state, peer, message.index)


def _back_up(state: State, peer: Progress, message: AppendReply) -> None:
    """Its log parts from ours somewhere before: go back by terms, not by entries (paper 5.3)."""
    if message.index <= peer.match:
        return  # of long ago
    if peer.flow is Flow.PROBE and message.index != peer.next - 1:
        return
    if peer.flow is Flow.SNAPSHOT:
        return
    agreed, _ = state.log.agrees_up_to(message.hint_index, message.hint_term)
    peer.probe(LogIndex(min(agreed, message.index - 1) + 1))
    _probe(state, peer)


def _probe(state: State, peer: Progress) -> None:
    """One message that must be answered, even without entries."""
    if peer.may_send(state.config):
        _send_append(state, peer)


def _advance(state: State, peer: Progress, index: LogIndex) -> None:
    news = peer.matched(index)
    enough = state.log.base if peer.flow is Flow.SNAPSHOT else peer.match
    if peer.flow is not Flow.REPLICATE and index >= enough:
        peer.replicate()
    if news:
        commit(state)
    _send_all(state, peer)
    if peer.node == state.transferee and peer.match == state.log.last_index:
        call_election(state, peer)


def commit(state: State) -> None:
    """Commit what a quorum has on disk: only by counting entries of our own term; earlier ones come
    with them (paper 5.4.2 and figure 8).
    """
    peers = state.peers
    log = state.log
    index = quorum.agreed(
        state.membership,
        lambda node: log.saved if node == state.node else peers[node].match,
        nothing=LogIndex(0),
    )
    if log.term(index) == state.term:
        log.commit_to(index)
    while state.uncommitted and state.uncommitted[0][0] <= log.committed:
        state.uncommitted_bytes -= state.uncommitted.popleft()[1]


def transfer(state: State, target: NodeId) -> None:
    """Let `target` lead.  Raises NOT_LEADER, INVALID; BUSY while another transfer goes on."""
    state.require_leader()
    peer = state.peers.get(target)
    if target == state.node:
        return
    if peer is None or target not in state.membership.voters:
        raise FsError(Fault.INVALID, f"node {target} is no voter, so it cannot lead")
    if state.transferee and state.transferee != target:
        raise FsError(Fault.BUSY, f"node {state.transferee} is about to lead")
    state.transferee = target
    state.transfer_deadline = state.now + state.config.election_ms
    if peer.match == state.log.last_index:
        call_election(state, peer)
    else:
        _probe(state, peer)


def call_election(state: State, peer: Progress) -> None:
    """It will win without the others waiting for us to fall silent: a lease means nothing now."""
    state.leased = False
    state.send(TimeoutNow(state.node, peer.node, state.term))


# -- a follower's side


def on_append(state: State, message: Append) -> None:
    log = state.log
    if message.prev_index < log.committed:
        # An old message: up to here there can be no conflict, and the leader may go on from here.
        _accept(state, message.source, log.committed)
        return
    last = log.take(message.prev_index, message.prev_term, message.entries)
    if last is None:
        hint_index, hint_term = log.agrees_up_to(message.prev_index, message.prev_term)
        state.send(
            AppendReply(
                state.node,
                message.source,
                state.term,
                message.prev_index,
                True,
                hint_index,
                hint_term,
            )
        )
        return
    log.commit_to(min(message.committed, last))
    _accept(state, message.source, last)


def _accept(state: State, leader: NodeId, index: LogIndex) -> None:
    state.send(AppendReply(state.node, leader, state.term, index))


def on_heartbeat(state: State, message: Heartbeat) -> None:
    state.log.commit_to(min(message.committed, state.log.last_index))


def on_snapshot(state: State, message: InstallSnapshot) -> bool:
    """Whether it is to be installed: not what we have, or had once (paper 7)."""
    log, head = state.log, message.head
    if head.index <= log.committed:
        _accept(state, message.source, log.committed)
        return False
    if log.matches(head.index, head.term):  # we have all of it as entries
        log.commit_to(head.index)
        _accept(state, message.source, head.index)
        return False
    log.restore(head)
    _accept(state, message.source, head.index)
    return True


def stale_leader(state: State, source: NodeId) -> None:
    """Somebody leads in a term that is over: it learns that from the term of an answer."""
    state.send(AppendReply(state.node, source, state.term, LogIndex(0), True))
