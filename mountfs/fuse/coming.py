"""Inodes that the kernel was told of a moment ago.

An answer that names an inode is taken over by whoever has asked, when he is woken.  Until then the
kernel does not know it, and cannot be made to forget what the answer says; afterwards it would
believe it.
"""

from collections.abc import Callable, Iterable
from typing import Final

import trio

from mountfs.types import Ino

KEPT_S: Final = 1.0
"""Whoever waits for an answer has it long before."""


class Coming:
    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._since = 0.0
        self._young: set[Ino] = set()
        self._old: set[Ino] = set()

    def add(self, ino: Ino) -> None:
        """It is named in an answer.  It is kept for at least `KEPT_S`."""
        now = self._clock()
        if now - self._since > KEPT_S:
            self._old, self._young = self._young, set()
            self._since = now
        self._young.add(ino)

    def discard(self, inos: Iterable[Ino]) -> None:
        """The kernel had them, and has forgotten them."""
        self._young.difference_update(inos)
        self._old.difference_update(inos)

    def __contains__(self, ino: Ino) -> bool:
        return ino in self._young or ino in self._old
