"""Which home and which mount a person means who names a path.

Nothing here asks a mounted filesystem anything, so it works when that hangs: the mount table tells.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from mountfs.errors import Fault, FsError
from mountfs.fuse.mount import MountInfo, find_mount, parse_mountinfo

NAME_CHARS_MAX = 200


@dataclass(frozen=True)
class Place:
    home: Path
    mountpoint: str | None
    """Where the home is mounted; None: it is not, or out of our sight."""
    cluster: str | None = None
    """Of the mount of a cluster, its source; `home` has what is the mount's own."""

    @property
    def control(self) -> Path:
        return self.home / "control"


def default_home() -> Path:
    """The home that is used when none is named."""
    if os.geteuid() == 0:
        return Path("/var/lib/mountfs/default")
    base = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(base) / "mountfs" / "default"


def cluster_in(source: str) -> str | None:
    """The nodes that a source like "10.0.0.1,10.0.0.2:7411:/" names; None: it is a home."""
    if source.startswith("/"):
        return None
    nodes, colon, path = source.rpartition(":")
    return nodes if colon and path in ("", "/") and nodes else None


def mount_directory(mountpoint: str) -> Path:
    """Where the mount of a cluster keeps what is its own: log, control socket, process number."""
    name = quote(mountpoint, safe="")
    if len(name) > NAME_CHARS_MAX:
        name = name[:100] + hashlib.sha256(name.encode()).hexdigest()
    return default_home().parent / "mounts" / name


def place_in(info: MountInfo) -> Place:
    """Where the daemon behind a mount is to be asked."""
    if cluster_in(info.source) is not None:
        return Place(mount_directory(info.mountpoint), info.mountpoint, info.source)
    return Place(Path(info.source), info.mountpoint)


def mount_table() -> list[MountInfo]:
    return parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())


def mounts_in(table: list[MountInfo]) -> list[Place]:
    """The mounts of ours that can be seen; of several at one place, the topmost."""
    places: dict[str, Place] = {}
    for info in table:
        places.pop(info.mountpoint, None)
        if info.ours:
            places[info.mountpoint] = place_in(info)
    return list(places.values())


def mount_above(path: str) -> Place | None:
    """The mount of ours that `path` lies in."""
    whole = Path(os.path.abspath(path))
    # From the root down, so that nothing inside of a mount of ours is looked at.
    for step in (*reversed(whole.parents), whole):
        info = find_mount(step)
        if info is not None and info.ours:
            return place_in(info)
    return None


def place_of(path: str, table: list[MountInfo]) -> Place:
    """The mount or the home that `path` names.

    Raises NOT_FOUND: it is neither.  A home need not be sound, nor have its format.json.
    """
    mount = mount_above(path)
    if mount is not None:
        return mount
    home = Path(os.path.realpath(path))
    if not looks_like_home(home):
        raise FsError(
            Fault.NOT_FOUND,
            f"{path} is neither in a mount of mountfs nor a home of one; "
            "see what is mounted with: mountfs status",
        )
    return next(
        (place for place in mounts_in(table) if os.path.realpath(place.home) == str(home)),
        Place(home, None),
    )


def looks_like_home(path: Path) -> bool:
    """Whether there is anything of a home in a directory, damaged or not."""
    return (path / "format.json").exists() or (path / "meta" / "log").is_dir()
