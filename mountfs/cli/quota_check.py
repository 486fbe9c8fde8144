"""Counting a tree anew, name by name, to compare with what the metadata has counted all along."""

import stat
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.meta.quota import Kind
from mountfs.types import ROOT
from mountfs.vfs import control

TRIES = 3
"""While somebody changes the tree, a count is worth nothing."""


class Found:
    def __init__(self) -> None:
        self.bytes = self.files = self.directories = 0
        self.owned: Counter[tuple[Kind, int, str]] = Counter()
        self._seen: set[int] = set()

    def add(self, ino: int, uid: int, gid: int, bytes: int, is_directory: bool) -> bool:
        """Whether it is new: a file may have several names."""
        if ino in self._seen:
            return False
        self._seen.add(ino)
        self.bytes += bytes
        self.files += not is_directory
        self.directories += is_directory
        for kind, number in ((Kind.USER, uid), (Kind.GROUP, gid)):
            self.owned[kind, number, "bytes"] += bytes
            self.owned[kind, number, "files and directories"] += 1
        return True


class Difference(msgspec.Struct):
    kind: Kind | None
    """None: of the tree."""
    number: int
    what: str
    found: int
    counted: int

    def told(self) -> dict[str, Any]:
        kind = "tree" if self.kind is None else self.kind.name.lower()
        return {**msgspec.structs.asdict(self), "kind": kind}


def count(place: Path, ino: int) -> tuple[Found, list[Difference]]:
    """What is below a directory, and what of it is counted otherwise; in the root, users and groups
    too.  Raises BUSY where the tree does not keep still.
    """
    for _ in range(TRIES):
        before = _counted(place, ino)
        try:
            found = _walk(place, ino)
        except FsError as error:
            if error.fault is not Fault.STALE:
                raise
            continue  # a directory went while we looked
        if before == _counted(place, ino):
            return found, _differences(found, ino, *before)
    raise FsError(Fault.BUSY, "it changes while it is counted: try again when nobody writes to it")


Owned = dict[tuple[Kind, int, str], int]


def _counted(place: Path, ino: int) -> tuple[list[int], Owned]:
    below = control.ask(place, "quota_below", ino=ino)
    owned: Owned = {}
    if ino == ROOT:
        for kind in (Kind.USER, Kind.GROUP):
            first = 0
            while some := control.ask(place, "quota_owners", kind=kind.name.lower(), number=first):
                for number, bytes, inodes in some:
                    owned[kind, number, "bytes"] = bytes
                    owned[kind, number, "files and directories"] = inodes
                    first = number + 1
    return below, owned


def _walk(place: Path, top: int) -> Found:
    found = Found()
    wanted = [top]
    while wanted:
        ino, after = wanted.pop(), 0
        while True:
            some = control.ask(place, "quota_count", ino=ino, after=after)
            for one in some["counted"]:
                if found.add(*one) and one[4]:
                    wanted.append(one[0])
            after = some["last"]
            if not after:
                break
    for one in control.ask(place, "quota_open", ino=top):
        found.add(*one)
    _add_trash(place, top, found)
    if top == ROOT:  # which is below nothing, but somebody's
        root = control.ask(place, "info", ino=top, limit=1)
        for kind, number in ((Kind.USER, root["uid"]), (Kind.GROUP, root["gid"])):
            found.owned[kind, number, "files and directories"] += 1
    return found


def _add_trash(place: Path, top: int, found: Found) -> None:
    after: Any = (0, 0)
    while True:
        page = control.ask(place, "trash_list", ino=top, after=after)
        for one in page["found"]:
            if one["counted"]:
                is_directory = stat.S_ISDIR(one["mode"])
                found.add(one["ino"], one["uid"], one["gid"], one["allocated"], is_directory)
        after = page["after"]
        if tuple(after) == (0, 0):
            return


def _differences(found: Found, ino: int, below: list[int], owned: Owned) -> list[Difference]:
    pairs: list[tuple[Kind | None, int, str, int, int]] = [
        (None, ino, "bytes", found.bytes, below[0]),
        (None, ino, "files", found.files, below[1]),
        (None, ino, "directories", found.directories, below[2]),
    ]
    if ino == ROOT:
        for kind, number, what in sorted({*owned, *found.owned}):
            place = (kind, number, what)
            pairs.append((*place, found.owned[place], owned.get(place, 0)))
    return [Difference(*pair) for pair in pairs if pair[3] != pair[4]]
