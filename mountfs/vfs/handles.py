"""Open files: `Handle` is one open file description, `File` what all handles of an inode share."""

from typing import NamedTuple

import trio

from mountfs.errors import FsError
from mountfs.meta.locks import EOF, Lock, Locks, Owner, release
from mountfs.meta.records import Attributes, Slice
from mountfs.types import Ino
from mountfs.vfs.dirty import Dirty, Run


class Ask(NamedTuple):
    """A question what a file is.  Answers come in any order, and others may have changed the file
    when they come.
    """

    number: int
    touched: int
    acted: int


class File:
    """An inode that is open, or has bytes that are not in a slice yet."""

    __slots__ = (
        "acted", "asks", "cached_readers", "charged", "content", "copies", "direct_writers",
        "dirty", "drop_privileges", "fence", "flight", "flushing", "forgotten", "handles",
        "holders", "ino", "known_by", "known_since", "layouts", "lease", "mtime", "refused",
        "seen", "settling", "size", "taken", "taking", "touched", "writers", "written",
    )  # fmt: skip

    def __init__(self, ino: Ino, size: int) -> None:
        self.ino = ino
        self.size = size
        """As read(2) and stat(2) see it: with what is not flushed."""
        self.touched = 0
        """Counts how often it may have become something else than we know."""
        self.known_since = 0
        """What `touched` was when we asked for what we know."""
        self.lease = 0
        """Under which lease we know it.  Without one others may change it, and we are not told."""
        self.acted = 0
        """Counts our own commands that have changed its bytes, as they are answered: what was asked
        for before may not know of them.
        """
        self.asks = 0
        """How often it was asked what it is."""
        self.known_by = 0
        """Which of those questions was answered with what we know."""
        self.handles = 0
        self.dirty = Dirty()
        self.flight: list[Run] = []
        """Runs on their way into slices: under `dirty`, over the layouts."""
        self.flushing = False
        self.mtime = 0
        """Of the last write that is not flushed, in nanoseconds."""
        self.holders: set[Handle] = set()
        """Through which locks are held, as far as we know: close(2) has to look."""
        self.writers: set[Handle] = set()
        """Through which what is unwritten was written."""
        self.cached_readers = 0
        """Handles whose reads the door answers from its cache."""
        self.direct_writers = 0
        """Handles whose writes go past that cache."""
        self.settling: trio.Event | None = None
        """Set until the door has forgotten the end of the file as it was before an append."""
        self.taking: set[trio.Event] = set()
        """Writes that the door has in its cache already, and that we cannot take over yet."""
        self.taken = 0
        """Counts those that we have taken over."""
        self.fence = 0
        """Counts how often what was unwritten was lost: what was on its way then must not land."""
        self.written = False
        """Its bytes were changed since it was opened, by us."""
        self.refused: FsError | None = None
        """Why what was written to it is not taken, and never will be: it is retained."""
        self.drop_privileges = False
        """A write that is not flushed takes set-user-ID away."""
        self.forgotten = 0
        """Counts how often what is known of the layouts was not so any more: those that were asked
        for before are too old."""
        self.layouts: dict[int, list[Slice]] = {}
        """What is visible of chunks, ascending, as far as it was asked for."""
        self.seen: Attributes | None = None
        """As they were when it was opened, where others may change them."""
        self.content: bytes | None = None
        """The whole content of a small file; then there are no layouts."""
        self.copies: int | None = None
        """How many copies its bytes are to have, if that was asked for."""

        self.charged: tuple[Ino, int, int] | None = None
        """Home and owners, as far as they are known: what its space counts for."""

    @property
    def is_stale(self) -> bool:
        """Somebody else may have changed it since we looked."""
        return self.known_since != self.touched

    def is_current(self, lease: int) -> bool:
        """Whether what we know is so, until we are told.  `lease`: the one we have now, or 0."""
        return not self.is_stale and 0 < self.lease == lease

    def ask(self) -> "Ask":
        """To be called before it is asked for."""
        self.asks += 1
        return Ask(self.asks, self.touched, self.acted)

    def is_news(self, ask: "Ask", *, lease: int) -> bool:
        """Whether an answer says more than what we know; if so, it is what we know now.
        `lease`: it came with this one, and nobody has touched the file since: no other answer knows
        better.
        """
        if lease:
            self.known_by, self.known_since = self.asks, self.touched
            self.lease = lease
        elif ask.acted != self.acted:  # it may be older than what we have done, but also know more
            self.touched += 1
            return False
        elif ask.number > self.known_by:
            self.known_by, self.known_since = ask.number, ask.touched
            self.lease = 0
        else:
            return False
        return True

    @property
    def stop(self) -> int:
        """Where the last of what is unwritten ends."""
        return max((run.stop for run in (*self.flight, *self.dirty.runs)), default=0)

    def forget_layouts(self) -> None:
        self.forgotten += 1
        self.layouts.clear()
        self.content = None

    def note_lock(self, handle: "Handle", lock: Lock) -> None:
        """It is held, through `handle`."""
        self.note_unlock(lock.flavor, lock.owner, lock.start, lock.stop)
        handle.held = (*handle.held, lock)
        self.holders.add(handle)

    def note_unlock(self, flavor: int, owner: Owner, start: int = 0, stop: int = EOF) -> None:
        """Nothing is held of it any more, through whatever handle it was taken."""
        for handle in list(self.holders):
            handle.held = release(handle.held, flavor, owner, start, stop)
            if not handle.held:
                self.holders.discard(handle)

    @property
    def unwritten(self) -> bool:
        return bool(self.dirty.runs or self.flight)


class Handle:
    """One open(2)."""

    __slots__ = (
        "file", "flags", "held", "lost", "number", "reads_cached", "unchanged", "writes_direct",
    )  # fmt: skip

    def __init__(self, number: int, file: File, flags: int) -> None:
        self.number = number
        self.file = file
        self.flags = flags
        self.unchanged = True
        """What the door has cached of the file is still right."""
        self.held: Locks = ()
        """Locks that were taken through it, and are held as far as we know; released when it is
        closed, at the latest.
        """
        self.reads_cached = False
        self.writes_direct = False
        self.lost: FsError | None = None
        """What was lost of it with a session: nothing is done with it any more."""

    def read_cached(self) -> None:
        """The door answers reads from its cache until it is closed."""
        self.reads_cached = True
        self.file.cached_readers += 1

    def write_direct(self) -> None:
        """Writes go past the door's cache until it is closed."""
        self.writes_direct = True
        self.file.direct_writers += 1

    def close(self) -> None:
        self.file.handles -= 1
        self.file.cached_readers -= self.reads_cached
        self.file.direct_writers -= self.writes_direct

    def require(self) -> None:
        """Raises LOST, STALE."""
        if self.lost is not None:
            raise FsError(self.lost.fault, self.lost.detail)
