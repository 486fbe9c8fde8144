"""Snapshots on their way: the leader offers one, who needs it fetches piece after piece, and goes
on where it was when a transfer breaks off.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from mountfs.errors import FsError
from mountfs.raft.messages import NodeId, SnapshotHead, Term
from mountfs.sim.network import Network
from mountfs.sim.store import Store
from mountfs.sim.world import MS, World

if TYPE_CHECKING:
    from mountfs.sim.server import Server

PIECE_BYTES = 1_000
RETRY_US = 100 * MS
RETRIES_MAX = 10


class Source:
    """A copy of the store, to be read from."""

    def __init__(self, head: SnapshotHead, store: Store) -> None:
        self.head = head
        self._view = store.view()

    def piece(self, after: bytes) -> list[tuple[bytes, bytes]]:
        """Rows behind the key `after`; none at the end."""
        return self._view.rows(after, PIECE_BYTES)


class Transfers:
    """Of all servers."""

    def __init__(
        self, world: World, network: Network, server_of: Callable[[NodeId], "Server | None"]
    ) -> None:
        self._world = world
        self._network = network
        self._server_of = server_of
        self._receiving: set[NodeId] = set()
        self.cuts = 0
        """How often one was broken off and gone on with."""

    def offer(self, leader: "Server", target: NodeId) -> None:
        term = leader.raft.term  # of now: when it arrives we may not lead any more

        def made(source: Source | None) -> None:
            if source is None:
                leader.snapshot_sent(target, whole=False)
            else:
                _Transfer(self, leader, term, target, source).begin()

        leader.make_source(made)


class _Transfer:
    """Lives as long as neither side goes down."""

    def __init__(
        self, all: Transfers, leader: "Server", term: Term, target: NodeId, source: Source
    ) -> None:
        self._all = all
        self._world = all._world
        self._leader = leader
        self._leader_life = leader.life
        self._term = term
        self._target = target
        self._source = source
        self._rows: dict[bytes, bytes] = {}
        self._last_key = b""
        self._failures = 0
        world = all._world
        self._pace_us = world.random.choice(all._network.snapshot_ms) * MS // 10

    def begin(self) -> None:
        receiver = self._all._server_of(self._target)
        if receiver is None or not receiver.runs or self._target in self._all._receiving:
            self._leader.snapshot_sent(self._target, whole=False)
            return
        self._receiver = receiver
        self._receiver_life = receiver.life
        self._all._receiving.add(self._target)
        self._next_in(self._pace_us)

    def _next_in(self, us: int) -> None:
        self._world.after(us, self._next)

    def _next(self) -> None:
        leader, receiver = self._leader, self._receiver
        alive = leader.up and leader.life == self._leader_life
        if not alive or not receiver.up or receiver.life != self._receiver_life:
            self._end(whole=False)
            return
        if not self._passes():
            self._failures += 1
            self._all.cuts += 1
            if self._failures > RETRIES_MAX:
                self._end(whole=False)
            else:
                self._next_in(RETRY_US)
            return
        try:
            rows = self._source.piece(self._last_key)
        except FsError:
            self._end(whole=False)
            return
        if rows:
            self._rows.update(rows)
            self._last_key = rows[-1][0]
            self._failures = 0
            self._next_in(self._pace_us)
        else:
            self._end(whole=True)

    def _passes(self) -> bool:
        """Whether a piece comes through: both run, the network lets it, there is room."""
        network = self._all._network
        return (
            self._leader.runs
            and self._receiver.runs
            and not self._receiver.disk.full
            and network.connects(self._leader.node, self._target)
            and not self._world.chance(network.loss)
        )

    def _end(self, *, whole: bool) -> None:
        self._all._receiving.discard(self._target)
        if whole:
            head = self._source.head
            self._receiver.snapshot_arrived(self._leader.node, self._term, head, Store(self._rows))
        if self._leader.up and self._leader.life == self._leader_life:
            self._leader.snapshot_sent(self._target, whole=whole)
