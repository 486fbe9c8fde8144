"""What is said to a node that keeps slices: the bodies of calls over `wire`.  No I/O.

| method | call                                                       | answer                    |
|--------|------------------------------------------------------------|---------------------------|
| WRITE  | slice u64, crc32c u32, volume u32, epoch u32, the bytes    | nothing; they are durable |
| READ   | volume u32, slice u64, start u32, stop u32                 | crc32c u32, the bytes     |
| VERIFY | the same: is it good where it lies?                        | nothing: it is            |
| SPACE  | nothing                                                    | total u64, free u64       |
| LEND   | nothing                                                    | token, name of a socket   |
| PLACE  | volume u32, slice u64                                      | generation u32, offset    |
|        |                                                            | u64, length u32 (0: none) |
| OPEN   | `Open`: the volume takes slices in this epoch              | nothing                   |
| SEAL   | `Seal`: the volume takes no slices any more                | `VolumeReport`            |
| LIST   | `List`: slices of a volume, by name                        | (slice, bytes), ...       |
| COPY   | `Copy`: get from another node what is not here             | `Copied`                  |
| DELETE | `Delete`: forget slices                                    | nothing                   |
| DROP   | `Drop`: forget a volume with all in it                     | nothing                   |
| ALLOT  | `Allot`; to the leader: volumes to write to                | `VolumeRecord`, ...       |
| RETURN | `Return`; to the leader: volumes that are not written to   | nothing                   |

The bodies with names are msgpack.  OPEN to DROP, but for LIST and COPY's reads, are orders of the
leader: they carry its term, and one of an earlier term than the latest that was heard is refused.
DELETE and DROP are obeyed as far as the metadata, which is asked, does not need what would go.

What READ answers may come straight from the file: who asks verifies it, and has the node look
(VERIFY) when it does not match.  What is damaged there is known to the leader then.

A volume below FIRST_REPLICATED was made by a node when it was alone: it belongs to the node whose
number is in its upper bits, unless the metadata has a record of it.
"""

import struct
from enum import IntEnum
from typing import Final

import msgspec

from mountfs.types import SliceId, VolumeId

WRITE_HEAD: Final = struct.Struct("<QIII")
READ: Final = struct.Struct("<IQII")
READ_HEAD: Final = struct.Struct("<I")
SPACE: Final = struct.Struct("<QQ")
PLACE: Final = struct.Struct("<IQ")
PLACED: Final = struct.Struct("<IQI")

NODE_SHIFT: Final = 20
FIRST_NODE: Final = 1

LIST_MAX: Final = 10_000
"""Slices in one answer to LIST."""


class Method(IntEnum):
    ALLOT = 20
    RETURN = 21
    WRITE = 100
    READ = 101
    DELETE = 102
    SPACE = 103
    OPEN = 104
    SEAL = 105
    LIST = 106
    COPY = 107
    DROP = 108
    LEND = 109
    PLACE = 110
    VERIFY = 111


class Open(msgspec.Struct, frozen=True, array_like=True):
    """Make the volume if it is not there.  Nobody can write to it in an earlier epoch any more.

    Raises NO_SPACE, DEVICE; BUSY for one that is sealed here, or open in a later epoch.
    """

    term: int
    volume: VolumeId
    epoch: int


class Seal(msgspec.Struct, frozen=True, array_like=True):
    """Make the volume if it is not there, so that nobody can open it in an epoch of before."""

    term: int
    volume: VolumeId


class List(msgspec.Struct, frozen=True, array_like=True):
    volume: VolumeId
    after: SliceId
    """Only slices with greater names."""
    limit: int
    """1 to LIST_MAX."""
    damaged: bool = False
    """Only those that are known to be damaged."""


class Copy(msgspec.Struct, frozen=True, array_like=True):
    """A part of the work, so that it can be stopped and gone on with."""

    term: int
    volume: VolumeId
    source: int
    """The node that has them."""
    after: SliceId
    """Slices up to this one were seen to."""
    bytes_max: int
    """Stop after so many."""
    slices: tuple[SliceId, ...] = ()
    """Get these anew, though they are here: they are damaged.  Empty: all that is not here."""


class Copied(msgspec.Struct, frozen=True, array_like=True):
    after: SliceId
    """How far it has come."""
    needles: int
    bytes: int
    done: bool


class Delete(msgspec.Struct, frozen=True, array_like=True):
    term: int
    slices: dict[VolumeId, list[SliceId]]


class Drop(msgspec.Struct, frozen=True, array_like=True):
    term: int
    volume: VolumeId


class Allot(msgspec.Struct, frozen=True, array_like=True):
    """Raises NO_SPACE; UNAVAILABLE when too few nodes are there."""

    session: int
    copies: int
    """0: what the cluster gives unless it is told otherwise."""
    count: int
    """1 to ALLOT_MAX."""
    failed: tuple[tuple[VolumeId, int], ...] = ()
    """(volume, epoch): a node did not take a slice, or took too long.  They are sealed."""
    avoid: tuple[int, ...] = ()
    """Those nodes."""
    held: tuple[tuple[VolumeId, int], ...] = ()
    """(volume, epoch): what else the session writes to.  What it was given besides, it has given
    up, or the answer was lost: it goes to others.
    """


ALLOT_MAX: Final = 16


class Return(msgspec.Struct, frozen=True, array_like=True):
    session: int
    volumes: tuple[tuple[VolumeId, int], ...]
    """(volume, epoch)"""
    full: tuple[VolumeId, ...] = ()
    """These have no room: they are sealed."""


def node_of(volume: VolumeId) -> int:
    """Who has a volume that was made by a node.  Those of the home that a cluster grew from have no
    number in them.
    """
    return (volume >> NODE_SHIFT) or FIRST_NODE


def first_volume_of(node: int) -> int:
    """A node that is alone numbers its volumes from here on."""
    return 1 if node == FIRST_NODE else (node << NODE_SHIFT) + 1
