"""Safe mode: after a cold start nothing is changed until enough of the cluster is there.

A cold start is when all machines begin anew, after a loss of power for instance.  Then the leader
knows of nobody else whether they have what the metadata says they have.  So reads are answered as
far as possible, and writes are refused with a sentence, until the needed share of the chunkservers'
volumes has been reported, or an operator says that it is enough.  A leader that takes over from one
that it has heard goes on as that one did.

Nodes that begin with it report within seconds.  For so long whoever wants to write is told to ask
again, as during an election: a program that has worked through the loss of power elsewhere is not
to hear that its filesystem cannot be written to.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from mountfs.errors import Fault, FsError

SHARE_NEEDED: Final = 0.999
"""Of the volumes that the metadata knows."""


HOLD_MS: Final = 30_000
"""So long nobody is refused."""


class Report(msgspec.Struct, frozen=True):
    """For `mountfs safemode get`."""

    on: bool
    why: str
    """What is waited for, in words; or why it is over."""
    volumes_known: int
    volumes_reported: int
    share_needed: float


class SafeMode:
    """`volumes` says how many volumes the metadata knows of, and how many were reported; `now`:
    milliseconds that only grow.
    """

    def __init__(
        self,
        volumes: Callable[[], tuple[int, int]] = lambda: (0, 0),
        share_needed: float = SHARE_NEEDED,
        now: Callable[[], int] = lambda: 0,
    ) -> None:
        self._volumes = volumes
        self._share_needed = share_needed
        self._now = now
        self._hold_until = 0
        self._on = False
        self._why = "this node does not lead"
        self._heard_a_leader = False

    def heard_a_leader(self) -> None:
        """Another node leads: the cluster was there before we took over."""
        self._heard_a_leader = True
        self._on = False
        self._why = "another node leads"

    def began_to_lead(self) -> None:
        """Of a group of one, or as the first after everybody had stopped: a cold start."""
        self._on = not self._heard_a_leader
        self._hold_until = self._now() + HOLD_MS
        self._why = "" if self._on else "this node took over from another"
        self._look()

    def leave(self) -> None:
        """An operator says that it is enough."""
        if self._on:
            self._on = False
            self._why = "an operator has ended it"

    @property
    def is_on(self) -> bool:
        self._look()
        return self._on

    def require_writable(self) -> None:
        """Raises UNAVAILABLE, and READ_ONLY when there was time enough to report."""
        if self._on and self.is_on:
            if self._now() < self._hold_until:
                raise FsError(Fault.UNAVAILABLE, self.report().why)
            raise FsError(
                Fault.READ_ONLY,
                f"the cluster is in safe mode: {self.report().why}; see: mountfs safemode get",
            )

    def report(self) -> Report:
        self._look()
        known, reported = self._volumes()
        why = self._why
        if self._on:
            why = f"{reported} of {known} volumes have been reported since the cold start"
        return Report(self._on, why, known, reported, self._share_needed)

    def _look(self) -> None:
        if self._on:
            known, reported = self._volumes()
            if reported >= known * self._share_needed:
                self._on = False
                self._why = "enough volumes were reported"
