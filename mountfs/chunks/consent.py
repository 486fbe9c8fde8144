"""Before a chunkserver deletes anything it asks the metadata whether that may go.

Who orders it shows a node's certificate and the latest term, and may be wrong all the same.  What
files refer to, and so what is retained, is for a majority of the metaservers to say.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from mountfs.errors import Fault, FsError
from mountfs.meta.ops.consent import SLICES_MAX, MustKeep, Needed
from mountfs.types import SliceId, VolumeId

NAMED_MAX: Final = 5


class Consent:
    """`read` asks the metadata, as of now.  Raises what that does, and UNAVAILABLE."""

    def __init__(self, node: int, read: Callable[[Any], Awaitable[Any]]) -> None:
        self._node = node
        self._read = read

    async def needed(self, slices: dict[VolumeId, list[SliceId]]) -> dict[VolumeId, set[SliceId]]:
        """Those that must stay; volumes without such are left out."""
        found: dict[VolumeId, set[SliceId]] = {}
        for volume, names in slices.items():
            for at in range(0, len(names), SLICES_MAX):
                needed = await self._read(Needed(volume, tuple(names[at : at + SLICES_MAX])))
                if needed:
                    found.setdefault(volume, set()).update(needed)
        return found

    async def require_droppable(self, volume: VolumeId) -> None:
        """Raises NOT_PERMITTED."""
        why = await self._read(MustKeep(volume, self._node))
        if why:
            raise FsError(Fault.NOT_PERMITTED, f"not dropped: {why}")


def refusal(needed: dict[VolumeId, set[SliceId]]) -> FsError:
    """What is said of slices that were not deleted."""
    names = [f"{one:#x} in volume {volume}" for volume in needed for one in sorted(needed[volume])]
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    told = ", ".join(names[:NAMED_MAX])
    return FsError(
        Fault.NOT_PERMITTED, f"files refer, or may come to refer, to slices {told}{more}"
    )
