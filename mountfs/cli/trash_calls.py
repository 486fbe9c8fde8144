"""Asking a mount about the trash: over its control socket where we may, else as who we are."""

import errno
import fcntl
import json
import os
import pwd
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from mountfs.cli.info import locate
from mountfs.cli.places import mount_table
from mountfs.errors import Fault, FsError, disk_error
from mountfs.vfs import control
from mountfs.vfs.asking import ASK, ASK_BYTES

ANSWER_S: Final = 30.0
PAGE: Final = 1_000
PAGE_BY_IOCTL: Final = 16
"""Entries that fit into one answer, whatever their names are."""


class Asking:
    """About one directory of a mount.  Raises NOT_FOUND where it is in none, NOT_DIRECTORY."""

    def __init__(self, directory: str) -> None:
        self.path = directory
        if not os.path.isdir(directory):
            raise FsError(Fault.NOT_DIRECTORY, f"{directory} is not a directory")
        place, self.ino = locate(os.path.join(directory, "."), mount_table())
        self._control = place.control
        self.as_owner = os.access(self._control, os.R_OK | os.W_OK)
        self.page = PAGE if self.as_owner else PAGE_BY_IOCTL

    def __call__(self, question: str, **args: Any) -> dict[str, Any]:
        found: dict[str, Any]
        if self.as_owner:
            found = control.ask(
                self._control, question, seconds=ANSWER_S, **{**args, "ino": self.ino}
            )
            return found
        found = self._by_ioctl(question, args)
        return found

    def _by_ioctl(self, question: str, args: dict[str, Any]) -> dict[str, Any]:
        asked = json.dumps({"ask": question, "args": args}).encode()
        if len(asked) > ASK_BYTES:
            raise FsError(Fault.TOO_BIG, "too much for one question: ask as root")
        memory = bytearray(asked.ljust(ASK_BYTES, b"\0"))
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise disk_error(error, self.path) from error
        try:
            fcntl.ioctl(fd, ASK, memory, True)
        except OSError as error:
            if error.errno == errno.E2BIG:
                raise FsError(Fault.TOO_BIG, "too much for one answer: ask as root") from error
            raise FsError(
                Fault.UNSUPPORTED,
                f"{self.path}: this mount answers only its owner and root ({error.strerror})",
            ) from error
        finally:
            os.close(fd)
        answer = json.loads(memory.partition(b"\0")[0])  # behind it is what is left of the question
        if "error" in answer:
            raise FsError(Fault[answer["fault"]], answer["error"])
        found: dict[str, Any] = answer["answer"]
        return found

    def entries(self) -> Iterator[dict[str, Any]]:
        """All that was deleted below the directory, the next to go first."""
        after: Any = (0, 0)
        while True:
            page = self("trash_list", after=after, limit=self.page)
            yield from page["found"]
            after = page["after"]
            if tuple(after) == (0, 0):
                return


def when(nanoseconds: int) -> str:
    """A moment as `--at` takes it, and not before it.

    >>> when(0), when(1_500_000_001)
    ('1970-01-01T00:00:00.000000Z', '1970-01-01T00:00:01.500001Z')
    """
    seconds, rest = divmod(-(-nanoseconds // 1_000), 1_000_000)
    whole = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{rest:06}Z"


def user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def things(count: int) -> str:
    """
    >>> things(1), things(2_000)
    ('1 file or directory', '2,000 files and directories')
    """
    return "1 file or directory" if count == 1 else f"{count:,} files and directories"


def name_of(entry: dict[str, Any]) -> str:
    return os.fsdecode(bytes.fromhex(entry["name"]))
