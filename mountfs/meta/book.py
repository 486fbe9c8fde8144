"""Values by number that change with nearly every command: only checkpoints bring their rows up to
date.
"""

from collections.abc import Callable
from itertools import islice
from typing import Final, Generic, Protocol, TypeVar

from mountfs.kv.overlay import Overlay, Rows

_KNOWN_MAX: Final = 16_384


class _Packs(Protocol):
    def pack(self) -> bytes | None:
        """The row; None where it is not worth one."""
        ...


V = TypeVar("V", bound=_Packs)


class Book(Generic[V]):
    def __init__(
        self, rows: Overlay, key: Callable[[int], bytes], unpack: Callable[[bytes], V]
    ) -> None:
        self._rows = rows
        self._key = key
        self._unpack = unpack
        self.changed: dict[int, V] = {}
        """Those that the rows do not say yet."""
        self.known: dict[int, V] = {}
        """Others, as the rows say."""

    def find(self, number: int) -> V | None:
        value = self.changed.get(number) or self.known.get(number)
        if value is None:
            row = self._rows.get(self._key(number))
            if row is None:
                return None
            value = self._unpack(row)
            self._remember(number, value)
        return value

    def put(self, number: int, value: V) -> None:
        self.changed[number] = value
        self.known.pop(number, None)

    def drop(self, number: int) -> bytes:
        """Returns the key of the row, which is to go too."""
        self.known.pop(number, None)
        self.changed.pop(number, None)
        return self._key(number)

    def loose_rows(self) -> Rows:
        """Of what changed."""
        return {self._key(number): value.pack() for number, value in self.changed.items()}

    def written(self) -> None:
        """The rows say it now."""
        for number, value in self.changed.items():
            self._remember(number, value)
        self.changed.clear()

    def _remember(self, number: int, value: V) -> None:
        known = self.known
        if len(known) >= _KNOWN_MAX:
            for old in list(islice(known, _KNOWN_MAX // 4)):
                del known[old]
        known[number] = value
