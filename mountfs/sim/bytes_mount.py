"""A mount of the simulation whose programs write and read the bytes of files."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from mountfs.chunks.protocol import Allot, Return
from mountfs.chunks.protocol import Method as Asked
from mountfs.errors import Fault, FsError
from mountfs.meta.command import Command
from mountfs.meta.ops import write as ops
from mountfs.meta.ops.allocate import KEEP_SIZE, PUNCH_HOLE, Allocate
from mountfs.meta.ops.copy_range import CopyRange
from mountfs.meta.ops.read import GetLayout
from mountfs.meta.ops.setattr import SetAttr
from mountfs.meta.ops.slices import Discard, ReserveSlices
from mountfs.meta.ops.volumes import GetVolumes, VolumeRecord
from mountfs.meta.protocol import Method, Propose, Read, decode_reply, encode
from mountfs.meta.retry import Session
from mountfs.raft.messages import NodeId
from mountfs.sim.bytes_work import CELL_BYTES, BytesWork, Doing, cell, values_of
from mountfs.sim.checks import Broken
from mountfs.sim.chunks import Chunks, Unreadable
from mountfs.sim.ledger import Ledger
from mountfs.sim.mount import Doors, Mount
from mountfs.sim.promises import Promises
from mountfs.sim.tasks import Tasks, Wait
from mountfs.sim.times import Times
from mountfs.sim.wires import Wires
from mountfs.sim.world import World
from mountfs.types import SUPERUSER, Ino, SliceId, VolumeId
from mountfs.vfs.handles import File
from mountfs.vfs.reader import Reader
from mountfs.vfs.writer import WRITES_MAX

RESERVED = 6
"""Names at a time."""
TRIES = 3
"""So often bytes that are moved may not be where they were."""
COMMANDS = 1_000_000
"""Numbers of commands of one mount."""
DAWDLES = 30
"""One of so many writes waits between its last slice and its commit for longer than a slice is left
alone that no file refers to: as a process that was stopped.
"""
PIECES = 0.15
"""How many writes are so small that the metadata keeps them."""


class _SessionMeta:
    """The metadata, in one session: as much of a `Meta` as is asked here."""

    def __init__(self, mount: "BytesMount", session: Session) -> None:
        self._mount = mount
        self._session = session

    async def propose(self, command: Command[Any]) -> Any:
        return await self._mount.propose(self._session, command)

    async def read(self, query: Any) -> Any:
        body = encode(Read(self._session.number, query))
        answer = await self._mount.ask(self._session, Method.READ, body)
        return decode_reply(query, answer)


class Files:
    """What a mount has as long as its session lasts."""

    def __init__(
        self,
        world: World,
        wires: Wires,
        ledger: Ledger,
        tasks: Tasks,
        times: Times,
        mount: "BytesMount",
        session: Session,
    ) -> None:
        self._world = world
        self._ledger = ledger
        self._tasks = tasks
        self._times = times
        self._session = session
        self._mount = mount
        meta: Any = _SessionMeta(mount, session)
        self._meta: _SessionMeta = meta
        self._chunks = Chunks(
            world, wires, ledger, tasks, times, f"m{mount.number}", lambda: session.number,
            self._where, self._allot, self._give_back,
        )  # fmt: skip
        self._reader = Reader(meta, self._chunks)
        self._names: list[SliceId] = []
        self._named_at = 0

    async def _where(self, volume: VolumeId) -> Sequence[int]:
        records: tuple[VolumeRecord, ...] = await self._meta.read(GetVolumes((volume,)))
        return records[0].replicas if records else ()

    async def _allot(self, asked: Allot) -> Sequence[VolumeRecord]:
        body = msgspec.msgpack.encode(asked)
        answer = await self._mount.ask(self._session, Asked.ALLOT, body)
        return msgspec.msgpack.decode(answer, type=tuple[VolumeRecord, ...])

    async def _give_back(self, asked: Return) -> None:
        await self._mount.ask(self._session, Asked.RETURN, msgspec.msgpack.encode(asked))

    # -- what programs do

    async def do(self, work: BytesWork, doing: Doing, *, small: bool, cuts: Sequence[int]) -> Any:
        """Returns what it saw.  Raises FsError when it was refused."""
        kind, number, *rest = doing.call.what
        ino = work.ino(doing, number)
        match kind:
            case "read":
                return await self._read(ino, *rest)
            case "write":
                await self._write(ino, *rest, small=small, cuts=cuts)
            case "punch":
                start, stop = (one * CELL_BYTES for one in rest)
                mode = PUNCH_HOLE | KEEP_SIZE
                await self._meta.propose(Allocate(ino, mode, start, stop - start, False))
            case "cut":
                size = rest[0] * CELL_BYTES
                await self._meta.propose(SetAttr(ino=ino, cred=SUPERUSER, size=size))
            case _:
                start, source, at, count = rest
                command = CopyRange(
                    work.ino(doing, source), at * CELL_BYTES, ino, start * CELL_BYTES,
                    count * CELL_BYTES, False,
                )  # fmt: skip
                _, copied = await self._meta.propose(command)
                return copied // CELL_BYTES
        return None

    async def _read(self, ino: Ino, start: int, stop: int) -> tuple[int, ...]:
        file = File(ino, stop * CELL_BYTES)
        offset, size = start * CELL_BYTES, (stop - start) * CELL_BYTES
        failed = 0
        while True:
            try:
                data = bytes(await self._reader.read(file, offset, size))
                return values_of(data, stop - start)
            except FsError as error:
                if error.fault not in (Fault.CORRUPT, Fault.STALE):
                    raise
                failed += 1
                if failed == TRIES and isinstance(error, Unreadable):
                    await self._require_gone(ino, error)
            file.forget_layouts()

    async def _require_gone(self, ino: Ino, error: Unreadable) -> None:
        """What cannot be read is not what the file has now."""
        layout = await self._meta.read(GetLayout(ino, 0))
        if any((piece.volume, piece.slice_id) == error.place for piece in layout.slices):
            raise Broken("bytes can be read", f"inode {ino}: {error}")

    async def _write(
        self,
        ino: Ino,
        start: int,
        values: Sequence[int],
        *,
        small: bool,
        cuts: Sequence[int],
    ) -> None:
        for attempt in range(1, WRITES_MAX + 1):
            try:
                return await self._write_once(ino, start, values, small, cuts)
            except FsError as error:
                if error.fault is not Fault.SLICE_EXPIRED or attempt == WRITES_MAX:
                    raise
                self._names.clear()

    async def _write_once(
        self, ino: Ino, start: int, values: Sequence[int], small: bool, cuts: Sequence[int]
    ) -> None:
        written: list[tuple[SliceId, VolumeId, int]] = []
        runs = []
        try:
            for low, high in zip([0, *cuts], [*cuts, len(values)], strict=True):
                data = b"".join(map(cell, values[low:high]))
                offset = (start + low) * CELL_BYTES
                if small:
                    runs.append(ops.Run(offset, len(data), 0, data=data))
                    continue
                slice_id = await self._name()
                stored = await self._chunks.write(slice_id, [data])
                written.append((slice_id, stored.volume, len(data)))
                runs.append(ops.Run(offset, len(data), stored.crc, slice_id, stored.volume))
            if self._mount.dawdles and written and written[-1][0] % DAWDLES == 0:
                await self._tasks.sleep(2 * self._times.grace_us)
            await self._meta.propose(ops.Write(ino, tuple(runs), self._world.now, False))
        except FsError:
            if written:
                await self._meta.propose(Discard(tuple(written)))
            raise

    async def _name(self) -> SliceId:
        now = self._world.now
        if not self._names or now - self._named_at > self._times.reserved_us:
            first = await self._meta.propose(ReserveSlices(RESERVED))
            self._named_at = now
            self._names = [SliceId(first + more) for more in range(RESERVED)]
        return self._names.pop(0)


class BytesMount(Mount):
    def __init__(
        self,
        world: World,
        doors: Doors,
        promises: Promises,
        number: int,
        seeds: list[NodeId],
        bytes_work: BytesWork,
        wires: Wires,
        ledger: Ledger,
        times: Times,
        *,
        programs: int,
        pause_ms: int,
        ends: int,
        answered: Callable[[], None],
        opened: Callable[[], None],
        stays_ms: int | None,
    ) -> None:
        nothing: Any = None
        super().__init__(
            world, doors, promises, number, seeds, nothing, programs=programs, pause_ms=pause_ms,
            ends=ends, answered=answered, opened=opened, stays_ms=stays_ms,
        )  # fmt: skip
        self._bytes = bytes_work
        self._wires = wires
        self._ledger = ledger
        self._times = times
        self._tasks = Tasks(world, self._awake)
        self._files: tuple[Session, Files] | None = None
        self._commands = number * COMMANDS
        self.dawdles = True
        """Until all is calm: such a write is begun again, and may dawdle as often as it is."""
        self.doing: dict[int, Doing] = {}
        """What is not answered yet, by its number."""

    def _begin_next(self, session: Session) -> None:
        if self._files is None or self._files[0] is not session:
            files = Files(
                self._world, self._wires, self._ledger, self._tasks, self._times, self, session
            )
            self._files = (session, files)
        random = self._random
        doing = self._bytes.next(random, f"m{self.number}")
        small = random.random() < PIECES
        cuts: list[int] = []
        if doing.call.what[0] == "write":
            count = len(doing.call.what[3])
            cuts = sorted(random.sample(range(1, count), min(random.randrange(3), count - 1)))
        self._bytes.begun(doing, self._world.now)
        self.doing[doing.call.number] = doing
        self._tasks.start(self._do(session, self._files[1], doing, small, cuts))

    async def _do(
        self, session: Session, files: Files, doing: Doing, small: bool, cuts: Sequence[int]
    ) -> None:
        result: Any
        try:
            result = await files.do(self._bytes, doing, small=small, cuts=cuts)
        except FsError as error:
            result = error
        del self.doing[doing.call.number]
        if session.ended is not None:
            return  # nobody knows whether it acted
        self._bytes.answered(doing, result, self._world.now)
        self._answered()
        self._pause(session)

    async def propose(self, session: Session, command: Command[Any]) -> Any:
        command.check()
        sequence, answered = session.begin()
        self._commands += 1
        self._promises.sent(self._commands, session.number, sequence)
        body = encode(Propose(session.number, sequence, answered, command))
        answer: Any
        try:
            answer = await self.ask(session, Method.PROPOSE, body)
        except FsError as error:
            answer = error
        session.done(sequence)
        is_safe_mode = isinstance(answer, FsError) and answer.fault is Fault.READ_ONLY
        if session.ended is None and not is_safe_mode:  # then it has not come into the log
            self._promises.acknowledged(session.number, sequence, answer)
        if isinstance(answer, FsError):
            raise answer
        return decode_reply(command, answer)

    async def ask(self, session: Session, method: int, body: bytes) -> bytes:
        if session.ended is not None:
            raise session.ended
        answer: Wait[bytes] = Wait()
        self._ask(session, method, body, answer.set)
        return await answer
