"""Cores in one hand: each message, each save and the clock move only when a test says so.

`Group` holds some `Raft` cores, their disks and the messages in flight.  What a core says (`Ready`)
is done at once, in the order of its contract, except that messages wait in `mail` to be delivered,
dropped, doubled or overtaken, and that a server whose saves are held (`hold`) keeps them, with what
they promise, until `save`.  A crash forgets what was not saved.  All that happens is told in
`lines`, for conversations.
"""

from collections.abc import Callable, Iterable, Sequence

from image import Image

from mountfs.raft.config import Config
from mountfs.raft.core import Raft, Ready, Save
from mountfs.raft.messages import (
    Append,
    AppendReply,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Membership,
    Message,
    NodeId,
    ReadIndex,
    ReadIndexReply,
    SnapshotHead,
    Term,
    Vote,
    VoteReply,
    decode_membership,
)
from mountfs.raft.state import Role
from mountfs.types import LogIndex

CONFIG = Config(heartbeat_ms=100, election_ms=1_000, lease_reads=False)
ROUNDS_MAX = 20_000
"""So many deliveries without coming to rest are a livelock."""


class Server:
    """One core, its disk and its state machine."""

    def __init__(self, node: NodeId, membership: Membership) -> None:
        self.node = node
        self.image = Image(membership)
        self.raft: Raft
        self.up = False
        self.holding = False
        self.held: list[tuple[Save | None, tuple[Message, ...]]] = []
        """Saves that are not on disk yet, and what may be sent after each."""
        self.applied: list[Entry] = []
        self.answers: dict[int, list[LogIndex]] = {}
        """What was said to reads: the index; nothing if it was refused."""
        self.wanted: dict[NodeId, Term] = {}
        """Who needs a snapshot from here, and in which term that was said: it goes out in that."""
        self.seen: tuple[object, ...] = ()

    @property
    def commands(self) -> list[bytes]:
        """What the state machine was told, since it started."""
        return [one.data for one in self.applied if one.kind is EntryKind.COMMAND]


class Group:
    """`Group(1, 2, 3)`: three voters, with empty disks.  Node `n` draws 60 * n."""

    def __init__(
        self,
        *voters: int,
        learners: Sequence[int] = (),
        spares: Sequence[int] = (),
        config: Config = CONFIG,
        terms: dict[int, Sequence[int]] | None = None,
    ) -> None:
        """`spares`: servers that know of nobody.  `terms`: logs to begin with, by node."""
        self.config = config
        self.now = 0
        self.mail: dict[int, Message] = {}
        """In flight, by number, oldest first."""
        self.cut: set[tuple[int, int]] = set()
        self.dice: dict[int, Callable[[int], int]] = {}
        self.lines: list[str] = []
        self.servers: dict[int, Server] = {}
        self._posted = 0
        membership = Membership(_nodes(voters), (), _nodes(learners))
        for node in (*voters, *learners, *spares):
            known = Membership(()) if node in spares else membership
            server = self.servers[node] = Server(NodeId(node), known)
            log = (terms or {}).get(node, ())
            server.image.entries = [entry(at + 1, term) for at, term in enumerate(log)]
            server.image.hard = HardState(Term(max(log, default=0)))
            self.start(node)

    def __getitem__(self, node: int) -> Raft:
        return self.servers[node].raft

    @property
    def leader(self) -> int:
        """Who leads in the highest term; 0: nobody."""
        leading = [one.raft for one in self.servers.values() if one.up and one.raft.state.is_leader]
        return max(leading, key=lambda raft: raft.term).node if leading else 0

    # -- servers come and go

    def start(self, node: int) -> None:
        server = self.servers[node]
        assert not server.up
        image = server.image
        dice = self.dice.get(node, lambda n: 60 * node % n)
        server.raft = Raft(
            server.node,
            self.config,
            image.stored(),
            image.hard,
            image.applied,
            image,
            random=dice,
            now=self.now,
        )
        server.up = True
        server.applied, server.answers, server.wanted = [], {}, {}
        server.seen = _look(server.raft)
        self._pump(server)

    def crash(self, node: int) -> None:
        """What is not saved is gone; messages on their way are not."""
        server = self.servers[node]
        assert server.up
        server.up = server.holding = False
        server.held = []
        self.tell(f"{node} crashes")

    # -- time

    def pass_time(self, ms: int, *nodes: int) -> None:
        """Only the clocks of `nodes` tick (all, if none are named); no message arrives."""
        self.now += ms
        for node in nodes or list(self.servers):
            self.tick(node)

    def tick(self, node: int) -> None:
        server = self.servers[node]
        if server.up and self.now >= server.raft.wakes_at:
            server.raft.tick(self.now)
            self._pump(server)

    def run(self, ms: int, step: int = 50) -> None:
        """Time passes for everybody, and all messages arrive."""
        for _ in range(0, ms, step):
            self.pass_time(step)
            self.settle()

    def elect(self, node: int) -> None:
        """`node` waits alone until it stands, and wins."""
        self.pass_time(2 * self.config.election_ms, node)
        self.settle()
        assert self[node].role is Role.LEADER, self[node].role
        assert self[node].log.committed == self[node].log.last_index

    # -- messages

    def settle(self, *kinds: type[Message]) -> None:
        """Deliver all there is (of some kinds only), and what comes of it, until all is quiet."""
        for _ in range(ROUNDS_MAX):
            found = self.find(*kinds)
            if not found:
                return
            self.deliver_number(found[0])
        raise AssertionError(f"no rest after {ROUNDS_MAX} messages")

    def find(
        self, *kinds: type[Message], source: int | None = None, target: int | None = None
    ) -> list[int]:
        """The numbers of messages in flight."""
        return [
            number
            for number, message in self.mail.items()
            if (not kinds or isinstance(message, kinds))
            and source in (None, message.source)
            and target in (None, message.target)
        ]

    def messages(
        self, *kinds: type[Message], source: int | None = None, target: int | None = None
    ) -> list[Message]:
        return [self.mail[at] for at in self.find(*kinds, source=source, target=target)]

    def deliver(
        self, *kinds: type[Message], source: int | None = None, target: int | None = None
    ) -> int:
        """What is in flight now, but not what comes of it.  Returns how many."""
        found = self.find(*kinds, source=source, target=target)
        for number in found:
            self.deliver_number(number)
        return len(found)

    def deliver_number(self, number: int) -> None:
        message = self.mail.pop(number)
        server = self.servers.get(message.target)
        if server is None or not server.up:
            return
        self.step(message)

    def step(self, message: Message) -> None:
        """It arrives, whether it was ever sent or not."""
        self.tell(f"{message.source} -> {message.target}: {words(message)}")
        server = self.servers[message.target]
        server.raft.step(message, self.now)
        self._pump(server)

    def drop(
        self, *kinds: type[Message], source: int | None = None, target: int | None = None
    ) -> list[Message]:
        found = self.find(*kinds, source=source, target=target)
        return [self.mail.pop(number) for number in found]

    def post(self, *messages: Message) -> None:
        for message in messages:
            if (message.source, message.target) not in self.cut:
                self._posted += 1
                self.mail[self._posted] = message

    def isolate(self, *nodes: int) -> None:
        """Nothing passes between these and the others."""
        for one in nodes:
            for other in self.servers.keys() - nodes:
                self.cut |= {(one, other), (other, one)}
        for number, message in list(self.mail.items()):
            if (message.source, message.target) in self.cut:
                del self.mail[number]

    def heal(self) -> None:
        self.cut.clear()

    # -- disks

    def hold(self, node: int) -> None:
        self.servers[node].holding = True

    def save(self, node: int, count: int | None = None) -> None:
        """The oldest of the held saves reach the disk."""
        server = self.servers[node]
        now, server.held = server.held[:count], server.held[count:] if count is not None else []
        for save, after in now:
            self._written(server, save, after)
        self._pump(server)

    def release(self, node: int) -> None:
        self.servers[node].holding = False
        self.save(node)

    # -- what is asked

    def propose(self, node: int, *commands: bytes) -> LogIndex:
        index, _ = self[node].propose(commands, self.now)
        self._pump(self.servers[node])
        return index

    def read(self, node: int, request: int) -> None:
        self[node].read(request, self.now)
        self._pump(self.servers[node])

    def change(self, node: int, voters: Iterable[int], learners: Iterable[int] = ()) -> None:
        self[node].change_membership(_nodes(voters), _nodes(learners), self.now)
        self._pump(self.servers[node])

    def transfer(self, node: int, target: int) -> None:
        self[node].transfer(NodeId(target), self.now)
        self._pump(self.servers[node])

    def compact(self, node: int, index: int) -> None:
        """A server keeps its applied state, and drops the log up to `index`."""
        server = self.servers[node]
        image, log = server.image, server.raft.log
        image.applied = log.applied
        head = log.head_at(LogIndex(index))
        del image.entries[: head.index - image.base.index]
        image.base = head
        server.raft.compacted(head.index)

    def send_snapshot(self, source: int, target: int, *, whole: bool = True) -> SnapshotHead:
        """What `wanted` asks for: carry the state over, and say so on both sides."""
        server = self.servers[source]
        term = server.wanted.pop(NodeId(target))
        raft = server.raft
        head = raft.log.head_at(raft.log.applied)
        if whole:
            self.post(InstallSnapshot(raft.node, NodeId(target), term, head))
            self.deliver(InstallSnapshot, source=source, target=target)
        raft.snapshot_sent(NodeId(target), whole=whole, now=self.now)
        self._pump(server)
        return head

    def pump(self, node: int) -> None:
        """Do what a core says, after a test has spoken to it."""
        self._pump(self.servers[node])

    # -- the contract of `Ready`

    def _pump(self, server: Server) -> None:
        while server.up:
            ready = server.raft.ready()
            self._tell_state(server)
            if not has_work(ready):
                return
            self.post(*ready.now)
            if ready.save is not None or ready.after:
                if server.holding or server.held:
                    server.held.append((ready.save, ready.after))
                else:
                    self._written(server, ready.save, ready.after)
            self._take(server, ready)

    def _written(self, server: Server, save: Save | None, after: tuple[Message, ...]) -> None:
        if save is not None:
            server.image.write(save, len(save.entries))
            server.raft.saved(save)
        self.post(*after)

    def _take(self, server: Server, ready: Ready) -> None:
        if ready.committed:
            server.applied += ready.committed
            self.tell(f"{server.node} applies {', '.join(map(entry_words, ready.committed))}")
            server.raft.applied(ready.committed[-1].index)
        for request, index in ready.reads:
            server.answers.setdefault(request, []).append(index)
            self.tell(f"{server.node} may answer read {request} at {index}")
        for request in ready.refused:
            server.answers[request] = []
            self.tell(f"{server.node} refuses read {request}")
        for node in ready.snapshots:
            server.wanted[node] = server.raft.term
            self.tell(f"{server.node} must send {node} a snapshot")

    # -- telling

    def tell(self, line: str) -> None:
        self.lines.append(line)

    def _tell_state(self, server: Server) -> None:
        now = _look(server.raft)
        if now[:2] != server.seen[:2]:
            self.tell(f"{server.node} is {now[0]} in term {now[1]}")
        if now[2] != server.seen[2]:
            self.tell(f"{server.node} has members {now[2]}")
        server.seen = now


def _look(raft: Raft) -> tuple[object, ...]:
    return raft.role.value, raft.term, members(raft.log.membership)


def _nodes(numbers: Iterable[int]) -> tuple[NodeId, ...]:
    return tuple(NodeId(number) for number in numbers)


def has_work(ready: Ready) -> bool:
    return any(getattr(ready, name) for name in ready.__struct_fields__)


def entry(index: int, term: int, data: bytes = b"") -> Entry:
    return Entry(LogIndex(index), Term(term), EntryKind.COMMAND, data)


# -- words for conversations


def members(membership: Membership) -> str:
    """`1 2 3`, `2 3 4 | 1 2 3` while both count, `1 2 + 3` with a learner."""
    parts = [" ".join(map(str, membership.voters))]
    if membership.outgoing:
        parts.append("| " + " ".join(map(str, membership.outgoing)))
    if membership.learners:
        parts.append("+ " + " ".join(map(str, membership.learners)))
    return " ".join(parts)


def entry_words(one: Entry) -> str:
    match one.kind:
        case EntryKind.COMMAND:
            what = f"'{one.data.decode()}'"
        case EntryKind.EMPTY:
            what = "nothing"
        case EntryKind.MEMBERSHIP:
            what = f"members {members(decode_membership(one.data))}"
    return f"{one.index}/{one.term} {what}"


def words(message: Message) -> str:
    """A message in a line.  `7/3`: index 7, of term 3."""
    return f"term {message.term} {_what(message)}"


def _what(message: Message) -> str:
    match message:
        case Vote():
            pre = "would you vote" if message.pre else "vote"
            called = ", called" if message.called else ""
            return f"{pre} for {message.source} at {message.last_index}/{message.last_term}{called}"
        case VoteReply():
            if message.pre:
                return "would" if message.granted else "would not"
            return "granted" if message.granted else "refused"
        case Append():
            inside = ", ".join(map(entry_words, message.entries)) or "-"
            before = f"{message.prev_index}/{message.prev_term}"
            return f"append after {before}: {inside}; committed {message.committed}"
        case AppendReply() if message.rejected:
            hint = f"{message.hint_index}/{message.hint_term}"
            return f"not after {message.index}, perhaps after {hint}"
        case AppendReply():
            return f"has {message.index}"
        case Heartbeat():
            return f"heartbeat {message.round}; committed {message.committed}"
        case HeartbeatReply():
            return f"hears {message.round}"
        case InstallSnapshot():
            head = message.head
            return f"snapshot {head.index}/{head.term}, members {members(head.membership)}"
        case ReadIndex():
            return f"how far for read {message.request}"
        case ReadIndexReply():
            return f"read {message.request} at {message.index}"
    return "stand for election"
