"""When reading a file changes its access time: the rules of mount(8), as a pure function."""

import enum
from typing import Final

_DAY_NS: Final = 86_400 * 1_000_000_000


class AccessTime(enum.Enum):
    RELATIVE = "relatime"
    """If it is not later than the last change, or a day old: the default."""
    NEVER = "noatime"
    STRICT = "strictatime"


def due(rule: AccessTime, atime: int, mtime: int, ctime: int, now: int) -> bool:
    """Whether a read at `now` (all in nanoseconds) is worth a new access time."""
    if rule is AccessTime.NEVER:
        return False
    if rule is AccessTime.STRICT:
        return True
    return atime <= mtime or atime <= ctime or now - atime >= _DAY_NS
