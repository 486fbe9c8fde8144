"""What the doors ask of the metadata: commands, which change it, and queries, which do not.

A command is at once the message on the wire, the entry in the log and the documentation of an
operation. `check` refuses what no state could make valid.  `apply` is the effect, and is
deterministic: all that it needs from outside (time, request) is in the stamp.  A refused command
changes nothing.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.types import NAME_BYTES_MAX

if TYPE_CHECKING:
    from mountfs.meta.tree import Tree

R = TypeVar("R")

UNFIT: Final = (struct.error, OverflowError, ValueError, IndexError)
"""What comes of numbers that fit into no key or record.  A client may send any: who takes one in
refuses it as INVALID, for what is in the log everybody has to get past.
"""


class Stamp(msgspec.Struct, frozen=True):
    """What was decided outside of the state machine for one command."""

    index: int
    """Its place in the log."""
    time: int
    """Nanoseconds since 1970; never less than that of an earlier command."""
    session: int
    """Who asks."""
    proven: int = 0
    """The time that has passed for certain, as far as was known; 0: nothing was."""


class Command(msgspec.Struct, Generic[R], frozen=True, array_like=True):
    """A change of the metadata.  Replies are plain values, so that they can be kept and sent."""

    def check(self) -> None:
        """Raise FsError for what is wrong in any state."""

    def apply(self, tree: Tree, stamp: Stamp) -> R:
        raise NotImplementedError


class Query(msgspec.Struct, Generic[R], frozen=True, array_like=True):
    """A question about the metadata."""

    def read(self, tree: Tree) -> R:
        raise NotImplementedError


def check_name(name: bytes) -> None:
    """A name for a directory entry: 1 to 255 bytes, no slash, no NUL, not "." or ".."."""
    if len(name) > NAME_BYTES_MAX:
        raise FsError(Fault.NAME_TOO_LONG, f"a name has at most {NAME_BYTES_MAX} bytes")
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise FsError(Fault.INVALID, f"{name!r} cannot be the name of a file")
