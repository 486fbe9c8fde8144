"""How a program asks a mount as itself: an ioctl(2) on a directory, with a question in JSON.

The kernel says who asks, and that the directory could be opened.  Question and answer are in the
same memory, each with a NUL behind it.
"""

from pathlib import Path
from typing import Final

_READS_AND_WRITES: Final = 3
_MAGIC: Final = ord("m")
_NUMBER: Final = 0x66

ASK_BYTES: Final = 16_368
"""Of a question, and of an answer; the kernel allows up to 16,383."""
ASK: Final = _READS_AND_WRITES << 30 | ASK_BYTES << 16 | _MAGIC << 8 | _NUMBER


def groups_of(pid: int) -> tuple[int, ...]:
    """The supplementary groups of a process; none if it is gone, or out of our sight."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ()
    for line in status.splitlines():
        if line.startswith("Groups:"):
            return tuple(map(int, line.split()[1:]))
    return ()
