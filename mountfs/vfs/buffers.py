"""Buffers for requests, used again: making one of a megabyte costs more than filling it."""


class Buffers:
    """Up to `kept` buffers of `size_bytes` wait to be used again; the rest goes to the system."""

    def __init__(self, size_bytes: int, kept: int) -> None:
        self.size_bytes = size_bytes
        self._kept = kept
        self._free: list[bytearray] = []

    def get(self) -> bytearray:
        return self._free.pop() if self._free else bytearray(self.size_bytes)

    def put(self, buffer: object) -> None:
        """Nobody looks at it any more.  What is not one of ours is left alone."""
        if (
            type(buffer) is bytearray
            and len(buffer) == self.size_bytes
            and len(self._free) < self._kept
        ):
            self._free.append(buffer)
