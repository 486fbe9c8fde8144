"""The leader moves volumes from fuller nodes to emptier ones, when an operator asks for it.

A move is what a repair is: the volume is copied to the new node, then the record is changed, and
what the old node has is removed later (`meta.healing`).  There are never fewer copies.  It can be
stopped at any time, and ends when another node leads.  What is to be healed comes first.
"""

import logging
from collections import deque
from typing import Final

import msgspec
import trio

from mountfs.chunks.repairs import Repairs
from mountfs.chunks.throttle import Throttle
from mountfs.errors import FsError
from mountfs.meta.balancing import SPARE_BYTES, Load, Movable, Move, Plan, plan
from mountfs.meta.diagnosis import Cluster, Member, is_well
from mountfs.meta.healing_tasks import CopyVolume
from mountfs.meta.ops.volumes import ListVolumes, VolumeRecord, volume_of
from mountfs.meta.server import MetaServer
from mountfs.types import VolumeId

log = logging.getLogger(__name__)

RATE_BYTES_PER_S: Final = 100e6
AT_ONCE: Final = 4
PAGE: Final = 1_000
LOOK_S: Final = 1.0
WAIT_S: Final = 0.5
FRUITLESS_MAX: Final = 3
"""Plans of which nothing could be carried out, one after the other."""
FRUITLESS_S: Final = 10.0


class Balancing(msgspec.Struct):
    """How far it is."""

    begun: int = 0
    """When, in nanoseconds since 1970."""
    active: bool = False
    why: str = ""
    """Why it has ended; "": it has not, or was never begun."""
    waits_for: str = ""
    """What comes first."""
    moved: int = 0
    """Volumes."""
    moved_bytes: int = 0
    failed: int = 0
    failure: str = ""
    """The last one."""
    left_bytes: int = 0
    """About as much is to be moved."""
    spread: float = 0.0
    """Share by which the fullest node was fuller than the emptiest, at the last look."""
    rate: float = RATE_BYTES_PER_S
    """Bytes a second, at most; 0: there is no limit."""


class Balancer:
    """Use by who leads."""

    def __init__(self, server: MetaServer, repairs: Repairs) -> None:
        self._server = server
        self._repairs = repairs
        self._throttle = Throttle(RATE_BYTES_PER_S)
        self._wake = trio.Event()
        self._scope = trio.CancelScope()
        self.state = Balancing()

    def begin(self, rate: float) -> None:
        """Or go on with another rate, if it is under way."""
        self._throttle.rate = rate
        if self.state.active:
            self.state.rate = rate
            return
        self.state = Balancing(begun=self._server.machine.now(), active=True, rate=rate)
        self._wake.set()

    def stop(self, why: str) -> None:
        """What is being copied is given up; what was moved stays moved."""
        if self.state.active:
            self._end(why)
            self._scope.cancel()

    def _end(self, why: str) -> None:
        self.state.active, self.state.why, self.state.waits_for = False, why, ""
        log.info("balancing has ended: %s; %d volumes were moved", why, self.state.moved)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            with trio.CancelScope() as self._scope:
                if self.state.active:  # it was not stopped meanwhile
                    await self._work()

    async def _work(self) -> None:
        fruitless = 0
        while fruitless < FRUITLESS_MAX:
            if not self._server.group.is_leader:
                self._end("another node leads now; begin it again")
                return
            before = self.state.moved
            found = await self.look()
            self.state.left_bytes, self.state.spread = found.bytes_to_move, found.spread
            if not found.moves:
                self._end(found.why_not)
                return
            await self._carry_out(found)
            fruitless = 0 if self.state.moved > before else fruitless + 1
            if fruitless:
                await trio.sleep(FRUITLESS_S)
        self._end(f"nothing could be moved: {self.state.failure or 'volumes change all the time'}")

    # -- looking

    async def look(self) -> Plan:
        """What would be moved now.  Changes nothing."""
        tree = self._server.machine.replica.machine.tree
        cluster = self._cluster()
        used: dict[int, int] = {}
        movable: list[Movable] = []
        after = VolumeId(0)
        while True:
            page = ListVolumes(PAGE, after).read(tree)
            for record in page:
                size = self._size(record)
                for node in record.replicas:
                    used[node] = used.get(node, 0) + size
                if record.sealed and self._is_well(record, cluster):
                    movable.append(Movable(record.number, record.replicas, size))
            if len(page) < PAGE:
                break
            after = page[-1].number
            await trio.lowlevel.checkpoint()
        return plan(self._loads(cluster, used), movable)

    def _cluster(self) -> Cluster:
        chunkservers = self._server.chunkservers
        members = [Member(one.number, one.location, one.is_emptied) for one in chunkservers.nodes()]
        return Cluster(chunkservers.fleet, members, self._server.node.now())

    def _size(self, record: VolumeRecord) -> int:
        reported = self._server.chunkservers.fleet.reported(record.number)
        return max((one.total_bytes for one in reported.values()), default=0)

    def _is_well(self, record: VolumeRecord, cluster: Cluster) -> bool:
        return is_well(record, self._server.chunkservers.fleet.reported(record.number), cluster)

    def _loads(self, cluster: Cluster, used: dict[int, int]) -> list[Load]:
        """`used`: bytes that the records say a node has."""
        found = []
        for one in cluster.candidates:
            of_node = self._server.chunkservers.fleet.of_node(one.node).values()
            there = sum(volume.total_bytes for volume in of_node)
            is_sound = one.node in cluster.sound
            found.append(
                Load(
                    node=one.node,
                    location=one.location,
                    used_bytes=used.get(one.node, 0),
                    capacity_bytes=max(there, used.get(one.node, 0)) + one.free_bytes,
                    room_bytes=one.room_bytes,
                    gives=is_sound,
                    takes=is_sound and one.usable and not one.slow,
                )
            )
        return found

    # -- moving

    async def _carry_out(self, found: Plan) -> None:
        left = deque(found.moves)

        async def some() -> None:
            while left and self._server.group.is_leader:
                await self._wait_for_repairs()
                if left:
                    await self._move(left.popleft())

        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(some)

    async def _wait_for_repairs(self) -> None:
        while why := self._comes_first():
            self.state.waits_for = why
            await trio.sleep(LOOK_S)
        self.state.waits_for = ""

    def _comes_first(self) -> str:
        if self._server.safe_mode.is_on:
            return "the end of safe mode"
        return "repairs" if self._repairs.heals else ""

    async def _move(self, move: Move) -> None:
        record = volume_of(self._server.machine.replica.machine.tree, move.volume)
        cluster = self._cluster()
        if record is None or record.replicas != move.before or not self._is_well(record, cluster):
            return  # it has changed since the plan was made
        takes = any(
            one.node == move.target and one.usable and one.room_bytes >= move.bytes + SPARE_BYTES
            for one in cluster.candidates
        )
        if not takes:
            return
        task = CopyVolume(
            volume=move.volume,
            why=f"node {move.target} is emptier than node {move.source}",
            source=move.source,
            target=move.target,
            replacing=move.source,
            before=move.before,
            replicas=move.after,
            copies=record.copies,
            bytes=move.bytes,
        )
        try:
            await self._repairs.carry_out_for(task, self._pace)
        except FsError as error:
            self.state.failed += 1
            self.state.failure = str(error)
            return
        self.state.moved += 1
        self.state.left_bytes = max(self.state.left_bytes - move.bytes, 0)

    async def _pace(self, count: int) -> None:
        """So many bytes were copied."""
        self.state.moved_bytes += count
        while wait_s := self._throttle.take(count, trio.current_time()):  # noqa: ASYNC110
            await trio.sleep(min(wait_s, WAIT_S))  # the rate may change meanwhile
