"""Which home and which mount a person means who names a path.

Nothing here asks a mounted filesystem anything, so it works when that hangs: the mount table tells.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from mountfs.errors import Fault, FsError
from mountfs.fuse.mount import MountInfo, find_mount, parse_mountinfo


@dataclass(frozen=True)
class Place:
    home: Path
    mountpoint: str | None
    """Where the home is mounted; None: it is not, or out of our sight."""

    @property
    def control(self) -> Path:
        return self.home / "control"


def default_home() -> Path:
    """The home that is used when none is named."""
    if os.geteuid() == 0:
        return Path("/var/lib/mountfs/default")
    base = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(base) / "mountfs" / "default"


def mount_table() -> list[MountInfo]:
    return parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())


def mounts_in(table: list[MountInfo]) -> list[Place]:
    """The mounts of ours that can be seen; of several at one place, the topmost."""
    homes: dict[str, str] = {}
    for info in table:
        homes.pop(info.mountpoint, None)
        if info.ours:
            homes[info.mountpoint] = info.source
    return [Place(Path(home), mountpoint) for mountpoint, home in homes.items()]


def mount_above(path: str) -> Place | None:
    """The mount of ours that `path` lies in."""
    whole = Path(os.path.abspath(path))
    # From the root down, so that nothing inside of a mount of ours is looked at.
    for step in (*reversed(whole.parents), whole):
        info = find_mount(step)
        if info is not None and info.ours:
            return Place(Path(info.source), info.mountpoint)
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
