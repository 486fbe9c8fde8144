"""The identity of a process that runs for longer than its certificate.

`current()` looks at the files when it is called, at most once a second, and takes what is new there
if it is good.  Nothing runs in the background: who makes a new connection asks, and connections
that stand are left alone.
"""

import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from mountfs.errors import Fault, FsError
from mountfs.tls import pem
from mountfs.tls.authority import Kind, moment
from mountfs.tls.identity import Identity

LOOK_SECONDS: Final = 1.0
WARN_BEFORE: Final = timedelta(days=14)
"""A certificate that ends within this time, or within a quarter of its own, is to be renewed."""

_Stamps = tuple[tuple[int, ...] | None, ...]


class Identities:
    """The identity in a directory, as it is now.  May be used from any thread: gRPC has its own."""

    def __init__(
        self,
        directory: Path,
        *,
        cluster: str | None = None,
        kind: Kind | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises what `Identity.load` does: there is nothing older to go on with."""
        self._directory = directory
        self._clock = clock
        self._lock = threading.Lock()
        self._stamps = self._look()
        self._identity = Identity.load(directory, cluster=cluster, kind=kind, now=self._now())
        self._looked = clock()
        self._refused: str | None = None
        """Why what is in the directory was not taken."""

    def current(self) -> Identity:
        """The newest that is good.  The same object for as long as nothing has changed."""
        # abs: a clock that was set back must not keep us from looking.
        if abs(self._clock() - self._looked) >= LOOK_SECONDS:
            with self._lock:
                self._refresh()
        return self._identity

    def _refresh(self) -> None:
        self._looked = self._clock()
        # Before reading: what is written meanwhile is seen the next time.
        stamps = self._look()
        # What was refused is tried again: it may only have been too early for it.
        if stamps == self._stamps and self._refused is None:
            return
        self._stamps = stamps
        old = self._identity
        try:
            new = Identity.load(
                self._directory, cluster=old.cluster, kind=old.kind, now=self._now()
            )
            if new.name != old.name:
                raise FsError(
                    Fault.DENIED,
                    f"{self._directory / pem.OWN_FILE} is the certificate of {new.name}, and this "
                    f"is {old.name}: copy the right one here, or restart to become {new.name}",
                )
        except FsError as error:
            self._refused = str(error)
            return
        self._identity, self._refused = new, None

    def _look(self) -> _Stamps:
        return tuple(_stamp(self._directory / name) for name in (pem.OWN_FILE, pem.CA_FILE))

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    @property
    def problem(self) -> str | None:
        """What somebody should do something about, for `mountfs status`."""
        identity, now = self.current(), self._now()
        whole = identity.expires_at - identity.valid_from
        if self._refused is not None:
            old = "has expired" if now >= identity.expires_at else "is used meanwhile"
            until = moment(identity.expires_at)
            return f"{self._refused}; the certificate from before, valid until {until}, {old}"
        if now >= identity.expires_at:
            said = f"expired on {moment(identity.expires_at)}, and nobody accepts it any more"
        elif identity.expires_at - now <= min(WARN_BEFORE, whole / 4):
            said = f"expires on {moment(identity.expires_at)}"
        else:
            return None
        own = self._directory / pem.OWN_FILE
        return f"{own} {said}: mountfs pki renew DIR {identity.name}, and copy the result here"


def _stamp(file: Path) -> tuple[int, ...] | None:
    """What changes when a file does; the change time, for chmod."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
