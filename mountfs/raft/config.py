"""The limits of a server.  Times in milliseconds of the clock that the core is told."""

import msgspec

from mountfs.types import KIB, MIB


class Config(msgspec.Struct, frozen=True, kw_only=True):
    heartbeat_ms: int = 100
    election_ms: int = 800
    """A follower that hears nothing for so long, and up to twice that by chance, stands for
    election; a leader that a quorum has not answered for so long steps down.
    """
    lease_reads: bool = True
    """Answer reads without a round of heartbeats while no other leader can have been elected.
    Right as long as clocks do not differ by more than `drift_percent`.
    """
    drift_percent: int = 10
    """How much faster one server's clock may run than another's."""

    rest_ms: int = 5_000
    """A group in which nothing has happened for so long rests: no heartbeats, no elections, until
    something happens or the shell says that a server is unreachable.  0: never.
    """

    append_bytes_max: int = 512 * KIB
    """Of one message; a single entry may be larger."""
    append_entries_max: int = 4_096
    inflight_messages_max: int = 128
    inflight_bytes_max: int = 16 * MIB
    """What is sent to a peer and not yet answered."""
    uncommitted_bytes_max: int = 64 * MIB
    """More is refused with BUSY."""
    apply_bytes_max: int = 4 * MIB
    """Handed out to be applied at once."""
    cached_bytes_max: int = 32 * MIB
    """Of the newest entries, in memory, so that they need not be read back."""
    reads_pending_max: int = 10_000
    snapshot_retry_ms: int = 2_000
    """A snapshot that failed is not sent again before."""
    caught_up_entries: int = 1_000
    """A learner that lacks no more than this may become a voter."""

    def __post_init__(self) -> None:
        assert 0 < self.heartbeat_ms * 2 <= self.election_ms, self
        assert 0 <= self.drift_percent < 100, self

    @property
    def lease_ms(self) -> int:
        """For so long after it was asked, a quorum that answered elects nobody else (thesis 6.4.1).

        They refuse votes for `election_ms` by their own clocks, which may be the faster ones.
        """
        return self.election_ms * (100 - self.drift_percent) // 100
