"""fcntl(2) and flock(2) locks, as part of the state: take, release, ask."""

import msgspec

from mountfs.meta import keys
from mountfs.meta.command import Command, Query, Stamp
from mountfs.meta.locks import EOF, FLOCK, POSIX, Lock, Locks, Owner, acquire, conflict, release
from mountfs.meta.records import HAS_LOCKS
from mountfs.meta.tree import Tree
from mountfs.types import Ino

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Locks).decode


class TakeLock(Command[Lock | None], frozen=True, tag="take_lock"):
    """Reply: None, or the lock in the way, and then nothing has changed.  It never waits."""

    ino: Ino
    lock: Lock
    waits: bool = False
    """Who asks would wait for it.  Then those who wait already go first: who leads sees to that
    before it comes here (`LockWaiting.turn_of_another`).
    """

    def apply(self, tree: Tree, stamp: Stamp) -> Lock | None:
        held = locks_of(tree, self.ino)
        in_the_way = conflict(held, self.lock)
        if in_the_way is None:
            set_locks(tree, self.ino, held, acquire(held, self.lock))
        return in_the_way


class ReleaseLock(Command[None], frozen=True, tag="release_lock"):
    ino: Ino
    flavor: int
    owner: Owner
    start: int = 0
    stop: int = EOF

    def apply(self, tree: Tree, stamp: Stamp) -> None:
        held = locks_of(tree, self.ino)
        set_locks(
            tree, self.ino, held, release(held, self.flavor, self.owner, self.start, self.stop)
        )


class TestLock(Query[Lock | None], frozen=True, tag="test_lock"):
    """What stands in the way of `lock`, if anything."""

    ino: Ino
    lock: Lock

    def read(self, tree: Tree) -> Lock | None:
        return conflict(locks_of(tree, self.ino), self.lock)


def locks_of(tree: Tree, ino: Ino) -> Locks:
    if not tree.inode(ino).marks & HAS_LOCKS:
        return ()
    stored = tree.get(keys.locks(ino))
    return () if stored is None else _decode(stored)


def set_locks(tree: Tree, ino: Ino, before: Locks, after: Locks) -> None:
    if after == before:
        return
    if not after or not before:  # or the inode is as it was, and nobody need hear of it
        inode = tree.edit(ino)
        inode.marks = inode.marks | HAS_LOCKS if after else inode.marks & ~HAS_LOCKS
    tree.put(keys.locks(ino), _encode(after) if after else None)
    holders = {lock.owner.session for lock in after}
    for session in {lock.owner.session for lock in before} - holders:
        tree.put(keys.locked(session, ino), None)
    for session in holders - {lock.owner.session for lock in before}:
        tree.put(keys.locked(session, ino), b"")


def locks_of_session(tree: Tree, session: int) -> list[tuple[Ino, Lock]]:
    """What a session holds, and on which files."""
    inos = [keys.session_ino(key)[1] for key, _ in tree.scan(keys.lockeds(session))]
    return [
        (ino, lock) for ino in inos for lock in locks_of(tree, ino) if lock.owner.session == session
    ]


def drop_session(tree: Tree, session: int) -> None:
    """Release all that a session holds."""
    for key, _ in list(tree.scan(keys.lockeds(session))):
        _, ino = keys.session_ino(key)
        held = locks_of(tree, ino)
        set_locks(tree, ino, held, tuple(lock for lock in held if lock.owner.session != session))


__all__ = [
    "FLOCK",
    "POSIX",
    "ReleaseLock",
    "TakeLock",
    "TestLock",
    "drop_session",
    "locks_of_session",
]
