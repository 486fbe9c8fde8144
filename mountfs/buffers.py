"""Buffers for large requests and answers, used again: making one of a megabyte costs more than
filling it.
"""

from typing import Final

from mountfs.types import KIB, MIB

BUFFER_BYTES: Final = MIB + 64 * KIB
"""Room for the largest request of a door, and for the largest read with the checksummed pieces at
both of its ends.
"""
BUFFERS_KEPT: Final = 40


class Buffers:
    """Up to `kept` buffers of `size_bytes` wait to be used again; the rest goes to the system.

    Any thread may take one and give it back.
    """

    def __init__(self, size_bytes: int = BUFFER_BYTES, kept: int = BUFFERS_KEPT) -> None:
        self.size_bytes = size_bytes
        self._kept = kept
        self._free: list[bytearray] = []

    def get(self) -> bytearray:
        try:
            return self._free.pop()
        except IndexError:
            return bytearray(self.size_bytes)

    def put(self, buffer: object) -> None:
        """Nobody looks at it any more.  What is not one of ours is left alone."""
        if (
            type(buffer) is bytearray
            and len(buffer) == self.size_bytes
            and len(self._free) < self._kept
        ):
            self._free.append(buffer)
