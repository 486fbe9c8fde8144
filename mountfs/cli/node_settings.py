"""How a node is to be run."""

from pathlib import Path

import msgspec

from mountfs.meta.fleet import FleetConfig
from mountfs.meta.service import SESSION_TTL_MS


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
