"""What programs do in a simulated filesystem, and what they saw.

Most of it is on few names, files and locks, so that programs meet there, and each call on those is
kept for the models.  A part goes on in a directory of its own without being judged: it brings all
kinds of rows into the metadata, which has to stay sound.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from random import Random
from typing import Any

import msgspec

from mountfs.errors import FsError
from mountfs.meta.command import Command
from mountfs.meta.locks import EOF, FLOCK, Lock, Owner
from mountfs.meta.ops.link import Link
from mountfs.meta.ops.lock import ReleaseLock, TakeLock, TestLock
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.meta.ops.read import GetAttr, GetLayout, Lookup, ReadDir
from mountfs.meta.ops.reap import Reap
from mountfs.meta.ops.rename import EXCHANGE, NOREPLACE, Rename
from mountfs.meta.ops.rmdir import Rmdir
from mountfs.meta.ops.setattr import SetAttr
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.ops.write import Run, Write
from mountfs.meta.ops.xattr import CREATE, REPLACE, GetXattr, RemoveXattr, SetXattr
from mountfs.meta.records import ino_of, mode_of
from mountfs.sim import models
from mountfs.sim.history import Call, Model
from mountfs.sim.metadata import Formatted
from mountfs.sim.wild import Wild
from mountfs.types import SUPERUSER, Ino

Place = tuple[Ino, bytes]
_XATTR = b"user.sim"
_EMPTY = b""


class Op(msgspec.Struct):
    asks: Any
    """The command or the query."""
    calls: list[Call]
    """What it is on objects that are judged: one at most."""
    result: Callable[[Any], Any]
    """What it saw, from the reply."""
    about: Hashable = None
    """The object."""
    learned: Callable[[Any], None] = lambda reply: None

    @property
    def is_command(self) -> bool:
        return isinstance(self.asks, Command)


class Work:
    """`crowd`: how many names, files and owners of locks there are."""

    def __init__(self, formatted: Formatted, crowd: int, weights: dict[str, int]) -> None:
        self._directories = formatted.directories
        self._files = formatted.files
        self._names = [b"n%d" % number for number in range(crowd)]
        self._kinds = [kind for kind, weight in sorted(weights.items()) for _ in range(weight)]
        self._wild = Wild(formatted.wild)
        self._orphans: dict[int, list[Ino]] = defaultdict(list)
        """By session: files that went with their last name, and are still open."""
        self.calls: dict[Hashable, list[Call]] = defaultdict(list)
        """By object."""
        self._written = 0
        self.begun_count = 0
        self.answered_count = 0

    def next(self, random: Random, who: str, session: int) -> Op:
        orphans = self._orphans[session]
        if orphans and random.random() < 0.3:
            inos = tuple(orphans)
            orphans.clear()
            return Op(Reap(session, inos), [], _nothing)
        kind = random.choice(self._kinds)
        if kind == "names":
            op = self._on_names(random, who, session)
        elif kind == "looks":
            op = self.looks(random, who)
        elif kind == "files":
            op = self._on_files(random, who)
        elif kind == "opens":
            place = self._place(random)
            opened = Make(*place, 0o100644, 0, 0, False, SUPERUSER)
            call = Call(who, ("open", place), 0)
            op = Op(opened, [call], lambda reply: (ino_of(reply[0]), reply[1]), "names")
        elif kind == "modes":
            op = self._on_modes(random, who)
        elif kind == "locks":
            op = self._on_locks(random, who, session)
        else:
            asks = self._wild.next(random, session)
            op = Op(asks, [], _nothing, learned=lambda reply: self._wild.learn(asks, reply))
        return op

    def begun(self, op: Op) -> int:
        """Returns its number."""
        self.begun_count += 1
        for call in op.calls:
            call.number = self.begun_count
            self.calls[op.about].append(call)
        return self.begun_count

    def answered(self, op: Op, reply: Any, now: int) -> None:
        self.answered_count += 1
        if not isinstance(reply, FsError):
            op.learned(reply)
        for call in op.calls:
            call.returned = now
            call.result = reply.fault.name if isinstance(reply, FsError) else op.result(reply)

    # -- names

    def _on_names(self, random: Random, who: str, session: int) -> Op:
        place, other = self._place(random), self._place(random)

        def op(asks: Any, result: Callable[[Any], Any], *what: Any) -> Op:
            return Op(asks, [Call(who, what, 0)], result, "names")

        def taken(ino: Ino) -> Ino:
            if ino:
                self._orphans[session].append(ino)
            return ino

        match random.randrange(13):
            case 0 | 1:
                return op(Lookup(*place, SUPERUSER), ino_of, "lookup", place)
            case 2:
                asks = ReadDir(place[0], 0, 1_000, False)
                return op(asks, _listed, "list", place[0])
            case 3 | 4:
                made = Make(*place, 0o100644, 0, 0, True, SUPERUSER)
                return op(made, lambda reply: ino_of(reply[0]), "make", place)
            case 5:
                made = Make(*place, 0o100644, 0, 0, False, SUPERUSER)
                return op(made, lambda reply: (ino_of(reply[0]), reply[1]), "open", place)
            case 6:
                return op(Mkdir(*place, 0o755, 0, SUPERUSER), ino_of, "mkdir", place)
            case 7 | 8:
                return op(Unlink(*place, SUPERUSER), taken, "unlink", place)
            case 9:
                return op(Rmdir(*place, SUPERUSER), taken, "rmdir", place)
            case 10:
                ino = random.choice(self._files)
                return op(Link(ino, *place, SUPERUSER), ino_of, "link", place, ino)
            case 11:
                asks_to = Rename(*place, *other, EXCHANGE, SUPERUSER)
                return op(asks_to, int, "exchange", place, other)
        replace = random.random() < 0.7
        flags = 0 if replace else NOREPLACE
        renamed = Rename(*place, *other, flags, SUPERUSER)
        return op(renamed, taken, "rename", place, other, replace)

    def looks(self, random: Random, who: str) -> Op:
        """What may be known already."""

        def op(asks: Any, result: Callable[[Any], Any], about: Hashable, *what: Any) -> Op:
            return Op(asks, [Call(who, what, 0)], result, about)

        place = self._place(random)
        match random.randrange(6):
            case 0:
                asks = ReadDir(place[0], 0, 1_000, True)
                return op(asks, _listed, "names", "list", place[0])
            case 1 | 2 | 3:
                return op(Lookup(*place, SUPERUSER), ino_of, "names", "lookup", place)
        ino = random.choice(self._files)
        return op(GetAttr(ino), _mode, ("mode", ino), "read")

    def _place(self, random: Random) -> Place:
        return random.choice(self._directories), random.choice(self._names)

    # -- what is in a file, and about it

    def _on_files(self, random: Random, who: str) -> Op:
        ino = random.choice(self._files)
        self._written += 1
        value = self._written

        def op(about: str, asks: Any, result: Callable[[Any], Any], *what: Any) -> Op:
            return Op(asks, [Call(who, what, 0)], result, (about, ino))

        data = b"%08d" % value
        match random.randrange(10):
            case 0 | 1:
                written = Write(ino, (Run(0, len(data), 0, data=data),), value, False)
                return op("content", written, _ok, "write", data)
            case 2 | 3:
                return op("content", GetLayout(ino, 0), _content, "read")
            case 4:
                mode = value % 0o1000
                changed = SetAttr(ino=ino, cred=SUPERUSER, mode=mode)
                return op("mode", changed, _ok, "write", mode)
            case 5:
                return op("mode", GetAttr(ino), _mode, "read")
            case 6:
                return op("xattr", GetXattr(ino, _XATTR), bytes, "get")
            case 7:
                return op("xattr", RemoveXattr(ino, _XATTR, SUPERUSER), _ok, "remove")
        flags, kind = random.choice(((0, "set"), (CREATE, "create"), (REPLACE, "replace")))
        asks = SetXattr(ino, _XATTR, data, flags, False, SUPERUSER)
        return op("xattr", asks, _ok, kind, data)

    def _on_modes(self, random: Random, who: str) -> Op:
        ino = random.choice(self._files)
        self._written += 1
        mode = self._written % 0o1000
        changed = SetAttr(ino=ino, cred=SUPERUSER, mode=mode)
        return Op(changed, [Call(who, ("write", mode), 0)], _ok, ("mode", ino))

    # -- locks

    def _on_locks(self, random: Random, who: str, session: int) -> Op:
        ino = random.choice(self._files[:2])
        owner = (session, random.randrange(1, 3))
        exclusive = random.random() < 0.7
        wanted = Lock(FLOCK, Owner(*owner), 0, EOF, exclusive, 1)

        def op(asks: Any, result: Callable[[Any], Any], *what: Any) -> Op:
            return Op(asks, [Call(who, what, 0)], result, ("locks", ino))

        match random.randrange(4):
            case 0 | 1:
                return op(TakeLock(ino, wanted), _in_the_way, "lock", owner, exclusive)
            case 2:
                return op(ReleaseLock(ino, FLOCK, Owner(*owner)), _ok, "unlock", owner)
        return op(TestLock(ino, wanted), _in_the_way, "test", owner, exclusive)

    # -- what was seen

    def objects(self) -> Iterator[tuple[str, list[Call], Model, Hashable]]:
        """What is to be judged: a name, the calls on it, its model, and how it began."""
        for about, calls in self.calls.items():
            if about == "names":
                for directories, some in models.apart(calls):
                    yield f"names in {directories}", some, models.names, frozenset()
                continue
            assert isinstance(about, tuple), about
            kind, ino = about
            if kind == "locks":
                yield f"locks on inode {ino}", calls, models.locks, models.NOTHING_HELD
            elif kind == "xattr":
                yield f"an attribute of inode {ino}", calls, models.attribute, None
            else:
                begins = _EMPTY if kind == "content" else 0o644
                yield f"{kind} of inode {ino}", calls, models.register, begins

    def session_ended(self, session: int, called: int, returned: int) -> None:
        """Its locks go with it."""
        for about, calls in self.calls.items():
            if not isinstance(about, tuple) or about[0] != "locks":
                continue
            owners = [call.what[1] for call in calls if call.what[0] != "end"]
            if any(owner[0] == session for owner in owners):
                calls.append(Call("cluster", ("end", session), called, returned, "ok"))


def _nothing(reply: Any) -> None:
    return None


def _ok(reply: Any) -> str:
    return "ok"


def _content(reply: Any) -> bytes:
    return reply.content or _EMPTY


def _mode(reply: Any) -> int:
    return mode_of(reply) & 0o777


def _in_the_way(reply: Any) -> Any:
    return None if reply is None else (reply.owner.session, reply.owner.number)


def _listed(reply: Any) -> frozenset[tuple[bytes, int]]:
    return frozenset((name, ino) for position, ino, _, name, _ in reply if position > 2)
