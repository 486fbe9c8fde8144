"""What clients and metaservers say to each other: the bodies of calls over `wire`.

The methods, and what their bodies are (msgpack):

| method        | call                                            | answer                    |
|---------------|-------------------------------------------------|---------------------------|
| CLUSTER       | nothing                                         | `Cluster`: any node knows |
| OPEN_SESSION  | (about whom, whether it wants leases)           | `Opened`                  |
| PROPOSE       | `Propose`: session, sequence, answered, command | the reply of the command  |
| READ          | `Read`: session, query                          | the answer to the query   |
| RENEW         | session                                         | nothing                   |
| END_SESSION   | session                                         | nothing                   |
| BEGIN         | `Begin`: it has forgotten all that it knew      | how long leases are good  |
| HOLD          | `Hold`: session, the last command told of       | a byte: `Answer`          |
| LEASED_READ   | `Read`                                          | a byte, then as READ      |
| LEASED_PROPOSE| `Propose`                                       | `Changed`                 |
| RECALL        | from the leader: `Recalled`                     | nothing: it is forgotten  |
| KEEP_BACK     | `KeepBack`: session, inode, insist              | a byte, then as `Opening` |
| AWAIT_LOCK    | `AwaitLock`: session, inode, lock, patience     | whether to try for it now |
| LOCKS         | an inode                                        | `LocksTold`               |

All but CLUSTER are for the leader; others refuse with NOT_LEADER.  AWAIT_LOCK is answered when the
lock may be tried for, or when the patience is over; who wants it still asks again, and has the same
place.  What leases promise is in `leases.py`.
"""

from enum import IntEnum, IntFlag
from functools import reduce
from operator import or_
from typing import Any, Final, get_args

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.command import UNFIT, Command, Query
from mountfs.meta.leases import Item
from mountfs.meta.locks import Lock
from mountfs.meta.ops.chunk_rows import ChunkRows, CountRows
from mountfs.meta.ops.consent import MustKeep, Needed
from mountfs.meta.ops.copies import GetCopies
from mountfs.meta.ops.count import CountIn, OpenBelow, PathOf
from mountfs.meta.ops.default_retention import AtClose, GetDefault, Uncommitted
from mountfs.meta.ops.describe import Describe
from mountfs.meta.ops.list_retained import ListRetained
from mountfs.meta.ops.lock import TestLock
from mountfs.meta.ops.nodes import NodeRecord, Nodes
from mountfs.meta.ops.quota import (
    Below,
    GetQuota,
    ListQuotas,
    Owners,
    Room,
    TreeSpace,
    VirtualXattr,
)
from mountfs.meta.ops.read import (
    Birth,
    GetAttr,
    GetLayout,
    GetPiece,
    IsRetained,
    Lookup,
    NextChunk,
    Opening,
    ReadDir,
    Readlink,
    Usage,
)
from mountfs.meta.ops.reap import Orphans
from mountfs.meta.ops.retention import Kept
from mountfs.meta.ops.session import Sessions
from mountfs.meta.ops.slices import Garbage, Tangles
from mountfs.meta.ops.volumes import GetVolumes, ListVolumes, UsedSlices
from mountfs.meta.ops.xattr import GetXattr, ListXattr
from mountfs.meta.state_machine import COMMANDS
from mountfs.types import Ino

ROLE: Final = "meta"
"""What a client asks for in its hello."""

LIMIT_MAX: Final = 100_000
"""Rows that a query may ask for: who leads answers nobody else meanwhile."""

QUERIES: Final[tuple[type[Query[Any]], ...]] = (
    Birth, ChunkRows, CountRows, Describe, Garbage, GetAttr, GetCopies, GetLayout, GetPiece,
    GetVolumes, GetXattr, ListVolumes, ListXattr, Lookup, NextChunk, Nodes, Opening, Orphans,
    ReadDir, Readlink, Sessions, Tangles, TestLock, Usage, UsedSlices, Below, GetQuota, ListQuotas,
    Owners, Room, TreeSpace, VirtualXattr, CountIn, OpenBelow, PathOf,
    IsRetained, Kept, GetDefault, AtClose, Uncommitted, ListRetained, Needed, MustKeep,
)  # fmt: skip

OPERATORS: Final = frozenset(
    {
        "AddNode",
        "AdoptVolume",
        "AllotVolume",
        "CloseSlices",
        "DrainNode",
        "EndSession",
        "ForgetVolume",
        "LeaveNode",
        "MakeRoot",
        "MoveNode",
        "OpenSession",
        "Reclaimed",
        "RemoveNode",
        "ReturnVolumes",
        "Rewrite",
        "SealVolume",
        "SetReplicas",
    }
)
"""Commands that come from the cluster itself, or by a method of their own."""


class Method(IntEnum):
    CLUSTER = 1
    OPEN_SESSION = 2
    PROPOSE = 3
    READ = 4
    RENEW = 5
    END_SESSION = 6
    BEGIN = 7
    HOLD = 8
    LEASED_READ = 9
    LEASED_PROPOSE = 10
    RECALL = 11
    AWAIT_LOCK = 12
    LOCKS = 13
    KEEP_BACK = 14


class Answer(IntFlag):
    """What an answer says of the leases of who asked."""

    GRANTED = 1
    """On all inodes that it tells of."""
    RENEWED = 2
    """Those that it has are good for the whole time again, from when it asked."""
    BEGIN = 4
    """It has none, whatever it believes: it is to begin anew."""
    ABSENT = 8
    """Instead of an answer there is the text of a NOT_FOUND, which may be believed as well."""
    WRITES = 32
    """What is written to the file that was made may be kept back, until it is asked for."""
    UNKNOWN = 16
    """Nobody knows any more what the command has changed: it acted before."""


class Propose(msgspec.Struct, frozen=True, array_like=True):
    session: int
    sequence: int
    """Ascending in a session, from 1: the same again is the same command."""
    answered: int
    """The client has the answers to all below."""
    command: reduce(or_, COMMANDS)  # type: ignore[valid-type]


class Read(msgspec.Struct, frozen=True, array_like=True):
    session: int
    query: reduce(or_, QUERIES)  # type: ignore[valid-type]


class Changed(msgspec.Struct, frozen=True, array_like=True):
    """The answer to a command."""

    flags: int
    changes: tuple[Ino, ...]
    """The inodes that it has changed."""
    reply: msgspec.Raw


class Begin(msgspec.Struct, frozen=True, array_like=True):
    session: int
    writes: tuple[Ino, ...] = ()
    """Files of which it has kept back bytes."""


class Hold(msgspec.Struct, frozen=True, array_like=True):
    session: int
    told: int
    """Whoever asked for its commands up to this one has been told of what they did."""


class KeepBack(msgspec.Struct, frozen=True, array_like=True):
    session: int
    ino: Ino


class Recalled(msgspec.Struct, frozen=True, array_like=True):
    """What a session is to forget before it answers."""

    items: tuple[Item, ...]


class AwaitLock(msgspec.Struct, frozen=True, array_like=True):
    session: int
    ino: Ino
    lock: Lock
    patience_ms: int
    """To be answered within so long."""


class Holder(msgspec.Struct, frozen=True, array_like=True):
    """A lock that is held, or that somebody waits for."""

    lock: Lock
    about: str
    """Whose session it is: for people."""
    waits_ms: int
    """So long somebody has waited for it."""


class LocksTold(msgspec.Struct, frozen=True, array_like=True):
    """The locks on a file."""

    held: tuple[Holder, ...]
    waiting: tuple[Holder, ...]
    """In the order in which they came."""


class Opened(msgspec.Struct, frozen=True, array_like=True):
    session: int
    ttl_ms: int
    """A session that is not heard of for so long has ended."""
    time: int
    """The leader's, in nanoseconds since 1970."""


class Cluster(msgspec.Struct, frozen=True, array_like=True):
    """What a node knows of its cluster."""

    leader: int
    """Number of the node that leads; 0: nobody that it knows of."""
    nodes: tuple[NodeRecord, ...]
    own_copies: bool = False
    """Some files are to have another number of copies than others."""
    retention: bool = False
    """Some file has retention, or had it once, or is to get it from its tree."""


_encoder: Final = msgspec.msgpack.Encoder()
encode: Final = _encoder.encode
_propose: Final = msgspec.msgpack.Decoder(Propose)
_read: Final = msgspec.msgpack.Decoder(Read)
_await_lock: Final = msgspec.msgpack.Decoder(AwaitLock)


def decode_propose(body: bytes | bytearray | memoryview) -> Propose:
    """Raises INVALID, NOT_PERMITTED, and what the command's own check does."""
    try:
        found = _propose.decode(body)
    except msgspec.MsgspecError as error:
        raise FsError(Fault.INVALID, f"not a command: {error}") from None
    if type(found.command).__name__ in OPERATORS:
        raise FsError(Fault.NOT_PERMITTED, f"{type(found.command).__name__} is not for clients")
    try:
        found.command.check()
    except UNFIT as error:
        raise FsError(Fault.INVALID, f"not a command: {error}") from None
    return found


def decode_read(body: bytes | bytearray | memoryview) -> Read:
    """Raises INVALID."""
    try:
        found = _read.decode(body)
    except msgspec.MsgspecError as error:
        raise FsError(Fault.INVALID, f"not a query: {error}") from None
    limit = getattr(found.query, "limit", 0)
    if not 0 <= limit <= LIMIT_MAX:
        raise FsError(Fault.INVALID, f"a query for {limit} rows; {LIMIT_MAX} at most")
    return found


def decode_await_lock(body: bytes | bytearray | memoryview) -> AwaitLock:
    """Raises INVALID, NOT_PERMITTED."""
    try:
        found = _await_lock.decode(body)
        keys.locks(found.ino)
    except (msgspec.MsgspecError, *UNFIT) as error:
        raise FsError(Fault.INVALID, f"not a lock to wait for: {error}") from None
    if found.lock.owner.session != found.session:
        raise FsError(Fault.NOT_PERMITTED, "a session waits only for locks of its own")
    if found.patience_ms < 0:
        raise FsError(Fault.INVALID, "nobody has less than no patience")
    return found


def _form(asked: Any) -> Any:
    """The type of the reply."""
    (form,) = get_args(asked.__orig_bases__[0])
    return form


_ASKED: Final[tuple[type, ...]] = (*COMMANDS, *QUERIES)
_replies: Final = {asked: msgspec.msgpack.Decoder(_form(asked)).decode for asked in _ASKED}


def decode_reply(asked: Command[Any] | Query[Any], body: bytes | bytearray | memoryview) -> Any:
    """Raises DEVICE for what is no reply to that."""
    try:
        return _replies[type(asked)](body)
    except msgspec.MsgspecError as error:
        raise FsError(
            Fault.DEVICE,
            f"the metaserver's reply to {type(asked).__name__} makes no sense: {error}",
        ) from None
