"""The leader carries out what the healer plans: volumes are sealed, copied, given up.

What each task takes is in `steps`; here it is begun, waited for, and told of.
"""

import logging
from typing import Final

import trio

from mountfs.chunks.orders import Orders
from mountfs.chunks.steps import Steps
from mountfs.errors import Fault, FsError
from mountfs.meta.diagnosis import Member
from mountfs.meta.healing import Healer
from mountfs.meta.healing_tasks import Seal, Task
from mountfs.meta.server import MetaServer
from mountfs.meta.tree import Tree
from mountfs.types import VolumeId

log = logging.getLogger(__name__)

EVERY_S: Final = 1.0


class Repairs:
    def __init__(self, server: MetaServer, orders: Orders, healer: Healer) -> None:
        self._server = server
        self.healer = healer
        self._steps = Steps(orders, server.service.order, self._tree, healer.copied)
        self._running: dict[VolumeId, Task] = {}
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
        group = self._server.group
        return group.is_leader and group.raft.state.proven

    def let_go(self) -> None:
        """We do not lead any more, and nothing is under way."""
        self._running.clear()
        self.healer.clear()

    def begin(self) -> list[Task]:
        """What is to be done now: each is to be carried out."""
        tasks = self._plan()
        for task in tasks:
            self._running[task.volume] = task
        return tasks

    def _tree(self) -> Tree:
        self._server.group.require_leader()
        return self._server.machine.replica.machine.tree

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

    async def carry_out(self, task: Task) -> str:
        """Returns why it has failed; "": it is done."""
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
