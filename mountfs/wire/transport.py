"""Sockets that are never waited for, with TLS or without.

Trio's own streams pass through the scheduler with every send and receive.  Here both are plain
calls that do what can be done at once; only who has nothing to do waits, for the socket to become
readable or writable.
"""

import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Sequence
from typing import Final, Protocol

import trio

from mountfs.errors import Fault, FsError
from mountfs.types import KIB, MIB
from mountfs.wire.frames import Buffer, Piece, Stretch

PARTS_MAX: Final = 512
"""Of one sendmsg(2); the kernel takes 1,024."""
SEAL_BYTES: Final = 256 * KIB
"""Encrypted at once; the rest waits until this is sent."""
READ_BYTES: Final = 256 * KIB
STRETCH_BYTES: Final = MIB
"""Of a file; then others have their turn."""
_OF_THE_FILE: Final = frozenset(
    (errno.EIO, errno.EINVAL, errno.ENODATA, errno.ENOSYS, errno.ESTALE, errno.EUCLEAN)
)
"""What sendfile(2) says when not the socket is to blame, but the file or its file system."""


class Transport(Protocol):
    sock: socket.socket
    sends_files: bool
    """Parts may be stretches of files."""
    pending: bool
    """There is more to send than what the caller knows of."""

    def send(self, parts: Sequence[Piece]) -> int:
        """How many bytes it took, which may be none.  OSError: it is broken."""
        ...

    def receive(self, into: memoryview) -> int:
        """How many bytes there are now.  0: the end.  BlockingIOError: none yet.  OSError, and
        ssl.SSLError among them: it is broken.
        """
        ...


class Plain:
    pending = False
    sends_files = True

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._sendmsg = sock.sendmsg
        self._send = sock.send
        self.receive = sock.recv_into

    def send(self, parts: Sequence[Piece]) -> int:
        try:
            first = parts[0]
            if isinstance(first, Stretch):
                return _send_stretch(self.sock, first)
            if len(parts) == 1:
                return self._send(first)
            before: list[Buffer] = []
            for part in parts[:PARTS_MAX]:
                if isinstance(part, Stretch):
                    # Without MSG_MORE: then the end of the stretch waits 0.2 s for more.
                    return self._sendmsg(before)
                before.append(part)
            return self._sendmsg(before)
        except BlockingIOError:
            return 0


def _send_stretch(sock: socket.socket, stretch: Stretch) -> int:
    """Nothing is verified on the way.  What cannot be read goes as zeros: the frame has to be
    filled, and who asks has a checksum that says so.
    """
    size = min(stretch.size, STRETCH_BYTES)
    try:
        sent = os.sendfile(sock.fileno(), stretch.fd, stretch.at, size)
    except OSError as error:
        if error.errno not in _OF_THE_FILE:
            raise
        sent = 0
    if sent:
        return sent
    size = min(size, READ_BYTES)
    try:
        found = os.pread(stretch.fd, size, stretch.at)
    except OSError:
        found = b""
    return sock.send(found + bytes(size - len(found)))


class Tls:
    """TLS in memory: OpenSSL never sees the socket, so one system call moves many records."""

    sends_files = False

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None,
    ) -> None:
        self.sock = sock
        self.pending = False
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_side,
            server_hostname=server_hostname,
        )
        self._sealed = memoryview(b"")
        self._memory = bytearray(READ_BYTES)
        self._view = memoryview(self._memory)

    def certificate(self) -> bytes | None:
        """Of the peer (DER), if it has shown one that we trust."""
        return self._tls.getpeercert(binary_form=True)

    async def handshake(self) -> None:
        """FsError: they do not trust each other, or the peer does not speak TLS."""
        try:
            while True:
                try:
                    self._tls.do_handshake()
                    done = True
                except ssl.SSLWantReadError:
                    done = False
                while self._flush():
                    await trio.lowlevel.wait_writable(self.sock)
                if done:
                    return
                await trio.lowlevel.wait_readable(self.sock)
                with contextlib.suppress(BlockingIOError):
                    self._feed()
        except ssl.SSLError as error:
            with contextlib.suppress(OSError):
                self._flush()  # the alert, that tells the peer why
            raise FsError(Fault.DENIED, f"TLS: {tls_reason(error)}") from error

    def send(self, parts: Sequence[Piece]) -> int:
        if self.pending and self._flush():
            return 0
        taken = 0
        for part in parts:
            assert not isinstance(part, Stretch)
            room = SEAL_BYTES - taken
            piece = part if len(part) <= room else memoryview(part)[:room]
            taken += self._tls.write(piece)
            if taken >= SEAL_BYTES:
                break
        self._flush()
        return taken

    def receive(self, into: memoryview) -> int:
        size = 0
        room = len(into)
        fed = False
        while size < room:
            try:
                size += int(self._tls.read(room - size, into[size:]))
            except ssl.SSLWantReadError:
                if size:
                    break
                if fed:
                    raise BlockingIOError from None  # part of a record
                self._feed()  # BlockingIOError: nothing there
                fed = True
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                break
        return size

    def _feed(self) -> None:
        got = self.sock.recv_into(self._memory)
        if got:
            self._incoming.write(self._view[:got])
        else:
            self._incoming.write_eof()

    def _flush(self) -> bool:
        """Whether something is left to send."""
        while True:
            if not self._sealed:
                self._sealed = memoryview(self._outgoing.read())
                if not self._sealed:
                    self.pending = False
                    return False
            try:
                self._sealed = self._sealed[self.sock.send(self._sealed) :]
            except BlockingIOError:
                self.pending = True
                return True


def tls_reason(error: ssl.SSLError) -> str:
    """In words: OpenSSL's own, without its numbers."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not good: {error.verify_message}"
    return (error.reason or str(error)).lower().replace("_", " ")


def prepare(stream: trio.SocketStream) -> socket.socket:
    """The socket of a stream of Trio, for use without it."""
    own = stream.socket
    family, kind = own.family, own.type
    sock = socket.socket(family, kind, fileno=own.detach())
    sock.setblocking(False)
    if family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


async def linger(sock: socket.socket) -> None:
    """Let the peer read what was sent last: closing while something of its own is unread would
    take it away.
    """
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        while True:
            await trio.lowlevel.wait_readable(sock)
            if not sock.recv(READ_BYTES):
                return


def close(sock: socket.socket) -> None:
    if sock.fileno() >= 0:
        trio.lowlevel.notify_closing(sock)
        sock.close()
