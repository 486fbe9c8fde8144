"""The words every layer uses: identifiers, credentials, sizes.  No behaviour lives here."""

from typing import Final, NewType

import msgspec

Ino = NewType("Ino", int)
"""Number of an inode: unsigned 64 bits, never used twice in the life of a filesystem."""

SliceId = NewType("SliceId", int)
"""Name of a slice (an immutable run of at most `SLICE_BYTES_MAX` bytes): 64 bits, never used
twice.  0: no bytes.
"""

VolumeId = NewType("VolumeId", int)
"""Number of a volume: unsigned 32 bits.  0: not in a volume."""

FIRST_REPLICATED: Final = 1 << 31
"""Volumes from here on were made by a cluster.  Those below were made by one node for itself."""

LogIndex = NewType("LogIndex", int)
"""Position in the metadata log.  The first entry has index 1."""

ROOT: Final = Ino(1)

KIB: Final = 1 << 10
MIB: Final = 1 << 20

CHUNK_BYTES: Final = 64 * MIB
"""A file is cut into windows of this size; every slice lies within one."""
SLICE_BYTES_MAX: Final = 4 * MIB
"""The largest slice, and so the largest needle: one slice is one needle."""
BLOCK_BYTES: Final = 4 * KIB
"""Space is counted in blocks of this size (`st_blocks` is in units of 512)."""
CHECKSUM_BYTES: Final = 32 * KIB
"""A needle carries one crc32c for each piece of this size."""
NAME_BYTES_MAX: Final = 255
FILE_BYTES_MAX: Final = (1 << 63) - 1
"""8 EiB - 1, the largest offset that off_t can name."""
LINKS_MAX: Final = 0xFFFF_FFFF


class Cred(msgspec.Struct, frozen=True, array_like=True):
    """On whose behalf something is done.

    `checked` says that the door has already decided access (the kernel of a mount does so, with
    the caller's supplementary groups and capabilities in sight); ownership of what is created
    still comes from `uid` and `gid`.
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    checked: bool = False


SUPERUSER: Final = Cred(0, 0)
