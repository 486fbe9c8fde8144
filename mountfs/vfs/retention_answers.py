"""What a node answers on its control socket about retention.

Whoever may use the socket is the owner of the home or mount, and may do what user 0 may.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mountfs.errors import Fault, FsError
from mountfs.meta.local import Meta
from mountfs.meta.ops.default_retention import GetDefault, SetDefault
from mountfs.meta.ops.legal_hold import SetLegalHold
from mountfs.meta.ops.list_retained import ListRetained
from mountfs.meta.ops.retention import Kept, RequireFree, SetRetention
from mountfs.meta.retention import Default, Mode, Retention
from mountfs.types import SUPERUSER, Ino
from mountfs.vfs.control import Answerer

NAMES_AT_ONCE = 1_000


def retention_answers(
    meta: Meta, written: Callable[[Ino], Any], used: Callable[[], None]
) -> dict[str, Answerer]:
    """`written` brings what was written to a file to the metadata; `used` is told that there is
    retention from now on.
    """

    async def get(args: dict[str, Any]) -> Any:
        ino = _ino(args)
        retention, now = await meta.read(Kept(ino))
        if not retention.hold and now < retention.until <= meta.now():
            with suppress(FsError):
                await meta.propose(RequireFree(ino))  # time goes on with commands
            retention, now = await meta.read(Kept(ino))
        return {**told(retention, now), "now_ns": now}

    async def set_(args: dict[str, Any]) -> Any:
        ino = _ino(args)
        await written(ino)
        command = SetRetention(
            ino=ino,
            mode=_mode(args),
            until=_number(args, "until_ns"),
            duration=_number(args, "duration_ns"),
            cred=SUPERUSER,
            bypass=bool(args.get("bypass")),
        )
        retention = await meta.propose(command)
        used()
        return told(retention)

    async def hold(args: dict[str, Any]) -> Any:
        ino = _ino(args)
        await written(ino)
        retention = await meta.propose(SetLegalHold(ino, bool(args.get("on")), SUPERUSER))
        used()
        return told(retention)

    async def default(args: dict[str, Any]) -> Any:
        found = await meta.read(GetDefault(_ino(args)))
        if found is None:
            return {"mode": "none", "directory": None}
        return {**told_default(found[1]), "directory": found[0]}

    async def set_default(args: dict[str, Any]) -> Any:
        wanted = Default(
            _mode(args),
            _number(args, "duration_ns"),
            _number(args, "idle_ns"),
            bool(args.get("at_close", True)),
        )
        await meta.propose(SetDefault(_ino(args), wanted, SUPERUSER))
        used()
        return told_default(wanted)

    async def list_(args: dict[str, Any]) -> Any:
        after = bytes.fromhex(str(args.get("after", "")))
        page = await meta.read(ListRetained(_ino(args), NAMES_AT_ONCE, after))
        return {
            "found": [
                {
                    "name": one.name.hex(),
                    "ino": one.ino,
                    **({} if one.retention is None else told(one.retention, page.now)),
                }
                for one in page.found
            ],
            "after": page.after.hex(),
        }

    return {
        "worm_get": get,
        "worm_set": set_,
        "worm_hold": hold,
        "worm_default": default,
        "worm_set_default": set_default,
        "worm_list": list_,
    }


def told(retention: Retention, now: int = 0) -> dict[str, Any]:
    return {
        "mode": retention.mode.name.lower(),
        "until_ns": retention.until or None,
        "hold": retention.hold,
        "kept": retention.protects(now),
    }


def told_default(default: Default) -> dict[str, Any]:
    return {
        "mode": default.mode.name.lower(),
        "duration_ns": default.duration,
        "idle_ns": default.idle,
        "at_close": default.at_close,
    }


def _ino(args: dict[str, Any]) -> Ino:
    return Ino(_number(args, "ino"))


def _number(args: dict[str, Any], name: str) -> int:
    number = args.get(name, 0)
    if not isinstance(number, int):
        raise FsError(Fault.INVALID, f"{name} is a number")
    return number


def _mode(args: dict[str, Any]) -> Mode:
    try:
        return Mode[str(args.get("mode")).upper()]
    except KeyError:
        raise FsError(Fault.INVALID, "mode is none, governance or compliance") from None
