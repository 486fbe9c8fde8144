"""Any history of commands, checkpoints and crashes against a model of a POSIX tree in plain dicts
and bytearrays.

The model looks at two windows of a file: its beginning, and the border of its first two chunks.
"""

from dataclasses import dataclass, field

import crc32c
import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.extents import visible
from mountfs.meta.locks import Lock, Owner
from mountfs.meta.ops import lock as locking
from mountfs.meta.ops.allocate import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, Allocate
from mountfs.meta.ops.copy_range import COPY_BYTES_MAX, CopyRange
from mountfs.meta.ops.link import Link
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.meta.ops.read import ReadDir, Readlink
from mountfs.meta.ops.reap import Reap
from mountfs.meta.ops.rename import EXCHANGE, NOREPLACE, Rename
from mountfs.meta.ops.rmdir import Rmdir
from mountfs.meta.ops.session import EndSession
from mountfs.meta.ops.setattr import SetAttr
from mountfs.meta.ops.slices import (
    Discard,
    Garbage,
    Reclaimed,
    ReserveSlices,
    Rewrite,
    Settle,
    Tangles,
    crc_of_rows,
)
from mountfs.meta.ops.symlink import Symlink
from mountfs.meta.ops.tmpfile import Tmpfile
from mountfs.meta.ops.touch import Touch
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.ops.write import INLINE_BYTES_MAX, Write
from mountfs.meta.ops.xattr import CREATE, REPLACE, GetXattr, ListXattr, RemoveXattr, SetXattr
from mountfs.meta.records import Slice, ino_of
from mountfs.types import BLOCK_BYTES, CHUNK_BYTES, KIB, ROOT, SUPERUSER, Ino, VolumeId

FOREVER = 1 << 63
VOLUME = VolumeId(7)

WINDOWS = ((0, 24 * KIB), (CHUNK_BYTES - 12 * KIB, CHUNK_BYTES + 12 * KIB))
NAMES = st.sampled_from([b"a", b"b", b"c", b"d"])
KINDS = {"file": 0o100644, "fifo": 0o010644, "device": 0o020644}
OFFSETS = st.one_of(
    st.integers(0, KIB),
    st.integers(0, 14 * KIB),
    st.integers(CHUNK_BYTES - 12 * KIB, CHUNK_BYTES + 2 * KIB),
    st.sampled_from([0, BLOCK_BYTES, 2 * BLOCK_BYTES, CHUNK_BYTES - BLOCK_BYTES, CHUNK_BYTES]),
)
LENGTHS = st.one_of(
    st.integers(1, 2 * KIB),
    st.integers(1, 9 * KIB),
    st.sampled_from([1, BLOCK_BYTES, 2 * BLOCK_BYTES, BLOCK_BYTES - 1]),
)


class Bytes:
    """The windows of a file, zeros where nothing was put."""

    def __init__(self) -> None:
        self.windows = [bytearray(stop - start) for start, stop in WINDOWS]

    def put(self, start: int, data: bytes) -> None:
        self._fill(start, start + len(data), lambda low, high: data[low - start : high - start])

    def clear(self, start: int, stop: int) -> None:
        self._fill(start, stop, lambda low, high: bytes(high - low))

    def get(self, start: int, stop: int) -> list[tuple[int, bytes]]:
        """Parts that lie in windows: (offset, bytes)"""
        return [
            (max(start, base), bytes(window[max(start - base, 0) : max(stop - base, 0)]))
            for (base, end), window in zip(WINDOWS, self.windows, strict=True)
            if start < end and base < stop
        ]

    def _fill(self, start: int, stop: int, part) -> None:
        for (base, end), window in zip(WINDOWS, self.windows, strict=True):
            low, high = max(start, base), min(stop, end)
            if low < high:
                window[low - base : high - base] = part(low, high)


@dataclass
class File:
    size: int = 0
    bytes: Bytes = field(default_factory=Bytes)
    solid: Bytes = field(default_factory=Bytes)
    """1 for a byte that was written and is in no hole."""
    content_bytes: int = 0
    """So long is the content that is kept with the inode; 0: there is none."""
    sliced: bool = False
    blocks: set[int] = field(default_factory=set)
    """Of slices; numbers of blocks that were written or reserved and not freed."""

    def allocated(self) -> int:
        return BLOCK_BYTES * (len(self.blocks) + (self.content_bytes > 0))

    def write(self, start: int, data: bytes, *, inline: bool) -> None:
        stop = start + len(data)
        if inline:
            if start > self.content_bytes:
                self.solid.put(self.content_bytes, b"\1" * (start - self.content_bytes))
            self.content_bytes = max(self.content_bytes, stop)
        else:
            self.leave_inode()
            self.sliced = True
            self.blocks |= touched(start, stop)
        self.bytes.put(start, data)
        self.solid.put(start, b"\1" * len(data))
        self.size = max(self.size, stop)

    def leave_inode(self) -> None:
        if self.content_bytes:
            self.blocks = touched(0, self.content_bytes)
            self.content_bytes = 0
            self.sliced = True

    def erase(self, start: int, stop: int) -> None:
        self.bytes.clear(start, stop)
        if not self.content_bytes:
            self.solid.clear(start, stop)
            self.blocks -= {
                block
                for block in self.blocks
                if start <= block * BLOCK_BYTES and (block + 1) * BLOCK_BYTES <= stop
            }
        elif stop >= self.content_bytes:
            self.solid.clear(start, stop)
            self.content_bytes = min(start, self.content_bytes)

    def truncate(self, size: int) -> None:
        if size < self.size:
            self.erase(size, FOREVER)
            if size == 0:
                self.sliced = False
        self.size = size

    def copy_from(self, source: "File", start: int, at: int, length: int) -> None:
        data = source.bytes.get(start, start + length)
        solid = source.solid.get(start, start + length)
        if source.content_bytes and not self.sliced and at + length <= INLINE_BYTES_MAX:
            ((_, only),) = data
            self.write(at, only, inline=True)
            return
        self.leave_inode()
        self.erase(at, at + length)
        for (offset, piece), (_, there) in zip(data, solid, strict=True):
            to = at + offset - start
            self.bytes.put(to, piece)
            self.solid.put(to, there)
            for place, byte in enumerate(there, to):
                if byte:
                    self.blocks.add(place // BLOCK_BYTES)
                    self.sliced = True
        self.size = max(self.size, at + length)


def touched(start: int, stop: int) -> set[int]:
    return set(range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)))


@dataclass
class Node:
    mode: int
    nlink: int
    parent: Ino = ROOT
    names: dict[bytes, Ino] = field(default_factory=dict)
    """Of a directory, oldest first."""
    file: File = field(default_factory=File)
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    locks: dict[tuple[int, Owner], list[int]] = field(default_factory=dict)
    """For each byte 0 to 7: nothing, shared, exclusive."""
    mtime: int | None = None

    @property
    def is_directory(self) -> bool:
        return self.mode >> 12 == 4

    @property
    def is_regular(self) -> bool:
        return self.mode >> 12 == 8


class History(RuleBasedStateMachine):
    """What every history has: files that come and go, checkpoints, crashes.  And what must hold."""

    def __init__(self, machine) -> None:
        super().__init__()
        self.machine = machine
        machine.unanswered = 3
        self.nodes: dict[Ino, Node] = {ROOT: Node(0o040755, 2)}
        self.orphans: dict[Ino, int] = {}
        self.sessions = [machine.session]
        self.last_ino = 1
        self.asked: list[tuple[int, object, object]] = []
        """(index in the log, reply or fault) of what was asked."""
        self.rewrites: list[tuple[Rewrite, list]] = []
        self.frozen: dict | None = None
        for name in (b"a", b"b"):
            made = Make(ROOT, name, KINDS["file"], 0, 0, True, SUPERUSER)
            self.born(ino_of(self.ask(made, 1)[0]), Node(KINDS["file"], 1), ROOT, name)
        parent = ROOT
        for name in (b"c", b"d"):
            made = Mkdir(parent, name, 0o755, 0, SUPERUSER)
            self.born(ino_of(self.ask(made, 1)), Node(0o040755, 2), parent, name)
            parent = Ino(self.last_ino)

    # -- how rules ask

    def ask(self, command, session: int, fault: Fault | None = None):
        """Propose; if the model expects `fault`, nothing may change."""
        machine = self.machine
        before = machine.files() if fault else None
        try:
            reply = machine.do(command, session)
        except FsError as error:
            assert error.fault is fault, (command, error, fault)
            assert machine.files() == before
            self.asked.append((machine.state.applied, error.fault))
            return None
        assert fault is None, (command, fault)
        self.asked.append((machine.state.applied, reply))
        return reply

    def session(self, data) -> int:
        return data.draw(st.sampled_from(self.sessions), label="session")

    def any(self, data, want=lambda node: True) -> Ino:
        """An inode of a kind; now and then another, or one that is gone."""
        wanted = [ino for ino, node in self.nodes.items() if want(node)]
        if wanted and data.draw(st.integers(0, 15)):
            return data.draw(st.sampled_from(wanted), label="ino")
        return data.draw(st.sampled_from([*self.nodes, Ino(self.last_ino + 1)]), label="any ino")

    def directory(self, data) -> Ino:
        return self.any(data, lambda node: node.is_directory and node.nlink > 0)

    def file(self, data) -> Ino:
        return self.any(data, lambda node: node.is_regular)

    def name_in(self, data, parent: Ino) -> bytes:
        """A name in a directory; now and then one that is not there."""
        node = self.nodes.get(parent)
        if node is not None and node.names and data.draw(st.integers(0, 15)):
            return data.draw(st.sampled_from(sorted(node.names)), label="name")
        return data.draw(NAMES)

    def no_directory(self, ino: Ino) -> Fault | None:
        node = self.nodes.get(ino)
        if node is None:
            return Fault.STALE
        if not node.is_directory:
            return Fault.NOT_DIRECTORY
        return None if node.nlink else Fault.NOT_FOUND

    def no_file(self, ino: Ino) -> Fault | None:
        if ino not in self.nodes:
            return Fault.STALE
        return None if self.nodes[ino].is_regular else Fault.INVALID

    def born(self, ino: Ino, node: Node, parent: Ino, name: bytes | None) -> None:
        assert ino > self.last_ino
        self.last_ino = ino
        self.nodes[ino] = node
        node.parent = parent
        if name is not None:
            self.nodes[parent].names[name] = ino
            self.nodes[parent].nlink += node.is_directory

    # -- files and sessions come and go

    @rule(data=st.data(), name=NAMES, kind=st.sampled_from(sorted(KINDS)), exclusive=st.booleans())
    def make(self, data, name, kind, exclusive) -> None:
        parent, session = self.directory(data), self.session(data)
        command = Make(parent, name, KINDS[kind], 0, 0, exclusive, SUPERUSER)
        fault = self.no_directory(parent)
        found = None if fault else self.nodes[parent].names.get(name)
        if found and exclusive:
            fault = Fault.EXISTS
        reply = self.ask(command, session, fault)
        if fault:
            return
        assert reply[1] == (found is None)
        if found:
            assert ino_of(reply[0]) == found
            return
        self.born(ino_of(reply[0]), Node(KINDS[kind], 1), parent, name)

    @rule(data=st.data())
    def unlink(self, data) -> None:
        parent, session = self.directory(data), self.session(data)
        name = self.name_in(data, parent)
        fault = self.no_directory(parent)
        ino = None if fault else self.nodes[parent].names.get(name)
        if not fault and ino is None:
            fault = Fault.NOT_FOUND
        if not fault and self.nodes[ino].is_directory:
            fault = Fault.IS_DIRECTORY
        reply = self.ask(Unlink(parent, name, SUPERUSER), session, fault)
        if not fault:
            assert reply == self.lose(parent, name, session)

    def lose(self, parent: Ino, name: bytes, session: int) -> Ino:
        """Take a name away.  Returns the inode if it has no other."""
        ino = self.nodes[parent].names.pop(name)
        node = self.nodes[ino]
        if node.is_directory:
            self.nodes[parent].nlink -= 1
            node.nlink = 0
        else:
            node.nlink -= 1
        if node.nlink:
            return Ino(0)
        self.orphans[ino] = session
        return ino

    @rule(data=st.data())
    def tmpfile(self, data) -> None:
        parent, session = self.directory(data), self.session(data)
        fault = self.no_directory(parent)
        reply = self.ask(Tmpfile(parent, 0o644, 0, SUPERUSER), session, fault)
        if not fault:
            self.born(ino_of(reply), Node(0o100644, 0), parent, None)
            self.orphans[ino_of(reply)] = session

    @precondition(lambda self: self.orphans)
    @rule(data=st.data())
    def reap(self, data) -> None:
        session = data.draw(st.sampled_from(sorted(set(self.orphans.values()))))
        inos = data.draw(st.lists(st.sampled_from(sorted(self.nodes)), max_size=4))
        left = self.ask(Reap(session, tuple(inos)), self.session(data))
        assert not left
        for ino in set(inos):
            if self.orphans.get(ino) == session:
                del self.orphans[ino]
                del self.nodes[ino]

    @precondition(lambda self: len(self.sessions) < 3)
    @rule()
    def open_session(self) -> None:
        session = self.machine.open_session()
        assert session > max(self.sessions)
        self.sessions.append(session)

    @precondition(lambda self: len(self.sessions) > 1)
    @rule(data=st.data())
    def end_session(self, data) -> None:
        over = data.draw(st.sampled_from(self.sessions[1:]))  # the first one prepares for others
        self.sessions.remove(over)
        self.ask(EndSession(over), self.session(data))
        for node in self.nodes.values():
            node.locks = {key: held for key, held in node.locks.items() if key[1].session != over}

    # -- the machine

    @precondition(lambda self: self.frozen is None)
    @rule()
    def begin_checkpoint(self) -> None:
        self.frozen = self.machine.state.freeze()

    @precondition(lambda self: self.frozen is not None)
    @rule(works=st.booleans())
    def end_checkpoint(self, works) -> None:
        rows, self.frozen = self.frozen, None
        if works:
            self.machine.store.write(rows, sync=True)
            self.machine.overlay.forget_frozen()
        else:
            self.machine.overlay.unfreeze()

    @rule(written=st.booleans())
    def crash(self, written) -> None:
        """The memory is lost; a checkpoint that was under way may have come to the disk."""
        machine = self.machine
        before = machine.rows()
        counters = msgspec.structs.asdict(machine.state.tree.counters)
        if self.frozen is not None and written:
            machine.store.write(self.frozen, sync=True)
        self.frozen = None
        machine.restart()
        assert machine.rows() == before
        assert msgspec.structs.asdict(machine.state.tree.counters) == counters

    @precondition(lambda self: self.asked)
    @rule(back=st.integers(1, 6))
    def repeat(self, back) -> None:
        """An entry comes a second time: it acts once, and answers the same or not at all."""
        machine = self.machine
        index, outcome = self.asked[-min(back, len(self.asked))]
        entry = machine.entry(index)
        if entry.session not in self.sessions:
            return
        before = machine.rows()
        try:
            reply = machine.deliver(entry.session, entry.sequence, entry.answered, entry.command)
        except FsError as error:
            assert error.fault is outcome or error.fault is Fault.STALE
        else:
            assert reply == outcome
        assert machine.rows() == before

    # -- what must hold

    @invariant()
    def nothing_is_violated(self) -> None:
        assert self.machine.violations() == []

    @invariant()
    def what_is_kept_in_memory_is_what_is_stored(self) -> None:
        tree = self.machine.state.tree
        for ino, inode in tree._inodes.items():
            stored = tree.get(keys.inode(ino))
            assert stored == inode.pack()
            assert inode.packed in (stored, None)

    @invariant()
    def names_and_attributes_are_those_of_the_model(self) -> None:
        machine = self.machine
        for ino, node in self.nodes.items():
            stat = machine.stat(ino)
            assert (stat.mode, stat.nlink) == (node.mode, node.nlink), ino
            assert stat.blocks * 512 == node.file.allocated(), ino
            assert stat.size == (len(node.target) or node.file.size), ino
            assert sorted(machine.ask(ListXattr(ino))) == sorted(node.xattrs)
            for name, value in node.xattrs.items():
                assert machine.ask(GetXattr(ino, name)) == value
            if node.target:
                assert machine.ask(Readlink(ino)) == node.target
            if node.is_directory:
                listing = machine.ask(ReadDir(ino, 0, 100, True))
                assert [entry[3] for entry in listing[:2]] == [b".", b".."]
                assert listing[1][1] == node.parent or ino == ROOT
                assert [(entry[3], entry[1]) for entry in listing[2:]] == list(
                    reversed(node.names.items())
                )
        counters = machine.state.tree.counters
        assert counters.inodes == len(self.nodes)
        assert counters.allocated == sum(node.file.allocated() for node in self.nodes.values())

    @invariant()
    def bytes_are_those_of_the_model(self) -> None:
        for ino, node in self.nodes.items():
            if node.is_regular:
                for offset, wanted in node.file.bytes.get(0, node.file.size):
                    found = self.machine.read(ino, offset, offset + len(wanted))
                    assert found == wanted[: len(found)], (ino, offset)
                    assert len(found) == min(len(wanted), node.file.size - offset)


class Names(History):
    """Directories, links, renames."""

    @rule(data=st.data(), name=NAMES)
    def mkdir(self, data, name) -> None:
        parent, session = self.directory(data), self.session(data)
        fault = self.no_directory(parent)
        if not fault and name in self.nodes[parent].names:
            fault = Fault.EXISTS
        reply = self.ask(Mkdir(parent, name, 0o755, 0, SUPERUSER), session, fault)
        if not fault:
            setgid = self.nodes[parent].mode & 0o2000
            self.born(ino_of(reply), Node(0o040755 | setgid, 2), parent, name)

    @rule(data=st.data(), name=NAMES)
    def symlink(self, data, name) -> None:
        parent, session = self.directory(data), self.session(data)
        fault = self.no_directory(parent)
        if not fault and name in self.nodes[parent].names:
            fault = Fault.EXISTS
        reply = self.ask(Symlink(parent, name, b"there", SUPERUSER), session, fault)
        if not fault:
            self.born(ino_of(reply), Node(0o120777, 1, target=b"there"), parent, name)

    @rule(data=st.data(), name=NAMES)
    def link(self, data, name) -> None:
        parent, session, ino = self.directory(data), self.session(data), self.any(data)
        node = self.nodes.get(ino)
        fault = Fault.STALE if node is None else self.no_directory(parent)
        if node is not None and node.is_directory:
            fault = Fault.NOT_PERMITTED
        if not fault and name in self.nodes[parent].names:
            fault = Fault.EXISTS
        if not fault and node.nlink == 0 and self.orphans[ino] != session:
            fault = Fault.NOT_FOUND
        self.ask(Link(ino, parent, name, SUPERUSER), session, fault)
        if not fault:
            self.orphans.pop(ino, None)
            node.nlink += 1
            node.parent = parent
            self.nodes[parent].names[name] = ino

    @rule(data=st.data())
    def rmdir(self, data) -> None:
        parent, session = self.directory(data), self.session(data)
        name = self.name_in(data, parent)
        fault = self.no_directory(parent)
        ino = None if fault else self.nodes[parent].names.get(name)
        if not fault and ino is None:
            fault = Fault.NOT_FOUND
        if not fault and not self.nodes[ino].is_directory:
            fault = Fault.NOT_DIRECTORY
        if not fault and self.nodes[ino].names:
            fault = Fault.NOT_EMPTY
        reply = self.ask(Rmdir(parent, name, SUPERUSER), session, fault)
        if not fault:
            assert reply == self.lose(parent, name, session)

    @rule(
        data=st.data(),
        new_name=NAMES,
        flags=st.sampled_from([0, 0, 0, NOREPLACE, EXCHANGE]),
    )
    def rename(self, data, new_name, flags) -> None:
        parent, new_parent = self.directory(data), self.directory(data)
        name = self.name_in(data, parent)
        session = self.session(data)
        fault, moved, over = self.renamable(parent, name, new_parent, new_name, flags)
        command = Rename(parent, name, new_parent, new_name, flags, SUPERUSER)
        reply = self.ask(command, session, fault)
        if fault:
            return
        source, target = self.nodes[parent], self.nodes[new_parent]
        lost = Ino(0)
        if moved == over:
            pass
        elif flags == EXCHANGE:
            source.names[name], target.names[new_name] = over, moved
            delta = self.nodes[over].is_directory - self.nodes[moved].is_directory
            source.nlink += delta
            target.nlink -= delta
            self.nodes[over].parent, self.nodes[moved].parent = parent, new_parent
        else:
            if over is not None:
                lost = self.lose(new_parent, new_name, session)
            del source.names[name]
            target.names[new_name] = moved
            source.nlink -= self.nodes[moved].is_directory
            target.nlink += self.nodes[moved].is_directory
            self.nodes[moved].parent = new_parent
        assert reply == lost

    def renamable(self, parent, name, new_parent, new_name, flags):
        """(fault, inode to move, inode in its way)"""
        fault = self.no_directory(parent) or self.no_directory(new_parent)
        if fault:
            return fault, None, None
        moved = self.nodes[parent].names.get(name)
        over = self.nodes[new_parent].names.get(new_name)
        if moved is None:
            return Fault.NOT_FOUND, None, None
        if self.is_below(new_parent, moved):
            return Fault.INVALID, None, None
        if flags == EXCHANGE:
            if over is None:
                return Fault.NOT_FOUND, None, None
            return (Fault.INVALID if self.is_below(parent, over) else None), moved, over
        if over is None or over == moved:
            return (Fault.EXISTS if over and flags else None), moved, over
        if flags:
            return Fault.EXISTS, None, None
        one, other = self.nodes[moved], self.nodes[over]
        if one.is_directory and not other.is_directory:
            return Fault.NOT_DIRECTORY, None, None
        if other.is_directory and not one.is_directory:
            return Fault.IS_DIRECTORY, None, None
        return (Fault.NOT_EMPTY if other.names else None), moved, over

    def is_below(self, ino: Ino, ancestor: Ino) -> bool:
        while ino not in (ancestor, ROOT):
            ino = self.nodes[ino].parent
        return ino == ancestor


class Attributes(History):
    """What is said of inodes, and locks."""

    @rule(
        data=st.data(),
        name=st.sampled_from([b"user.a", b"user.b", b"security.capability"]),
        value=st.binary(max_size=3),
        flags=st.sampled_from([0, CREATE, REPLACE]),
    )
    def setxattr(self, data, name, value, flags) -> None:
        ino, session = self.any(data), self.session(data)
        fault = None
        if ino not in self.nodes:
            fault = Fault.STALE
        elif name in self.nodes[ino].xattrs and flags == CREATE:
            fault = Fault.EXISTS
        elif name not in self.nodes[ino].xattrs and flags == REPLACE:
            fault = Fault.NO_ATTRIBUTE
        self.ask(SetXattr(ino, name, value, flags, False, SUPERUSER), session, fault)
        if not fault:
            self.nodes[ino].xattrs[name] = value

    @rule(data=st.data(), name=st.sampled_from([b"user.a", b"user.b"]))
    def removexattr(self, data, name) -> None:
        ino, session = self.any(data, lambda node: node.xattrs), self.session(data)
        fault = None
        if ino not in self.nodes:
            fault = Fault.STALE
        elif name not in self.nodes[ino].xattrs:
            fault = Fault.NO_ATTRIBUTE
        self.ask(RemoveXattr(ino, name, SUPERUSER), session, fault)
        if not fault:
            del self.nodes[ino].xattrs[name]

    @rule(data=st.data(), mode=st.integers(0, 0o7777))
    def chmod(self, data, mode) -> None:
        ino, session = self.any(data), self.session(data)
        fault = None if ino in self.nodes else Fault.STALE
        self.ask(SetAttr(ino=ino, cred=SUPERUSER, mode=mode), session, fault)
        if not fault:
            node = self.nodes[ino]
            node.mode = node.mode & 0o170000 | mode

    @rule(data=st.data(), atime=st.integers(-(10**9), 10**19))
    def touch(self, data, atime) -> None:
        inos = [self.any(data), self.any(data)]
        self.ask(Touch(tuple((ino, atime) for ino in inos)), self.session(data))
        for ino in inos:
            if ino in self.nodes:
                stat = self.machine.stat(ino)
                assert stat.atime_s * 10**9 + stat.atime_ns == atime

    @rule(
        data=st.data(),
        flavor=st.sampled_from([locking.POSIX, locking.FLOCK]),
        number=st.integers(1, 2),
        ends=st.tuples(st.integers(0, 8), st.integers(0, 8)).filter(
            lambda ends: ends[0] != ends[1]
        ),
        want=st.sampled_from([0, 1, 2]),
    )
    def lock(self, data, flavor, number, ends, want) -> None:
        ino, session = self.any(data), self.session(data)
        owner = Owner(session, number)
        start, stop = sorted(ends)
        node = self.nodes.get(ino)
        fault = None if node else Fault.STALE
        if want == 0:
            self.ask(locking.ReleaseLock(ino, flavor, owner, start, stop), session, fault)
        else:
            wanted = Lock(flavor, owner, start, stop, want == 2, 1)
            blocked = node is not None and any(
                flavor == other_flavor and other != owner and want + held > 2 and held
                for (other_flavor, other), cells in node.locks.items()
                for held in cells[start:stop]
            )
            reply = self.ask(locking.TakeLock(ino, wanted), session, fault)
            assert (reply is not None) == (blocked and not fault)
            if blocked:
                return
        if node is not None:
            cells = node.locks.setdefault((flavor, owner), [0] * 8)
            cells[start:stop] = [want] * (stop - start)


class Files(History):
    """The bytes of files."""

    def __init__(self, machine) -> None:
        super().__init__(machine)
        small, large = self.nodes[ROOT].names[b"a"], self.nodes[ROOT].names[b"b"]
        self.put(small, 1, [(0, b"small" * 20)], False)
        self.put(large, 1, [(0, b"large" * 2_000)], True)

    @rule(
        data=st.data(),
        offsets=st.lists(OFFSETS, min_size=1, max_size=3),
        lengths=st.lists(LENGTHS, min_size=3, max_size=3),
        in_slice=st.booleans(),
        seed=st.integers(1, 255),
    )
    def write(self, data, offsets, lengths, in_slice, seed) -> None:
        ino, session = self.file(data), self.session(data)
        runs = []
        for turn, (offset, length) in enumerate(zip(sorted(offsets), lengths, strict=False)):
            length = min(length, CHUNK_BYTES - offset % CHUNK_BYTES)
            runs.append((offset, bytes([(seed + turn) % 255 + 1]) * length))
        self.put(ino, session, runs, in_slice)

    def put(self, ino: Ino, session: int, runs: list[tuple[int, bytes]], in_slice: bool) -> None:
        command = Write(
            ino,
            tuple(self.machine.run(offset, content, in_slice=in_slice) for offset, content in runs),
            5,
            False,
        )
        fault = self.no_file(ino)
        self.ask(command, session, fault)
        if fault:
            if in_slice:
                garbage = tuple((run.slice_id, run.volume, run.length) for run in command.runs)
                self.ask(Discard(garbage), session)
            return
        self.nodes[ino].xattrs.pop(b"security.capability", None)
        file = self.nodes[ino].file
        stop = max(offset + len(content) for offset, content in runs)
        inline = not in_slice and stop <= INLINE_BYTES_MAX and not file.sliced
        for offset, content in runs:
            file.write(offset, content, inline=inline)

    @rule(data=st.data(), size=st.one_of(OFFSETS, st.just(0)))
    def truncate(self, data, size) -> None:
        ino, session = self.file(data), self.session(data)
        fault = self.no_file(ino)
        if fault is Fault.INVALID and self.nodes[ino].is_directory:
            fault = Fault.IS_DIRECTORY
        self.ask(SetAttr(ino=ino, cred=SUPERUSER, size=size), session, fault)
        if not fault:
            self.nodes[ino].file.truncate(size)

    @rule(
        data=st.data(),
        mode=st.sampled_from(
            [0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE]
        ),
        offset=OFFSETS,
        length=LENGTHS,
        far=st.booleans(),
    )
    def allocate(self, data, mode, offset, length, far) -> None:
        ino, session = self.file(data), self.session(data)
        erases = mode & (PUNCH_HOLE | ZERO_RANGE)
        if far and erases:
            length += CHUNK_BYTES
        fault = self.no_file(ino)
        self.ask(Allocate(ino, mode, offset, length, False), session, fault)
        if fault:
            return
        file = self.nodes[ino].file
        stop = offset + length
        if erases:
            file.erase(offset, stop)
        else:
            file.leave_inode()
            file.sliced = True
            file.blocks |= touched(offset, stop)
        if not mode & KEEP_SIZE:
            file.size = max(file.size, stop)

    @rule(data=st.data(), start=OFFSETS, at=OFFSETS, length=LENGTHS, whole=st.booleans())
    def copy(self, data, start, at, length, whole) -> None:
        source, target, session = self.file(data), self.file(data), self.session(data)
        if whole:
            start, at, length = 0, 0, 1 << 40
        fault = self.no_file(source) or self.no_file(target)
        expected = 0
        if not fault:
            expected = max(min(length, COPY_BYTES_MAX, self.nodes[source].file.size - start), 0)
            if source == target and start < at + expected and at < start + expected:
                fault = Fault.INVALID
        reply = self.ask(CopyRange(source, start, target, at, length, False), session, fault)
        if fault:
            return
        assert reply[1] == expected
        if expected:
            file = self.nodes[target].file
            file.copy_from(self.nodes[source].file, start, at, expected)

    # -- compaction

    @rule(data=st.data())
    def begin_rewrite(self, data) -> None:
        """What the compactor does of itself, up to its last command."""
        machine = self.machine
        tangled = machine.ask(Tangles(5))
        if not tangled:
            return
        ino, chunk = data.draw(st.sampled_from(tangled))
        session = self.session(data)
        rows = [
            (keys.slice_place(key)[1:], piece)
            for key, piece in machine.state.tree.slice_rows(ino, chunk)
        ]
        seen = [piece for piece in visible([piece for _, piece in rows]) if not piece.is_hole]
        if len(seen) == len(rows):
            judged = crc_of_rows(machine.state.tree.slice_rows(ino, chunk))
            self.ask(Settle(ino, chunk, len(rows), judged), session)
            return
        added, new = [], []
        for piece in seen:
            if piece.volume and data.draw(st.booleans(), label="keep"):
                added.append(piece)
                continue
            base = chunk * CHUNK_BYTES
            content = machine.read(ino, base + piece.start, base + piece.stop)
            assert len(content) == piece.stop - piece.start
            name = self.ask(ReserveSlices(1), session)
            machine.slices[name] = content
            crc = crc32c.crc32c(content)
            added.append(Slice(piece.start, piece.stop, name, 0, VOLUME, len(content), crc))
            new.append((name, VOLUME, len(content)))
        places = tuple(place for place, _ in rows)
        self.rewrites.append((Rewrite(ino, chunk, places, tuple(added)), new))
        if data.draw(st.booleans(), label="at once"):
            self.end_rewrite_of(len(self.rewrites) - 1, session)

    @precondition(lambda self: self.rewrites)
    @rule(data=st.data())
    def end_rewrite(self, data) -> None:
        """Its last command, which others may have been faster than."""
        at = data.draw(st.integers(0, len(self.rewrites) - 1))
        self.end_rewrite_of(at, self.session(data))

    def end_rewrite_of(self, at: int, session: int) -> None:
        command, new = self.rewrites.pop(at)
        present = {
            keys.slice_place(key)[1:]
            for key, _ in self.machine.state.tree.slice_rows(command.ino, command.chunk)
        }
        fault = None if set(command.replaced) <= present else Fault.BUSY
        if command.ino not in self.nodes:
            fault = Fault.STALE
        self.ask(command, session, fault)
        if fault and new:
            self.ask(Discard(tuple(new)), session)

    @rule(data=st.data(), limit=st.integers(1, 5))
    def reclaim(self, data, limit) -> None:
        found = self.machine.ask(Garbage(limit))
        for slice_id, _, length in found:
            assert len(self.machine.slices.pop(slice_id)) == length
        self.ask(Reclaimed(tuple(slice_id for slice_id, _, _ in found)), self.session(data))


@pytest.mark.parametrize("history", [Names, Attributes, Files])
def test_any_history_of_commands_and_crashes_is_that_of_the_model(new_machine, history):
    run_state_machine_as_test(
        lambda: history(new_machine()),
        settings=settings(
            max_examples=60,
            stateful_step_count=50,
            suppress_health_check=list(HealthCheck),
        ),
    )
