"""Mount options: the text after `-o`, as mount(8) and fstab(5) write it, to `MountOptions`.

Every option is a row of a table: what it sets.  The later of two that disagree wins.  What only
concerns mount(8) or systemd (`nofail`, `x-systemd.automount`, ...) is taken and means nothing here.
Anything else is refused by name, with the nearest name that there is.
"""

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from mountfs.errors import Fault, FsError
from mountfs.types import KIB, MIB
from mountfs.vfs.access_time import AccessTime

# Flags of mount(2), as <sys/mount.h> has them.
MS_RDONLY: Final = 1 << 0
MS_NOSUID: Final = 1 << 1
MS_NODEV: Final = 1 << 2
MS_NOEXEC: Final = 1 << 3
MS_SYNCHRONOUS: Final = 1 << 4
MS_DIRSYNC: Final = 1 << 7
MS_NOSYMFOLLOW: Final = 1 << 8
MS_NOATIME: Final = 1 << 10
MS_NODIRATIME: Final = 1 << 11
MS_SILENT: Final = 1 << 15
MS_RELATIME: Final = 1 << 21
MS_STRICTATIME: Final = 1 << 24
MS_LAZYTIME: Final = 1 << 25

ALONE_S: Final = 3600.0

BINDINGS: Final = ("native", "pyfuse3")


@dataclass(frozen=True)
class MountOptions:
    """How to mount.  The values here are what holds when nothing is said."""

    ms_flags: int = 0
    """Flags for mount(2): MS_*."""
    allow_other: bool | None = None
    """Whether users besides the one who mounts get in.  None: not said; they do if root mounts."""
    binding: str = "native"
    """Which of `BINDINGS` speaks to the kernel."""
    foreground: bool = False
    """The daemon stays in the process that mounts."""
    debug: bool = False
    """Every request is logged."""
    max_background: int = 128
    """Read-ahead and late writes that the kernel may have under way at once."""
    readahead_bytes: int = 4 * MIB
    """How far the kernel reads ahead of a program that reads in order.  0: it does not."""
    dirty_bytes: int = 64 * MIB
    """Written data that may wait in memory before writers wait for the disk."""
    attr_timeout_s: float | None = None
    """How long the kernel may believe attributes.  None: not said (see `timeouts`)."""
    entry_timeout_s: float | None = None
    """How long the kernel may believe names, and that there is none."""
    soft_s: float | None = None
    """Of a cluster: give up on it after so long, instead of never."""
    tls: str | None = None
    """Of a cluster: the directory with our certificate."""
    poll_us: int = 100
    """How long to poll for the next request before sleeping, if there are several processors."""

    @property
    def read_only(self) -> bool:
        return bool(self.ms_flags & MS_RDONLY)

    def timeouts(self, *, shared: bool, leased: bool = False) -> tuple[float, float, float]:
        """How long the kernel may believe names, attributes, and that there is no such name, in
        seconds.  Long where nobody else can change them, or where we are told (`leased`).  Where
        others can, and nobody tells us, not at all.
        """
        usual = ALONE_S if leased or not shared else 0.0
        entry = usual if self.entry_timeout_s is None else self.entry_timeout_s
        attributes = usual if self.attr_timeout_s is None else self.attr_timeout_s
        return entry, attributes, entry

    @property
    def access_time(self) -> AccessTime:
        """When reading changes the access time: the kernel leaves that to the filesystem."""
        if self.ms_flags & MS_STRICTATIME:
            return AccessTime.STRICT
        if self.ms_flags & MS_NOATIME:
            return AccessTime.NEVER
        return AccessTime.RELATIVE

    @property
    def directory_access_time(self) -> AccessTime:
        """The same for listing a directory."""
        return AccessTime.NEVER if self.ms_flags & MS_NODIRATIME else self.access_time

    @property
    def sync_writes(self) -> bool:
        """Whether every write is on disk when its call returns."""
        return bool(self.ms_flags & MS_SYNCHRONOUS)

    @property
    def sync_directories(self) -> bool:
        """Whether a change to a directory is on disk when its call returns."""
        return bool(self.ms_flags & (MS_DIRSYNC | MS_SYNCHRONOUS))


def parse_options(text: str) -> MountOptions:
    """The options in `text`, separated by commas; a value may be in double quotes to hold some.

    Raises INVALID with a sentence that names the option; the value only if it belongs to an
    option we know, so that a secret that strayed here is not repeated.
    """
    ms_flags = 0
    settings: dict[str, Any] = {}
    for name, value in _split(text):
        if name in _REFUSED:
            raise _refusal(f"option {name!r} is not supported: {_REFUSED[name]}")
        if name in _FLAGS:
            if name != "user":  # mount(8) adds who it was
                _without_value(name, value)
            flags = _FLAGS[name]
            ms_flags = ms_flags & ~flags.clears | flags.sets
        elif name in _SWITCHES:
            _without_value(name, value)
            settings[_SWITCHES[name]] = True
        elif name in _SETTINGS:
            setting = _SETTINGS[name]
            settings[setting.field] = _parse(name, value, setting)
        elif not _for_others(name):
            raise _refusal(f"unknown option {name!r}{_suggestion(name)}")
    return MountOptions(ms_flags=ms_flags, **settings)


def _split(text: str) -> Iterator[tuple[str, str | None]]:
    """Names and values (None: there is none).  Quotes and backslashes protect commas."""
    for option in re.findall(r'(?:"[^"]*"|\\.|[^,])+', text):
        name, equals, value = option.strip().partition("=")
        value = re.sub(r'"([^"]*)"|\\(.)', r"\1\2", value)
        if name:
            yield name, value if equals else None


def parse_size(text: str) -> int:
    """Bytes.  Units as coreutils have them: 64k = 64K = 64KiB is 65,536, 64KB is 64,000."""
    match = re.fullmatch(r"([0-9]{1,18}) ?(?:([kmgt])(i?b)?|b)?", text.strip().lower())
    if match is None:
        raise ValueError("expected a size such as 64k or 4MiB")
    number, unit, suffix = match.groups()
    power = " kmgt".index(unit or " ")
    size: int = int(number) * (1000 if suffix == "b" else 1024) ** power
    return size


def _refusal(sentence: str) -> FsError:
    return FsError(Fault.INVALID, sentence)


class _Flags(NamedTuple):
    sets: int = 0
    clears: int = 0


_ATIME = MS_NOATIME | MS_RELATIME | MS_STRICTATIME
_SECURE = MS_NOSUID | MS_NODEV | MS_NOEXEC

_FLAGS: Final = {
    "rw": _Flags(0, MS_RDONLY),
    "ro": _Flags(MS_RDONLY),
    "suid": _Flags(0, MS_NOSUID),
    "nosuid": _Flags(MS_NOSUID),
    "dev": _Flags(0, MS_NODEV),
    "nodev": _Flags(MS_NODEV),
    "exec": _Flags(0, MS_NOEXEC),
    "noexec": _Flags(MS_NOEXEC),
    "async": _Flags(0, MS_SYNCHRONOUS),
    "sync": _Flags(MS_SYNCHRONOUS),
    "dirsync": _Flags(MS_DIRSYNC),
    "symfollow": _Flags(0, MS_NOSYMFOLLOW),
    "nosymfollow": _Flags(MS_NOSYMFOLLOW),
    "atime": _Flags(0, MS_NOATIME),
    "noatime": _Flags(MS_NOATIME, _ATIME),
    "relatime": _Flags(MS_RELATIME, _ATIME),
    "norelatime": _Flags(0, MS_RELATIME),
    "strictatime": _Flags(MS_STRICTATIME, _ATIME),
    "nostrictatime": _Flags(0, MS_STRICTATIME),
    "diratime": _Flags(0, MS_NODIRATIME),
    "nodiratime": _Flags(MS_NODIRATIME),
    "lazytime": _Flags(MS_LAZYTIME),
    "nolazytime": _Flags(0, MS_LAZYTIME),
    "silent": _Flags(MS_SILENT),
    "loud": _Flags(0, MS_SILENT),
    # Who may mount is for mount(8) to say; that what a user mounts is harmless, for us too.
    "user": _Flags(_SECURE),
    "users": _Flags(_SECURE),
    "owner": _Flags(MS_NOSUID | MS_NODEV),
    "group": _Flags(MS_NOSUID | MS_NODEV),
}
"""Options that are flags of mount(2)."""

_SWITCHES: Final = {"allow_other": "allow_other", "debug": "debug", "foreground": "foreground"}
"""Options without a value -> the field that becomes true."""

_FOR_OTHERS: Final = (
    *("defaults", "auto", "noauto", "nofail", "_netdev", "comment"),
    *("nouser", "nousers", "noowner", "nogroup"),
    # Always so: the kernel decides access, and a directory that has files may be mounted over.
    *("default_permissions", "nonempty"),
    # Never so: the mount table shows the home and our type, because mounts are known by them.
    *("fsname", "subtype"),
)
"""Options that mean nothing to us, and so may have any value."""


def _for_others(name: str) -> bool:
    return name in _FOR_OTHERS or name.startswith(("x-", "X-"))


_SECRET = "every user can read mount options in the process list; secrets do not belong there"
_REFUSED: Final = {
    "allow_root": "the kernel knows only allow_other, which lets root and all others in",
    "auto_unmount": "mounting again cures a mount whose daemon was killed",
    "remount": "unmount it and mount it again with the new options",
    "bind": "to show a directory in a second place, use mount --bind",
    **dict.fromkeys(
        ("password", "passwd", "pass", "secret", "token", "key", "credentials"), _SECRET
    ),
}
"""Options that somebody may expect -> why there is no such thing."""


class _Setting(NamedTuple):
    field: str
    parse: Callable[[str], Any]
    example: str


def _number(smallest: int, largest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or not smallest <= int(text) <= largest:
            raise ValueError(f"expected a whole number from {smallest} to {largest}")
        return int(text)

    return parse


_TIMEOUT_S_MAX = 10**9  # thirty years: no clock of a kernel overflows


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,10}(\.[0-9]*)?|\.[0-9]+", text) or float(text) > _TIMEOUT_S_MAX:
        raise ValueError(f"expected seconds from 0 to {_TIMEOUT_S_MAX}")
    return float(text)


def _size(smallest: int, largest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        size = parse_size(text)
        if not smallest <= size <= largest:
            raise ValueError(f"expected {_readable(smallest)} to {_readable(largest)}")
        return size

    return parse


def _readable(size: int) -> str:
    for unit, name in ((KIB**3, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size and size % unit == 0:
            return f"{size // unit}{name}"
    return str(size)


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"expected {' or '.join(choices)}")
        return text

    return parse


_SETTINGS: Final = {
    "binding": _Setting("binding", _one_of(*BINDINGS), "binding=native"),
    "max_background": _Setting("max_background", _number(1, 65_535), "max_background=128"),
    "readahead": _Setting("readahead_bytes", _size(0, 1024 * MIB), "readahead=4MiB"),
    "dirty": _Setting("dirty_bytes", _size(MIB, 1024 * 1024 * MIB), "dirty=64MiB"),
    "attr_timeout": _Setting("attr_timeout_s", _seconds, "attr_timeout=60"),
    "entry_timeout": _Setting("entry_timeout_s", _seconds, "entry_timeout=60"),
    "soft": _Setting("soft_s", _seconds, "soft=30"),
    "tls": _Setting("tls", str, "tls=/etc/mountfs"),
    "poll_us": _Setting("poll_us", _number(0, 10_000), "poll_us=100"),
}
"""Options with a value."""


def _without_value(name: str, value: str | None) -> None:
    if value is not None:
        raise _refusal(f"option {name!r} takes no value, but has {value!r}")


def _parse(name: str, value: str | None, setting: _Setting) -> Any:
    if value is None:
        raise _refusal(f"option {name!r} needs a value, as in {setting.example}")
    try:
        return setting.parse(value)
    except ValueError as error:
        raise _refusal(f"option {name!r} cannot be {value!r}: {error}") from None


def _suggestion(name: str) -> str:
    known = sorted([*_FLAGS, *_SWITCHES, *_SETTINGS, *_FOR_OTHERS])
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
