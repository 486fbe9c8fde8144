"""What is said to a node that keeps slices: the bodies of calls over `wire`.  No I/O.

| method | call                                                | answer                           |
|--------|-----------------------------------------------------|----------------------------------|
| WRITE  | slice u64, crc32c u32, then the bytes               | volume u32; they are durable     |
| READ   | volume u32, slice u64, start u32, stop u32          | crc32c u32, then the bytes       |
| DELETE | msgpack: volume -> slices; from nodes only          | nothing                          |
| SPACE  | nothing                                             | total u64, free u64              |

A volume belongs to the node whose number is in its upper bits.
"""

import struct
from enum import IntEnum
from typing import Final

from mountfs.types import VolumeId

WRITE_HEAD: Final = struct.Struct("<QI")
WRITTEN: Final = struct.Struct("<I")
READ: Final = struct.Struct("<IQII")
READ_HEAD: Final = struct.Struct("<I")
SPACE: Final = struct.Struct("<QQ")

NODE_SHIFT: Final = 20
FIRST_NODE: Final = 1


class Method(IntEnum):
    WRITE = 100
    READ = 101
    DELETE = 102
    SPACE = 103


def node_of(volume: VolumeId) -> int:
    """Who has a volume.  Those of the home that a cluster grew from have no number in them."""
    return (volume >> NODE_SHIFT) or FIRST_NODE


def first_volume_of(node: int) -> int:
    """A node numbers its volumes from here on."""
    return 1 if node == FIRST_NODE else (node << NODE_SHIFT) + 1
