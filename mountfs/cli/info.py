"""mountfs info: one file, down to where its bytes are."""

import argparse
import os
import stat
import time
from typing import Any

from rich.table import Table

from mountfs.cli import show
from mountfs.cli.places import Place, mount_table, mounts_in, place_in
from mountfs.errors import Fault, FsError, disk_error
from mountfs.fuse.mount import MountInfo
from mountfs.types import CHUNK_BYTES
from mountfs.vfs import control

SUMMARY = "one file: its inode, its slices, where its bytes are"
DESCRIPTION = """\
Show what mountfs knows of a file or directory in a mount: its inode, and for its bytes in which
slices they are, and where in the home those lie.  Symbolic links are not followed.
"""
EPILOG = """\
examples:
  mountfs info /mnt/data/file
  mountfs info --json /mnt/data/file | jq '.slices[].where'

what the lines mean:
  contents           small files are kept with their inode; others are in slices
  slice              what one flush has written: bytes START to STOP of the file come from it
  volume, offset     the file in the home, and where in it the slice begins
  covered            overwritten by later slices, kept until compaction removes it

exit status: 0 shown; 1 failed; 2 wrong call
"""

SLICES_MAX = 1_000
"""Shown of one file, unless --all."""
ANSWER_S = 30.0
_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH")
    parser.add_argument(
        "--all", action="store_true", help=f"not only the first {SLICES_MAX:,} slices"
    )
    parser.add_argument("--json", action="store_true", help="a JSON object")


def run(arguments: argparse.Namespace) -> int:
    path = arguments.path
    place, ino = locate(path, mount_table())
    limit = 1 << 40 if arguments.all else SLICES_MAX
    said = control.ask(place.control, "info", seconds=ANSWER_S, ino=ino, limit=limit)
    said = {"path": os.path.abspath(path), "mountpoint": place.mountpoint, **said}
    if arguments.json:
        show.print_json(said)
    else:
        _print(said)
    return show.EXIT_OK


def locate(path: str, table: list[MountInfo]) -> tuple[Place, int]:
    """The mount that a path lies in, and its inode number."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        raise FsError(Fault.NOT_FOUND, f"{path}: no such file") from None
    except OSError as error:
        raise disk_error(error, path) from error
    device = f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}"
    ours = [info for info in table if info.ours and info.device == device]
    if not ours:
        mounts = ", ".join(str(place.mountpoint) for place in mounts_in(table))
        hint = f"mountfs is mounted at: {mounts}" if mounts else "no mountfs is mounted"
        raise FsError(Fault.NOT_FOUND, f"{path} is not in a mount of mountfs; {hint}")
    return place_in(ours[-1]), found.st_ino


def _print(said: dict[str, Any]) -> None:
    console = show.out()
    console.print(show.name(said["path"]), style="bold")
    console.print(show.facts(inode_facts(said)))
    if said["slices"]:
        console.print()
        console.print(_slices(said["slices"]))
    if said["more"]:
        console.print("... and more: mountfs info --all shows them")


def inode_facts(said: dict[str, Any]) -> list[tuple[str, str]]:
    mode = said["mode"]
    kind = _TYPES.get(stat.S_IFMT(mode), "?")
    rows = [
        ("inode", f"{said['ino']}, charged to directory {said['parent']}"),
        ("type", f"{kind}, {stat.filemode(mode)} ({stat.S_IMODE(mode):04o})"),
        ("owner", f"{said['uid']}:{said['gid']}"),
        ("links", str(said["nlink"])),
    ]
    if stat.S_ISDIR(mode):
        rows.append(("entries", f"{said['entries']:,}"))
    else:
        rows.append(
            ("size", f"{said['size']:,} bytes, {show.size(said['allocated'])} of space in use")
        )
    if said["target"] is not None:
        rows.append(("points to", show.name(said["target"])))
    for label in ("accessed", "modified", "changed", "born"):
        rows.append((label, moment(said["times_ns"][label])))
    rows.append(("marks", ", ".join(said["marks"]) or "none"))
    if said["xattrs"]:
        rows.append(("attributes", ", ".join(show.name(xattr) for xattr in said["xattrs"])))
    if said["content_bytes"] is not None:
        rows.append(("contents", f"{said['content_bytes']:,} bytes, kept with the inode"))
    if said["dirty_bytes"]:
        rows.append(("not yet written", show.size(said["dirty_bytes"])))
    return rows


def moment(nanoseconds: int) -> str:
    """A point in time, in the zone of who asks, with all of its digits."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    local = time.localtime(seconds)
    return time.strftime("%Y-%m-%d %H:%M:%S", local) + f".{rest:09}" + time.strftime(" %z", local)


def _slices(slices: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2))
    for heading in ("start", "stop", "slice", "from", "where"):
        table.add_column(heading, justify="left" if heading == "where" else "right", no_wrap=True)
    for one in slices:
        base = one["chunk"] * CHUNK_BYTES
        table.add_row(
            f"{base + one['start']:,}",
            f"{base + one['stop']:,}",
            f"{one['slice']:#x}" if one["slice"] else "hole",
            f"{one['skip']:,}/{one['length']:,}" if one["slice"] else "",
            _where(one) + ("" if one["visible"] else "  (covered)"),
            style="" if one["visible"] else "dim",
        )
    return table


def _where(one: dict[str, Any]) -> str:
    if not one["slice"]:
        return ""
    where = one["where"]
    if where is None:
        return "with the inode" if not one["volume"] else f"MISSING in volume {one['volume']}"
    if "nodes" in where:
        nodes = ", ".join(map(str, where["nodes"]))
        return f"volume {one['volume']} on nodes {nodes}" if nodes else "NOWHERE"
    offset = where.get("offset")
    return str(where["file"]) + (f" at {offset:,}" if offset is not None else "")
