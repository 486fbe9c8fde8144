"""A small state machine to test a log with: named values, written, added to and compared, each
command at most once.
"""

from typing import Any

import msgspec

from mountfs.kv.base import Changes
from mountfs.raft.messages import Entry, EntryKind, SnapshotHead
from mountfs.sim.store import Store
from mountfs.types import LogIndex


class Command(msgspec.Struct, frozen=True, array_like=True):
    """Set `key` to `value`, if it is `expected` now (None: whatever it is)."""

    client: int
    sequence: int
    key: int
    value: int
    expected: int | None = None


class Registers(msgspec.Struct):
    values: dict[int, int] = {}
    last: dict[int, tuple[int, bool]] = {}
    """By client: the sequence of its last command, and whether that acted."""
    applied: LogIndex = LogIndex(0)

    def apply(self, entry: Entry) -> bool | None:
        """Whether the command acted: now or the first time."""
        assert entry.index == self.applied + 1, (entry.index, self.applied)
        self.applied = entry.index
        if entry.kind is not EntryKind.COMMAND:
            return None
        command = _decode(entry.data)
        sequence, acted = self.last.get(command.client, (0, False))
        if command.sequence > sequence:
            acted = command.expected in (None, self.values.get(command.key, 0))
            if acted:
                self.values[command.key] = command.value
            self.last[command.client] = (command.sequence, acted)
        return acted


_decode = msgspec.msgpack.Decoder(Command).decode
_ROW = b"registers"


class RegisterMachine:
    """A `Machine`."""

    def __init__(self, store: Store) -> None:
        self.store = store
        stored = store.get(_ROW)
        self.registers = (
            Registers() if stored is None else msgspec.msgpack.decode(stored, type=Registers)
        )

    @property
    def applied(self) -> LogIndex:
        return self.registers.applied

    def apply(self, entry: Entry) -> object:
        return self.registers.apply(entry)

    def read(self, query: Any) -> object:
        return self.registers.values.get(query, 0)

    def begin_checkpoint(self, head: SnapshotHead) -> Changes:
        return self.rows()

    def end_checkpoint(self, written: bool) -> None:
        pass

    def rows(self) -> dict[bytes, bytes]:
        return {_ROW: msgspec.msgpack.encode(self.registers)}


def encode(command: Command) -> bytes:
    return msgspec.msgpack.encode(command)
