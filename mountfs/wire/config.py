"""The limits of a connection.  Every queue and every wait of `wire` has its bound here."""

from dataclasses import dataclass

from mountfs.types import KIB, MIB


@dataclass(frozen=True)
class Limits:
    frame_bytes_max: int = 20 * MIB
    """Of one body.  The peer learns it from our HELLO and does not send more."""
    calls_max: int = 8_192
    """Requests of the peer that we take at a time; it learns this too.  A call that waits long
    (for a lock) counts as long as it waits.
    """
    calls_bytes_max: int = 64 * MIB
    """Of the bodies of those requests; a single one may be larger."""
    out_bytes_max: int = 32 * MIB
    """When so much waits to be sent, new calls wait, and requests are read no further."""
    connections_max: int = 10_000
    """Of one service."""

    poll_us: int = 100
    """So long we look for more before we sleep, if that has proved worth it: waking up costs more
    than most calls.  0: never.
    """
    connect_ms: int = 10_000
    """To connect, shake hands and be greeted."""
    hello_ms: int = 5_000
    """A stranger who has not shaken hands and said hello by then is cut off."""
    ping_ms: int = 5_000
    """A peer that says nothing for so long is asked whether it lives."""
    dead_ms: int = 15_000
    """A peer that says nothing for so long is dead."""
    stall_ms: int = 15_000
    """A peer that reads nothing for so long, while there is something for it, is cut off."""
    linger_ms: int = 1_000
    """How long a peer that is told why it is cut off has to read it."""

    def __post_init__(self) -> None:
        assert 4 * KIB <= self.frame_bytes_max < 1 << 32, self
        assert self.calls_max > 0, self
        assert self.calls_bytes_max > 0, self
        assert 0 < self.ping_ms < self.dead_ms, self
