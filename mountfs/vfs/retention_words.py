"""How people say until when, or for how long, a file is to be kept."""

import re
from datetime import UTC, datetime
from typing import Final

from mountfs.errors import Fault, FsError
from mountfs.meta.records import NS

_UNITS: Final = {
    "s": 1, "min": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400,
}  # fmt: skip
_DURATION: Final = re.compile(r"(\d{1,12})(s|min|h|d|w|y)", re.ASCII)
_MOMENT_MAX: Final = 1 << 63


def duration(text: str) -> int:
    """Nanoseconds.  Raises INVALID.

    >>> duration("90s") // NS, duration("30d") // NS
    (90, 2592000)
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        units = ", ".join(_UNITS)
        raise FsError(
            Fault.INVALID, f"{text!r} is no duration: a number and one of {units}, like 30d"
        )
    return int(found[1]) * _UNITS[found[2]] * NS


def moment(text: str) -> int:
    """Nanoseconds since 1970, of a date or a time of ISO 8601; UTC unless it names a zone.  Raises
    INVALID.

    >>> moment("1970-01-02") // NS, moment("1970-01-01T01:00:00+01:00"), moment("1970-01-01T00:00Z")
    (86400, 0, 0)
    """
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise FsError(
            Fault.INVALID, f"{text!r} is no time: 2027-01-31, or 2027-01-31T12:00:00Z"
        ) from None
    if found.tzinfo is None:
        found = found.replace(tzinfo=UTC)
    nanoseconds = int(found.timestamp()) * NS + found.microsecond * 1_000
    if not 0 <= nanoseconds < _MOMENT_MAX:
        raise FsError(Fault.INVALID, f"{text!r} lies too far away")
    return nanoseconds


def in_words(nanoseconds: int) -> str:
    """A duration in the largest unit that says it exactly.

    >>> in_words(30 * 86_400 * NS), in_words(90 * NS), in_words(365 * 86_400 * NS)
    ('30d', '90s', '1y')
    """
    seconds = nanoseconds // NS
    for unit, length in reversed(_UNITS.items()):
        if seconds >= length and seconds % length == 0 and unit != "w":
            return f"{seconds // length}{unit}"
    return f"{seconds}s"
