"""Trees, users and groups that have a quota, and whether a command is to be refused for it."""

from collections.abc import Iterable
from typing import Final

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.kv.overlay import Overlay, Rows
from mountfs.meta import keys
from mountfs.meta.quota import LIMIT_MAX, WORDS, Kind, Quota

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Quota).decode


class Limited:
    """One of them, and what it has at the moment."""

    __slots__ = ("bytes", "calm_bytes", "calm_inodes", "inodes", "kind", "number", "quota")

    quota: Quota
    bytes: int
    inodes: int
    calm_bytes: int
    """Up to so much there is nothing to refuse and nothing to note; -1: one has to look."""
    calm_inodes: int

    def __init__(self, kind: Kind, number: int, quota: Quota, use: tuple[int, int]) -> None:
        self.kind = kind
        self.number = number
        self.bytes, self.inodes = use
        self.set(quota)

    def set(self, quota: Quota) -> None:
        self.quota = quota
        limits = quota.limits
        self.calm_bytes = _calm(limits.hard_bytes, limits.soft_bytes, quota.bytes_since)
        self.calm_inodes = _calm(limits.hard_inodes, limits.soft_inodes, quota.inodes_since)

    def refuse_growth(self, bytes: int, inodes: int, now: int) -> None:
        """Raise OVER_QUOTA where so much more is too much; what does not grow is never refused."""
        whose = f"{WORDS[self.kind]} {self.number}"
        total = self.bytes + bytes
        if bytes > 0 and 0 < (limit := self.quota.bytes_limit(now)) < total:
            raise FsError(
                Fault.OVER_QUOTA,
                f"{whose} may have {limit:,} bytes, and would have {total:,}: delete something, or "
                "let an administrator raise it with: mountfs quota set",
            )
        total = self.inodes + inodes
        if inodes > 0 and 0 < (limit := self.quota.inodes_limit(now)) < total:
            raise FsError(
                Fault.OVER_QUOTA,
                f"{whose} may have {limit:,} files and directories, and would have {total:,}: "
                "delete some, or let an administrator raise it with: mountfs quota set",
            )


def _calm(hard: int, soft: int, since: int) -> int:
    return -1 if since else min(hard or LIMIT_MAX, soft or LIMIT_MAX)


Delta = tuple[Limited, int, int]
"""(who, bytes, inodes)"""


class AllLimited:
    def __init__(self) -> None:
        self._of: dict[Kind, dict[int, Limited]] = {kind: {} for kind in Kind}
        self.trees = self._of[Kind.TREE]
        self.users = self._of[Kind.USER]
        self.groups = self._of[Kind.GROUP]
        self.exist = False

    def find(self, kind: Kind, number: int) -> Limited | None:
        return self._of[kind].get(number)

    def numbers(self) -> list[tuple[Kind, int]]:
        """All of them, by kind and number."""
        return sorted((kind, number) for kind, some in self._of.items() for number in some)

    def set(self, kind: Kind, number: int, quota: Quota, use: tuple[int, int]) -> None:
        found = self.find(kind, number)
        if found is None:
            self._of[kind][number] = Limited(kind, number, quota, use)
        else:
            found.set(quota)
        self.exist = True

    def remove(self, kind: Kind, number: int) -> None:
        self._of[kind].pop(number, None)
        self.exist = any(self._of.values())

    @staticmethod
    def judge(deltas: Iterable[Delta], now: int) -> list[tuple[Limited, Quota]]:
        """What is to be noted of soft limits.  Raises OVER_QUOTA where one is made to grow over
        what it may have.
        """
        notes: list[tuple[Limited, Quota]] = []
        for one, bytes, inodes in deltas:
            total_bytes, total_inodes = one.bytes + bytes, one.inodes + inodes
            if total_bytes <= one.calm_bytes and total_inodes <= one.calm_inodes:
                continue
            one.refuse_growth(bytes, inodes, now)
            noted = one.quota.noted(total_bytes, total_inodes, now)
            if noted is not one.quota:
                notes.append((one, noted))
        return notes

    @staticmethod
    def add(deltas: Iterable[Delta], notes: Iterable[tuple[Limited, Quota]], changes: Rows) -> None:
        """What was judged has happened."""
        for one, bytes, inodes in deltas:
            one.bytes += bytes
            one.inodes += inodes
        for one, noted in notes:
            one.set(noted)
            changes[keys.quota(one.kind, one.number)] = _encode(noted)


def load_quotas(rows: Overlay) -> list[tuple[Kind, int, Quota]]:
    return [
        (Kind(kind), number, _decode(row))
        for key, row in rows.scan(*keys.quotas())
        for kind, number in (keys.quota_of(key),)
    ]


def quota_row(quota: Quota) -> bytes:
    return _encode(quota)
