"""How a simulated mount, or the leader when it merges slices, reaches bytes: as `chunks/remote.py`,
with the same cores for what is decided (`chunks/pool.py`, `chunks/hedge.py`).
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from crc32c import crc32c

from mountfs.chunks.base import Stored
from mountfs.chunks.config import HedgeConfig
from mountfs.chunks.hedge import Hedges
from mountfs.chunks.needle import Buffer
from mountfs.chunks.pool import OpenVolume, Pool
from mountfs.chunks.protocol import READ, READ_HEAD, WRITE_HEAD, Allot, Method, Return
from mountfs.errors import Fault, FsError
from mountfs.meta.ops.volumes import VolumeRecord
from mountfs.sim.ledger import Ledger
from mountfs.sim.tasks import Tasks, Wait
from mountfs.sim.times import Times
from mountfs.sim.wires import Wires
from mountfs.sim.world import MS, S, World
from mountfs.types import SliceId, VolumeId

PAUSE_US = 50 * MS


class Unreadable(FsError):
    """Those that should have a slice have answered, and have not."""

    def __init__(self, volume: VolumeId, slice_id: SliceId, why: FsError) -> None:
        super().__init__(Fault.CORRUPT, str(why))
        self.place = (volume, slice_id)


Where = Callable[[VolumeId], Awaitable[Sequence[int]]]


class Chunks:
    """A `ChunkStore`.  `where` asks which nodes have a volume."""

    def __init__(
        self,
        world: World,
        wires: Wires,
        ledger: Ledger,
        tasks: Tasks,
        times: Times,
        name: str,
        session: Callable[[], int],
        where: Where,
        allot: Callable[[Allot], Awaitable[Sequence[VolumeRecord]]],
        give_back: Callable[[Return], Awaitable[None]],
    ) -> None:
        self._world = world
        self._wires = wires
        self._ledger = ledger
        self._tasks = tasks
        self._times = times
        self._name = name
        self._session = session
        self._where = where
        self._allot = allot
        self._give_back = give_back
        self._pool = Pool(avoid_s=times.avoid_us / S)
        self._allotting: Wait[None] | None = None
        self._known: dict[VolumeId, Sequence[int]] = {}
        self.hedges = Hedges(HedgeConfig(floor_ms=1.0, ceiling_ms=100.0))
        self.rewrites = 0

    # -- writing

    async def write(self, slice_id: SliceId, parts: Sequence[Buffer], copies: int = 0) -> Stored:
        data = b"".join(parts)
        crc = crc32c(data)
        while True:
            try:
                volume = await self._one(copies)
                if await self._write_to(volume, slice_id, crc, data):
                    number = volume.record.number
                    self._ledger.has_stored(number, slice_id, data)
                    return Stored(number, crc)
            except FsError as error:
                if error.fault is not Fault.UNAVAILABLE:
                    raise
            self.rewrites += 1
            await self._tasks.sleep(PAUSE_US)

    async def _one(self, copies: int) -> OpenVolume:
        while True:
            found = self._pool.one(copies)
            if found is not None:
                return found
            if self._allotting is not None:
                await self._allotting
                continue
            self._allotting = Wait()
            try:
                asked = self._pool.wanted(self._session(), copies, self._world.now / S)
                self._pool.got(asked, await self._allot(asked))
            finally:
                waiting, self._allotting = self._allotting, None
                waiting.set(None)

    async def _write_to(self, volume: OpenVolume, slice_id: SliceId, crc: int, data: bytes) -> bool:
        """Whether all replicas have it."""
        record = volume.record
        body = WRITE_HEAD.pack(slice_id, crc, record.number, record.epoch) + data
        volume.writing += 1
        try:
            failed = await self._write_all(record.replicas, body)
        finally:
            volume.writing -= 1
        if not failed:
            volume.taken += 1
            return True
        back = self._pool.failed(volume, failed, self._session(), self._world.now / S)
        if back is not None:
            await self._give_back(back)
        return False

    async def _write_all(self, replicas: Sequence[int], body: bytes) -> dict[int, FsError]:
        """Returns when all have it, or one has not: which, and why."""
        waiting = set(replicas)
        failed: dict[int, FsError] = {}
        changed: Wait[None] = Wait()

        async def write(node: int) -> None:
            nonlocal changed
            us = self._times.attempt_us
            try:
                await self._wires.call(self._name, node, Method.WRITE, body, us)
            except FsError as error:
                failed[node] = error
            waiting.discard(node)
            changed.set(None)

        for node in replicas:
            self._tasks.start(write(node))
        deadline: int | None = None
        while waiting and not failed:
            left = self._times.attempt_us if deadline is None else deadline - self._world.now
            if not await self._tasks.first(changed, left) and deadline is not None:
                late = FsError(Fault.UNAVAILABLE, "it takes too long")
                return dict.fromkeys(sorted(waiting), late)
            changed = Wait()
            if len(waiting) < len(replicas) and deadline is None:
                deadline = self._world.now + self._times.straggler_us
        return failed

    # -- reading

    async def read(self, volume: VolumeId, slice_id: SliceId, start: int, stop: int) -> memoryview:
        """Raises Unreadable when no replica has it whole."""
        body = READ.pack(volume, slice_id, start, stop)
        while True:
            nodes = await self._replicas(volume)
            try:
                while True:
                    try:
                        return memoryview(
                            await self._read_from(nodes, slice_id, body, stop - start)
                        )
                    except FsError as error:
                        self._known.pop(volume, None)
                        if error.fault is Fault.UNAVAILABLE:
                            raise
                        # What was said may be of copies that are no replicas any more.
                        before, nodes = nodes, await self._replicas(volume)
                        if nodes == before:
                            raise Unreadable(volume, slice_id, error) from error
            except FsError as error:
                if error.fault is not Fault.UNAVAILABLE:
                    raise
            await self._tasks.sleep(PAUSE_US)

    async def _replicas(self, volume: VolumeId) -> Sequence[int]:
        known = self._known.get(volume)
        if known is None:
            known = self._known[volume] = await self._where(volume)
        return known

    async def _read_from(
        self, nodes: Sequence[int], slice_id: SliceId, body: bytes, size: int
    ) -> bytes:
        """Of whoever answers first, and well."""
        if not nodes:
            raise FsError(Fault.CORRUPT, "there is no such volume")
        turn = slice_id % len(nodes)
        near: Mapping[int, int] = {}
        read = self.hedges.read([*nodes[turn:], *nodes[:turn]], size, near, self._now_ms())
        found: list[bytes] = []
        errors: list[FsError] = []
        running = 0
        changed: Wait[None] = Wait()

        async def run_from(first: int) -> None:
            nonlocal running
            node: int | None = first
            while node is not None:
                try:
                    data = await self._fetch(node, body)
                except FsError as error:
                    errors.append(error)
                    node = read.failed(node, self._now_ms()) if not read.over else None
                else:
                    if not found:
                        found.append(data)
                        read.answered(node, self._now_ms())
                    break
            running -= 1
            changed.set(None)

        def ask(node: int) -> None:
            nonlocal running
            running += 1
            self._tasks.start(run_from(node))

        ask(read.first)
        while running and not found:
            due = read.due
            if due is None:
                await changed
            else:
                await self._tasks.first(changed, int((due - self._now_ms()) * MS) + 1)
            if changed.is_over:
                changed = Wait()
            if not found and due is not None and due <= self._now_ms():
                more = read.hedge(self._now_ms())
                if more is not None:
                    ask(more)
        if found:
            return found[0]
        if not read.over:
            read.given_up(self._now_ms())
        silent = [error for error in errors if error.fault is Fault.UNAVAILABLE]
        raise (silent or errors)[0]

    async def _fetch(self, node: int, body: bytes) -> bytes:
        us = self._times.attempt_us
        answer = await self._wires.call(self._name, node, Method.READ, body, us)
        data = answer[READ_HEAD.size :]
        assert READ_HEAD.unpack_from(answer)[0] == crc32c(data), node
        return data

    def _now_ms(self) -> float:
        return self._world.now / MS

    # -- what else a `ChunkStore` has

    async def sync(self) -> None:
        return

    def space(self) -> tuple[int, int]:
        return 1 << 40, 1 << 39

    def has_room(self, size_bytes: int) -> bool:
        return True
