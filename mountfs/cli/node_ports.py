"""The ports of a node."""

import trio

from mountfs.cli.node_settings import Settings
from mountfs.errors import Fault, FsError


async def require_free(settings: Settings) -> None:
    """Raises BUSY if somebody listens where we want to."""
    for port in (settings.port, settings.port + 1):
        for listener in await listen(settings.host, port):
            await listener.aclose()


async def listen(host: str, port: int) -> list[trio.SocketListener]:
    """Raises BUSY."""
    try:
        return await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        what = f"cannot listen at {host}:{port}: {error.strerror or error}"
        raise FsError(Fault.BUSY, f"{what}; name another place with --listen") from error
