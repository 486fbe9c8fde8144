"""Lending files of volumes to mounts on the same machine, which then read them without us.

Who asks LEND over `wire`, and so was let in, is told where to come and with which token.  There it
names a volume and gets a descriptor that can only read.  It checks what it reads, as we would.

| asked               | answer                                                      |
|---------------------|-------------------------------------------------------------|
| token, volume u32   | generation u32 and a descriptor; 0 and none: it is not here |
"""

import array
import contextlib
import logging
import os
import secrets
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from mountfs.errors import FsError
from mountfs.types import VolumeId

log = logging.getLogger(__name__)

TOKEN_BYTES: Final = 16
ASKED: Final = struct.Struct("<16sI")
LENT: Final = struct.Struct("<I")
CLIENTS_MAX: Final = 64
IDLE_S: Final = 120.0
_CREDENTIALS: Final = struct.Struct("iii")

Find = Callable[[VolumeId], tuple[Path, int] | None]
"""The file of a volume, and its generation; None: it is not here."""


class Lender:
    """`find` may block shortly.  It is to be closed."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self.token = secrets.token_bytes(TOKEN_BYTES)
        # In the abstract namespace: there is no file that could stay behind, and no path that could
        # be too long.
        self.name = f"mountfs-{os.getpid()}-{secrets.token_hex(8)}"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind("\0" + self.name)
        listener.listen(CLIENTS_MAX)
        self._socket = trio.socket.from_stdlib_socket(listener)
        self._clients = trio.CapacityLimiter(CLIENTS_MAX)
        self.lent = 0

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                client, _ = await self._socket.accept()
                if not is_of_us(client):
                    client.close()
                    continue
                with contextlib.ExitStack() as stack:
                    stack.callback(client.close)
                    await self._clients.acquire_on_behalf_of(client)
                    nursery.start_soon(self._serve, client)
                    stack.pop_all()

    def close(self) -> None:
        self._socket.close()

    async def _serve(self, client: trio.socket.SocketType) -> None:
        try:
            with client, contextlib.suppress(OSError):
                while await self._lend(client):
                    pass
        finally:
            self._clients.release_on_behalf_of(client)

    async def _lend(self, client: trio.socket.SocketType) -> bool:
        asked = b""
        with trio.move_on_after(IDLE_S):
            while len(asked) < ASKED.size:
                more = await client.recv(ASKED.size - len(asked))
                if not more:
                    return False
                asked += more
        if len(asked) < ASKED.size:
            return False
        token, volume = ASKED.unpack(asked)
        if not secrets.compare_digest(token, self.token):
            log.warning("somebody wants to borrow a volume without the right token")
            return False
        fd, generation = self._opened(VolumeId(volume))
        if fd is None:
            await client.send(LENT.pack(0))
            return True
        self.lent += 1
        try:
            await client.sendmsg(
                [LENT.pack(generation)],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))],
            )
        finally:
            os.close(fd)
        return True

    def _opened(self, volume: VolumeId) -> tuple[int | None, int]:
        try:
            found = self._find(volume)
            if found is None:
                return None, 0
            return os.open(found[0], os.O_RDONLY | os.O_CLOEXEC), found[1]
        except (OSError, FsError) as error:
            log.warning("volume %d is not lent: %s", volume, error)
            return None, 0


def is_of_us(client: trio.socket.SocketType) -> bool:
    """Whether the other side is the superuser's, or of our own user."""
    found = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(found)
    return uid in (0, os.geteuid())
