"""The trash, as people ask for it: over the control socket as who owns the mount, or by an ioctl(2)
on a directory as themselves.

Questions and answers are JSON, names in them hexadecimal.  Who asks as himself sees and gets what
is his; which directory he asks about he shows by having opened it.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.inline import leave
from mountfs.meta.command import UNFIT, Command
from mountfs.meta.local import Meta
from mountfs.meta.ops.count import PathOf
from mountfs.meta.ops.trash import (
    ENTRIES_MAX,
    EmptyTrash,
    FindTrash,
    GetTrash,
    Listed,
    ListTrash,
    SetTrash,
)
from mountfs.meta.ops.undelete import (
    LastRun,
    LookWithin,
    Name,
    Restored,
    Undelete,
    UndeleteIn,
    Way,
)
from mountfs.meta.trash import Setting
from mountfs.types import SUPERUSER, Cred, Ino
from mountfs.vfs.control import Answerer

LISTED_MAX: Final = 1_000
"""In one answer."""
FOUND_MAX: Final = 50
"""Deleted directories of one name in which something is looked for."""

Args = dict[str, Any]
R = TypeVar("R")


async def _nobody_knows(names: Sequence[Name]) -> None:
    return


class Propose(Protocol):
    """A change of names, as the filesystem has it made: it may be read-only, or full."""

    async def __call__(self, command: Command[R], *, grows: bool = True) -> R: ...


class Trash:
    def __init__(self, meta: Meta, propose: Propose) -> None:
        self._meta = meta
        self._propose = propose
        self.on_names: Callable[[Sequence[Name]], Awaitable[None]] = _nobody_knows
        """Told of names that have come without the door: what it has cached of them is not so."""

    async def answer(self, ino: Ino, cred: Cred, question: bytes) -> bytes:
        """What who has opened directory `ino` asks of it."""
        try:
            asked = msgspec.json.decode(question, type=dict[str, Any])
            answerer = self._table().get(str(asked.get("ask")))
            if answerer is None:
                raise FsError(Fault.INVALID, f"unknown question {asked.get('ask')!r}")
            args = asked.get("args", {})
            if not isinstance(args, dict):
                raise FsError(Fault.INVALID, "the arguments of a question have names")
            return msgspec.json.encode({"answer": await answerer({**args, "ino": ino}, cred)})
        except UNFIT as error:  # a msgspec.DecodeError is one of them
            return msgspec.json.encode({"error": f"not a question: {error}", "fault": "INVALID"})
        except FsError as error:
            return msgspec.json.encode({"error": str(error), "fault": error.fault.name})

    def answers(self) -> dict[str, Answerer]:
        """For the control socket: who may use it may do what user 0 may."""

        def as_owner(answerer: Callable[[Args, Cred], Awaitable[Any]]) -> Answerer:
            return lambda args: answerer(args, SUPERUSER)

        return {question: as_owner(answerer) for question, answerer in self._table().items()}

    def _table(self) -> dict[str, Callable[[Args, Cred], Awaitable[Any]]]:
        return {
            "trash_get": self._get,
            "trash_set": self._set,
            "trash_list": self._list,
            "trash_path": self._path,
            "trash_find": self._find,
            "trash_within": self._within,
            "trash_last_run": self._last_run,
            "trash_empty": self._empty,
            "undelete": self._undelete,
            "undelete_in": self._undelete_in,
        }

    # -- what holds

    async def _get(self, args: Args, cred: Cred) -> Any:
        found = await self._meta.read(GetTrash(_ino(args)))
        if found is None:
            return {"days": 0, "counts": True, "directory": None, "said_by": None}
        directory, setting = found
        path = await self._meta.read(PathOf(directory)) if cred.uid == 0 else b""
        return {
            "days": setting.days,
            "counts": setting.counts,
            "directory": directory,
            "said_by": path.hex(),
        }

    async def _set(self, args: Args, cred: Cred) -> Any:
        days = args.get("days")
        setting = None
        if days is not None:
            setting = Setting(_number(args, "days"), bool(args.get("counts", True)))
        await self._propose(SetTrash(_ino(args), setting, cred), grows=False)
        return await self._get(args, cred)

    # -- what there is

    async def _list(self, args: Args, cred: Cred) -> Any:
        """Some of what was deleted below a directory."""
        limit = min(_number(args, "limit", LISTED_MAX), LISTED_MAX)
        until, order = _pair(args.get("after", (0, 0)))
        asked = ListTrash(_ino(args), cred.uid, limit, (until, order))
        page = await self._meta.read(asked)
        return {
            "found": [told(one) for one in page.found],
            "after": page.after,
            "now_ns": page.now,
        }

    async def _path(self, args: Args, cred: Cred) -> Any:
        """Where below the directory another one is, in which something was deleted; null: it is
        itself deleted, or elsewhere.
        """
        directory = Ino(_number(args, "directory"))
        if not await self._meta.read(FindTrash(directory, _name(args.get("name")), cred.uid, 0, 1)):
            return {"path": None}
        top = await self._meta.read(PathOf(_ino(args)))
        path = await self._meta.read(PathOf(directory))
        if not path or not (path + b"/").startswith(top.rstrip(b"/") + b"/"):
            return {"path": None}
        return {"path": path[len(top.rstrip(b"/")) :].lstrip(b"/").hex()}

    async def _find(self, args: Args, cred: Cred) -> Any:
        """What was deleted last at a path below the directory, at a time or before."""
        said = args.get("names")
        if not isinstance(said, list):
            raise FsError(Fault.INVALID, "names are a list")
        names = tuple(_name(name) for name in said)
        found = await self._look(_ino(args), names, cred, _number(args, "at", 0))
        if found is None:
            raise FsError(Fault.NOT_FOUND, "nothing of that name was deleted there, or is left")
        return told(found)

    async def _look(
        self, directory: Ino, names: Sequence[bytes], cred: Cred, at: int
    ) -> Listed | None:
        if not names:
            return None
        if len(names) == 1:
            found = await self._meta.read(FindTrash(directory, names[0], cred.uid, at, 1))
            return found[0] if found else None
        for one in await self._meta.read(FindTrash(directory, names[0], 0, 0, FOUND_MAX)):
            below = await self._look(one.entry.ino, names[1:], cred, at)
            if below is not None:
                return below
        return None

    async def _within(self, args: Args, cred: Cred) -> Any:
        """What would come back besides a directory, or into one."""
        found = await self._meta.read(LookWithin(_way(args), _number(args, "run"), cred.uid))
        return {
            "files": found.files,
            "directories": found.directories,
            "bytes": found.bytes,
            "skipped": found.skipped,
            "left": _shown(found.left),
        }

    async def _last_run(self, args: Args, cred: Cred) -> Any:
        run, count = await self._meta.read(LastRun(_ino(args), cred.uid, _number(args, "at", 0)))
        if not count:
            raise FsError(Fault.NOT_FOUND, "nothing was deleted in it, or is left")
        return {"run": run, "count": count}

    # -- what is done

    async def _empty(self, args: Args, cred: Cred) -> Any:
        entries = args.get("entries", ())
        if not isinstance(entries, list) or len(entries) > ENTRIES_MAX:
            raise FsError(Fault.INVALID, f"up to {ENTRIES_MAX:,} entries at a time")
        wanted = tuple(_pair(one) for one in entries)
        return {"removed": await self._propose(EmptyTrash(wanted, cred), grows=False)}

    async def _undelete(self, args: Args, cred: Cred) -> Any:
        """What was deleted gets a name in the directory."""
        command = Undelete(
            Ino(_number(args, "directory")),
            _name(args.get("name")),
            _number(args, "order"),
            _ino(args),
            _name(args.get("to_name")),
            cred,
        )
        command.check()
        return await self._restored(await self._propose(command))

    async def _undelete_in(self, args: Args, cred: Cred) -> Any:
        command = UndeleteIn(_way(args), _number(args, "run"), cred)
        return await self._restored(await self._propose(command))

    async def _restored(self, restored: Restored) -> Any:
        await leave()
        await self.on_names(restored.names)
        return {
            "restored": len(restored.names),
            "bytes": restored.bytes,
            "skipped": restored.skipped,
            "left": _shown(restored.left),
        }


def told(listed: Listed) -> dict[str, Any]:
    entry = listed.entry
    return {
        "directory": entry.directory,
        "name": entry.name.hex(),
        "order": entry.order,
        "ino": entry.ino,
        "until_ns": entry.until,
        "time_ns": entry.time,
        "by": entry.by,
        "run": entry.run,
        "uid": listed.uid,
        "gid": listed.gid,
        "mode": listed.mode,
        "size": listed.size,
        "allocated": listed.allocated,
        "counted": listed.counted,
    }


def _ino(args: Args) -> Ino:
    return Ino(_number(args, "ino"))


def _number(args: Args, name: str, otherwise: int | None = None) -> int:
    found = args.get(name, otherwise)
    if not isinstance(found, int) or isinstance(found, bool):
        raise FsError(Fault.INVALID, f"{name} has to be a number")
    return found


def _name(found: Any) -> bytes:
    try:
        return bytes.fromhex(str(found))
    except ValueError:
        raise FsError(Fault.INVALID, f"{found!r} is not a name in hexadecimal") from None


def _pair(found: Any) -> tuple[int, int]:
    try:
        return msgspec.convert(found, tuple[int, int])
    except msgspec.ValidationError as error:
        raise FsError(Fault.INVALID, f"not a place in the trash: {error}") from None


def _way(args: Args) -> Way:
    try:
        pairs = msgspec.convert(args.get("way"), tuple[tuple[int, str], ...])
        return tuple((Ino(ino), bytes.fromhex(after)) for ino, after in pairs)
    except (msgspec.ValidationError, ValueError) as error:
        raise FsError(Fault.INVALID, f"not directories of the trash: {error}") from None


def _shown(way: Way) -> list[tuple[int, str]]:
    return [(ino, after.hex()) for ino, after in way]
