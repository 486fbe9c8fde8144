"""The life of a session: who mounts, and what is left behind when it goes."""

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.command import Command, Query, Stamp
from mountfs.meta.ops.lock import drop_session
from mountfs.meta.records import Replies
from mountfs.meta.tree import Tree

ABOUT_BYTES_MAX = 1_024


class OpenSession(Command[int], frozen=True, tag="open_session"):
    """Reply: the number of the new session."""

    about: str = ""
    """Who it is (machine, process, mount point): for people."""
    caches: bool = False
    """It may have leases."""

    def check(self) -> None:
        if len(self.about.encode()) > ABOUT_BYTES_MAX:
            raise FsError(Fault.TOO_BIG, f"more than {ABOUT_BYTES_MAX} bytes about a session")

    def apply(self, tree: Tree, stamp: Stamp) -> int:
        number = tree.counters.next_session
        tree.counters.next_session += 1
        tree.put(
            keys.session(number),
            msgspec.msgpack.encode(Replies(about=self.about, caches=self.caches)),
        )
        return number


class EndSession(Command[None], frozen=True, tag="end_session"):
    """Release its locks.  Its orphans stay until `Reap`, which is done in steps."""

    number: int

    def apply(self, tree: Tree, stamp: Stamp) -> None:
        drop_session(tree, self.number)
        tree.put(keys.session(self.number), None)


class Sessions(Query[tuple[int, ...]], frozen=True, tag="sessions"):
    def read(self, tree: Tree) -> tuple[int, ...]:
        return tuple(keys.last_64(key) for key, _ in tree.scan(keys.sessions()))
