"""What the leader tells chunkservers to do, one call each, in its term.

Every call ends within its time.  Raises what the node says, and UNAVAILABLE when it does not
answer.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from copy import copy
from typing import Any, Final, TypeVar

import msgspec
import trio

from mountfs.chunks.comparison import Listed, is_ordered
from mountfs.chunks.protocol import Copied, Copy, Delete, Drop, List, Method, Open, Seal
from mountfs.errors import Fault, FsError
from mountfs.meta.reports import VolumeReport
from mountfs.types import SliceId, VolumeId
from mountfs.wire.connection import Body, Disconnected

T = TypeVar("T")

CALL_S: Final = 5.0
LONG_S: Final = 60.0
"""For calls that move bytes, or wait for a disk that is busy."""


class Orders:
    """`term`: of the leader that we are (NOT_LEADER); `link` connects to a node."""

    def __init__(self, term: Callable[[], int], link: Callable[[int], Awaitable[Any]]) -> None:
        self.term = term
        self._link = link

    def of_this_term(self) -> "Orders":
        """For what was decided in this term, and is not to be done in a later one: then they raise
        NOT_LEADER.
        """
        begun = self.term()

        def term() -> int:
            if self.term() != begun:
                raise FsError(Fault.NOT_LEADER, f"it was decided in term {begun}, which is over")
            return begun

        found = copy(self)
        found.term = term
        return found

    async def each(
        self, nodes: Iterable[int], ask: Callable[[int], Awaitable[object]]
    ) -> dict[int, FsError]:
        """Ask several nodes at once.  Returns which have failed, and why."""
        failed: dict[int, FsError] = {}

        async def one(node: int) -> None:
            try:
                await ask(node)
            except FsError as error:
                failed[node] = error

        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(one, node)
        return failed

    async def open(self, node: int, volume: VolumeId, epoch: int) -> None:
        await self._call(node, Method.OPEN, Open(self.term(), volume, epoch), CALL_S)

    async def seal(self, node: int, volume: VolumeId) -> VolumeReport:
        body = await self._call(node, Method.SEAL, Seal(self.term(), volume), LONG_S)
        return _decoded(node, body, VolumeReport)

    async def listing(
        self, node: int, volume: VolumeId, after: SliceId, limit: int, *, damaged: bool = False
    ) -> Sequence[Listed]:
        """Ascending, all behind `after`; `damaged`: only those that are known to be."""
        asked = List(volume, after, limit, damaged)
        body = await self._call(node, Method.LIST, asked, LONG_S)
        listed = _decoded(node, body, list[Listed])
        if not is_ordered(listed, after) or len(listed) > limit:
            raise FsError(Fault.DEVICE, f"node {node}: its list of volume {volume} is no such list")
        return listed

    async def copy(
        self,
        node: int,
        volume: VolumeId,
        source: int,
        after: SliceId,
        bytes_max: int,
        slices: tuple[SliceId, ...] = (),
    ) -> Copied:
        """One part of it."""
        asked = Copy(self.term(), volume, source, after, bytes_max, slices)
        return _decoded(node, await self._call(node, Method.COPY, asked, LONG_S), Copied)

    async def delete(self, node: int, slices: dict[VolumeId, list[SliceId]]) -> None:
        await self._call(node, Method.DELETE, Delete(self.term(), slices), LONG_S)

    async def drop(self, node: int, volume: VolumeId) -> None:
        await self._call(node, Method.DROP, Drop(self.term(), volume), LONG_S)

    async def _call(self, node: int, method: int, asked: object, seconds: float) -> Body:
        try:
            with trio.fail_after(seconds):
                link = await self._link(node)
                body: Body = await link.call(method, msgspec.msgpack.encode(asked))
                return body
        except Disconnected as error:
            raise FsError(Fault.UNAVAILABLE, f"node {node}: {error}") from error
        except trio.TooSlowError:
            raise FsError(
                Fault.UNAVAILABLE, f"node {node}: no answer within {seconds:g} s"
            ) from None


def _decoded(node: int, body: Body, form: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(body, type=form)
    except msgspec.MsgspecError as error:
        raise FsError(Fault.DEVICE, f"node {node}: its answer makes no sense: {error}") from None
