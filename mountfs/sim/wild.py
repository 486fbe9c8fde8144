"""Commands of all kinds on whatever comes: nobody knows what their answers should be, but whatever
they do the metadata must stay sound and the same everywhere.
"""

from random import Random
from typing import Any

from mountfs.meta.command import Command
from mountfs.meta.locks import EOF, POSIX, Lock, Owner
from mountfs.meta.ops.allocate import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, Allocate
from mountfs.meta.ops.copy_range import CopyRange
from mountfs.meta.ops.link import Link
from mountfs.meta.ops.lock import ReleaseLock, TakeLock
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.meta.ops.quota import DeleteQuota, SetQuota
from mountfs.meta.ops.reap import Reap
from mountfs.meta.ops.rename import EXCHANGE, NOREPLACE, Rename
from mountfs.meta.ops.rmdir import Rmdir
from mountfs.meta.ops.setattr import SetAttr
from mountfs.meta.ops.slices import ReserveSlices
from mountfs.meta.ops.symlink import Symlink
from mountfs.meta.ops.tmpfile import Tmpfile
from mountfs.meta.ops.touch import Touch
from mountfs.meta.ops.trash import SetTrash
from mountfs.meta.ops.undelete import Undelete
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.ops.write import Run, Write
from mountfs.meta.ops.xattr import RemoveXattr, SetXattr
from mountfs.meta.quota import Kind, Limits
from mountfs.meta.records import ATTRIBUTES_BYTES, Attributes, ino_of
from mountfs.meta.trash import Setting
from mountfs.types import BLOCK_BYTES, CHUNK_BYTES, SUPERUSER, Ino, SliceId, VolumeId

_NAMES = [b"a", b"b", b"c", b"d"]
_OFFSETS = (0, 0, 100, BLOCK_BYTES, 3 * BLOCK_BYTES, CHUNK_BYTES)
_INOS_MAX = 40


class Wild:
    def __init__(self, directory: Ino) -> None:
        self._inos = [directory]
        """Of files and directories that were seen, some of them gone."""
        self._slices: list[SliceId] = []

    def learn(self, asked: Command[Any], reply: Any) -> None:
        """What there is, from the reply to a command."""
        if isinstance(asked, ReserveSlices):
            self._slices.append(reply)
            del self._slices[:-3]
            return
        first = reply[0] if isinstance(reply, tuple) and reply else reply
        if isinstance(first, bytes) and len(first) == ATTRIBUTES_BYTES:
            ino = ino_of(Attributes(first))
            if ino not in self._inos:
                self._inos.append(ino)
            if len(self._inos) > _INOS_MAX:
                del self._inos[1]

    def next(self, random: Random, session: int) -> Command[Any]:
        ino, other = random.choice(self._inos), random.choice(self._inos)
        # Mostly directories come first: in others nothing can be made.
        parent = random.choice(self._inos[:4])
        place, target = (parent, random.choice(_NAMES)), (other, random.choice(_NAMES))
        offset, length = random.choice(_OFFSETS), random.choice((1, 50, BLOCK_BYTES, 5_000))
        who = SUPERUSER
        match random.randrange(21):
            case 0 | 1:
                return Make(*place, 0o100644, 0o22, 0, random.random() < 0.5, who)
            case 2 | 3:
                return Mkdir(*place, 0o755, 0o22, who)
            case 4:
                return Symlink(*place, b"x" * random.randint(1, 60), who)
            case 5:
                return Link(ino, *place, who)
            case 6:
                flags = random.choice((0, 0, NOREPLACE, EXCHANGE))
                return Rename(*place, *target, flags, who)
            case 7:
                return Unlink(*place, who)
            case 8:
                return Rmdir(*place, who) if ino % 2 else Undelete(*place, 0, *place, who)
            case 9 | 10 | 11:
                return self._write(random, ino, offset, length)
            case 12:
                return SetAttr(ino=ino, cred=who, size=random.choice((0, 10, 5_000, CHUNK_BYTES)))
            case 13:
                mode = random.choice((0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE))
                return Allocate(ino, mode, offset, length, False)
            case 14:
                return CopyRange(ino, 0, other, offset, length, False)
            case 15:
                number = random.randrange(1 << 40)
                if number % 3 == 1:
                    return _trash(ino, place, number)
                return _limit(ino, number) if number % 3 else Touch(((ino, number),))
            case 16:
                return Tmpfile(parent, 0o600, 0, who)
            case 17:
                name = b"user.%d" % random.randrange(3)
                if random.random() < 0.3:
                    return RemoveXattr(ino, name, who)
                return SetXattr(ino, name, b"v" * random.randrange(30), 0, False, who)
            case 18:
                start, stop = sorted(random.sample(range(100), 2))
                owner = Owner(session, random.randrange(2))
                if random.random() < 0.3:
                    return ReleaseLock(ino, POSIX, owner, start, random.choice((stop, EOF)))
                return TakeLock(ino, Lock(POSIX, owner, start, stop, random.random() < 0.5, 1))
            case 19:
                return Reap(session, (ino,))
        return ReserveSlices(1)

    def _write(self, random: Random, ino: Ino, offset: int, length: int) -> Command[Any]:
        if self._slices and random.random() < 0.5:
            run = Run(offset, length, 0, self._slices.pop(), VolumeId(1))
        else:
            run = Run(offset, length, 0, data=b"w" * length)
        return Write(ino, (run,), random.randrange(1 << 40), False)


def _trash(ino: Ino, place: tuple[Ino, bytes], number: int) -> Command[Any]:
    """Some trees keep what is deleted, and some of that comes back."""
    if number & 6:
        return Undelete(*place, 0, *place, SUPERUSER)
    days = (number >> 8) % 3
    setting = Setting(days, counts=bool(number & 8)) if number & 48 else None
    return SetTrash(ino, setting, SUPERUSER)


def _limit(ino: Ino, number: int) -> Command[Any]:
    """A quota of a tree, so small that it is met soon; mostly it goes again."""
    if number % 2:
        return DeleteQuota(Kind.TREE, ino)
    hard_inodes, hard_bytes = (number >> 8) % 20, (number >> 16) % 40 * BLOCK_BYTES
    grace_s = (number >> 24) % 3
    limits = Limits(hard_bytes, hard_bytes // 2, hard_inodes, hard_inodes // 2, grace_s)
    return SetQuota(Kind.TREE, ino, limits)
