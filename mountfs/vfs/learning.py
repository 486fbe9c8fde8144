"""What a mount learns from answers that came with leases, and what it knows no more after its own
commands.

`mark`: that of what is known, from before it asked.  No I/O.
"""

from typing import Any, Final

from mountfs.errors import Fault, FsError
from mountfs.meta.command import Command, Query
from mountfs.meta.ops.link import Link
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.meta.ops.read import GetAttr, Lookup, Opening, ReadDir
from mountfs.meta.ops.rmdir import Rmdir
from mountfs.meta.ops.symlink import Symlink
from mountfs.meta.ops.undelete import Undelete, UndeleteIn
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.protocol import Answer, Changed
from mountfs.meta.records import ATTRIBUTES_BYTES, Attributes, ino_of
from mountfs.types import Ino
from mountfs.vfs.known import NO_INO, Known

_MAKES: Final = (Make, Mkdir, Symlink, Link)
_KEEPS_COMPLETE: Final = (*_MAKES, Unlink, Rmdir)
_INODES: Final = ("ino", "parent", "new_parent", "source", "target")
_GIVES_BACK: Final = (Undelete, UndeleteIn)


def learn_answer(known: Known, query: Query[Any], flags: int, answer: Any, mark: int) -> None:
    """`answer`: also a NOT_FOUND that may be believed."""
    if not flags & Answer.GRANTED:
        _unlearn(known, query, answer)
        return
    if isinstance(query, Lookup):
        if not query.cred.checked or query.name in (b".", b".."):
            return
        child = NO_INO if isinstance(answer, FsError) else ino_of(answer)
        known.learn_name(query.parent, query.name, child, mark)
        if child:
            known.learn(answer, mark)
    elif isinstance(answer, FsError):
        return
    elif isinstance(query, GetAttr):
        known.learn(answer, mark)
    elif isinstance(query, Opening):
        known.learn(answer.attributes, mark)
    elif isinstance(query, ReadDir) and query.with_attributes:
        known.learn_listing(query.ino, query.after, query.limit, answer, mark)
    else:
        ino = getattr(query, "ino", None)
        if ino is not None and known.is_fresh(ino, mark):
            known.hold(ino)


def _unlearn(known: Known, query: Query[Any], answer: Any) -> None:
    """An answer without leases may tell of a command of ours that we have not heard of yet."""
    attributes = None if isinstance(answer, FsError) else answer
    if isinstance(query, Lookup):
        child = NO_INO if attributes is None else ino_of(attributes)
        if known.child(query.parent, query.name) not in (None, child):
            known.forget_name(query.parent, query.name)
    elif isinstance(query, ReadDir):
        known.forget_names(query.ino)
        return
    elif isinstance(query, Opening):
        attributes = None if attributes is None else attributes.attributes
    elif not isinstance(query, GetAttr):
        return
    if attributes is not None:
        ino = ino_of(attributes)
        if known.attributes(ino) not in (None, attributes):
            known.touch(ino)


def learn_changes(
    known: Known, command: Command[Any], answer: Changed, reply: Any, mark: int
) -> Ino | None:
    """Returns the file that was made, if what is written to it may be kept back."""
    if answer.flags & Answer.UNKNOWN:
        doubt(known, command)
        return None
    names = _names_of(command)
    fresh = {ino: known.is_fresh(ino, mark) for ino in answer.changes}
    for ino in answer.changes:
        known.touch(ino)
    is_granted = bool(answer.flags & Answer.GRANTED)
    keeps_complete = is_granted and isinstance(command, _KEEPS_COMPLETE)
    for parent, name in names:
        if not keeps_complete or not fresh.get(parent, False):
            known.forget_name(parent, name)
    if isinstance(command, _GIVES_BACK):
        for ino in answer.changes:
            known.forget_names(ino)
    if not is_granted:
        return None
    made = None
    attributes = _attributes_in(reply)
    now = known.mark()
    if attributes is not None and fresh.get(ino_of(attributes), False):
        known.learn(attributes, now)
        if answer.flags & Answer.WRITES:
            made = ino_of(attributes)
    if not names or not fresh.get(names[0][0], False):
        return made
    parent, name = names[0]
    if attributes is not None and isinstance(command, _MAKES):
        known.learn_name(parent, name, ino_of(attributes), now)
    elif isinstance(command, (Unlink, Rmdir)):
        known.learn_name(parent, name, NO_INO, now)
    return made


def learn_refusal(known: Known, command: Command[Any], fault: Fault) -> None:
    """A command of ours may be answered before an earlier one whose work it has seen."""
    for parent, name in _names_of(command):
        child = known.child(parent, name)
        contradicts = {Fault.EXISTS: child == NO_INO, Fault.NOT_FOUND: bool(child)}
        if child is not None and contradicts.get(fault, True):
            known.forget_name(parent, name)


def doubt(known: Known, command: Command[Any]) -> None:
    """It may have been carried out, or will be: nothing that it could change is known."""
    children = [known.child(parent, name) for parent, name in _names_of(command)]
    # What else it has changed, nobody can say.
    if None in children or isinstance(command, _GIVES_BACK):
        known.disbelieve()
        return
    for ino in may_change(known, command):
        known.touch(ino)
        known.forget_names(ino)


def may_change(known: Known, command: Command[Any]) -> list[Ino]:
    """Inodes that a command may change, as far as that can be known before."""
    found = [getattr(command, field, None) for field in _INODES]
    found += [known.child(parent, name) for parent, name in _names_of(command)]
    return [Ino(ino) for ino in found if isinstance(ino, int) and ino != NO_INO]


def _names_of(command: Command[Any]) -> list[tuple[Ino, bytes]]:
    found = []
    for parent, name in (("parent", "name"), ("new_parent", "new_name")):
        where, what = getattr(command, parent, None), getattr(command, name, None)
        if isinstance(where, int) and isinstance(what, bytes):
            found.append((Ino(where), what))
    return found


def _attributes_in(reply: Any) -> Attributes | None:
    """Those in the reply of a command, which come first if there are any."""
    first = reply[0] if isinstance(reply, (tuple, list)) and reply else reply
    if isinstance(first, bytes) and len(first) == ATTRIBUTES_BYTES:
        return Attributes(first)
    return None
