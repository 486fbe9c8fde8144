"""A server of the simulation: the real core, driven by the rule that the real driver keeps."""

from collections import deque
from collections.abc import Callable
from typing import Any

from mountfs.errors import Fault, FsError
from mountfs.raft.config import Config
from mountfs.raft.core import Raft, Ready
from mountfs.raft.messages import InstallSnapshot, Message, NodeId, SnapshotHead, Term
from mountfs.sim.checks import Checks
from mountfs.sim.disk import Disk
from mountfs.sim.machine import Machine
from mountfs.sim.network import Network
from mountfs.sim.store import Store
from mountfs.sim.transfer import Source
from mountfs.sim.world import MS, World
from mountfs.types import LogIndex

Answer = Callable[[object], None]
"""Called with the reply; or with an FsError, which may mean that it is to be asked again."""

KEPT_ENTRIES = 20
"""Behind a snapshot, for followers that are not far behind."""

TICK_MS_MIN, TICK_MS_MAX = 5, 40

GONE = FsError(Fault.UNAVAILABLE, "the connection is gone: it may have acted, or not")


class Server:
    def __init__(
        self,
        world: World,
        network: Network,
        checks: Checks,
        node: NodeId,
        config: Config,
        disk: Disk,
        load: Callable[[Store], Machine],
    ) -> None:
        self._world = world
        self._network = network
        self._checks = checks
        self._config = config
        self._load = load
        self.node = node
        self.disk = disk
        self.up = False
        self.lost = ""
        """What is wrong with the disk: this server is not to come back."""
        self.stopped_until = 0
        """As if the process had got SIGSTOP."""
        self.clock_rate = 1.0
        self.clock_offset = 0
        self.jumped_at = 0
        """When somebody moved the clock."""
        self.checkpoint_entries = 200
        self.on_leader: Callable[[], None] = lambda: None
        """Called when this server begins or ceases to lead."""
        self.on_boot: Callable[[], None] = lambda: None
        """Called when its process has started."""
        self.send_snapshot: Callable[[NodeId], None]
        self.raft: Raft
        self.machine: Machine
        self.life = 0
        self._leads = False
        self._pumping = False
        self._held: dict[str, list[Callable[[], None]]] = {}
        """What came during a pause, by the way it came."""
        self._proposed: dict[LogIndex, tuple[Term, Answer]] = {}
        self._reads: dict[int, tuple[Any, Answer]] = {}
        self._readable: list[tuple[LogIndex, int]] = []
        self._requests = 0
        """Never used twice, not even after a crash."""
        self._unsaved: deque[Ready] = deque()
        """What the disk had no room for."""
        self.answering: Answer | None = None
        """Who gets the reply to the command that is being applied."""
        self._stored = LogIndex(0)
        """Where the last checkpoint stands."""
        self._stored_head: SnapshotHead | None = None
        """And what a snapshot of it begins with, if it was written in this life."""
        self._checkpointing = False
        self._source: Source | None = None
        self._sourced: list[Callable[[Source | None], None]] = []
        """Who waits for the next checkpoint, to send it."""

    # -- coming and going

    def boot(self) -> None:
        """Nothing happens if the disk turns out to be damaged, but that it is given up."""
        assert not self.up
        if self.lost:
            return
        self.up = True
        self.life += 1
        try:
            self.disk.open()
            self.machine = self._load(self.disk.store)
        except FsError as error:
            self.up = False
            self._lose(error)
            return
        log = self.disk.log
        self._stored, self._stored_head = self.machine.applied, None
        self.raft = Raft(
            self.node,
            self._config,
            log.stored(),
            log.hard,
            self.machine.applied,
            self.disk,
            random=self._world.random.randrange,
            now=self.clock(),
        )
        self._world.note(f"{self.node} boots at {log.last_index} applied {self.machine.applied}")
        self.on_boot()
        self._guarded(self._pump)
        if self.up:
            self._tick_later(self.life)

    def crash(self) -> None:
        assert self.up
        self.up = False
        self.stopped_until = 0
        self._world.note(f"{self.node} crashes")
        self.disk.crash()
        self._checks.forget(self.node)
        self._held = {}
        self._leads = False
        answers = [answer for _, answer in (*self._proposed.values(), *self._reads.values())]
        self._proposed, self._reads, self._readable = {}, {}, []
        self._unsaved.clear()
        self._source = None
        self._checkpointing = False
        self._tell_sourced(None)
        for answer in answers:
            answer(GONE)

    def _lose(self, error: FsError) -> None:
        """The disk is damaged: nobody knows what this server has promised."""
        self.lost = str(error)
        self._world.note(f"{self.node} is lost: {error}")
        if self.up:
            self.crash()

    def pause(self, until: int) -> None:
        """Nothing is done until then; what comes meanwhile is done after."""
        self.stopped_until = until
        life = self.life
        self._world.after(until - self._world.now, lambda: self._go_on(life))

    @property
    def runs(self) -> bool:
        return self.up and self._world.now >= self.stopped_until

    def _go_on(self, life: int) -> None:
        if self.runs and life == self.life:
            held, self._held = self._held, {}
            ways = sorted(held)
            self._world.random.shuffle(ways)
            if self._world.chance(0.5):  # clients first: what they get then may be out of date
                ways.sort(key=lambda way: not way.startswith(("reader", "client")))
            for happens in [one for way in ways for one in held[way]]:
                if self.up and life == self.life:
                    self._guarded(happens)

    def when_running(self, way: str, happens: Callable[[], None]) -> None:
        """A crash forgets it, a pause delays it."""
        if not self.up:
            return
        if self._world.now < self.stopped_until:
            self._held.setdefault(way, []).append(happens)
        else:
            self._guarded(happens)

    def _guarded(self, happens: Callable[[], None]) -> None:
        try:
            happens()
        except FsError as error:
            if error.fault is not Fault.CORRUPT:
                raise
            self._pumping = False
            self._lose(error)

    def clock(self) -> int:
        return int((self._world.now * self.clock_rate + self.clock_offset) // MS)

    def jump(self, us: int) -> None:
        """Forward: a clock that counts on while everything stood still."""
        self.clock_offset += us
        self.jumped_at = self._world.now

    def _tick_later(self, life: int) -> None:
        """When the core asked for it, or somewhat earlier: what comes meanwhile may change that."""

        def tick() -> None:
            if self.up and life == self.life:
                if self._world.now >= self.stopped_until or "clock" not in self._held:
                    self.when_running("clock", self._tick)
                self._tick_later(life)

        left_ms = self.raft.wakes_at - self.clock()
        self._world.after(min(max(left_ms, TICK_MS_MIN), TICK_MS_MAX) * MS, tick)

    def _tick(self) -> None:
        clock = self.clock()
        if clock >= self.raft.wakes_at or self._unsaved:
            self._save_again()
            self.raft.tick(clock)
            self._pump()

    # -- what others ask

    def deliver(self, message: Message) -> None:
        self.when_running(f"node {message.source}", lambda: self._step(message))

    def _step(self, message: Message) -> None:
        self.raft.step(message, self.clock())
        self._pump()

    def unreachable(self, node: NodeId) -> None:
        """The connection with it is lost."""
        self.raft.unreachable(node, self.clock())
        self._pump()

    def propose(self, data: bytes, answer: Answer) -> None:
        """To be called when running."""
        try:
            index, term = self.raft.propose([data], self.clock())
        except FsError as error:
            if error.fault is Fault.CORRUPT:  # it may be in the log all the same: no answer
                raise
            answer(_later(error))
            return
        self._proposed[index] = (term, answer)
        self._pump()

    def read_now(self) -> bool:
        index = self.raft.read_now(self.clock())
        return index is not None and self.machine.applied >= index

    def read(self, query: Any, answer: Answer) -> None:
        """To be called when running."""
        self._requests += 1
        request = self._requests
        try:
            self.raft.read(request, self.clock())
        except FsError as error:
            if error.fault is Fault.CORRUPT:
                raise
            answer(_later(error))
            return
        self._reads[request] = (query, answer)
        self._pump()

    def change(self, voters: list[NodeId], learners: list[NodeId]) -> bool:
        """Returns whether it has begun."""
        try:
            self.raft.change_membership(voters, learners, self.clock())
        except FsError:
            return False
        self._world.note(f"{self.node} changes to {voters} {learners}")
        self._pump()
        return True

    def transfer(self, target: NodeId) -> None:
        try:
            self.raft.transfer(target, self.clock())
        except FsError:
            return
        self._world.note(f"{self.node} lets {target} lead")
        self._pump()

    # -- the loop

    def _pump(self) -> None:
        """Do what the core says, until it has nothing more to say."""
        if self._pumping:
            return  # what we do now has brought more to do: it comes next
        self._pumping = True
        try:
            while self.up:
                ready = self.raft.ready()
                self._checks.look(self.raft)
                if ready == _NOTHING:
                    break
                self._do(ready)
        finally:
            self._pumping = False
        if self.up and self._leads != self.raft.state.is_leader:
            self._leads = not self._leads
            if not self._leads:
                self._fail_proposals(self.raft.log.last_index)
            self.on_leader()

    def _do(self, ready: Ready) -> None:
        for message in ready.now:
            self._network.send(message)
        if ready.save is not None or ready.after:
            self._save(ready)
        if ready.committed:
            self._apply(ready)
        for request in ready.refused:
            if request in self._reads:
                self._reads.pop(request)[1](_NOT_LEADER)
        self._readable.extend((index, request) for request, index in ready.reads)
        if self._readable:
            self._answer_reads()
        if not self.up:  # an answer has brought us down: what is dead does nothing more
            return
        for target in ready.snapshots:
            self.send_snapshot(target)

    def _save(self, ready: Ready) -> None:
        if self._unsaved:
            self._unsaved.append(ready)
            return
        try:
            self._put(ready)
        except FsError as error:
            if error.fault is not Fault.NO_SPACE:
                raise
            self._unsaved.append(ready)
            self._give_away()

    def _put(self, ready: Ready) -> None:
        life = self.life

        def written() -> None:
            if not self.up or life != self.life:
                return
            if ready.save is not None:
                self.raft.saved(ready.save)
            for message in ready.after:
                self._network.send(message)
            self._pump()

        save = ready.save
        self.disk.save(save, lambda: self.when_running("disk", written))
        if save is not None and save.snapshot is not None:
            # The state is replaced at once; on disk it comes with the log.
            self.machine = self._load(self.disk.arrived[save.snapshot.index])
            assert self.machine.applied == save.snapshot.index, (self.machine.applied, save)
            self._stored, self._stored_head = self.machine.applied, save.snapshot
            self._source = None
            self._checks.installed(self.node, save.snapshot)
            self._fail_proposals(save.snapshot.index)

    def _save_again(self) -> None:
        while self._unsaved:
            try:
                self._put(self._unsaved[0])
            except FsError as error:
                if error.fault is not Fault.NO_SPACE:
                    raise
                self._give_away()
                return
            self._unsaved.popleft()

    def _give_away(self) -> None:
        """Let somebody lead who can write."""
        state = self.raft.state
        voters = [peer for node, peer in state.peers.items() if node in state.membership.voters]
        if state.is_leader and voters and not state.transferee:
            best = max(voters, key=lambda peer: (peer.match, peer.heard))
            self._world.note(f"{self.node} has no room and lets {best.node} lead")
            self.raft.transfer(best.node, self.clock())

    def _apply(self, ready: Ready) -> None:
        for entry in ready.committed:
            self._checks.applied(self.node, self.raft.term, entry)
            waiting = self._proposed.pop(entry.index, None)
            self.answering = None if waiting is None or waiting[0] != entry.term else waiting[1]
            reply = self.machine.apply(entry)
            self.answering = None
            self._checks.applied_to(self.node, self.machine)
            if waiting is not None:
                term, answer = waiting
                answer(reply if term == entry.term else _NOT_LEADER)
                if not self.up:
                    return
        self.raft.applied(ready.committed[-1].index)
        self._maybe_checkpoint()

    def _fail_proposals(self, index: LogIndex) -> None:
        """Others may commit them; who asks again with the same sequence finds out."""
        for at in [at for at in self._proposed if at <= index]:
            self._proposed.pop(at)[1](_NOT_LEADER)

    def _answer_reads(self) -> None:
        waiting = []
        applied = self.machine.applied
        for index, request in self._readable:
            if index > applied:
                waiting.append((index, request))
            elif request in self._reads:
                query, answer = self._reads.pop(request)
                answer(self.look_up(query))
        self._readable = waiting

    def look_up(self, query: Any) -> object:
        """The answer from the state as it is; an FsError if it is refused."""
        try:
            return self.machine.read(query)
        except FsError as error:
            if error.fault is Fault.CORRUPT:
                raise
            return error

    # -- checkpoints

    def _maybe_checkpoint(self) -> None:
        if self.machine.applied - self._stored >= self.checkpoint_entries:
            self._begin_checkpoint()

    def _begin_checkpoint(self) -> None:
        machine, disk = self.machine, self.disk
        applied = machine.applied
        in_log = machine.store is disk.store and disk.log.last_index >= applied
        if self._checkpointing or not in_log:
            return
        before = self._stored
        head = self.raft.log.head_at(applied)
        life = self.life

        def written(whole: bool) -> None:
            if life == self.life:
                self.when_running("checkpoint", lambda: ended(whole))

        def ended(whole: bool) -> None:
            self._checkpointing = False
            machine.end_checkpoint(whole)
            if machine is not self.machine:
                return  # a snapshot has come meanwhile
            if whole:
                self._stored, self._stored_head = applied, head
                self._shorten(before)
            if self._sourced:
                self._tell_sourced(self._kept_source())

        self._checkpointing = True
        disk.checkpoint(machine.begin_checkpoint(head), written)

    def _shorten(self, before: LogIndex) -> None:
        """Let go of entries that the checkpoint before the last one has."""
        log = self.raft.log
        upto = LogIndex(min(before, self.machine.applied - KEPT_ENTRIES))
        if upto > log.base and upto > self.disk.log.base.index:
            self.disk.compact(log.head_at(upto))
            self.raft.compacted(upto)

    # -- snapshots

    def make_source(self, made: Callable[[Source | None], None]) -> None:
        """A copy of the state as of an entry that the log goes on from; None if none can be made
        now.
        """
        source = self._kept_source()
        if source is not None:
            made(source)
            return
        self._sourced.append(made)
        self._begin_checkpoint()
        if not self._checkpointing:
            self._tell_sourced(None)

    def _kept_source(self) -> Source | None:
        """The copy that is there; or one of the last checkpoint; unless they lead nowhere."""
        base = self.raft.log.base
        if self._source is None or self._source.head.index < base:
            self._source = None
            head = self._stored_head
            # A checkpoint may be in the store that we have not heard the end of.
            settled = self.machine.store is self.disk.store and not self._checkpointing
            if head is not None and head.index >= base and settled:
                self._source = Source(head, self.disk.store)
        return self._source

    def _tell_sourced(self, source: Source | None) -> None:
        waiting, self._sourced = self._sourced, []
        for made in waiting:
            made(source)

    def snapshot_sent(self, target: NodeId, *, whole: bool) -> None:
        def sent() -> None:
            self.raft.snapshot_sent(target, whole=whole, now=self.clock())
            self._pump()

        self.when_running("snapshots", sent)

    def snapshot_arrived(self, source: NodeId, term: Term, head: SnapshotHead, rows: Store) -> None:
        self._world.note(f"{self.node} has a snapshot at {head.index} from {source}")
        self.disk.arrived[head.index] = rows
        self.deliver(InstallSnapshot(source, self.node, term, head))


_NOTHING = Ready(None, (), (), (), (), (), ())
_NOT_LEADER = FsError(Fault.NOT_LEADER, "this server does not lead its group")


def _later(error: FsError) -> FsError:
    """A core that is busy is not what a command could be refused with."""
    return FsError(Fault.UNAVAILABLE, error.detail) if error.fault is Fault.BUSY else error
