"""A state machine over an overlay over a store in memory, with a log beside it, so that a test can
say in one line what there is and what happens.  `servers` lies beside the tests.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import crc32c
import msgspec
import pytest

from mountfs.errors import Fault, FsError
from mountfs.kv.memory import MemoryStore
from mountfs.kv.overlay import Overlay
from mountfs.meta import keys
from mountfs.meta.command import Command, Query
from mountfs.meta.extents import visible, within
from mountfs.meta.invariants import violations
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.make_root import MakeRoot
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.meta.ops.read import GetAttr, GetLayout, GetPiece, Lookup, ReadDir
from mountfs.meta.ops.session import OpenSession
from mountfs.meta.ops.slices import ReserveSlices
from mountfs.meta.ops.write import Run, Write
from mountfs.meta.records import Stat, ino_of, unpack_attributes
from mountfs.meta.state_machine import Entry, StateMachine, decode_entry, encode_entry
from mountfs.types import CHUNK_BYTES, ROOT, SUPERUSER, Cred, Ino, SliceId, VolumeId

sys.path.insert(0, str(Path(__file__).parent))  # whatever the import mode

R = TypeVar("R")

VOLUME = VolumeId(7)
BIRTH_NS = 1_700_000_000_000_000_000


class Machine:
    """Paths are strings relative to the root; a directory's ends in a slash where it is made."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.overlay = Overlay(self.store)
        self.state = StateMachine(self.overlay)
        self.log: dict[int, bytes] = {}
        self.slices: dict[SliceId, bytes] = {}
        """What the volumes hold."""
        self.unanswered = 0
        """So many replies a session may be waiting for."""
        self.proven: int | None = None
        """The time that is known for certain; None: nothing was ever proven."""
        self._sequences: dict[int, int] = {0: 1}
        self.log[1] = encode_entry(0, 1, 1, BIRTH_NS, MakeRoot(0, 0))
        self._apply(1, self.entry(1))
        self.checkpoint()
        self.session = self.open_session()

    # -- commands and queries

    def do(self, command: Command[R], session: int | None = None) -> R:
        """Propose a command.  Raises FsError when it is refused."""
        number = self.session if session is None else session
        command.check()
        self._sequences[number] += 1
        sequence = self._sequences[number]
        return self.deliver(number, sequence, max(sequence - self.unanswered, 1), command)

    def deliver(self, session: int, sequence: int, answered: int, command: Command[R]) -> R:
        """An entry of the log, as it comes out of it."""
        index = self.state.applied + 1
        time = BIRTH_NS + index * 1_000_000
        proven = self.proven or 0
        self.log[index] = encode_entry(session, sequence, answered, time, command, proven)
        return self._apply(index, self.entry(index))  # type: ignore[no-any-return]

    def entry(self, index: int) -> Entry:
        """An entry of the log."""
        return decode_entry(self.log[index])

    def ask(self, query: Query[R]) -> R:
        return self.state.read(query)

    def open_session(self) -> int:
        number = self.do(OpenSession(), session=0)
        self._sequences[number] = 0
        return number

    # -- the disk

    def checkpoint(self) -> None:
        self.store.write(self.state.freeze(), sync=True)
        self.overlay.forget_frozen()

    def restart(self) -> None:
        """Lose the memory: what there is comes from the store and the log."""
        self.overlay = Overlay(self.store)
        self.state = StateMachine(self.overlay)
        for index in range(self.state.applied + 1, len(self.log) + 1):
            with suppress(FsError):
                self._apply(index, self.entry(index))

    def rows(self) -> dict[bytes, bytes]:
        """All of the state, but which entry was the last."""
        rows: dict[bytes, bytes | None] = {}
        for number in range(self.state.tree.counters.next_ino):
            rows.update(self.overlay.scan(*keys.everything_of(Ino(number))))
        rows.update(self.state.loose_rows())
        counters = msgspec.structs.replace(self.state.tree.counters, applied=0, last_time=0)
        rows[keys.COUNTERS] = msgspec.msgpack.encode(counters)
        return {key: value for key, value in rows.items() if value is not None}

    def files(self) -> dict[bytes, bytes]:
        """Like `rows`, without what the machine remembers of its sessions."""
        start, stop = keys.sessions()
        return {key: value for key, value in self.rows().items() if not start <= key < stop}

    def violations(self) -> list[str]:
        return list(violations(self.state.tree))

    # -- names

    def make(self, *paths: str, cred: Cred = SUPERUSER, mode: int = 0o777) -> Ino:
        """Create files, and directories where a path ends in a slash.  Returns the last one."""
        ino = ROOT
        for path in paths:
            parent, name = self.place(path.rstrip("/"))
            if path.endswith("/"):
                ino = ino_of(self.do(Mkdir(parent, name, mode, 0, cred)))
            else:
                ino = ino_of(self.do(Make(parent, name, 0o100000 | mode, 0, 0, True, cred))[0])
        return ino

    def place(self, path: str) -> tuple[Ino, bytes]:
        """(inode of the directory, name)"""
        parent, _, name = path.rpartition("/")
        return self.ino(parent), name.encode()

    def ino(self, path: str) -> Ino:
        ino = ROOT
        for name in filter(None, path.split("/")):
            ino = ino_of(self.ask(Lookup(ino, name.encode(), SUPERUSER)))
        return ino

    def stat(self, path: str | Ino) -> Stat:
        ino = self.ino(path) if isinstance(path, str) else path
        return unpack_attributes(self.ask(GetAttr(ino)))

    def listing(self, ino: Ino) -> dict[bytes, Ino]:
        return {
            name: child
            for position, child, _, name, _ in self.ask(ReadDir(ino, 0, 1 << 20, False))
            if position > 2
        }

    def paths(self, below: Ino = ROOT, prefix: str = "") -> set[str]:
        """Every path that there is; directories end in a slash."""
        found: set[str] = set()
        for name, ino in self.listing(below).items():
            path = prefix + name.decode()
            if self.stat(ino).mode & 0o170000 == 0o040000:
                found |= {path + "/", *self.paths(ino, path + "/")}
            else:
                found.add(path)
        return found

    # -- bytes

    def write(self, ino: Ino, *runs: tuple[int, bytes], slices: bool = False) -> None:
        """Write runs of (offset, bytes), in slices of their own or with the metadata."""
        self.do(
            Write(
                ino,
                tuple(self.run(offset, data, in_slice=slices) for offset, data in runs),
                BIRTH_NS,
                False,
            )
        )

    def run(self, offset: int, data: bytes, *, in_slice: bool) -> Run:
        if not in_slice:
            return Run(offset, len(data), 0, data=data)
        name = self.do(ReserveSlices(1))
        self.slices[name] = data
        return Run(offset, len(data), crc32c.crc32c(data), name, VOLUME)

    def read(self, ino: Ino, start: int = 0, stop: int | None = None) -> bytes:
        """The bytes of a file, as a reader puts them together."""
        size = self.stat(ino).size
        stop = size if stop is None else min(stop, size)
        data = bytearray(max(stop - start, 0))
        for chunk in range(start // CHUNK_BYTES, -(-stop // CHUNK_BYTES)):
            base = chunk * CHUNK_BYTES
            layout = self.ask(GetLayout(ino, chunk))
            if layout.content is not None:
                return layout.content[start:stop].ljust(len(data), b"\0")
            low, high = max(start - base, 0), min(stop - base, CHUNK_BYTES)
            for piece in within(visible(layout.slices), low, high):
                if piece.is_hole:
                    continue
                length = piece.stop - piece.start
                if piece.volume:
                    source = self.slices[piece.slice_id]
                    assert piece.length == len(source), piece
                    assert piece.crc == crc32c.crc32c(source), piece
                else:
                    source = self.ask(GetPiece(ino, piece.slice_id))
                assert piece.skip + length <= len(source), piece
                at = base + piece.start - start
                data[at : at + length] = source[piece.skip : piece.skip + length]
        return bytes(data)

    def _apply(self, index: int, entry: Entry) -> Any:
        return self.state.apply(
            index, entry.session, entry.sequence, entry.answered, entry.time, entry.command,
            entry.proven,
        )  # fmt: skip


@pytest.fixture
def new_machine() -> Callable[[], Machine]:
    return Machine


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    assert machine.violations() == []


Fails = Callable[[Fault], AbstractContextManager[None]]


@pytest.fixture
def fails() -> Fails:
    """`with fails(Fault.X):` what is done in it is refused with that fault, or the test fails."""

    @contextmanager
    def refused(fault: Fault) -> Iterator[None]:
        with pytest.raises(FsError) as raised:
            yield
        assert raised.value.fault is fault, raised.value

    return refused
