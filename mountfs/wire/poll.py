"""Looking for more before sleeping, while that is worth it.

Between two processors a wake-up costs more than a call from memory.  So a reader looks again for a
short while, and lets everybody else run in between.  Where answers take long it does so in vain; it
then stops, until it is woken so soon that it may be worth another try.
"""

import os
import socket
from time import perf_counter
from typing import Final

import trio

TRIES: Final = 16
"""So many times in vain, one after the other, and it stops."""
REST: Final = 64
"""So many times woken soon, and it begins again."""
SOON: Final = 4
"""Woken within so many times the span: the wake-ups of both sides are in it."""


class Poll:
    """`span_s`: for how long.  0: never."""

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s if len(os.sched_getaffinity(0)) > 1 else 0.0
        self._until = 0.0
        self._credit = TRIES if self._span_s else 0
        """Above 0: it is worth it, with so many tries left.  Below: so often it must be woken soon
        to begin again.  0: never.
        """

    def begin(self) -> bool:
        """Something was read.  Whether to look again before sleeping."""
        if self._credit <= 0:
            return False
        self._until = perf_counter() + self._span_s
        return True

    async def again(self) -> bool:
        """There was nothing.  If it is worth it, lets the others run, and says so."""
        if self._credit <= 0 or not self._until:
            return False
        if perf_counter() < self._until:
            await trio.lowlevel.checkpoint()
            return True
        self._until = 0.0
        self._credit = self._credit - 1 or -REST
        return False

    def found(self) -> None:
        """There was something."""
        if self._until:
            self._credit = TRIES
            self._until = 0.0

    async def sleep(self, sock: socket.socket) -> None:
        """Until there is something to read."""
        if self._credit >= 0:
            await trio.lowlevel.wait_readable(sock)
            return
        begun = perf_counter()
        await trio.lowlevel.wait_readable(sock)
        if perf_counter() - begun < SOON * self._span_s:
            self._credit = self._credit + 1 or TRIES
