"""Retention as extended attributes that are not stored: `mountfs.worm.mode`, `.until`, `.hold`.

They can be read of files that have retention, and set where that is allowed; what makes governance
weaker is asked for by `mountfs worm`, for a program that copies attributes must not do it.
"""

from typing import Final

from mountfs.errors import Fault, FsError
from mountfs.meta.command import Command
from mountfs.meta.ops.legal_hold import SetLegalHold
from mountfs.meta.ops.retention import SetRetention
from mountfs.meta.retention import Mode, Retention
from mountfs.meta.retention import moment as told
from mountfs.types import Cred, Ino
from mountfs.vfs.retention_words import duration, moment

_PREFIX: Final = b"mountfs.worm."
MODE: Final = _PREFIX + b"mode"
UNTIL: Final = _PREFIX + b"until"
HOLD: Final = _PREFIX + b"hold"


def is_one(name: bytes) -> bool:
    return name.startswith(_PREFIX)


def value(name: bytes, retention: Retention) -> bytes:
    """Raises NO_ATTRIBUTE where nothing is said."""
    if name == HOLD and retention != Retention():
        return b"on" if retention.hold else b"off"
    if name == MODE and retention.mode != Mode.NONE:
        return retention.mode.name.lower().encode()
    if name == UNTIL and retention.mode != Mode.NONE:
        return told(retention.until).encode()
    raise FsError(Fault.NO_ATTRIBUTE)


def command(
    ino: Ino, name: bytes, value: bytes, before: Retention, cred: Cred
) -> Command[Retention]:
    """What sets one of them.  Raises INVALID, UNSUPPORTED."""
    text = value.rstrip(b"\0\n").decode("utf-8", "replace")
    if name == HOLD:
        if text not in ("on", "off"):
            raise FsError(Fault.INVALID, f"{text!r}: a legal hold is on or off")
        return SetLegalHold(ino, text == "on", cred)
    if name == MODE:
        if text not in ("governance", "compliance"):
            raise FsError(Fault.INVALID, f"{text!r} is neither governance nor compliance")
        return SetRetention(ino=ino, mode=Mode[text.upper()], cred=cred)
    if name == UNTIL:
        mode = max(before.mode, Mode.GOVERNANCE)
        if text.startswith("+"):
            return SetRetention(ino=ino, mode=mode, duration=duration(text[1:]), cred=cred)
        return SetRetention(ino=ino, mode=mode, until=moment(text), cred=cred)
    raise FsError(Fault.UNSUPPORTED, f"{name.decode('utf-8', 'replace')}: mode, until, hold")
