"""A real leader of the metadata, with chunkservers in this process: its orders are plain calls."""

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import trio
from crc32c import crc32c

from mountfs.chunks.leading import Leading
from mountfs.chunks.protocol import WRITE_HEAD, Allot, Method
from mountfs.errors import FsError
from mountfs.meta.fleet import FleetConfig
from mountfs.meta.healing_config import HealingConfig
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.nodes import AddNode
from mountfs.meta.ops.reap import Reap
from mountfs.meta.ops.session import EndSession, OpenSession
from mountfs.meta.ops.slices import ReserveSlices
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.ops.volumes import UsedSlices, VolumeRecord, volume_of
from mountfs.meta.ops.write import Run, Write
from mountfs.meta.records import ino_of
from mountfs.meta.server import MetaServer
from mountfs.types import KIB, ROOT, SUPERUSER, SliceId, VolumeId
from tests.chunks.nodes import Nodes
from tests.meta.servers import Servers, servers

FIRST = 2
"""The number of the first chunkserver: the metaserver is 1."""
END_S = 30.0
FLEET = FleetConfig(silent_ms=1_000, grace_ms=2_000, steady_ms=1_000)
HEALING = HealingConfig(
    settle_ms=50, differ_ms=50, open_short_ms=1_000, repair_ms=3_000, forgotten_ms=100,
    rest_ms=100, retry_ms=100, retry_max_ms=400,
)  # fmt: skip


class Links:
    """As a `Router`: calls to the nodes of a test."""

    def __init__(self, nodes: Nodes) -> None:
        self.link_to = nodes.link

    def learn(self, cluster: object) -> None:
        pass


class Plane:
    def __init__(self, cluster: Servers, nodes: Nodes) -> None:
        self.cluster = cluster
        self.nodes = nodes
        self.server: MetaServer = cluster[1].meta
        links: Any = Links(nodes)
        self.leading = Leading(self.server, links)
        self.allotter = self.leading.allotter
        self.collector = self.leading.collector
        self.repairs = self.leading.repairs
        self.healer = self.repairs.healer
        self.healer.config = HEALING
        self.server.chunkservers.fleet.config = FLEET
        self.session = 0
        self.quiet: set[int] = set()
        """Nodes that report nothing."""

    async def order(self, command: Any) -> Any:
        return await self.server.service.order(command)

    def heard(self) -> None:
        """All nodes that are up report."""
        for number, node in self.nodes.all.items():
            if not node.down and number not in self.quiet:
                self.server.chunkservers.hear(node.report())
        self.server.chunkservers.fleet.look(self.server.node.now())

    async def keep_reporting(self) -> None:
        while True:
            with contextlib.suppress(FsError):
                self.heard()
            await trio.sleep(0.03)

    async def until(self, holds: Callable[[], object]) -> None:
        await self.cluster.until(holds)

    # -- the metadata

    @property
    def tree(self) -> Any:
        return self.server.machine.replica.machine.tree

    def record(self, number: VolumeId) -> VolumeRecord | None:
        return volume_of(self.tree, number)

    def used(self, number: VolumeId) -> list[SliceId]:
        return [one for one, _, _ in UsedSlices(number, 10_000).read(self.tree)]

    async def begin_session(self) -> int:
        found: int = await self.order(OpenSession("a test"))
        return found

    async def end_session(self, number: int) -> None:
        await self.order(EndSession(number))

    async def allot(self, count: int = 1, **how: Any) -> tuple[VolumeRecord, ...]:
        asked = Allot(how.pop("session", self.session), how.pop("copies", 0), count, **how)
        with trio.fail_after(END_S):
            return await self.allotter.allot(asked)

    async def file(self, name: str) -> int:
        return ino_of(
            (await self.order(Make(ROOT, name.encode(), 0o100666, 0, 0, True, SUPERUSER)))[0]
        )

    async def remove(self, name: str, ino: int) -> None:
        await self.order(Unlink(ROOT, name.encode(), SUPERUSER))
        await self.order(Reap(0, (ino,)))

    # -- slices

    async def name(self) -> SliceId:
        return SliceId(await self.order(ReserveSlices(1)))

    async def write(self, record: VolumeRecord, name: SliceId, *nodes: int) -> None:
        """To all replicas, or to some nodes."""
        data = payload(name)
        head = WRITE_HEAD.pack(name, crc32c(data), record.number, record.epoch)
        for node in nodes or record.replicas:
            await self.nodes[node].call(Method.WRITE, [head, data])

    async def commit(self, ino: int, record: VolumeRecord, *names: SliceId) -> None:
        runs = tuple(
            Run(name * 8 * KIB, 8 * KIB, crc32c(payload(name)), name, record.number)
            for name in names
        )
        await self.order(Write(ino, runs, 1, False))

    async def fill(self, record: VolumeRecord, ino: int, count: int) -> list[SliceId]:
        """So many slices of a file."""
        names = [await self.name() for _ in range(count)]
        for name in names:
            await self.write(record, name)
        await self.commit(ino, record, *names)
        return names

    def have(self, number: VolumeId, names: list[SliceId], *nodes: int) -> bool:
        """Whether all those nodes have them, whole."""
        return all(
            self.nodes[node].content(number, name) == payload(name)
            for node in nodes
            for name in names
        )


def payload(name: int) -> bytes:
    return (b"%d " % name * 8 * KIB)[: 8 * KIB]


def decoded(body: bytes, form: Any) -> Any:
    return msgspec.msgpack.decode(body, type=form)


@contextlib.asynccontextmanager
async def plane(path: Path, count: int = 4, *, reporting: bool = True) -> AsyncIterator[Plane]:
    """With a session, and chunkservers FIRST to FIRST + count - 1, whose disks are heard of."""
    async with servers(path, 1) as cluster:
        nodes = Nodes(path, range(FIRST, FIRST + count))
        try:
            found = Plane(cluster, nodes)
            for number in nodes.all:
                place = AddNode(
                    f"c{number}",
                    f"10.0.0.{number}:1",
                    f"10.0.0.{number}:2",
                    f"d{number}",
                    ("chunk",),
                )
                assert (await found.order(place)).number == number
            found.session = await found.begin_session()
            found.heard()
            async with trio.open_nursery() as nursery:
                if reporting:
                    nursery.start_soon(found.keep_reporting)
                yield found
                nursery.cancel_scope.cancel()
        finally:
            nodes.close()
