"""How much quotas leave to writers, so that write(2) hears of a quota, and not close(2).

Bytes that are written stay in memory for a while, and the metadata judges them only when they are
flushed.  Far from every limit that is no matter.  Near one, each write is to go through to the
metadata before it is answered, and then the answer is exact.

What the metadata says is kept for a moment where it is far away: other mounts that write much in
that moment may make it wrong.  Then a flush is refused, and fsync(2) or close(2) say so.
"""

from collections.abc import Callable
from typing import Final

import trio

from mountfs.inline import leave
from mountfs.meta.local import Meta
from mountfs.meta.ops.quota import UNLIMITED, Leeway, Room
from mountfs.types import BLOCK_BYTES, MIB, Ino
from mountfs.vfs.handles import File

FAR_BYTES: Final = 64 * MIB
FAR_TIMES: Final = 4
"""A limit is far if it leaves so much, and so often what this mount has not written yet."""
KEEP_S: Final = 1.0
ANSWER_S: Final = 0.25
"""A leader that takes longer has died, or is about to be followed by another one."""
_KNOWN_MAX: Final = 1_024

Charged = tuple[Ino, int, int]
"""(home, uid, gid): files that have these in common share what is left."""


class _Answer:
    __slots__ = ("accepted", "at", "bytes", "unwritten")

    def __init__(self, bytes: int, at: float, accepted: int, unwritten: int) -> None:
        self.bytes = bytes
        self.at = at
        self.accepted = accepted
        """So much had been taken from writers when it was given."""
        self.unwritten = unwritten


class Headroom:
    """`keep_s`: how long an answer of the metadata is good enough; `unwritten` says how much space
    the bytes in memory may take.
    """

    def __init__(self, meta: Meta, unwritten: Callable[[], int], *, keep_s: float) -> None:
        self._meta = meta
        self._unwritten = unwritten
        self._keep_s = keep_s
        self._known: dict[Charged, _Answer] = {}
        self._no_quotas_at = -1e9
        """When we last heard that there are no quotas at all."""
        self._accepted = 0

    async def is_near(self, file: File, size: int) -> bool:
        """Whether a write of `size` bytes is so near to a limit that it must not be kept back."""
        now = trio.current_time()
        if now - self._no_quotas_at < self._keep_s:
            return False
        before = self._accepted
        self._accepted += (size // BLOCK_BYTES + 2) * BLOCK_BYTES
        known = self._known.get(file.charged) if file.charged is not None else None
        was_near = known is not None and not self._is_far(known)
        if known is not None and now - known.at < self._keep_s:
            if not was_near:
                return False
            if known.bytes < FAR_BYTES:
                return True
        leeway = await self._ask(file, was_near)
        if leeway is None or not leeway.exists:
            self._no_quotas_at = now
            return False
        return not self._is_far(self._learn(file, leeway, now, before))

    async def _ask(self, file: File, was_near: bool) -> Leeway | None:
        """None: nobody answers.  Who was not near a limit goes on then, as without quotas."""
        if was_near or not self._keep_s:
            return await self._meta.read(Room(file.ino))
        await leave()
        with trio.move_on_after(ANSWER_S):
            return await self._meta.read(Room(file.ino))
        return None

    def _learn(self, file: File, leeway: Leeway, now: float, accepted: int) -> _Answer:
        file.charged = (leeway.home, leeway.uid, leeway.gid)
        unlimited = leeway.bytes == UNLIMITED
        answer = _Answer(leeway.bytes, now, accepted, 0 if unlimited else self._unwritten())
        if self._keep_s:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known[file.charged] = answer
        return answer

    def _is_far(self, answer: _Answer) -> bool:
        if answer.bytes == UNLIMITED:
            return True
        ours = answer.unwritten + self._accepted - answer.accepted
        return answer.bytes > FAR_BYTES and answer.bytes > FAR_TIMES * ours
