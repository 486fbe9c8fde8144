"""The leader carries out what the healer plans: volumes are sealed, copied, given up.

What each task takes is in `steps`; here it is begun, waited for, and told of.
"""

import logging
from collections.abc import Callable
from typing import Any, Final

import trio

from mountfs.chunks.orders import Orders
from mountfs.chunks.steps import Pace, Steps
from mountfs.errors import Fault, FsError
from mountfs.meta.command import Command
from mountfs.meta.diagnosis import Member
from mountfs.meta.healing import Healer
from mountfs.meta.healing_tasks import CopyVolume, Seal, Task
from mountfs.meta.server import MetaServer
from mountfs.meta.tree import Tree
from mountfs.types import VolumeId

log = logging.getLogger(__name__)

EVERY_S: Final = 1.0


class Repairs:
    def __init__(self, server: MetaServer, orders: Orders, healer: Healer) -> None:
        self._server = server
        self.healer = healer
        self._orders = orders
        self._steps: Steps | None = None
        """Those of the term in which we lead; what was begun in another one ends with it."""
        self._term = 0
        self._running: dict[VolumeId, Task] = {}
        self._guests: set[VolumeId] = set()
        """Of those, which were not planned here."""
        self.done = 0
        self.failed = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(EVERY_S)
            if self.leads:
                await self._lead()
            self.let_go()

    async def _lead(self) -> None:
        async with trio.open_nursery() as nursery:
            while self.leads:
                for task in self.begin():
                    nursery.start_soon(self.carry_out, task)
                await trio.sleep(EVERY_S)
            nursery.cancel_scope.cancel()

    @property
    def leads(self) -> bool:
        """In the term of what is under way, if anything is."""
        group = self._server.group
        is_leader = group.is_leader and group.raft.state.proven
        return is_leader and self._term in (0, group.raft.term)

    def let_go(self) -> None:
        """We do not lead any more, or anew, and nothing is under way."""
        self._steps, self._term = None, 0
        self._running.clear()
        self.healer.clear()

    def begin(self) -> list[Task]:
        """What is to be done now, by who `leads`: each is to be carried out."""
        if self._steps is None:
            self._steps, self._term = (
                self._steps_now(self.healer.copied),
                self._server.group.raft.term,
            )
        tasks = self._plan()
        for task in tasks:
            self._running[task.volume] = task
        return tasks

    def _steps_now(
        self,
        copied: Callable[[VolumeId, int], None] | None = None,
        pace: Pace | None = None,
    ) -> Steps:
        """For as long as we lead in this term: what was decided before another one led must not be
        done after that.
        """
        server, orders = self._server, self._orders.of_this_term()

        def tree() -> Tree:
            server.group.require_leader()
            orders.term()
            return server.machine.replica.machine.tree

        async def order(command: Command[Any]) -> Any:
            orders.term()
            return await server.service.order(command)

        return Steps(orders, order, tree, copied or self.healer.copied, pace)

    def _plan(self) -> list[Task]:
        server = self._server
        members = [
            Member(node.number, node.location, node.is_emptied)
            for node in server.chunkservers.nodes()
        ]
        safe_mode = server.safe_mode
        return self.healer.plan(
            members,
            self._running.values(),
            VolumeId(server.machine.replica.machine.tree.counters.next_volume),
            self._now(),
            held_up=safe_mode.report().why if safe_mode.is_on else "",
        )

    def _now(self) -> float:
        return float(self._server.node.now())

    @property
    def heals(self) -> bool:
        """Bytes are being moved because something is wrong."""
        return any(
            task.moves_bytes and number not in self._guests
            for number, task in self._running.items()
        )

    async def carry_out_for(self, task: CopyVolume, pace: Pace) -> None:
        """One that was not planned here.  `pace` is told of bytes that were copied, and may wait.
        Raises BUSY when something is done about the volume already, and what hinders it.
        """
        if task.volume in self._running:
            raise FsError(Fault.BUSY, f"volume {task.volume} is being repaired")
        steps = self._steps_now(lambda volume, count: None, pace)
        self._running[task.volume] = task
        self._guests.add(task.volume)
        try:
            await steps.carry_out(task)
        finally:
            self._guests.discard(task.volume)
            if self._running.get(task.volume) is task:
                del self._running[task.volume]

    async def carry_out(self, task: Task) -> str:
        """Returns why it has failed; "": it is done."""
        assert self._steps is not None
        failure = "it was given up"
        try:
            await self._steps.carry_out(task)
            failure = ""
            self.done += 1
            if not isinstance(task, Seal):
                log.info("volume %d: %s: %s", task.volume, type(task).__name__, task.why)
        except FsError as error:
            failure = str(error)
            self.failed += 1
            if error.fault is not Fault.NOT_LEADER:
                log.warning("volume %d: %s: %s", task.volume, type(task).__name__, error)
        finally:
            self._running.pop(task.volume, None)
            self.healer.ended(task, self._now(), failure)
        return failure
