"""The servers of all groups on one node: the loop around the cores.

What happens (a message, a proposal, the clock, the disk) is told to a core at once.  What follows
from proposals is done by one task, after everything else that has happened by then: so what comes
together goes on together, with one append and one sync for all proposals and all groups that wait,
and one envelope for each node.  What follows from messages is done in place, for they come together
already; and so is a proposal that comes alone, as long as that is how they come.

Everything runs in the Trio thread, but for syncs of the disk.
"""

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol

import msgspec
import trio

from mountfs.errors import Fault, FsError
from mountfs.raft.config import Config
from mountfs.raft.core import Raft, Ready, Save
from mountfs.raft.envelope import open_, seal
from mountfs.raft.figures import Figures
from mountfs.raft.log_record import GroupId
from mountfs.raft.messages import (
    NOBODY,
    Entry,
    EntryKind,
    InstallSnapshot,
    Message,
    NodeId,
    SnapshotHead,
    Term,
)
from mountfs.raft.storage import Storage
from mountfs.types import LogIndex

log = logging.getLogger(__name__)

QUICK_SYNC_S: Final = 0.008
"""A disk that usually syncs in less is waited for in place: a thread has to be woken and to wake
us, which costs a lone commit a third of its time, and meanwhile more cannot be done than gather for
the next sync.
"""
USUAL_OF: Final = 8
"""So many syncs, about, make the usual time; one counts for `SYNC_S_MAX` at most."""
SYNC_S_MAX: Final = 0.25
ROUNDS: Final = 4
"""Of what follows from what, before others have their turn."""
ENVELOPE_ENTRIES_BYTES: Final = 1 << 20
"""An envelope is closed when it has so much."""


class Machine(Protocol):
    """What the entries of a group do."""

    @property
    def applied(self) -> LogIndex:
        """The last entry that is in the state."""
        ...

    def apply(self, entry: Entry, subject: Any) -> object:
        """Take in a command; returns what its proposer is told.  `subject` is what came with the
        proposal, if it was made here.  Raises only if this copy of the state is of no use any more.
        """
        ...

    def skip(self, index: LogIndex) -> None:
        """Take in an entry that is no command."""
        ...

    def install(self, head: SnapshotHead) -> None:
        """The snapshot that has arrived takes the place of the state, durably.  Blocks."""
        ...


class Transport(Protocol):
    def send(self, node: NodeId, body: bytes) -> None:
        """May fail without a word."""
        ...


Done = Callable[[object], None]
"""Called with the reply of the machine; or with an FsError: then it may have acted, or not."""


class _Proposal(msgspec.Struct):
    data: bytes
    subject: Any
    done: Done
    begun: float


class _Waiting(msgspec.Struct):
    term: Term
    subject: Any
    done: Done
    begun: float


class _Reader(msgspec.Struct):
    done: Callable[[FsError | None], None]
    until: int
    """When it is told to ask again."""


class Group:
    """A server of a group.  Made by `Node.start`."""

    def __init__(self, node: "Node", group: GroupId, raft: Raft, machine: Machine) -> None:
        self._node = node
        self.id = group
        self.raft = raft
        self.machine = machine
        self.failure: Exception | None = None
        """Why this server is of no use any more."""
        self.stopped = False
        self.queue: list[_Proposal] = []
        self.waiting: dict[LogIndex, _Waiting] = {}
        self.readers: dict[int, _Reader] = {}
        """Those who asked first come first."""
        self.readable: list[tuple[LogIndex, int]] = []
        self.batch = 0
        """So many proposals came together the last time."""
        self.leads = False
        self.leaderless_since: float | None = time.perf_counter()

    # -- asking

    def propose(self, data: bytes, done: Done, subject: Any = None) -> None:
        """Have a command ordered, and `done` called with its effect."""
        if self._is_gone:
            done(self._gone())
            return
        if len(data) > self._node.storage.command_bytes_max:
            done(FsError(Fault.TOO_BIG, f"a command of {len(data)} bytes fits into no log"))
            return
        self.queue.append(_Proposal(data, subject, done, time.perf_counter()))
        self._node.proposed(self)

    def read_now(self) -> bool:
        """Whether the state as it is may be answered from."""
        if self._is_gone:
            return False
        index = self.raft.read_now(self._node.now())
        return index is not None and self.machine.applied >= index

    def read(self, done: Callable[[FsError | None], None]) -> None:
        """Have `done` called when the state may be answered from, or with why not; that is
        UNAVAILABLE when nobody says so in time.
        """
        if self._is_gone:
            done(self._gone())
            return
        node = self._node
        request = node.next_request()
        try:
            self.raft.read(request, node.now())
        except FsError as error:
            if error.fault in (Fault.CORRUPT, Fault.DEVICE):  # of our log, not of the question
                node.give_up(self, error)
                error = self._gone()
            done(_later(error))
            return
        self.readers[request] = _Reader(done, node.now() + 2 * node.config.election_ms)
        node.wake(self)

    async def wait_propose(self, data: bytes, subject: Any = None) -> Any:
        """As `propose`, for a task.  Raises what is not a reply."""
        return await _one(lambda done: self.propose(data, done, subject))

    async def wait_read(self) -> None:
        await _one(self.read)

    def transfer(self, target: NodeId) -> None:
        self.raft.transfer(target, self._node.now())
        self._node.wake(self)

    def change_membership(self, voters: Sequence[NodeId], learners: Sequence[NodeId]) -> None:
        self.raft.change_membership(voters, learners, self._node.now())
        self._node.wake(self)

    @property
    def is_leader(self) -> bool:
        return self.raft.state.is_leader and not self._is_gone

    @property
    def leader(self) -> NodeId:
        """Who leads, as far as we know; 0: nobody.  A server that is of no use knows nobody: it
        hears nothing any more.
        """
        return NOBODY if self._is_gone else self.raft.leader

    def require_leader(self) -> None:
        """Raises NOT_LEADER."""
        if self._is_gone:
            raise self._gone()
        self.raft.state.require_leader()

    @property
    def _is_gone(self) -> bool:
        return self.stopped or self.failure is not None

    def _gone(self) -> FsError:
        if self.stopped:
            return FsError(Fault.NOT_LEADER, "this node has left the group")
        return FsError(Fault.NOT_LEADER, "this node's copy is damaged")


class Node:
    """All groups of a node on one journal."""

    def __init__(
        self,
        number: NodeId,
        storage: Storage,
        transport: Transport,
        config: Config,
        *,
        clock: Callable[[], float] | None = None,
        chance: random.Random | None = None,
    ) -> None:
        self.number = number
        self.storage = storage
        self.config = config
        self.groups: dict[GroupId, Group] = {}
        self.figures = Figures()
        self._journal = storage.journal
        self._transport = transport
        self._clock = clock or _uptime
        self._random = chance or random.Random()
        self._wake = trio.Event()
        self._woken: dict[GroupId, Group] = {}
        self._outbox: dict[NodeId, list[tuple[GroupId, Message]]] = {}
        self._saving: deque[tuple[int, Group, Save | None, tuple[Message, ...]]] = deque()
        """What waits for the journal: up to which record, and what then."""
        self._unsaved: deque[tuple[Group, Save, tuple[Message, ...]]] = deque()
        """What the disk had no room for."""
        self.full: FsError | None = None
        """The disk has no room for the log: nothing is promised."""
        self._full_since = 0
        self._going = False
        """What follows is just being done."""
        self._proposer: Group | None = None
        """Whose proposals were taken last: while they wait, others are likely to come too."""
        self._sync_begun: int | None = None
        """When the sync began that a thread does now."""
        self.log_failure: FsError | None = None
        self._request = random.SystemRandom().getrandbits(62)
        """Answers to questions from before a restart must not fit new ones."""
        self.on_snapshot_wanted: Callable[[Group, NodeId], None] = lambda group, node: None
        self.on_leader: Callable[[Group], None] = lambda group: None
        """The group has another leader, or none, or lost ours."""

    def now(self) -> int:
        """Milliseconds of a clock that neither goes back nor stands still."""
        return int(self._clock() * 1000)

    def next_request(self) -> int:
        self._request += 1
        return self._request

    def start(self, group: GroupId, machine: Machine) -> Group:
        """Run our server of a group that the storage has."""
        stored = self.storage.groups[group]
        raft = Raft(
            self.number,
            self.config,
            self.storage.stored(group),
            stored.hard,
            machine.applied,
            stored,
            random=self._random.randrange,
            now=self.now(),
        )
        found = self.groups[group] = Group(self, group, raft, machine)
        if raft.state.is_alone:
            raft.campaign(self.now())
        self.wake(found)
        return found

    def stop(self, group: GroupId) -> None:
        """Our server of the group is no more."""
        found = self.groups.pop(group)
        found.stopped = True
        self._woken.pop(group, None)
        self._unsaved = deque(one for one in self._unsaved if one[0] is not found)
        self._fail_all(found, found._gone())

    def wake(self, group: Group) -> None:
        if group.stopped:
            return
        self._woken[group.id] = group
        self._wake.set()

    def proposed(self, group: Group) -> None:
        """Something was put into the queue of a group."""
        self._woken[group.id] = group
        lately = self._proposer
        alone = not group.waiting and (lately is None or not lately.waiting)
        if alone and len(group.queue) == 1 >= group.batch and self._is_idle:
            self._go_on()
        else:
            self._wake.set()

    def received(self, source: NodeId, bodies: Sequence[bytes | memoryview]) -> None:
        """Envelopes came from another node.  Raises INVALID for what is none."""
        now = self.now()
        try:
            for body in bodies:
                for number, message in open_(body):
                    self._step(source, number, message, now)
        finally:
            if self._is_idle:
                self._go_on(propose=False)
            else:
                self._wake.set()

    def _step(self, source: NodeId, number: GroupId, message: Message, now: int) -> None:
        group = self.groups.get(number)
        if group is None or group.failure is not None:
            return
        if message.source != source or message.target != self.number:
            return  # it is not who it says it is, or means somebody else
        if isinstance(message, InstallSnapshot):
            return  # only who has received all of it may say that it is there
        try:
            group.raft.step(message, now)
        except FsError as error:  # what it sends then may have to be read back from the log
            self._failed(group, error)
        self._woken[number] = group

    def arrived(self, group: Group, message: InstallSnapshot) -> None:
        """A snapshot lies here complete."""
        if group._is_gone:
            return
        self._tell(group, partial(group.raft.step, message, self.now()))
        self.wake(group)

    def _tell(self, group: Group, what: Callable[[], None]) -> None:
        """Tell the core something.  What it sends then, it may have to read back from the log."""
        try:
            what()
        except FsError as error:
            self._failed(group, error)

    def unreachable(self, node: NodeId) -> None:
        now = self.now()
        for group in self.groups.values():
            group.raft.unreachable(node, now)

    @property
    def is_syncing(self) -> bool:
        """A thread has the journal, and may have it for long."""
        return self._sync_begun is not None

    def require_room(self) -> None:
        """Raises NO_SPACE when the disk is full, and nobody could be found to lead instead."""
        if self.full is not None and self.now() - self._full_since > 2 * self.config.election_ms:
            raise FsError(Fault.NO_SPACE, f"no room for the log of the metadata: {self.full}")

    async def run(self) -> None:
        """Until cancelled.  Raises FsError when the disk of the log has failed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tick)
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                self._go_on()
                if self.log_failure is not None:
                    raise self.log_failure
                if self._must_wait_for_sync and self._sync_begun is None:
                    self._sync_begun = self.now()
                    nursery.start_soon(self._sync_in_thread)

    # -- the loop

    @property
    def _is_idle(self) -> bool:
        """Nothing is under way that others would have to wait for."""
        return self._sync_begun is None and not self._unsaved and not self._going

    @property
    def _must_wait_for_sync(self) -> bool:
        """There is something to sync, and the disk is slow."""
        return (
            bool(self._saving)
            and self._saving[-1][0] > self._journal.synced_index
            and self.figures.usual_sync_s >= QUICK_SYNC_S
        )

    def _go_on(self, *, propose: bool = True) -> None:
        """Do what follows from what has happened, as far as that is possible without waiting; the
        task does the rest.  With `propose` false, what is in the queues of leaders is left to it.
        """
        assert not self._going
        self._going = True
        try:
            for _ in range(ROUNDS):
                self._pump_all(propose=propose)
                self._send_all()
                if self.log_failure is not None or self._sync_begun is not None:
                    break
                if not self._saving or self._must_wait_for_sync:
                    break
                if self._saving[-1][0] > self._journal.synced_index:
                    self._sync_guarded()
                self._synced()
        finally:
            self._going = False
        waits = self._sync_begun is not None
        if self._woken or (self._saving and not waits) or self.log_failure is not None:
            self._wake.set()

    async def _tick(self) -> None:
        while True:
            now = self.now()
            for group in self.groups.values():
                if group.failure is not None:
                    continue
                if group.raft.wakes_at <= now:
                    self._tell(group, partial(group.raft.tick, now))
                    self.wake(group)
                self._refuse_late_readers(group, now)
            if self._unsaved:
                self._wake.set()
            self._look_at_disk(now)
            waits = [one.raft.wakes_at for one in self.groups.values() if one.failure is None]
            pause_ms = min(waits, default=now + 1000) - self.now()
            await trio.sleep(min(max(pause_ms, 5), 200) / 1000)

    def _pump_all(self, *, propose: bool) -> None:
        self._save_again()
        left: dict[GroupId, Group] = {}
        while self._woken:
            woken, self._woken = self._woken, {}
            for group in woken.values():
                if group.failure is None and not group.stopped:
                    self._pump_guarded(group, propose=propose)
                    if group.queue:
                        left[group.id] = group
        self._woken = left

    def _pump_guarded(self, group: Group, *, propose: bool) -> None:
        try:
            self._pump(group, propose=propose)
        except FsError as error:
            self._failed(group, error)

    def _pump(self, group: Group, *, propose: bool) -> None:
        """Do what the core says, until it has nothing more to say."""
        if group.queue and propose:
            self._propose(group)
        while True:
            ready = group.raft.ready()
            if ready == _NOTHING:
                break
            for message in ready.now:
                self._outbox.setdefault(message.target, []).append((group.id, message))
            if ready.save is not None or ready.after:
                self._save(group, ready.save, ready.after)
            if ready.committed:
                self._apply(group, ready)
            for request in ready.refused:
                self._answer(group, request, _not_leader(group))
            group.readable.extend((index, request) for request, index in ready.reads)
            for node in ready.snapshots:
                self.on_snapshot_wanted(group, node)
        if group.readable:
            self._answer_readers(group)
        self._look_at_leadership(group)

    def _propose(self, group: Group) -> None:
        queue, group.queue = group.queue, []
        group.batch = len(queue)
        self._proposer = group
        self.figures.proposals += len(queue)
        try:
            first, term = group.raft.propose([one.data for one in queue], self.now())
        except FsError as error:
            damaged = error.fault in (Fault.CORRUPT, Fault.DEVICE)
            for one in queue:  # damage shows when they are sent: then they are in the log
                one.done(_not_leader(group) if damaged else _later(error))
            if damaged:
                raise
            return
        for index, one in enumerate(queue, first):
            group.waiting[LogIndex(index)] = _Waiting(term, one.subject, one.done, one.begun)

    def _apply(self, group: Group, ready: Ready) -> None:
        machine, waiting, figures = group.machine, group.waiting, self.figures
        figures.applied += len(ready.committed)
        begun = time.perf_counter()
        for entry in ready.committed:
            proposal = waiting.pop(entry.index, None)
            if proposal is not None and proposal.term != entry.term:
                proposal.done(_not_leader(group))  # another entry took its place
                proposal = None
            if entry.kind is not EntryKind.COMMAND:
                machine.skip(entry.index)
            elif proposal is None:
                machine.apply(entry, None)
            else:
                try:
                    reply = machine.apply(entry, proposal.subject)
                except FsError:
                    waiting[entry.index] = proposal  # it is told with all others
                    raise
                proposal.done(reply)
                figures.commit_s.note(time.perf_counter() - proposal.begun)
        group.raft.applied(ready.committed[-1].index)
        figures.apply_s.note(time.perf_counter() - begun)

    def _answer_readers(self, group: Group) -> None:
        applied = group.machine.applied
        waiting = []
        for index, request in group.readable:
            if index > applied:
                waiting.append((index, request))
            else:
                self._answer(group, request, None)
        group.readable = waiting

    def _answer(self, group: Group, request: int, error: FsError | None) -> None:
        reader = group.readers.pop(request, None)
        if reader is not None:
            reader.done(error)

    def _refuse_late_readers(self, group: Group, now: int) -> None:
        """A question to who leads may be lost, and so may the answer."""
        while group.readers:
            request, first = next(iter(group.readers.items()))
            if now < first.until:
                return
            self._answer(group, request, FsError(Fault.UNAVAILABLE, "who leads does not answer"))

    def _look_at_leadership(self, group: Group) -> None:
        if (group.leaderless_since is None) != bool(group.raft.leader):
            self._note_leader(group)
        leads = group.is_leader
        if leads == group.leads:
            return
        group.leads = leads
        if leads:
            self.figures.elections_won += 1
        else:
            # What was proposed may still be committed, by another leader: who asks again there with
            # the same sequence finds out.
            self._fail_all(group, _not_leader(group))
        self.on_leader(group)

    def _note_leader(self, group: Group) -> None:
        now = time.perf_counter()
        if group.leaderless_since is None:
            group.leaderless_since = now
        else:
            self.figures.leaderless_s.note(now - group.leaderless_since)
            group.leaderless_since = None

    def _fail_all(self, group: Group, error: FsError) -> None:
        queue, group.queue = group.queue, []
        waiting, group.waiting = group.waiting, {}
        for done in (*(one.done for one in waiting.values()), *(one.done for one in queue)):
            done(error)
        readers, group.readers = group.readers, {}
        for reader in readers.values():
            reader.done(error)

    def give_up(self, group: Group, error: FsError) -> None:
        """Its server is of no use any more."""
        self._failed(group, error)
        self._wake.set()

    def damaged(self, group: Group, error: FsError) -> bool:
        """The state was found damaged when it was read.  Returns whether others have it: then this
        server is of no use any more.  One that is alone goes on with what can be read.
        """
        if not group._is_gone:
            if group.raft.state.is_alone:
                return False
            self.give_up(group, error)
        return True

    def _failed(self, group: Group, error: Exception) -> None:
        """This copy of the state is of no use: the others go on without it."""
        log.error("group %s: %s", group.id, error)
        group.failure = error
        self._fail_all(group, group._gone())
        self.on_leader(group)

    # -- the disk

    def _save(self, group: Group, save: Save | None, after: tuple[Message, ...]) -> None:
        if self._unsaved:
            if save is not None:
                self._unsaved.append((group, save, after))
            return
        number = self._journal.last_index
        if save is not None:
            try:
                number = self._write(group, save)
            except FsError as error:
                self._not_saved(error)
                self._unsaved.append((group, save, after))
                return
        self._saving.append((number, group, save, after))

    def _write(self, group: Group, save: Save) -> int:
        """Hand it to the journal; returns which record must be on disk before it counts as saved:
        never an earlier one than for what was handed over before.
        """
        if save.snapshot is not None:
            self._install(group, save)
            number = self._journal.last_index
        else:
            number = self.storage.save(group.id, save)
        self.figures.batches += 1
        self.figures.appended += len(save.entries)
        if save.entries:
            self.figures.batch_entries.note(len(save.entries))
        if save.synced:
            return number
        return self._saving[-1][0] if self._saving else 0

    def _install(self, group: Group, save: Save) -> None:
        """A snapshot takes the place of log and state: rare, so that it is waited for."""
        assert save.snapshot is not None
        self._fail_all(group, _not_leader(group))
        self.storage.save(group.id, save)
        self._journal.sync()
        group.machine.install(save.snapshot)

    def _not_saved(self, error: FsError) -> None:
        if error.fault is Fault.NO_SPACE:
            self._no_room(error)
        else:  # nobody knows what is on that disk: the node ends, and the others go on
            self.log_failure = error
            self._wake.set()

    def _no_room(self, error: FsError) -> None:
        if self.full is None:
            self._full_since = self.now()
            log.error("no room for the log: %s", error)
        self.full = error
        for group in self.groups.values():
            if group.is_leader:
                self._give_away(group)

    def _give_away(self, group: Group) -> None:
        """Let somebody lead who can write."""
        peers = [
            peer
            for node, peer in group.raft.state.peers.items()
            if node in group.raft.state.membership.voters
        ]
        if peers and not group.raft.state.transferee:
            best = max(peers, key=lambda peer: (peer.match, peer.heard))
            group.raft.transfer(best.node, self.now())

    def _save_again(self) -> None:
        """What there was no room for, in the same order."""
        while self._unsaved:
            group, save, after = self._unsaved[0]
            try:
                number = self._write(group, save)
            except FsError as error:
                self._not_saved(error)
                return
            self._unsaved.popleft()
            self._saving.append((number, group, save, after))
        self.full = None

    async def _sync_in_thread(self) -> None:
        try:
            await trio.to_thread.run_sync(self._sync)
        finally:
            self._sync_begun = None
        self._synced()
        self._wake.set()

    def _sync_guarded(self) -> None:
        try:
            self._sync()
        except FsError as error:  # nobody knows what is on that disk
            self.log_failure = error

    def _sync(self) -> None:
        """Put on disk what was appended."""
        begun = time.perf_counter()
        self._journal.sync()
        took = time.perf_counter() - begun
        self.figures.sync_s.note(took)
        usual = self.figures.usual_sync_s
        self.figures.usual_sync_s += (min(took, SYNC_S_MAX) - usual) / USUAL_OF

    def _synced(self) -> None:
        """Do what waits for the disk."""
        synced = self._journal.synced_index
        while self._saving and self._saving[0][0] <= synced:
            _, group, save, after = self._saving.popleft()
            for message in after:
                self._outbox.setdefault(message.target, []).append((group.id, message))
            if save is not None and group.failure is None:
                self._tell(group, partial(group.raft.saved, save))
            self._woken[group.id] = group

    def _look_at_disk(self, now: int) -> None:
        """A leader whose disk hangs answers nobody, and yet nobody would elect another."""
        if self._sync_begun is not None and now - self._sync_begun > self.config.election_ms:
            for group in self.groups.values():
                if group.is_leader:
                    self._give_away(group)

    # -- the network

    def _send_all(self) -> None:
        outbox, self._outbox = self._outbox, {}
        for node, messages in outbox.items():
            for part in _parts(messages):
                body = seal(part)
                self.figures.envelopes += 1
                self.figures.messages += len(part)
                self.figures.sent_bytes += len(body)
                self._transport.send(node, body)


_NOTHING: Final = Ready(None, (), (), (), (), (), ())


def _parts(messages: list[tuple[GroupId, Message]]) -> list[list[tuple[GroupId, Message]]]:
    """What is put into one envelope each, in their order."""
    parts: list[list[tuple[GroupId, Message]]] = [[]]
    size = 0
    for one in messages:
        entries = getattr(one[1], "entries", ())
        more = sum(len(entry.data) for entry in entries)
        if size + more > ENVELOPE_ENTRIES_BYTES and parts[-1]:
            parts.append([])
            size = 0
        parts[-1].append(one)
        size += more
    return parts


async def _one(ask: Callable[[Callable[[Any], None]], None]) -> Any:
    """Wait for the one answer to a question.  Raises it if it is an error."""
    event = trio.Event()
    answer: Any = None

    def done(found: Any) -> None:
        nonlocal answer
        answer = found
        event.set()

    ask(done)
    await event.wait()
    if isinstance(answer, FsError):
        raise answer
    return answer


def _not_leader(group: Group) -> FsError:
    leader = group.raft.leader
    where = f"node {leader} leads" if leader else "nobody is known to lead"
    return FsError(Fault.NOT_LEADER, f"this node does not lead its group; {where}")


def _later(error: FsError) -> FsError:
    """A core that is busy is not what a command could be refused with."""
    if error.fault is Fault.BUSY:
        return FsError(Fault.UNAVAILABLE, error.detail)
    return error


def _uptime() -> float:
    """It goes on while the machine sleeps, as leases do."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
