"""Reading what a disk holds before somebody needs it: every needle once in a while, slowly.

Rot is found while there are other copies.  How far it has come is kept in `scrub.json` on the disk,
so that a restart goes on where it stopped.
"""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import trio

from mountfs.chunks.disk import DiskStore
from mountfs.errors import FsError
from mountfs.types import MIB, SliceId, VolumeId

log = logging.getLogger(__name__)

NAME: Final = "scrub.json"
PERIOD_S: Final = 14 * 86_400.0
RATE_MIN: Final = 2 * MIB
"""Bytes a second, however little there is to be read: a round of a small disk is soon over, and
then nothing is done until the next is due.
"""
SLACK: Final = 2.0
"""So much faster than the period asks for: what comes meanwhile is to be read, too."""
STEP_BYTES: Final = 4 * MIB
"""Read in one go."""
KEEP_S: Final = 30.0
IDLE_S: Final = 5.0


class Round(msgspec.Struct, frozen=True):
    """One reading of all there is."""

    began: float
    """In seconds since 1970."""
    ended: float = 0.0
    """0: it goes on."""
    bytes: int = 0
    needles: int = 0
    damaged: int = 0
    """Needles, and stretches of a file, that cannot be read as they were written."""


class Scrubbed(msgspec.Struct):
    """How far a disk has come: what scrub.json says."""

    now: Round | None = None
    last: Round | None = None
    """The last that came to its end."""
    volume: VolumeId = VolumeId(0)
    """In which it is."""
    after: SliceId = SliceId(0)
    """So far in it."""

    def is_due(self, now: float, period_s: float) -> bool:
        """Whether there is something to read; a clock that was set back lets nothing wait for
        longer than a period."""
        if self.now is not None:
            return True
        return self.last is None or not 0 <= now - self.last.began < period_s

    def step(self, more: Round) -> None:
        """`more` counts what was read with one step."""
        assert self.now is not None
        self.now = Round(
            self.now.began,
            0.0,
            self.now.bytes + more.bytes,
            self.now.needles + more.needles,
            self.now.damaged + more.damaged,
        )

    def end(self, now: float) -> Round:
        assert self.now is not None
        self.last = msgspec.structs.replace(self.now, ended=now)
        self.now = None
        self.volume, self.after = VolumeId(0), SliceId(0)
        return self.last


class Scrub:
    """Of one disk, in `directory`.  `clock`: seconds since 1970."""

    def __init__(
        self,
        store: DiskStore,
        directory: Path,
        *,
        period_s: float = PERIOD_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._path = directory / NAME
        self.period_s = period_s
        """0: never."""
        self._clock = clock
        self.state = self._read()
        self._kept = 0.0

    @property
    def share(self) -> float:
        """Of what there is, how much was read in the round under way; 1 between two."""
        if self.state.now is None:
            return 1.0 if self.state.last is not None else 0.0
        total = self._total()
        return min(self.state.now.bytes / total, 1.0) if total else 1.0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            if not self.period_s or not self.state.is_due(self._clock(), self.period_s):
                await trio.sleep(IDLE_S)
                continue
            begun = trio.current_time()
            size = await trio.to_thread.run_sync(self.step)
            rate = max(RATE_MIN, SLACK * self._total() / self.period_s)
            await trio.sleep(max(begun + size / rate - trio.current_time(), 0))

    def step(self) -> int:
        """Read the next few needles, and note those that are damaged.  Returns how many bytes.
        Blocks.
        """
        state = self.state
        if state.now is None:
            state.now = Round(self._clock())
            state.volume, state.after = VolumeId(0), SliceId(0)
        if not state.after:
            volume = self._next_volume(VolumeId(state.volume))
            if volume is None:
                found = state.end(self._clock())
                log.info(
                    "%s: %d needles were read, %d are damaged",
                    self._path.parent, found.needles, found.damaged,
                )  # fmt: skip
                self._keep()
                return 0
            state.volume = volume
        try:
            found_, read, needles, after = self._store.verify_some(
                state.volume, state.after, STEP_BYTES
            )
        except FsError as error:
            # It has gone, or cannot be opened: its own trouble says so.
            log.info("volume %d is not verified: %s", state.volume, error)
            found_, read, needles, after = [], 0, 0, SliceId(0)
        for damage in found_:
            log.error("%s", damage)
            if damage.slice_id:
                self._store.note_bad(damage.volume, damage.slice_id, str(damage))
        state.step(Round(0, 0, read, needles, len(found_)))
        state.after = after
        if time.monotonic() - self._kept > KEEP_S:
            self._keep()
        return read

    def _next_volume(self, after: VolumeId) -> VolumeId | None:
        numbers = (stats.volume for stats in self._store.volumes())
        return min((number for number in numbers if number > after), default=None)

    def _total(self) -> int:
        return sum(stats.living_bytes for stats in self._store.volumes())

    # -- what is kept

    def _read(self) -> Scrubbed:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Scrubbed)
        except FileNotFoundError:
            return Scrubbed()
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("%s: %s; all is read from the beginning", self._path, error)
            return Scrubbed()

    def _keep(self) -> None:
        """If it cannot be kept, some is read twice after a restart."""
        self._kept = time.monotonic()
        new = self._path.with_suffix(".new")
        try:
            new.write_bytes(msgspec.json.format(msgspec.json.encode(self.state)))
            os.replace(new, self._path)
        except OSError as error:
            log.warning("%s: %s", self._path, error.strerror or error)
