"""A small state machine to test a log with: named values, written, added to and compared, each
command at most once.
"""

import msgspec

from mountfs.raft.messages import Entry, EntryKind
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

    def apply(self, entry: Entry) -> tuple[Command, bool] | None:
        """(command, whether it acted: now or the first time)"""
        assert entry.index == self.applied + 1, (entry.index, self.applied)
        self.applied = entry.index
        if entry.kind is not EntryKind.COMMAND:
            return None
        command = msgspec.msgpack.decode(entry.data, type=Command)
        sequence, acted = self.last.get(command.client, (0, False))
        if command.sequence > sequence:
            acted = command.expected in (None, self.values.get(command.key, 0))
            if acted:
                self.values[command.key] = command.value
            self.last[command.client] = (command.sequence, acted)
        return command, acted

    def encoded(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def decoded(cls, data: bytes) -> "Registers":
        return msgspec.msgpack.decode(data, type=cls)


def encode(command: Command) -> bytes:
    return msgspec.msgpack.encode(command)
