"""How a node is to be run."""

from pathlib import Path
from typing import Final

import msgspec

from mountfs.meta.fleet import FleetConfig
from mountfs.meta.reports import FSYNC
from mountfs.meta.service import SESSION_TTL_MS

COPY_BYTES_PER_S: Final = 100e6
"""As much as a link of 1 Gbit/s brings, or a hard disk takes: clients of faster ones notice little
of repairs, and 1 TB is copied in less than three hours.
"""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    home: Path
    host: str
    port: int
    """Of gRPC; clients find the next one."""
    name: str
    roles: tuple[str, ...] = ("meta", "chunk")
    location: str = ""
    """See `NodeRecord`."""
    data: tuple[Path, ...] = ()
    """Directories for volumes, beside the home."""
    copy_bytes_per_s: float = COPY_BYTES_PER_S
    """What the node copies from others, at most; 0: as much as there is."""
    durability: str = FSYNC
    """When a slice is taken: see `meta.reports`."""
    join: tuple[str, ...] = ()
    tls: Path | None = None
    session_ttl_ms: int = SESSION_TTL_MS
    heal_after_s: float = FleetConfig().grace_ms / 1_000
    """See `patience`."""
    metrics: tuple[str, int] | None = None
    """Where they are read; None: nowhere."""
    metrics_must: bool = False
    """Somebody has asked for them there."""

    @property
    def rpc(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def door(self) -> str:
        return f"{self.host}:{self.port + 1}"
