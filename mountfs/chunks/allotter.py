"""The leader gives out volumes to write to: it chooses their nodes, has it agreed on, and opens
them there before it says so.
"""

import logging
from collections.abc import Collection, Iterable
from random import Random
from typing import Final

import trio

from mountfs.chunks.orders import Orders
from mountfs.chunks.protocol import ALLOT_MAX, Allot, Return
from mountfs.errors import Fault, FsError
from mountfs.meta.ops.volumes import (
    COPIES_MAX,
    AllotVolume,
    ListVolumes,
    ReturnVolumes,
    SealVolume,
    VolumeRecord,
    volume_of,
)
from mountfs.meta.placement import place
from mountfs.meta.server import MetaServer
from mountfs.types import MIB, VolumeId

log = logging.getLogger(__name__)

TRIES: Final = 5
REUSE_BYTES_MAX: Final = 512 * MIB
"""A volume that nobody writes to is given out again while it is smaller; else it is sealed."""
IDLE_S: Final = 86_400.0
"""What nobody has written to for so long is sealed, too: it is not going to be missed."""
SHUN_S: Final = 30.0
"""A node that has not opened a volume is asked again after so long, if there are others."""
LEADER: Final = 1 << 62
"""The owner of volumes that the leader itself writes to."""
TIDY_S: Final = 5.0
PAGE: Final = 1_000


class Allotter:
    def __init__(self, server: MetaServer, orders: Orders, lot: Random) -> None:
        self._server = server
        self._orders = orders
        self._lot = lot
        self._idle: dict[VolumeId, float] = {}
        """Volumes that nobody writes to, and that are not sealed; and since when, as far as we
        know.
        """
        self._given: dict[int, dict[VolumeId, int]] = {}
        """By session: what it has been given, and in which epoch."""
        self._shunned: dict[int, float] = {}
        """Node -> until when."""
        self._term = 0
        """Of the leader that we are, when all volumes have been looked at; 0: they have not."""

    async def allot(self, asked: Allot) -> tuple[VolumeRecord, ...]:
        """Raises NOT_LEADER, NO_SPACE, READ_ONLY in safe mode, SESSION_ENDED, and UNAVAILABLE when
        too few nodes are there, or safe mode has only just begun.
        """
        server = self._server
        server.group.require_leader()
        server.safe_mode.require_writable()
        if not 0 < asked.count <= ALLOT_MAX or not 0 <= asked.copies <= COPIES_MAX:
            raise FsError(Fault.INVALID, f"{asked.count} volumes with {asked.copies} copies")
        self._require_session(asked.session)
        for node in asked.avoid:
            server.chunkservers.fleet.slow(node, server.node.now())
        for number, _ in self._own(asked.failed, asked.session):
            await server.service.order(SealVolume(number))
        await self._take_back(asked)
        copies = asked.copies or server.chunkservers.copies()
        avoid = {*asked.avoid, *self._unhelpful()}
        found: list[VolumeRecord] = []
        failed: set[int] = set()
        for _ in range(asked.count):
            try:
                record = await self._one(asked.session, copies, avoid, failed)
            except FsError:
                if not found:
                    raise
                break
            found.append(record)
            self._given.setdefault(asked.session, {})[record.number] = record.epoch
        return tuple(found)

    async def _take_back(self, asked: Allot) -> None:
        """What the session was given and does not know of: the answer was lost."""
        given = self._given.get(asked.session, {})
        lost = [one for one in given.items() if one not in asked.held]
        await self._return(self._own(lost, asked.session))
        for number, _ in lost:
            given.pop(number, None)

    async def give_back(self, asked: Return) -> None:
        """Raises NOT_LEADER, SESSION_ENDED."""
        self._server.group.require_leader()
        self._require_session(asked.session)
        own = self._own(asked.volumes, asked.session)
        for number, _ in own:
            if number in asked.full:
                await self._server.service.order(SealVolume(number))
        await self._return([one for one in own if one[0] not in asked.full])

    # -- what is known

    def _record(self, number: VolumeId) -> VolumeRecord | None:
        return volume_of(self._server.machine.replica.machine.tree, number)

    def _own(
        self, volumes: Iterable[tuple[VolumeId, int]], session: int
    ) -> list[tuple[VolumeId, int]]:
        """Those that the session writes to."""
        own = []
        for number, epoch in volumes:
            record = self._record(number)
            if record is not None and (record.owner, record.epoch) == (session, epoch):
                own.append((number, epoch))
        return own

    def _unhelpful(self) -> list[int]:
        """Nodes that have not opened a volume lately."""
        now = self._now()
        self._shunned = {node: until for node, until in self._shunned.items() if until > now}
        return list(self._shunned)

    def _now(self) -> float:
        return self._server.node.now() / 1000

    def _require_session(self, session: int) -> None:
        if session != LEADER and session not in self._server.machine.replica.machine.sessions:
            raise FsError(Fault.SESSION_ENDED, f"session {session} has ended")

    # -- opening

    async def _one(
        self, session: int, copies: int, avoid: Collection[int], failed: set[int]
    ) -> VolumeRecord:
        """`avoid`: nodes that are better left alone, if there are others; `failed`: those that have
        just shown that they open nothing.
        """
        failure: FsError | None = None
        for _ in range(TRIES):
            number = self._reusable(copies, {*avoid, *failed})
            if number:
                del self._idle[number]
                replicas: tuple[int, ...] = ()
            else:
                replicas = self._place(copies, avoid, failed)
            order = self._server.service.order
            try:
                record: VolumeRecord = await order(AllotVolume(session, copies, replicas, number))
            except FsError as error:
                if number and error.fault in (Fault.BUSY, Fault.NOT_FOUND):
                    continue
                raise
            refused = await self._open(record)
            if not refused:
                return record
            ill = [node for node in refused if refused[node].fault in _OF_THE_NODE]
            self._shunned.update(dict.fromkeys(ill, self._now() + SHUN_S))
            failure = next(iter(refused.values()))
            await order(SealVolume(record.number))
            failed.update(refused)
        why = failure or "those that nobody writes to were given out to others meanwhile"
        raise FsError(Fault.UNAVAILABLE, f"no volume can be opened: {why}")

    def _place(
        self, copies: int, avoid: Collection[int], failed: Collection[int]
    ) -> tuple[int, ...]:
        candidates = self._server.chunkservers.candidates()
        try:
            return place(candidates, copies, self._lot, avoid={*avoid, *failed})
        except FsError:
            if not avoid:
                raise
            return place(candidates, copies, self._lot, avoid=failed)

    def _reusable(self, copies: int, avoid: Collection[int]) -> VolumeId:
        """A volume that can be given out again; 0: there is none."""
        chunkservers = self._server.chunkservers
        well = {one.node for one in chunkservers.candidates() if one.usable and not one.slow}
        for number in list(self._idle):
            record = self._record(number)
            if record is None or record.sealed or record.owner:
                del self._idle[number]
                continue
            if record.copies != copies or len(record.replicas) < copies:
                continue
            if not well.issuperset(record.replicas) or not set(avoid).isdisjoint(record.replicas):
                continue
            reported = chunkservers.fleet.reported(number)
            is_well = all(
                node in reported and not reported[node].trouble for node in record.replicas
            )
            if is_well and not self._is_large(record):
                return number
        return VolumeId(0)

    def _is_large(self, record: VolumeRecord) -> bool:
        reported = self._server.chunkservers.fleet.reported(record.number)
        return any(one.total_bytes >= REUSE_BYTES_MAX for one in reported.values())

    async def _open(self, record: VolumeRecord) -> dict[int, FsError]:
        """Which nodes have not opened it, and why."""
        failed = await self._orders.each(
            record.replicas, lambda node: self._orders.open(node, record.number, record.epoch)
        )
        for node, error in failed.items():
            log.warning("volume %d cannot be opened at node %d: %s", record.number, node, error)
        return failed

    async def _return(self, volumes: list[tuple[VolumeId, int]]) -> None:
        if volumes:
            await self._server.service.order(ReturnVolumes(tuple(volumes)))
            self._idle.update(dict.fromkeys((number for number, _ in volumes), self._now()))

    # -- tidying

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.step()
            except FsError as error:
                if error.fault not in (Fault.NOT_LEADER, Fault.UNAVAILABLE):
                    log.warning("volumes that nobody writes to: %s", error)
            await trio.sleep(TIDY_S)

    async def step(self) -> None:
        """See what volumes nobody writes to: they can be given out again, or are sealed.  Raises
        FsError.
        """
        group = self._server.group
        if not group.is_leader or not group.raft.state.proven:
            self._idle.clear()
            self._given.clear()
            self._shunned.clear()
            self._term = 0
        elif not self._server.safe_mode.is_on:
            term = group.raft.term
            await self._tidy(first=term != self._term)
            self._term = term

    async def _tidy(self, *, first: bool) -> None:
        """`first`: what the leader before us wrote to is not written to any more."""
        machine = self._server.machine.replica.machine
        given: dict[int, dict[VolumeId, int]] = {}
        after = VolumeId(0)
        while True:
            page = ListVolumes(PAGE, after).read(machine.tree)
            ended = []
            for record in page:
                if record.sealed:
                    continue
                if not record.owner:
                    await self._seal_if_useless(record)
                elif first if record.owner == LEADER else record.owner not in machine.sessions:
                    ended.append((record.number, record.epoch))
                else:
                    given.setdefault(record.owner, {})[record.number] = record.epoch
            await self._return(ended)
            if len(page) < PAGE:
                break
            after = page[-1].number
            await trio.lowlevel.checkpoint()
        self._given = given

    async def _seal_if_useless(self, record: VolumeRecord) -> None:
        """It can be given out again, unless it is large, or has not been wanted for long."""
        since = self._idle.setdefault(record.number, self._now())
        if not self._is_large(record) and self._now() - since < IDLE_S:
            return
        now = self._record(record.number)  # others were waited for
        if now is not None and not now.owner:
            await self._server.service.order(SealVolume(record.number))
        self._idle.pop(record.number, None)


_OF_THE_NODE: Final = (Fault.UNAVAILABLE, Fault.DEVICE, Fault.NO_SPACE)
"""A node that gives such a reason for opening nothing gives it for the next volume as well."""
