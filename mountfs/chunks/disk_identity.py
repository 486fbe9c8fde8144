"""Whose a directory for volumes is: `disk.json` in it, written before the first volume.

It keeps disks from being mixed up: one of another cluster, of another node, or the same one twice
is refused, for what would be written to it, or deleted from it, is somebody else's.
"""

import os
import uuid
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from mountfs.chunks.file import sync_directory
from mountfs.errors import Fault, FsError

FORMAT: Final = 1
NAME: Final = "disk.json"


class Owner(NamedTuple):
    """Whose the disks are that a chunkserver has."""

    home: bytes
    """The filesystem, 16 bytes: that of the node's home."""
    node: int
    cluster: bytes
    """What its machines call the cluster, 16 bytes: its leaders have terms."""


class DiskIdentity(msgspec.Struct, frozen=True):
    """What disk.json says."""

    format: int
    disk: str
    """32 random hex digits."""
    home: str
    """32 hex digits: the filesystem that it is of."""
    node: int


def claim(path: Path, owner: Owner, *, is_first: bool) -> DiskIdentity:
    """Who the disk is; if it is nobody yet, it is the owner's from now on.

    `is_first`: a home had it before there was a disk.json.  Raises BAD_HOME for one of somebody
    else, and OSError.
    """
    file = path / NAME
    try:
        found = msgspec.json.decode(file.read_bytes(), type=DiskIdentity)
    except FileNotFoundError:
        if not is_first and next(path.glob("volumes/*.vol"), None) is not None:
            what = (
                f"{path} has volumes, but no {NAME}: restore that file, or name another directory"
            )
            raise FsError(Fault.BAD_HOME, what) from None
        found = DiskIdentity(FORMAT, uuid.uuid4().hex, owner.home.hex(), owner.node)
        _write(file, found)
        return found
    except msgspec.MsgspecError as error:
        what = f"{file} is damaged ({error}): restore it from a backup"
        raise FsError(Fault.BAD_HOME, what) from None
    _require_own(path, found, owner)
    return found


def _require_own(path: Path, found: DiskIdentity, owner: Owner) -> None:
    if found.format != FORMAT:
        what = f"has format {found.format}, this mountfs knows format {FORMAT}"
    elif found.home != owner.home.hex():
        what = f"belongs to the filesystem {found.home}, not to this one ({owner.home.hex()})"
    elif found.node != owner.node:
        what = f"belongs to node {found.node} of this cluster, not to this one (node {owner.node})"
    else:
        return
    raise FsError(Fault.BAD_HOME, f"{path} {what}: put it back where it was, or name another")


def _write(file: Path, identity: DiskIdentity) -> None:
    """Durably, and in one step."""
    new = file.with_name(file.name + ".new")
    with open(new, "wb") as out:
        out.write(msgspec.json.format(msgspec.json.encode(identity)) + b"\n")
        out.flush()
        os.fsync(out.fileno())
    os.rename(new, file)
    sync_directory(file.parent)


def kind_of(path: Path) -> str:
    """ "ssd" or "hdd", as the kernel says; empty: it does not."""
    try:
        device = os.stat(path).st_dev
        block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
        for place in (block, block.parent):  # a partition has no queue of its own
            turning = place / "queue" / "rotational"
            if turning.exists():
                return {"0": "ssd", "1": "hdd"}.get(turning.read_text().strip(), "")
    except OSError:
        return ""
    return ""
