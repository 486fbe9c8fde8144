"""What a chunkserver tells the leader of the metadata, again and again.  No I/O.

Reports are not kept in the log: a new leader waits until it has been told.
"""

from typing import Final

import msgspec

from mountfs.types import SliceId, VolumeId

SPREAD: Final = 0x9E37_79B9_7F4A_7C15
"""An odd number: neighbours among names do not cancel each other."""


FSYNC: Final = "fsync"
"""It is on the disk."""
ASYNC: Final = "async"
"""It will be, a moment later: a loss of power loses it."""


class VolumeReport(msgspec.Struct, frozen=True, array_like=True):
    """A volume that a node has."""

    number: VolumeId
    total_bytes: int
    """Of the file."""
    living_bytes: int
    """Needles that are not deleted, with their headers."""
    needles: int
    """How many of them."""
    epoch: int = 0
    """In which it takes slices; 0: in none."""
    trouble: str = ""
    """Why it cannot be relied on, in words: damage, or a disk that does not take its bytes."""
    digest: int = 0
    """Of the names of those needles, in whatever order they came (`with_name`): copies that have
    the same slices have the same.  0: not known.
    """


def with_name(digest: int, slice_id: SliceId) -> int:
    """The digest with one needle more; or with one less, if it was there."""
    return digest ^ (slice_id * SPREAD & (1 << 64) - 1)


class DiskReport(msgspec.Struct, frozen=True):
    """A directory for volumes."""

    path: str
    kind: str
    """"ssd", "hdd", or nothing: it is not known."""
    total_bytes: int
    free_bytes: int
    """What may still be written; 0 for a disk that takes nothing more."""
    volumes: int
    trouble: str = ""
    """Why it takes nothing more."""


class Report(msgspec.Struct, frozen=True):
    """By a node with the role chunk, about once a second."""

    node: int
    incarnation: int
    """Another one whenever it has started."""
    disks: tuple[DiskReport, ...]
    volumes: tuple[VolumeReport, ...]
    """All, if `whole`; else those that have changed since the report before."""
    gone: tuple[VolumeId, ...] = ()
    """Since the report before."""
    whole: bool = True
    sequence: int = 0
    """One more with each report of an incarnation: a gap means that some were not heard."""
    busy: float = 0.0
    """Share of the time, 0 to 1, in which it was at work since the report before."""
    scrubbed: float = 0.0
    """How much of what it has was verified in the round under way, 0 to 1."""
    durability: str = FSYNC
    """What it means that it has taken a slice: FSYNC, or ASYNC."""


class ReportReply(msgspec.Struct, frozen=True):
    wants_whole: bool
    """The leader does not know all volumes of this node: the next report is to be whole."""
