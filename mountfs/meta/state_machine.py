"""The metadata as a deterministic machine: the same entries in the same order give the same state
everywhere.

`apply` takes entries of the log one by one; `read` answers questions about the state so far.
Exactly once: of every session it keeps the last replies, and an entry that it has seen answers the
same again without an effect.  Session 0 is nobody's and nothing is remembered of it: in it,
sessions are opened.
"""

from collections.abc import KeysView
from functools import reduce
from operator import or_
from typing import Any, TypeVar, get_args

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.kv.base import StoreFailed
from mountfs.kv.overlay import Overlay, Rows
from mountfs.meta import keys
from mountfs.meta.command import UNFIT, Command, Query, Stamp
from mountfs.meta.ops.allocate import Allocate
from mountfs.meta.ops.copies import SetCopies
from mountfs.meta.ops.copy_range import CopyRange
from mountfs.meta.ops.default_retention import CommitRetention, SetDefault
from mountfs.meta.ops.legal_hold import SetLegalHold
from mountfs.meta.ops.link import Link
from mountfs.meta.ops.lock import ReleaseLock, TakeLock
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.make_root import MakeRoot
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.meta.ops.nodes import AddNode, DrainNode, LeaveNode, MoveNode, RemoveNode
from mountfs.meta.ops.quota import DeleteQuota, SetQuota
from mountfs.meta.ops.reap import Reap
from mountfs.meta.ops.rename import Rename
from mountfs.meta.ops.retention import RequireFree, SetRetention
from mountfs.meta.ops.rmdir import Rmdir
from mountfs.meta.ops.session import EndSession, OpenSession
from mountfs.meta.ops.setattr import SetAttr
from mountfs.meta.ops.slices import Discard, Reclaimed, ReserveSlices, Rewrite, Settle
from mountfs.meta.ops.symlink import Symlink
from mountfs.meta.ops.tmpfile import Tmpfile
from mountfs.meta.ops.touch import Touch
from mountfs.meta.ops.trash import EmptyTrash, SetTrash
from mountfs.meta.ops.undelete import Undelete, UndeleteIn
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.ops.volumes import (
    AdoptVolume,
    AllotVolume,
    CloseSlices,
    ForgetVolume,
    ReturnVolumes,
    SealVolume,
    SetReplicas,
)
from mountfs.meta.ops.write import Write
from mountfs.meta.ops.xattr import RemoveXattr, SetXattr
from mountfs.meta.records import Replies
from mountfs.meta.tree import Tree

R = TypeVar("R")

COMMANDS: tuple[type[Command[Any]], ...] = (
    AddNode, AdoptVolume, Allocate, AllotVolume, CloseSlices, CopyRange, Discard, DrainNode,
    EndSession, ForgetVolume, LeaveNode, Link, Make, MakeRoot, Mkdir, MoveNode, OpenSession, Reap,
    Reclaimed, ReleaseLock, RemoveNode, RemoveXattr, Rename, ReserveSlices, ReturnVolumes, Rewrite,
    Rmdir, SealVolume, SetAttr, SetCopies, SetReplicas, SetXattr, Settle, Symlink, TakeLock,
    Tmpfile, Touch, Unlink, Write, SetQuota, DeleteQuota, SetRetention, SetLegalHold, SetDefault,
    CommitRetention, RequireFree, SetTrash, Undelete, UndeleteIn, EmptyTrash,
)  # fmt: skip
"""Everything that can be in the log.  A command that was ever written must stay readable."""


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A record of the log: who asked what, and the time that the leader gave it."""

    session: int
    sequence: int
    """Ascending by one in a session, from 1."""
    answered: int
    """The client has the replies to all sequences below this one: they need not be kept."""
    time: int
    command: reduce(or_, COMMANDS)  # type: ignore[valid-type]
    proven: int = 0
    """The time that has passed for certain (`meta.proven_time`), as the leader knew then; 0: it did
    not know.
    """


_OF_THE_STORE = (Fault.CORRUPT, Fault.DEVICE, Fault.BAD_HOME, Fault.READ_ONLY)
"""What only a store says; no command is refused so."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode


def encode_entry(
    session: int, sequence: int, answered: int, time: int, command: Command[Any], proven: int = 0
) -> bytes:
    if proven:
        return _encode((session, sequence, answered, time, command, proven))
    return _encode((session, sequence, answered, time, command))


def decode_entry(record: bytes) -> Entry:
    return _decode(record)


_TIMED = frozenset({CommitRetention, RequireFree, SetLegalHold, SetRetention})


def needs_time(tree: Tree, command: Command[Any]) -> bool:
    """Whether an entry is to say what time is known for certain: nothing is retained, and there is
    no trash, mostly, and then it makes no difference.
    """
    counters = tree.counters
    return counters.retention or counters.trash or type(command) in _TIMED


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """A reply: the command was refused, and changed nothing."""

    fault: str
    detail: str


class StateMachine:
    def __init__(self, rows: Overlay) -> None:
        self._rows = rows
        self.tree = Tree(rows)
        self._sessions: dict[int, Replies] = {
            keys.last_64(key): _load_replies(value) for key, value in rows.scan(*keys.sessions())
        }

    @property
    def applied(self) -> int:
        """Index of the last entry that is in the state.  Only grows."""
        return self.tree.counters.applied

    def apply(
        self,
        index: int,
        session: int,
        sequence: int,
        answered: int,
        time: int,
        command: Command[R],
        proven: int = 0,
    ) -> R:
        """The effect of one entry.  Raises FsError where the command is refused; STALE where the
        session had the reply long ago; SESSION_ENDED where there is no such session.

        Whether a command is refused is the same everywhere.  Where the store cannot be read, which
        is not, FsError is raised too, and the entry has not been taken in: `applied` stays.
        """
        counters = self.tree.counters
        assert index == counters.applied + 1, (index, counters.applied)
        replies = self._sessions.get(session)
        if replies is None and session:
            counters.applied = index
            raise FsError(Fault.SESSION_ENDED, f"session {session} has ended")
        if replies is not None:
            if answered > replies.answered:
                replies.answered = answered
                for old in [number for number in replies.kept if number < answered]:
                    del replies.kept[old]
            if sequence in replies.kept:
                counters.applied = index
                return _answer(command, replies.kept[sequence])
            if sequence < replies.answered:
                counters.applied = index
                raise FsError(Fault.STALE, f"session {session}: {sequence} was answered before")
        if proven > counters.protected_time:  # also if the command is refused
            counters.protected_time = proven
        time = max(time, counters.last_time + 1)
        tree = self.tree
        stamp = Stamp(index, time, session, proven)
        tree.begin(stamp)
        try:
            try:
                reply = command.apply(tree, stamp)
                tree.commit()
            except UNFIT as error:
                what = f"{type(command).__name__} with numbers that make no sense: {error}"
                raise FsError(Fault.INVALID, what) from error
        except FsError as error:
            tree.abort()
            if isinstance(error, StoreFailed) or error.fault in _OF_THE_STORE:
                raise
            self._settle(index, time, replies, sequence, Refused(error.fault.name, error.detail))
            raise
        except BaseException:
            tree.abort()
            raise
        self._settle(index, time, replies, sequence, reply)
        if type(command) is OpenSession:
            self._sessions[reply] = Replies(about=command.about, caches=command.caches)  # type: ignore[index]
        elif type(command) is EndSession:
            self._sessions.pop(command.number, None)
        return reply

    @property
    def sessions(self) -> KeysView[int]:
        """Those that have not ended."""
        return self._sessions.keys()

    @property
    def caching(self) -> list[int]:
        """Those that may have leases."""
        return [number for number, kept in self._sessions.items() if kept.caches]

    def about(self, session: int) -> str:
        """Who has a session, as they say; empty: it has ended, or they say nothing."""
        replies = self._sessions.get(session)
        return "" if replies is None else replies.about

    def reply_to(self, session: int, sequence: int) -> tuple[bool, Any]:
        """(whether it has been answered, the reply or the FsError).  Raises STALE where the session
        had the reply long ago.
        """
        replies = self._sessions.get(session)
        if replies is None:
            return False, None
        if sequence < replies.answered:
            raise FsError(Fault.STALE, f"session {session}: {sequence} was answered before")
        if sequence not in replies.kept:
            return False, None
        reply = replies.kept[sequence]
        if isinstance(reply, Refused):
            return True, FsError(Fault[reply.fault], reply.detail)
        return True, reply

    def skip(self, index: int) -> None:
        """An entry of the log that is no command."""
        counters = self.tree.counters
        assert index == counters.applied + 1, (index, counters.applied)
        counters.applied = index

    def read(self, query: Query[R]) -> R:
        """The answer to a question about the state as of the last applied entry."""
        return query.read(self.tree)

    def freeze(self) -> Rows:
        """What a checkpoint has to write so that the stored state is that of `applied`."""
        self._rows.apply(self.loose_rows())
        self.tree.accounts.written()
        return self._rows.freeze()

    def loose_rows(self) -> Rows:
        """The rows that change with every entry: only checkpoints bring them up to date."""
        last = {keys.session(number): _encode(kept) for number, kept in self._sessions.items()}
        loose = self.tree.accounts.loose_rows()
        return {keys.COUNTERS: self.tree.counters_row(), **last, **loose}

    def _settle(
        self, index: int, time: int, replies: Replies | None, sequence: int, reply: Any
    ) -> None:
        counters = self.tree.counters
        counters.applied = index
        counters.last_time = time
        if replies is not None:
            replies.kept[sequence] = reply


def _load_replies(stored: bytes) -> Replies:
    """Replies after a restart: as they would come off the wire."""
    replies = msgspec.msgpack.decode(stored, type=Replies)
    for sequence, reply in replies.kept.items():
        if isinstance(reply, dict) and reply.get("type") == "refused":
            replies.kept[sequence] = Refused(reply["fault"], reply["detail"])
    return replies


def _answer(command: Command[R], reply: Any) -> R:
    """The reply to a command, from what was kept of it."""
    if isinstance(reply, Refused):
        raise FsError(Fault[reply.fault], reply.detail)
    (form,) = get_args(type(command).__orig_bases__[0])  # type: ignore[attr-defined]
    return msgspec.convert(reply, form)  # type: ignore[no-any-return]
