"""A metaserver: its server of the metadata's group, and the work behind the requests.

Every node sees to its own log and store.  Who leads sees to sessions that have fallen silent, to
files that nobody uses any more, and to who votes.
"""

import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from mountfs.errors import Fault, FsError
from mountfs.kv.journal import Journal
from mountfs.kv.leveldb import LevelStore
from mountfs.meta.chunkservers import Chunkservers
from mountfs.meta.client import address_of
from mountfs.meta.clocks import Clocks
from mountfs.meta.command import Command
from mountfs.meta.hearing import Hearing
from mountfs.meta.local import check_place
from mountfs.meta.machine import MetaMachine
from mountfs.meta.membership_policy import wanted
from mountfs.meta.ops.default_retention import CommitRetention, Uncommitted
from mountfs.meta.ops.nodes import (
    CHUNK,
    AddNode,
    DrainNode,
    LeaveNode,
    MoveNode,
    NodeRecord,
    RemoveNode,
    all_nodes,
)
from mountfs.meta.ops.reap import Orphans, Reap
from mountfs.meta.ops.session import EndSession
from mountfs.meta.ops.trash import DueTrash, EmptyTrash
from mountfs.meta.replica import META_GROUP
from mountfs.meta.safe_mode import SafeMode
from mountfs.meta.service import SESSION_TTL_MS, MetaService
from mountfs.meta.snapshot import Source
from mountfs.raft.config import Config
from mountfs.raft.driver import Group, Node
from mountfs.raft.links import Links
from mountfs.raft.messages import NodeId
from mountfs.raft.progress import Flow
from mountfs.raft.snapshots import Snapshots
from mountfs.raft.storage import GroupLog, Storage
from mountfs.rpc.client import Client
from mountfs.rpc.server import Server
from mountfs.types import Ino, LogIndex

log = logging.getLogger(__name__)

CHECKPOINT_AFTER_S: Final = 60.0
HOUSEKEEPING_S: Final = 0.5
REAP_BATCH: Final = 256
COMMIT_BATCH: Final = 1_000
KEPT_ENTRIES: Final = 20_000
"""Behind a checkpoint, for servers that are not far behind."""
KEPT_ENTRIES_MAX: Final = 200_000
"""For one that is known to lack them."""
SEGMENT_BYTES: Final = 16 << 20


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Who a node is, and where it is found."""

    number: NodeId
    name: str
    rpc: str
    """host:port, as others reach it."""
    door: str
    disk: str
    """What names its home."""
    roles: tuple[str, ...] = ("meta",)
    location: str = ""
    cluster: bytes = bytes(16)
    """What the machines of the cluster call it, as long as it has this generation."""

    def introduction(self, known: NodeRecord | None) -> MoveNode | None:
        """What the cluster is to be told, if what it knows of us is not so."""
        ours = MoveNode(
            self.number, self.name, self.rpc, self.door, self.disk, self.roles, self.location
        )
        if known is None:
            return ours
        theirs = MoveNode(
            self.number, known.name, known.rpc, known.door, known.disk, known.roles, known.location
        )
        return None if ours == theirs else ours


class MetadataDamaged(FsError):
    """What this node has of the metadata is of no use.  The others may have it."""


class MetaServer:
    """Use `meta_server`."""

    def __init__(
        self,
        place: Place,
        directory: Path,
        home: bytes,
        server: Server,
        client: Client,
        links: Links,
        seeds: Sequence[NodeRecord],
        config: Config,
        session_ttl_ms: int,
    ) -> None:
        self.place = place
        self.links = links
        self._seeds = {NodeId(node.number): node.door for node in seeds if node.has_metadata}
        self.journal, self.storage, self.machine = _opened(directory, home)
        self.node = Node(place.number, self.storage, links, config, chance=random.SystemRandom())
        links.received = self._received
        links.unreachable = self.node.unreachable
        self.group = self.node.start(META_GROUP, self.machine)
        self.chunkservers = Chunkservers(self.machine, self.node.now)
        self.safe_mode = SafeMode(self.chunkservers.volumes, now=self.node.now)
        self.service = MetaService(
            self.node, self.group, self.machine, self.safe_mode, session_ttl_ms
        )
        stored = self.machine.replica.machine.tree.counters.protected_time
        self.clocks = Clocks(place.number, self.group, server, client, self.service.node_of, stored)
        self.machine.proven = self.clocks.now
        self._uncommitted = Ino(0)
        """Which of the files that wait for their retention was looked at last."""
        self.snapshots = Snapshots(
            self.node,
            server,
            client,
            place.rpc,
            cluster=place.cluster,
            address_of=self._address_of,
            make_source=self._make_source,
            make_sink=lambda group, head: self.machine.sink(head),
        )
        self._checkpointing = trio.Lock()
        self._checkpointed = trio.current_time()
        self.troubles: dict[str, str] = {}
        self.damaged = trio.Event()
        """Our copy of the metadata is of no use any more; `group.failure` says why."""
        self.on_nodes: Callable[[list[NodeRecord]], None] = lambda nodes: None
        """There are other nodes now, or they are elsewhere."""
        self.hearing = Hearing(self.node.now)
        self._kept_out: set[NodeId] = set()
        self.node.on_leader = self._leadership
        self.machine.on_applied = self._applied
        self.machine.on_installed = self._learn_addresses

    # -- the life of it

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.node.run)
            nursery.start_soon(self.links.run)
            nursery.start_soon(self.snapshots.run)
            nursery.start_soon(self.service.keeper.run)
            nursery.start_soon(self._forever, "checkpoint", self._checkpoint_if_due)
            nursery.start_soon(self._forever, "log segments", self._tend_log)
            nursery.start_soon(self._forever, "leader's duties", self._lead)
            nursery.start_soon(self._forever, "clocks", self.clocks.ask)
            nursery.start_soon(self._forever, "retention", self._retain)
            nursery.start_soon(self._forever, "trash", self._remove_trash)

    async def _forever(self, name: str, work: Callable[[], Any]) -> None:
        while True:
            try:
                await work()
            except FsError as error:
                if error.fault not in (Fault.NOT_LEADER, Fault.UNAVAILABLE, Fault.BUSY):
                    if self.troubles.get(name) != str(error):
                        log.error("%s: %s", name, error)
                    self.troubles[name] = str(error)
            else:
                self.troubles.pop(name, None)
            await trio.sleep(HOUSEKEEPING_S)

    def close(self) -> None:
        self.machine.close()
        self.journal.close()

    # -- what everybody does

    async def _checkpoint_if_due(self) -> None:
        replica = self.machine.replica
        waited = trio.current_time() - self._checkpointed
        due = replica.checkpoint_due or self.storage.holds(META_GROUP)
        if due or (replica.pending_rows and waited > CHECKPOINT_AFTER_S):
            await self.checkpoint()

    async def checkpoint(self) -> None:
        """Write the state to the store, so that the log can be let go."""
        async with self._checkpointing:
            if self.group.failure is not None:
                return
            machine, replica = self.machine, self.machine.replica
            before = machine.stored
            applied = machine.applied
            if applied < self.group.raft.log.base:
                return  # a snapshot is about to take its place
            if applied > before.index or replica.stored_head is None:
                checkpoint = machine.begin_checkpoint(self.group.raft.log.head_at(applied))
                try:
                    with trio.CancelScope(shield=True):
                        await trio.to_thread.run_sync(replica.write_checkpoint, checkpoint)
                except BaseException as error:
                    if machine.replica is replica:
                        replica.abandon_checkpoint()
                    elif isinstance(error, Exception):
                        return  # a snapshot has come meanwhile, and that store was closed
                    raise
                if machine.replica is not replica:
                    return  # a snapshot has come meanwhile
                machine.end_checkpoint(checkpoint)
            self._checkpointed = trio.current_time()
            self._shorten(before.index)

    def _shorten(self, stored: LogIndex) -> None:
        """Let go of entries that the state before the last checkpoint has, but for those that
        somebody may lack.
        """
        raft = self.group.raft
        upto = min(stored, LogIndex(self.machine.applied - KEPT_ENTRIES))
        if raft.state.is_leader:
            lacking = [peer.match for peer in raft.state.peers.values() if peer.match < upto]
            if lacking:
                upto = max(min(lacking), LogIndex(self.machine.applied - KEPT_ENTRIES_MAX))
        if self.storage.holds(META_GROUP) and self.journal.size_bytes > 8 * SEGMENT_BYTES:
            upto = stored
        if upto > raft.log.base:
            self.storage.compact(META_GROUP, raft.log.head_at(upto))
            raft.compacted(upto)

    async def _tend_log(self) -> None:
        if not self.node.is_syncing:  # or we would wait for it
            self.storage.release()
        if self.journal.wants_prepare:
            await trio.to_thread.run_sync(self.journal.prepare)

    async def _make_source(self, group: Group) -> Source:
        await self.checkpoint()
        return self.machine.source()

    # -- what the leader does

    def _leadership(self, group: Group) -> None:
        if group.failure is not None:
            self.damaged.set()
            self.service.lead_no_more()
            return
        if group.is_leader:
            self.chunkservers.began_to_lead()
            self.safe_mode.began_to_lead()
            self.service.began_to_lead()
        else:
            self.chunkservers.lead_no_more()
            self.service.lead_no_more()
            if group.leader:
                self.safe_mode.heard_a_leader()

    async def _lead(self) -> None:
        if self.group.leader not in (0, self.place.number):
            self.safe_mode.heard_a_leader()
        if not self.group.is_leader or not self.group.raft.state.proven:
            return
        self.chunkservers.fleet.look(self.node.now())
        if self.safe_mode.is_on:
            self.chunkservers.expect_less()
        await self._introduce()
        await self._end_silent_sessions()
        await self._reap()
        await self._tend_members()

    async def _introduce(self) -> None:
        """Our own record, if it is not so."""
        news = self.place.introduction(self.service.node_of(self.place.number))
        if news is not None:
            await self.service.order(news)

    async def _end_silent_sessions(self) -> None:
        for number in self.service.silent_sessions():
            log.warning("session %d has fallen silent: it is ended", number)
            await self.service.order(EndSession(number))

    async def _reap(self) -> None:
        """Remove files without a name whose sessions have ended."""
        machine = self.machine.replica.machine
        orphans = Orphans(None, REAP_BATCH).read(machine.tree)
        by_session: dict[int, list[Any]] = {}
        for session, ino in orphans:
            if session not in machine.sessions:
                by_session.setdefault(session, []).append(ino)
        for session, inos in by_session.items():
            await self.service.order(Reap(session, tuple(inos)))

    async def _retain(self) -> None:
        """Files whose writers are gone, or keep them open and do nothing, get their retention."""
        tree = self.machine.replica.machine.tree
        leads = self.group.is_leader and self.group.raft.state.proven
        if not leads or not tree.counters.default_retention or not self.clocks.now():
            return
        page = Uncommitted(COMMIT_BATCH, self.machine.now(), self._uncommitted).read(tree)
        self._uncommitted = page[-1][0] if len(page) == COMMIT_BATCH else Ino(0)
        for ino, is_due in page:
            if is_due:
                await self.service.order(CommitRetention(ino, idle=True))

    async def _remove_trash(self) -> None:
        """What has been in the trash for long enough is nobody's: `_reap` removes it."""
        tree = self.machine.replica.machine.tree
        leads = self.group.is_leader and self.group.raft.state.proven
        if not leads or not tree.counters.trash or self.safe_mode.is_on:
            return
        due = DueTrash(self.clocks.now(), REAP_BATCH).read(tree)
        if due:
            await self.service.order(EmptyTrash(due))

    @contextlib.contextmanager
    def kept_out(self, node: NodeId) -> Iterator[None]:
        """It is no member while the block lasts, whatever its record says."""
        if node in self._kept_out:
            raise FsError(Fault.BUSY, f"node {node} asks for this already")
        self._kept_out.add(node)
        try:
            yield
        finally:
            self._kept_out.discard(node)

    async def _tend_members(self) -> None:
        raft = self.group.raft
        membership = raft.log.membership
        nodes = [
            node
            for node in all_nodes(self.machine.replica.machine.tree)
            if node.number not in self._kept_out
        ]
        keeping = {node.number for node in nodes if self._keeps(node)}
        change = wanted(membership, nodes, self._is_ready, keeping=keeping)
        if change is not None:
            voters, learners = change
            log.info("members become: voters %s, learners %s", voters, learners)
            self.group.change_membership(voters, learners)
            return
        if raft.log.membership_index > raft.log.committed:
            return
        for node in nodes:
            if node.leaving and node.number not in {*membership.everyone, *keeping}:
                await self.service.order(RemoveNode(node.number))

    def _keeps(self, node: NodeRecord) -> bool:
        """Whether it leaves, and has slices that are to be taken elsewhere first."""
        if not node.leaving or node.lost or CHUNK not in node.roles:
            return False
        return self.chunkservers.kept_by(node.number) != 0

    def _is_ready(self, node: NodeId) -> bool:
        raft = self.group.raft
        peer = raft.state.peers.get(node)
        return (
            peer is not None
            and peer.flow is Flow.REPLICATE
            and self.is_alive(node)
            and raft.log.last_index - peer.match <= self.node.config.caught_up_entries
        )

    def is_alive(self, node: NodeId) -> bool:
        """Whether the leader has heard of a node lately."""
        if node == self.place.number:
            return True
        state = self.group.raft.state
        peer = state.peers.get(node)
        if peer is None:
            return self.hearing.has_heard(node)
        if state.resting:  # nobody is asked to answer, but a lost connection would wake us
            return node not in self.links.problems
        return self.node.now() - peer.heard < 2 * self.node.config.election_ms

    # -- where the others are

    def _address_of(self, node: NodeId) -> str | None:
        record = self.service.node_of(node)
        return None if record is None else record.rpc

    def _applied(self, command: Command[Any], reply: object) -> None:
        if isinstance(command, (AddNode, DrainNode, LeaveNode, MoveNode, RemoveNode)):
            self._learn_addresses()
        self.chunkservers.applied(command, reply)
        self.service.applied(command, reply)

    def _learn_addresses(self) -> None:
        nodes = all_nodes(self.machine.replica.machine.tree)
        if nodes:
            self.on_nodes(nodes)
            known = {NodeId(node.number): node.door for node in nodes if node.has_metadata}
        else:  # we have just come
            known = dict(self._seeds)
        known.pop(self.place.number, None)
        places = {node: address_of(door) for node, door in known.items()}
        self.links.set_peers({node: place for node, place in places.items() if place is not None})

    def _received(self, source: NodeId, bodies: list[bytes | memoryview]) -> None:
        try:
            self.node.received(source, bodies)
        except FsError as error:
            log.warning("node %d: %s", source, error)


@contextlib.asynccontextmanager
async def meta_server(
    place: Place,
    directory: Path,
    home: bytes,
    server: Server,
    client: Client,
    links: Links,
    *,
    seeds: Sequence[NodeRecord] = (),
    config: Config | None = None,
    session_ttl_ms: int = SESSION_TTL_MS,
) -> AsyncIterator[MetaServer]:
    """Run the metadata of the home whose part for it is `directory`, while the block lasts.

    `seeds`: where other nodes were when we last knew.  Raises MetadataDamaged when what is stored
    is damaged or does not fit together.
    """
    found = MetaServer(
        place, directory, home, server, client, links, seeds, config or Config(), session_ttl_ms
    )
    try:
        found._learn_addresses()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(found.run)
            try:
                yield found
            finally:
                nursery.cancel_scope.cancel()
    finally:
        found.close()


def _opened(directory: Path, home: bytes) -> tuple[Journal, Storage, MetaMachine]:
    with contextlib.ExitStack() as stack:
        try:
            journal = Journal(directory / "log", home=home, segment_bytes=SEGMENT_BYTES)
            stack.callback(journal.close)
            storage = Storage(journal)
            log = storage.groups.get(META_GROUP)
            if log is None:
                raise FsError(Fault.CORRUPT, f"{directory}: the log of the metadata is gone")
            machine = MetaMachine(directory, log.base, lambda path: LevelStore(path, create=True))
            stack.callback(machine.close)
            _check_place(log, machine.applied)
        except FsError as error:
            if error.fault is Fault.CORRUPT:
                raise MetadataDamaged(error.fault, error.detail) from error
            raise
        stack.pop_all()
        return journal, storage, machine


def _check_place(log: GroupLog, applied: int) -> None:
    """For a node, tables and log that do not fit together are damage that the others can cure."""
    try:
        check_place(log, applied)
    except FsError as error:
        raise FsError(Fault.CORRUPT, error.detail) from None
