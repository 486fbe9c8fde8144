"""A server of the simulation: the real core, driven by the rule that the real driver keeps."""

from collections.abc import Callable

from mountfs.errors import FsError
from mountfs.raft.config import Config
from mountfs.raft.core import Raft, Ready
from mountfs.raft.messages import (
    InstallSnapshot,
    Membership,
    Message,
    NodeId,
    SnapshotHead,
    Term,
)
from mountfs.sim.checks import Checks
from mountfs.sim.disk import Disk
from mountfs.sim.network import Network
from mountfs.sim.register import Command, Registers, encode
from mountfs.sim.world import MS, World
from mountfs.types import LogIndex

Answer = Callable[[bool | int | None, bool], None]
"""Called with a result, or with None for "ask again": and then whether it may have acted."""

KEPT_ENTRIES = 20
"""Behind a snapshot, for followers that are not far behind."""


class Server:
    def __init__(
        self,
        world: World,
        network: Network,
        checks: Checks,
        servers: dict[NodeId, "Server"],
        node: NodeId,
        config: Config,
        membership: Membership,
    ) -> None:
        self._world = world
        self._network = network
        self._checks = checks
        self._servers = servers
        self._config = config
        self.node = node
        self.disk = Disk(world, membership, Registers().encoded())
        self.up = False
        self.stopped_until = 0
        """As if the process had got SIGSTOP."""
        self.clock_rate = 1.0
        self.clock_offset = 0
        self.checkpoint_entries = 200
        self.raft: Raft
        self.machine = Registers()
        self._life = 0
        self._pumping = False
        self._held: dict[str, list[Callable[[], None]]] = {}
        """What came during a pause, by the way it came."""
        self._proposed: dict[LogIndex, tuple[Term, Answer]] = {}
        self._reads: dict[int, tuple[int, Answer]] = {}
        self._readable: list[tuple[LogIndex, int]] = []
        self._requests = 0

    # -- coming and going

    def boot(self) -> None:
        assert not self.up
        self.up = True
        self._life += 1
        image = self.disk.image
        self.machine = Registers.decoded(image.state)
        self.raft = Raft(
            self.node,
            self._config,
            image.stored(),
            image.hard,
            image.applied,
            self.disk,
            random=self._world.random.randrange,
            now=self._clock(),
        )
        self._world.note(f"{self.node} boots at {image.last_index} applied {image.applied}")
        self._pump()
        self._tick_later(self._life)

    def crash(self) -> None:
        assert self.up
        self.up = False
        self._world.note(f"{self.node} crashes")
        self.disk.crash()
        self._checks.forget(self.node)
        self._held = {}
        for _, answer in self._proposed.values():
            answer(None, True)
        for _, answer in self._reads.values():
            answer(None, False)
        self._proposed, self._reads, self._readable = {}, {}, []

    def pause(self, until: int) -> None:
        """Nothing is done until then; what comes meanwhile is done after."""
        self.stopped_until = until
        life = self._life
        self._world.after(until - self._world.now, lambda: self._go_on(life))

    def _go_on(self, life: int) -> None:
        if self.up and life == self._life and self._world.now >= self.stopped_until:
            held, self._held = self._held, {}
            ways = sorted(held)
            self._world.random.shuffle(ways)
            if self._world.chance(0.5):  # clients first: what they get then may be out of date
                ways.sort(key=lambda way: not way.startswith(("reader", "client")))
            for happens in [one for way in ways for one in held[way]]:
                if self.up and life == self._life:
                    happens()

    def _when_running(self, way: str, happens: Callable[[], None]) -> None:
        """A crash forgets it, a pause delays it."""
        if not self.up:
            return
        if self._world.now < self.stopped_until:
            self._held.setdefault(way, []).append(happens)
        else:
            happens()

    def _clock(self) -> int:
        return int((self._world.now * self.clock_rate + self.clock_offset) // MS)

    def _tick_later(self, life: int) -> None:
        def tick() -> None:
            if self.up and life == self._life:
                if self._world.now >= self.stopped_until or "clock" not in self._held:
                    self._when_running("clock", self._tick)
                self._tick_later(life)

        self._world.after(10 * MS, tick)

    def _tick(self) -> None:
        if self._clock() >= self.raft.wakes_at:
            self.raft.tick(self._clock())
            self._pump()

    # -- what others ask

    def deliver(self, message: Message) -> None:
        self._when_running(f"node {message.source}", lambda: self._step(message))

    def _step(self, message: Message) -> None:
        self.raft.step(message, self._clock())
        self._pump()

    def propose(self, command: Command, answer: Answer) -> None:
        life = self._life

        def run() -> None:
            try:
                index, term = self.raft.propose([encode(command)], self._clock())
            except FsError:
                answer(None, False)
                return
            assert life == self._life
            self._proposed[index] = (term, answer)
            self._pump()

        if not self.up:
            answer(None, False)
        else:
            self._when_running(f"client {command.client}", run)

    def read(self, key: int, answer: Answer) -> None:
        def run() -> None:
            self._requests += 1
            request = self._requests
            try:
                self.raft.read(request, self._clock())
            except FsError:
                answer(None, False)
                return
            self._reads[request] = (key, answer)
            self._pump()

        if not self.up:
            answer(None, False)
        else:
            self._when_running(f"reader {key}", run)

    def change(self, voters: list[NodeId], learners: list[NodeId]) -> None:
        def run() -> None:
            try:
                self.raft.change_membership(voters, learners, self._clock())
            except FsError:
                return
            self._world.note(f"{self.node} changes to {voters} {learners}")
            self._pump()

        self._when_running("operator", run)

    def transfer(self, target: NodeId) -> None:
        def run() -> None:
            try:
                self.raft.transfer(target, self._clock())
            except FsError:
                return
            self._world.note(f"{self.node} lets {target} lead")
            self._pump()

        self._when_running("operator", run)

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
                if not _has_work(ready):
                    break
                self._do(ready)
        finally:
            self._pumping = False

    def _do(self, ready: Ready) -> None:
        for message in ready.now:
            self._network.send(message)
        if ready.save is not None or ready.after:
            self._save(ready)
        self._apply(ready)
        for request in ready.refused:
            if request in self._reads:
                self._reads.pop(request)[1](None, False)
        self._readable.extend((index, request) for request, index in ready.reads)
        self._answer_reads()
        for target in ready.snapshots:
            self._send_snapshot(target)

    def _save(self, ready: Ready) -> None:
        life = self._life

        def written() -> None:
            if not self.up or life != self._life:
                return
            if ready.save is not None:
                self.raft.saved(ready.save)
            for message in ready.after:
                self._network.send(message)
            self._pump()

        save = ready.save
        if save is not None and save.snapshot is not None:
            # The state is replaced at once; on disk it comes with the log.
            self.machine = Registers.decoded(self.disk.snapshots[save.snapshot.index])
            self._checks.installed(self.node, save.snapshot)
            self._fail_proposals_up_to(save.snapshot.index)
        self.disk.save(ready.save, lambda: self._when_running("disk", written))

    def _apply(self, ready: Ready) -> None:
        for entry in ready.committed:
            self._checks.applied(self.node, self.raft.term, entry)
            result = self.machine.apply(entry)
            waiting = self._proposed.pop(entry.index, None)
            if waiting is not None:
                term, answer = waiting
                if term == entry.term and result is not None:
                    answer(result[1], True)
                else:
                    answer(None, False)  # another entry took its place
        if ready.committed:
            self.raft.applied(ready.committed[-1].index)
            self._maybe_checkpoint()

    def _fail_proposals_up_to(self, index: LogIndex) -> None:
        for at in [at for at in self._proposed if at <= index]:
            self._proposed.pop(at)[1](None, True)

    def _answer_reads(self) -> None:
        waiting = []
        for index, request in self._readable:
            if index > self.machine.applied:
                waiting.append((index, request))
            elif request in self._reads:
                key, answer = self._reads.pop(request)
                answer(self.machine.values.get(key, 0), True)
        self._readable = waiting

    def _maybe_checkpoint(self) -> None:
        image = self.disk.image
        applied = self.machine.applied
        if applied - image.applied < self.checkpoint_entries or image.last_index < applied:
            return
        self.disk.checkpoint(applied, self.machine.encoded())
        log = self.raft.log
        upto = LogIndex(applied - KEPT_ENTRIES)
        if upto > log.base and upto > image.base.index:
            self.disk.compact(log.head_at(upto))
            self.raft.compacted(upto)

    def _send_snapshot(self, target: NodeId) -> None:
        """The shell's part: bring the state over, then say so on both sides."""
        head = self.raft.log.head_at(self.machine.applied)
        state = self.machine.encoded()
        term = self.raft.term
        life = self._life
        takes = self._world.random.choice(self._network.snapshot_ms) * MS

        def arrive() -> None:
            other = self._servers.get(target)
            reached = (
                other is not None
                and other.up
                and self._world.now >= other.stopped_until
                and (self.node, target) not in self._network.cut
                and not self._world.chance(self._network.loss)
            )
            if reached and other is not None:
                other.receive_snapshot(self.node, term, head, state)
            if self.up and life == self._life:
                self._when_running("snapshots", lambda: self._snapshot_sent(target, reached))

        self._world.after(takes, arrive)

    def _snapshot_sent(self, target: NodeId, whole: bool) -> None:
        self.raft.snapshot_sent(target, whole=whole, now=self._clock())
        self._pump()

    def receive_snapshot(
        self, source: NodeId, term: Term, head: SnapshotHead, state: bytes
    ) -> None:
        self._world.note(f"{self.node} gets a snapshot at {head.index} from {source}")
        self.disk.snapshots[head.index] = state
        self.deliver(InstallSnapshot(source, self.node, term, head))


def _has_work(ready: Ready) -> bool:
    return bool(
        ready.save
        or ready.now
        or ready.after
        or ready.committed
        or ready.reads
        or ready.refused
        or ready.snapshots
    )
