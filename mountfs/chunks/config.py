"""The limits of a store of volumes, and of how reads go to several of them."""

from dataclasses import dataclass

from mountfs.types import KIB, MIB


@dataclass(frozen=True)
class ChunkConfig:
    volume_bytes: int = 1024 * MIB
    """A volume takes no further needle that would make it longer."""
    preallocate_bytes: int = 64 * MIB
    """Disk space is taken in steps of this size, so that an append seldom has to ask for it."""
    reserve_bytes: int = 64 * MIB
    """Of the disk's free space, kept for deleting, compaction and metadata when it is full."""
    garbage_ratio: float = 0.5
    """A volume is worth compacting when at least this part of it is garbage."""
    pending_needles_max: int = 8_192
    """Changes of the index kept in memory; with more, an append first syncs and writes them."""
    pending_needles_min: int = 512
    """A sync writes the index only when so many changes wait: a smaller tail is quickly scanned."""
    heads_max: int = 16_384
    """Needles whose header and checksums are kept in memory: 300 bytes each on average."""
    open_files_max: int = 256
    """Volumes kept open.  Those with unsynced bytes are open beyond it."""

    first_volume: int = 1
    """Its own volumes are numbered from here on.  0: it has none, all are named by the metadata."""

    wait_s: float = 20.0
    """How long the writes under way may keep an order about their volume waiting."""

    def __post_init__(self) -> None:
        assert self.volume_bytes >= 64 * KIB, self
        assert 0 < self.garbage_ratio <= 1, self
        assert 0 < self.pending_needles_min <= self.pending_needles_max, self


@dataclass(frozen=True)
class HedgeConfig:
    enabled: bool = True
    """False: no read goes to two servers.  Which one it goes to is still learned."""
    floor_ms: float = 2.0
    """Nobody is hedged sooner, and no difference that is smaller matters."""
    ceiling_ms: float = 500.0
    """Nobody is waited for longer, if there is another."""
    extra_share: float = 0.05
    """Extra reads, of all reads.  0 to 1."""
    burst: float = 20.0
    """Extra reads that may come at once.  When less than half of them is left, who reads waits for
    longer, up to twice as long: what is left is for the worst.
    """
    window: int = 256
    """Samples of a server's latency, for each kind of read."""
    fade_ms: float = 10_000.0
    """After this time a sample counts half."""
    probation_share: float = 0.3
    """A server that has lost more of its last reads is on probation."""
    probe_ms: float = 1_000.0
    """A server that is not well is tried once in this time."""

    def __post_init__(self) -> None:
        assert 0 < self.floor_ms <= self.ceiling_ms, self
        assert 0 <= self.extra_share <= 1, self
        assert self.burst >= 2, self
        assert self.window >= 64, self
        assert self.fade_ms > 0, self
        assert 0 < self.probation_share < 1, self
