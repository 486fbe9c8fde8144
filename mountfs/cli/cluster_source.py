"""A cluster as the source of a mount: who is meant, by which certificate, and where the mount keeps
what is its own.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mountfs.errors import Fault, FsError, disk_error
from mountfs.fuse.options import MountOptions
from mountfs.meta.client import NO_CLUSTER, Address, Options
from mountfs.vfs.home import Holder

DOOR_PORT = 7411


def cluster_addresses(nodes: str) -> tuple[Address, ...]:
    """HOST[:PORT],... as clients find nodes.  Raises INVALID."""
    found = []
    for one in filter(None, nodes.split(",")):
        host, colon, port = one.rpartition(":")
        if not colon or one.endswith("]"):
            host, port = one, str(DOOR_PORT)
        if not port.isdigit() or not 0 < int(port) < 65_536 or not host:
            raise FsError(Fault.INVALID, f"{one!r} is not HOST or HOST:PORT of a node")
        found.append((host.strip("[]"), int(port)))
    return tuple(found)


def client_options(options: MountOptions, about: str) -> Options:
    """Raises what is wrong with the certificate."""
    if options.tls is None:
        return Options(soft_s=options.soft_s, about=about)
    from mountfs.cli.trust import Trust  # takes a tenth of a second to import

    # The certificate says which cluster is meant; what its nodes call it, they say: it has another
    # name after a recovery.
    found = Trust(Path(options.tls), kind=None).client_options(NO_CLUSTER, about)
    return msgspec.structs.replace(found, soft_s=options.soft_s)


@contextlib.contextmanager
def hold_directory(directory: Path, mountpoint: str) -> Iterator[None]:
    """Make the directory of a mount, and keep other mounts of the same place out."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise disk_error(error, str(directory)) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FsError(
                Fault.BUSY, f"{directory}: another process is mounting at {mountpoint}"
            ) from None
        (directory / "pid").write_text(f"{os.getpid()}\n")
        os.ftruncate(fd, 0)
        os.pwrite(fd, msgspec.json.encode(Holder(os.getpid(), mountpoint)), 0)
        yield
        (directory / "pid").unlink(missing_ok=True)
    finally:
        os.close(fd)
