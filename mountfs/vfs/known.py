"""What a mount knows of the metadata, and may believe: under leases, and only as long as nothing
has been heard to the contrary.

An answer may be older than a recall that overtakes it on its way to whoever asked.  So who asks
notes the `mark` before, and what has been *touched* since then is not believed when the answer
comes.

No I/O.
"""

from collections.abc import Iterable
from typing import Final, Protocol

from mountfs.meta.leases import Item
from mountfs.meta.ops.read import Listing
from mountfs.meta.records import Attributes, ino_of
from mountfs.types import Ino

NAMES_MAX: Final = 262_144
"""Names that are kept; the directories that were learned first are forgotten first."""
ATTRIBUTES_MAX: Final = 262_144
TOUCHED_MAX: Final = 65_536
NO_INO: Final = Ino(0)
"""What stands for a name that is not there."""


class Held(Protocol):
    """Whoever else is to know on which inodes we have leases."""

    def add(self, ino: Ino) -> None: ...

    def discard(self, ino: Ino) -> None: ...

    def clear(self) -> None: ...


class Known:
    def __init__(self) -> None:
        self.held: dict[Ino, int] = {}
        """Inodes on which we have a lease, and which one: another one after a while without has
        another number.
        """
        self._leases = 0
        self.watcher: Held | None = None
        self._attributes: dict[Ino, Attributes] = {}
        self._names: dict[Ino, dict[bytes, Ino]] = {}
        self._count = 0
        """Of all names."""
        self._complete: set[Ino] = set()
        """Directories of which all names are known."""
        self._listings: dict[Ino, tuple[int, int]] = {}
        """Directories that are being listed: the mark at the start, and the next position."""
        self._mark = 1
        self._floor = 0
        """Nothing that was asked before is believed."""
        self._touched: dict[Ino, int] = {}
        self._changing: dict[Ino, int] = {}
        """How many commands of our own that may change an inode are under way."""

    def hold(self, ino: Ino) -> None:
        if ino not in self.held:
            self._leases += 1
            self.held[ino] = self._leases
            if self.watcher is not None:
                self.watcher.add(ino)

    def release(self, ino: Ino) -> None:
        if self.held.pop(ino, 0) and self.watcher is not None:
            self.watcher.discard(ino)

    # -- what is older than what we know

    def mark(self) -> int:
        return self._mark

    def is_untouched(self, ino: Ino, mark: int) -> bool:
        """Nothing was heard of it since."""
        return mark >= self._floor and self._touched.get(ino, 0) <= mark

    def is_fresh(self, ino: Ino, mark: int) -> bool:
        """The same, and nothing will be heard that has happened by now.  Others are told of a
        change when nobody believes the contrary any more, but to our own session answers tell of it
        before it is answered itself, and we see answers in any order.
        """
        return ino not in self._changing and self.is_untouched(ino, mark)

    def begin(self, inos: Iterable[Ino]) -> None:
        """A command of our own is sent that may change these."""
        changing = self._changing
        for ino in inos:
            changing[ino] = changing.get(ino, 0) + 1

    def end(self, inos: Iterable[Ino]) -> None:
        """It is answered, or nobody waits for it any more."""
        changing = self._changing
        for ino in inos:
            left = changing[ino] - 1
            if left:
                changing[ino] = left
            else:
                del changing[ino]

    def touch(self, ino: Ino) -> None:
        """Answers about it that are under way are too old, and so are its attributes."""
        self._mark += 1
        if len(self._touched) >= TOUCHED_MAX:
            self._touched.clear()
            self._floor = self._mark
        self._touched[ino] = self._mark
        self._attributes.pop(ino, None)

    # -- what may be believed

    def attributes(self, ino: Ino) -> Attributes | None:
        return self._attributes.get(ino) if ino in self.held else None

    def child(self, parent: Ino, name: bytes) -> Ino | None:
        """NO_INO: there is no such name.  None: that is not known."""
        if parent not in self.held:
            return None
        names = self._names.get(parent)
        found = None if names is None else names.get(name)
        if found is None and parent in self._complete:
            return NO_INO
        return found

    def is_complete(self, parent: Ino) -> bool:
        return parent in self._complete

    # -- learning

    def learn(self, attributes: Attributes, mark: int) -> None:
        """Attributes that came with a lease on their inode."""
        ino = ino_of(attributes)
        if not self.is_fresh(ino, mark):
            return
        self.hold(ino)
        if len(self._attributes) >= ATTRIBUTES_MAX:
            del self._attributes[next(iter(self._attributes))]
        self._attributes[ino] = attributes

    def learn_name(self, parent: Ino, name: bytes, child: Ino, mark: int) -> None:
        """A name, or with NO_INO that there is none, that came with a lease on the directory."""
        if not self.is_fresh(parent, mark):
            return
        self.hold(parent)
        self._put(parent, name, child)

    def learn_listing(
        self, parent: Ino, after: int, limit: int, listing: Listing, mark: int
    ) -> None:
        """A part of a directory, with attributes, that came with leases on all of it."""
        if not self.is_fresh(parent, mark):
            self._listings.pop(parent, None)
            return
        self.hold(parent)
        rows = 0
        last = after
        for position, child, _, name, attributes in listing:
            last = position
            if not attributes:
                continue  # "." and ".."
            rows += 1
            self.learn(attributes, mark)
            self._put(parent, name, child)
        since, expected = self._listings.pop(parent, (mark, 0)) if after else (mark, 0)
        if after != expected or not self.is_fresh(parent, since):
            return
        if rows < limit:
            self._complete.add(parent)
        else:
            if len(self._listings) >= TOUCHED_MAX:
                self._listings.clear()
            self._listings[parent] = (since, last)

    def next_position(self, parent: Ino) -> int:
        """Where a listing goes on that was begun."""
        return self._listings.get(parent, (0, 0))[1]

    def _put(self, parent: Ino, name: bytes, child: Ino) -> None:
        names = self._names.get(parent)
        if names is None:
            names = self._names[parent] = {}
        if name not in names:
            self._count += 1
        names[name] = child
        while self._count > NAMES_MAX and len(self._names) > 1:
            oldest = next(iter(self._names))
            if oldest == parent:  # it is in use: put it behind the others
                self._names[parent] = self._names.pop(parent)
            else:
                self.forget_names(oldest)

    # -- forgetting

    def forget_name(self, parent: Ino, name: bytes) -> None:
        """It is not known any more what it stands for."""
        names = self._names.get(parent)
        if names is not None and names.pop(name, None) is not None:
            self._count -= 1
        self._complete.discard(parent)

    def forget_names(self, parent: Ino) -> None:
        self._count -= len(self._names.pop(parent, ()))
        self._complete.discard(parent)
        self._listings.pop(parent, None)

    def recall(self, items: Iterable[Item]) -> None:
        for item in items:
            self.touch(item.ino)
            if item.is_whole:
                self.release(item.ino)
                self.forget_names(item.ino)
            else:
                for name in item.names:
                    self.forget_name(item.ino, name)

    def forget(self) -> None:
        """Everything, and what is under way."""
        self.held.clear()
        if self.watcher is not None:
            self.watcher.clear()
        self.disbelieve()

    def disbelieve(self) -> None:
        """Believe nothing of what is known, nor what is under way.  Leases are kept: others know
        of them, too.
        """
        self._mark += 1
        self._floor = self._mark
        self._touched.clear()
        self._attributes.clear()
        self._names.clear()
        self._count = 0
        self._complete.clear()
        self._listings.clear()

    @property
    def count(self) -> int:
        return len(self.held)
