"""The leader gives out volumes to write to: it chooses their nodes, has it agreed on, and opens
them there before it says so.
"""

import logging
from collections.abc import Collection
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
"""A volume that nobody writes to is given out again while it is smaller."""
LEADER: Final = 1 << 62
"""The owner of volumes that the leader itself writes to."""
TIDY_S: Final = 5.0
PAGE: Final = 1_000


class Allotter:
    def __init__(self, server: MetaServer, orders: Orders, lot: Random) -> None:
        self._server = server
        self._orders = orders
        self._lot = lot
        self._idle: dict[VolumeId, None] = {}
        """Volumes that nobody writes to, and that are not sealed."""
        self._led = False

    async def allot(self, asked: Allot) -> tuple[VolumeRecord, ...]:
        """Raises NOT_LEADER, NO_SPACE, READ_ONLY in safe mode, SESSION_ENDED, and UNAVAILABLE when
        too few nodes are there.
        """
        server = self._server
        server.group.require_leader()
        server.safe_mode.require_writable()
        if not 0 < asked.count <= ALLOT_MAX or not 0 <= asked.copies <= COPIES_MAX:
            raise FsError(Fault.INVALID, f"{asked.count} volumes with {asked.copies} copies")
        self._require_session(asked.session)
        for node in asked.avoid:
            server.chunkservers.fleet.slow(node, server.node.now())
        for number, epoch in asked.failed:
            await self._seal_own(number, epoch, asked.session)
        copies = asked.copies or server.chunkservers.copies()
        found: list[VolumeRecord] = []
        failed: set[int] = set()
        for _ in range(asked.count):
            try:
                found.append(await self._one(asked.session, copies, set(asked.avoid), failed))
            except FsError:
                if not found:
                    raise
                break
        return tuple(found)

    async def give_back(self, asked: Return) -> None:
        """Raises NOT_LEADER, SESSION_ENDED."""
        self._server.group.require_leader()
        self._require_session(asked.session)
        own = []
        for number, epoch in asked.volumes:
            record = self._record(number)
            if record is not None and record.owner == asked.session and record.epoch == epoch:
                own.append((number, epoch))
        await self._return(own)

    # -- what is known

    def _record(self, number: VolumeId) -> VolumeRecord | None:
        return volume_of(self._server.machine.replica.machine.tree, number)

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
            failure = next(iter(refused.values()))
            await order(SealVolume(record.number))
            failed |= refused.keys()
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
            if all(
                node in reported
                and not reported[node].trouble
                and reported[node].total_bytes < REUSE_BYTES_MAX
                for node in record.replicas
            ):
                return number
        return VolumeId(0)

    async def _open(self, record: VolumeRecord) -> dict[int, FsError]:
        """Which nodes have not opened it, and why."""
        failed = await self._orders.each(
            record.replicas, lambda node: self._orders.open(node, record.number, record.epoch)
        )
        for node, error in failed.items():
            log.warning("volume %d cannot be opened at node %d: %s", record.number, node, error)
        return failed

    async def _seal_own(self, number: VolumeId, epoch: int, session: int) -> None:
        record = self._record(number)
        if record is not None and (record.epoch, record.owner) == (epoch, session):
            await self._server.service.order(SealVolume(number))

    async def _return(self, volumes: list[tuple[VolumeId, int]]) -> None:
        if volumes:
            await self._server.service.order(ReturnVolumes(tuple(volumes)))
            self._idle.update(dict.fromkeys(number for number, _ in volumes))

    # -- tidying

    async def run(self) -> None:
        """Volumes of sessions that have ended can be given out again."""
        while True:
            try:
                await self.step()
            except FsError as error:
                if error.fault not in (Fault.NOT_LEADER, Fault.UNAVAILABLE):
                    log.warning("volumes of sessions that have ended: %s", error)
            await trio.sleep(TIDY_S)

    async def step(self) -> None:
        """Raises FsError."""
        group = self._server.group
        led, self._led = self._led, group.is_leader and group.raft.state.proven
        if self._led:
            await self._tidy(first=not led)
        else:
            self._idle.clear()

    async def _tidy(self, *, first: bool) -> None:
        """`first`: what the leader before us wrote to is not written to any more."""
        machine = self._server.machine.replica.machine
        after = VolumeId(0)
        while True:
            page = ListVolumes(PAGE, after).read(machine.tree)
            ended = []
            for record in page:
                if record.sealed:
                    continue
                if not record.owner:
                    self._idle[record.number] = None
                elif record.owner == LEADER:
                    if first:
                        ended.append((record.number, record.epoch))
                elif record.owner not in machine.sessions:
                    ended.append((record.number, record.epoch))
            await self._return(ended)
            if len(page) < PAGE:
                return
            after = page[-1].number
            await trio.lowlevel.checkpoint()
