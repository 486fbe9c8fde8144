"""Where volumes are: what the metadata said of them, as long as it holds.

What is remembered may be wrong at any time.  Then nobody answers for a volume, or those that do not
have it any more say so; and it is asked for again.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from mountfs.chunks.protocol import node_of
from mountfs.meta.ops.volumes import VolumeRecord
from mountfs.types import FIRST_REPLICATED, VolumeId

KEPT_MAX: Final = 100_000
ASKED_MAX: Final = 1_000
"""Volumes in one question."""

Ask = Callable[[tuple[VolumeId, ...]], Awaitable[tuple[VolumeRecord, ...]]]


class VolumeMap:
    """`ask` says what records there are of some volumes."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._known: OrderedDict[VolumeId, tuple[int, ...]] = OrderedDict()
        self._wanted: dict[VolumeId, None] = {}
        """For the next question."""
        self._asked: set[VolumeId] = set()
        """In the one that is not answered yet."""
        self._asking = trio.Lock()

    def now(self, volume: VolumeId) -> tuple[int, ...] | None:
        """The nodes that have it, if that is known."""
        return self._known.get(volume)

    async def replicas(self, volume: VolumeId) -> tuple[int, ...]:
        """The nodes that have it; none, if there is no such volume.  All who ask meanwhile share
        one question.
        """
        found = self._known.get(volume)
        if found is not None:
            return found
        while True:
            self._wanted[volume] = None
            async with self._asking:
                found = self._known.get(volume)
                if found is not None:
                    return found
                self._wanted[volume] = None  # who came before may have asked, and forgotten it
                await self._ask_for_wanted()
            found = self._known.get(volume)
            if found is not None:
                return found

    async def _ask_for_wanted(self) -> None:
        asked = tuple(self._wanted)[:ASKED_MAX]
        for one in asked:
            del self._wanted[one]
        self._asked = set(asked)
        try:
            answer = await self._ask(asked)
        except BaseException:
            self._wanted.update(dict.fromkeys(asked))
            raise
        found = {record.number: record for record in answer}
        for one in asked:
            if one in self._asked:  # or it was found to be elsewhere since
                self._keep(one, nodes_of(one, found.get(one)))

    def learn(self, record: VolumeRecord) -> None:
        self._keep(record.number, record.replicas)

    def forget(self, volume: VolumeId) -> None:
        """It may be elsewhere now."""
        self._known.pop(volume, None)
        self._asked.discard(volume)

    def _keep(self, volume: VolumeId, replicas: tuple[int, ...]) -> None:
        self._known[volume] = replicas
        if len(self._known) > KEPT_MAX:
            self._known.popitem(last=False)


def nodes_of(volume: VolumeId, record: VolumeRecord | None) -> tuple[int, ...]:
    """Who has a volume; none, if there is no such volume.  One that a node has made for itself has
    no record before it is adopted.
    """
    if record is not None:
        return record.replicas
    return (node_of(volume),) if volume < FIRST_REPLICATED else ()
