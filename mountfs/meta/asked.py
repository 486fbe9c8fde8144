"""A command on its way through the log."""

from typing import Any

import msgspec

from mountfs.meta.command import Command
from mountfs.meta.leases import Wait
from mountfs.types import Ino


class Asked(msgspec.Struct):
    """What who leads need not take apart again."""

    session: int
    sequence: int
    answered: int
    time: int
    command: Command[Any]
    proven: int = 0
    changes: tuple[Ino, ...] = ()
    """The inodes that it has changed, once it has been applied."""
    waits: tuple[Wait, ...] = ()
    """What its answer has to wait for."""
    is_again: bool = False
    """It had acted before, and what it changed then is not known."""
    caches: bool = False
    """Who asked keeps what he is answered."""
    is_granted: bool = False
    """He has a lease on all that the answer tells of."""
