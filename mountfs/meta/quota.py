"""Quotas: what a tree of directories, a user or a group may have, and when that is too much.

A hard limit is never passed.  A soft one may be, for the time of grace: from then on it holds as
a hard one would, until use has fallen to it again.
"""

from enum import IntEnum
from typing import Final

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.meta.records import NS

GRACE_S: Final = 7 * 24 * 3_600
LIMIT_MAX: Final = (1 << 63) - 1


class Kind(IntEnum):
    """Of what a quota is the limit."""

    TREE = 1
    """A directory and all below it; its number is that of the directory."""
    USER = 2
    GROUP = 3


WORDS: Final = {Kind.TREE: "directory inode", Kind.USER: "user", Kind.GROUP: "group"}


class Limits(msgspec.Struct, frozen=True, array_like=True):
    """0: no limit.  Bytes are those of `Inode.allocated`: blocks of 4 KiB."""

    hard_bytes: int = 0
    soft_bytes: int = 0
    hard_inodes: int = 0
    soft_inodes: int = 0
    grace_s: int = GRACE_S
    """So long a soft limit may be passed; 0: not at all."""

    def check(self) -> None:
        """Raises INVALID."""
        if not all(0 <= limit <= LIMIT_MAX for limit in msgspec.structs.astuple(self)):
            raise FsError(Fault.INVALID, f"a limit is a number from 0 to {LIMIT_MAX}")
        for hard, soft in (
            (self.hard_bytes, self.soft_bytes),
            (self.hard_inodes, self.soft_inodes),
        ):
            if hard and soft > hard:
                raise FsError(
                    Fault.INVALID, f"the soft limit, {soft:,}, is above the hard one, {hard:,}"
                )


class Quota(msgspec.Struct, frozen=True, array_like=True):
    limits: Limits
    bytes_since: int = 0
    """When use passed the soft limit, in nanoseconds; 0: it has not."""
    inodes_since: int = 0

    def noted(self, bytes: int, inodes: int, now: int) -> "Quota":
        """With the times as they are to be kept once there is that much use."""
        limits = self.limits
        bytes_since = _since(self.bytes_since, limits.soft_bytes, bytes, now)
        inodes_since = _since(self.inodes_since, limits.soft_inodes, inodes, now)
        if bytes_since == self.bytes_since and inodes_since == self.inodes_since:
            return self
        return Quota(limits, bytes_since, inodes_since)

    def bytes_limit(self, now: int) -> int:
        """The one that holds at a time; 0: none."""
        limits = self.limits
        return _holds(limits.hard_bytes, limits.soft_bytes, self.bytes_since, limits.grace_s, now)

    def inodes_limit(self, now: int) -> int:
        limits = self.limits
        return _holds(
            limits.hard_inodes, limits.soft_inodes, self.inodes_since, limits.grace_s, now
        )


def _since(before: int, soft: int, use: int, now: int) -> int:
    if not soft or use <= soft:
        return 0
    return before or now


def _holds(hard: int, soft: int, since: int, grace_s: int, now: int) -> int:
    if soft and (not grace_s or (since and now >= since + grace_s * NS)):
        return soft
    return hard
