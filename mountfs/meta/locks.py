"""Byte-range and whole-file locks: pure functions on the list of locks that are held on one file.

POSIX record locks (fcntl(2)) and open file description locks differ only in who the owner is; the
kernel says so in the owner's number.  flock(2) locks live in a world of their own on the same file.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

EOF: Final = 1 << 63
"""As `stop`: to the end, wherever that will be; no file is longer."""

POSIX: Final = 0
FLOCK: Final = 1


class Owner(msgspec.Struct, frozen=True, array_like=True, order=True):
    session: int
    number: int
    """What the kernel calls lock_owner."""


class Lock(msgspec.Struct, frozen=True, array_like=True):
    flavor: int
    """POSIX or FLOCK."""
    owner: Owner
    start: int
    stop: int
    """First byte after it, or EOF."""
    exclusive: bool
    pid: int


Locks = tuple[Lock, ...]


def conflicts(held: Iterable[Lock], wanted: Lock) -> list[Lock]:
    """All locks that stand in the way of `wanted`."""
    return [
        lock
        for lock in held
        if lock.flavor == wanted.flavor
        and lock.owner != wanted.owner
        and (lock.exclusive or wanted.exclusive)
        and lock.start < wanted.stop
        and wanted.start < lock.stop
    ]


def conflict(held: Iterable[Lock], wanted: Lock) -> Lock | None:
    """The first lock, by offset, that stands in the way of `wanted`."""
    return min(conflicts(held, wanted), key=lambda lock: lock.start, default=None)


def acquire(held: Locks, wanted: Lock) -> Locks:
    """`held` with `wanted`, which replaces what its owner had there and grows together with equal
    neighbours.
    """
    assert conflict(held, wanted) is None, wanted
    kept = release(held, wanted.flavor, wanted.owner, wanted.start, wanted.stop)
    start, stop = wanted.start, wanted.stop
    apart = []
    for lock in kept:
        same = (lock.flavor, lock.owner, lock.exclusive) == (
            wanted.flavor,
            wanted.owner,
            wanted.exclusive,
        )
        if same and lock.stop == start:
            start = lock.start
        elif same and lock.start == stop:
            stop = lock.stop
        else:
            apart.append(lock)
    return (*apart, msgspec.structs.replace(wanted, start=start, stop=stop))


def release(held: Locks, flavor: int, owner: Owner, start: int = 0, stop: int = EOF) -> Locks:
    """`held` without what `owner` has in `start:stop`."""
    kept = []
    for lock in held:
        if lock.flavor != flavor or lock.owner != owner or lock.stop <= start or stop <= lock.start:
            kept.append(lock)
            continue
        if lock.start < start:
            kept.append(msgspec.structs.replace(lock, stop=start))
        if stop < lock.stop:
            kept.append(msgspec.structs.replace(lock, start=stop))
    return tuple(kept)
