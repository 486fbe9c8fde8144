"""Which roles the node of a home has: those that it had before, unless they can be changed."""

from pathlib import Path
from typing import Final

import msgspec

from mountfs.cli.volumes import volume_paths
from mountfs.errors import Fault, FsError
from mountfs.meta.ops.nodes import CHUNK, META
from mountfs.vfs.home import Format, open_home

ROLES: Final = (META, CHUNK)


def kept_roles(path: Path, format: Format, asked: tuple[str, ...]) -> tuple[str, ...]:
    """The roles of the node of a home, which remembers them; `asked` may be empty.

    Raises INVALID when it cannot have those that are asked for.
    """
    if not asked or set(asked) == set(format.roles):
        return format.roles
    if META in asked and META not in format.roles:
        raise FsError(
            Fault.INVALID,
            f"{path} is the home of a node that keeps slices only, and has no metadata: start it "
            f"with --roles {CHUNK}.  For this machine to have the metadata too, run a second node "
            "on it, with an empty home and another --name and --listen",
        )
    if META not in asked:
        raise FsError(
            Fault.INVALID,
            f"{path} has the metadata of its cluster: start it with --roles "
            f"{','.join(format.roles)}.  A node that keeps slices only begins with an empty home: "
            "remove this one from the cluster first (mountfs node remove)",
        )
    if CHUNK not in asked and volume_paths(path / "chunks" / "volumes"):
        raise FsError(
            Fault.INVALID,
            f"{path} has volumes with slices, which nobody could read without the role {CHUNK}: "
            f"start it with --roles {','.join(format.roles)}",
        )
    _write(path, asked)
    return asked


def _write(path: Path, roles: tuple[str, ...]) -> None:
    home = open_home(path, create=False)
    try:
        home.write_format(msgspec.structs.replace(home.format, roles=roles))
    finally:
        home.close()
