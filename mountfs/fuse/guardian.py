"""A process beside the daemon that makes the kernel forget when leases run out.

The kernel believes what it was told under a lease for very long, and asks nobody.  A daemon that is
stopped, or that hangs, cannot tell it otherwise; so somebody else does, who has the connection to
the kernel too, and knows until when the leases are good: `until` in shared memory, which the daemon
moves on as long as it is well, and the inodes that it has leases on.

It is run as a program, imports nothing of mountfs and nothing that takes long, and ends when the
daemon does (then the kernel is made to forget as well).
"""

import contextlib
import mmap
import os
import select
import signal
import struct
import sys
import time

HEAD = struct.Struct("<QQ")
"""until, in nanoseconds of CLOCK_BOOTTIME; number of slots for inodes that follow."""
SLOT = struct.Struct("<Q")
_OUT = struct.Struct("<IiQ")
_INVAL_INODE = struct.Struct("<Qqq")
_NOTIFY_INVAL_INODE = 2
_NOTIFY_INC_EPOCH = 8
_AFTER_S = 0.2
"""When leases have run out, it looks so often whether there are new ones."""


def watch(device: int, shared: mmap.mmap, daemon: int) -> None:
    """Until the daemon is gone: then the other end of the pipe `daemon` is closed."""
    forgotten = 0
    while True:
        until, _ = HEAD.unpack_from(shared)
        left_s = (until - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) / 1e9
        if left_s <= 0 and until != forgotten:
            forget(device, shared)
            forgotten = until
        wait_s = left_s if left_s > 0 else _AFTER_S
        if select.select([daemon], [], [], wait_s)[0]:
            forget(device, shared)
            return


def forget(device: int, shared: mmap.mmap) -> None:
    """First what never waits: names, and attributes.  Then cached bytes, which may have to wait for
    what the daemon reads just now.
    """
    notify(device, _NOTIFY_INC_EPOCH, b"")
    inos = inodes(shared)
    for offset in (-1, 0):
        for ino in inos:
            notify(device, _NOTIFY_INVAL_INODE, _INVAL_INODE.pack(ino, offset, 0))


def inodes(shared: mmap.mmap) -> list[int]:
    _, slots = HEAD.unpack_from(shared)
    stop = HEAD.size + slots * SLOT.size
    return [ino for (ino,) in SLOT.iter_unpack(shared[HEAD.size : stop]) if ino]


def notify(device: int, code: int, payload: bytes) -> None:
    with contextlib.suppress(OSError):  # the kernel does not know it, or the mount is gone
        os.write(device, _OUT.pack(_OUT.size + len(payload), code, 0) + payload)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with the daemon, and not before
    device, memory, daemon = map(int, sys.argv[1:4])
    with mmap.mmap(memory, 0) as shared:
        watch(device, shared, daemon)


if __name__ == "__main__":
    main()
