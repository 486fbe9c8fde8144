"""What clients may see, as small sequential models: written from what POSIX says and not from
`meta/ops`, which they judge.

A model takes the state of one object and a call on it, and says which states may follow.  A call
that was never answered (`returned` is None) is allowed to have had any effect that it could have.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from mountfs.sim.history import Call, Model

# -- a register: the contents of a file, its mode, one of its extended attributes


def register(value: Any, call: Call) -> Iterable[Any]:
    """Calls: read; write V; compare OLD NEW -> whether it acted."""
    kind = call.what[0]
    if kind == "read":
        return (value,) if call.returned is None or call.result == value else ()
    if kind == "write":
        return (call.what[1],)
    assert kind == "compare", call
    acts = value == call.what[1]
    if call.returned is not None and call.result is not acts:
        return ()
    return (call.what[2] if acts else value,)


def counter(value: int, call: Call) -> Iterable[int]:
    """Calls: add -> what it is then."""
    assert call.what == ("add",), call
    after = value + 1
    return (after,) if call.returned is None or call.result == after else ()


def appended(records: Sequence[Any]) -> Model:
    """A file to which is appended, and which has these records in the end.  Its state is how many
    of them it has; it begins with none.

    Calls: append RECORD; read -> how many it had, if they were the first of these.
    """

    def file(count: int, call: Call) -> Iterable[int]:
        if call.what[0] == "read":
            return (count,) if call.returned is None or call.result == count else ()
        is_next = count < len(records) and records[count] == call.what[1]
        return (count + 1,) if is_next else ()

    return file


def attribute(value: bytes | None, call: Call) -> Iterable[bytes | None]:
    """An extended attribute, None if it is not there.  Calls: get; set V; create V; replace V;
    remove.  Results: "ok", why not, or the value.
    """
    kind = call.what[0]
    if kind == "get":
        seen = "NO_ATTRIBUTE" if value is None else value
        return (value,) if call.returned is None or call.result == seen else ()
    refused = ""
    if kind == "create" and value is not None:
        refused = "EXISTS"
    elif kind in ("replace", "remove") and value is None:
        refused = "NO_ATTRIBUTE"
    if call.returned is not None and call.result != (refused or "ok"):
        return ()
    if refused:
        return (value,)
    return (None if kind == "remove" else call.what[1],)


# -- locks on one file


class Held(NamedTuple):
    owners: frozenset[tuple[Any, bool]]
    """(owner, whether exclusively)"""
    ended: frozenset[int]
    """Sessions that are over."""


BUSY = "busy"
"""Somebody is in the way, and nobody has said who."""
NOTHING_HELD = Held(frozenset(), frozenset())


def locks(held: Held, call: Call) -> Iterable[Held]:
    """Calls: lock OWNER EXCLUSIVE -> None, or who is in the way, or BUSY; test OWNER EXCLUSIVE ->
    the same; unlock OWNER; end SESSION.  An owner is (session, number).
    """
    kind = call.what[0]
    if kind == "end":
        session = call.what[1]
        left = frozenset(one for one in held.owners if one[0][0] != session)
        return (Held(left, held.ended | {session}),)
    owner = call.what[1]
    if owner[0] in held.ended:
        return () if call.returned is not None else (held,)
    others = frozenset(one for one in held.owners if one[0] != owner)
    if kind == "unlock":
        return (Held(others, held.ended),)
    exclusive = call.what[2]
    in_the_way = {one[0] for one in others if one[1] or exclusive}
    if call.returned is not None:
        told = {*in_the_way, BUSY} if in_the_way else {None}
        if call.result not in told:
            return ()
    if kind == "test" or in_the_way:
        return (held,)
    return (Held(others | {(owner, exclusive)}, held.ended),)


# -- names in some directories


class Named(NamedTuple):
    """What a name stands for."""

    ino: int
    """Below 0: whoever made it was not told its number, and nobody has seen it yet."""
    is_directory: bool


Place = tuple[int, bytes]
"""(directory, name)"""
Table = dict[Place, Named]
Names = frozenset[tuple[Place, Named]]


def names(state: Names, call: Call) -> Iterable[Names]:
    """Calls, with the places of names: lookup P; list DIRECTORY; make P (with O_EXCL); open P
    (without); mkdir P; link P INO; unlink P; rmdir P; rename P P2 REPLACE; exchange P P2.

    Results: the number of the inode, or why not; of make and mkdir, 0 if they did not ask for it;
    of an open, (number, whether it is new); of a list, the set of (name, number); of what takes a
    name away, the number or 0.
    """
    rule = _RULES[call.what[0]]
    return [frozenset(table.items()) for table in rule(dict(state), call)]


def _told(call: Call, result: Any) -> bool:
    return call.returned is None or call.result == result


def _seen_as(table: Table, place: Place, ino: Any) -> Table | None:
    """The table if the name stands for that inode, or may: then we know its number from now on."""
    found = table[place]
    if found.ino == ino:
        return table
    if found.ino >= 0 or not isinstance(ino, int):
        return None
    return {
        at: named._replace(ino=ino) if named.ino == found.ino else named
        for at, named in table.items()
    }


def _lookup(table: Table, call: Call) -> Iterator[Table]:
    place = call.what[1]
    if call.returned is None:
        yield table
    elif place not in table:
        if call.result == "NOT_FOUND":
            yield table
    elif (seen := _seen_as(table, place, call.result)) is not None:
        yield seen


def _list(table: Table, call: Call) -> Iterator[Table]:
    if call.returned is None:
        yield table
        return
    directory = call.what[1]
    here = {name for at, name in table if at == directory}
    if here != {name for name, _ in call.result} or len(here) != len(call.result):
        return
    seen: Table | None = table
    for name, ino in sorted(call.result):
        seen = None if seen is None else _seen_as(seen, (directory, name), ino)
    if seen is not None:
        yield seen


def _make(table: Table, call: Call) -> Iterator[Table]:
    place = call.what[1]
    if place in table:
        if _told(call, "EXISTS"):
            yield table
    elif call.returned is None or isinstance(call.result, int):
        ino = call.result or -1 - call.number
        yield {**table, place: Named(ino, call.what[0] == "mkdir")}


def _open(table: Table, call: Call) -> Iterator[Table]:
    place = call.what[1]
    if call.returned is None:
        yield table if place in table else {**table, place: Named(-1 - call.number, False)}
        return
    ino, is_new = call.result
    if place not in table:
        if is_new:
            yield {**table, place: Named(ino, False)}
    elif not is_new and (seen := _seen_as(table, place, ino)) is not None:
        yield seen


def _link(table: Table, call: Call) -> Iterator[Table]:
    _, place, ino = call.what
    if place in table:
        if _told(call, "EXISTS"):
            yield table
    elif _told(call, ino):
        yield {**table, place: Named(ino, False)}


def _remove(table: Table, call: Call) -> Iterator[Table]:
    kind, place = call.what
    found = table.get(place)
    wrong = ""
    if found is None:
        wrong = "NOT_FOUND"
    elif found.is_directory and kind == "unlink":
        wrong = "IS_DIRECTORY"
    elif not found.is_directory and kind == "rmdir":
        wrong = "NOT_DIRECTORY"
    if wrong:
        if _told(call, wrong):
            yield table
        return
    left = table if _told(call, 0) else _seen_as(table, place, call.result)
    if left is not None:
        yield {at: named for at, named in left.items() if at != place}


def _rename(table: Table, call: Call) -> Iterator[Table]:
    _, place, target, replace = call.what
    moved, over = table.get(place), table.get(target)
    wrong = ""
    if moved is None:
        wrong = "NOT_FOUND"
    elif over is not None:
        if not replace:
            wrong = "EXISTS"
        elif moved.ino == over.ino:
            wrong = "same"
        elif moved.is_directory and not over.is_directory:
            wrong = "NOT_DIRECTORY"
        elif over.is_directory and not moved.is_directory:
            wrong = "IS_DIRECTORY"
    if wrong:
        if _told(call, 0 if wrong == "same" else wrong):
            yield table
        return
    left: Table | None = table
    if not _told(call, 0):
        left = None if over is None else _seen_as(table, target, call.result)
    if left is not None:
        moved = left[place]
        yield {**{at: named for at, named in left.items() if at != place}, target: moved}


def _exchange(table: Table, call: Call) -> Iterator[Table]:
    _, place, target = call.what
    if place not in table or target not in table:
        if _told(call, "NOT_FOUND"):
            yield table
    elif _told(call, 0):
        yield {**table, place: table[target], target: table[place]}


_RULES = {
    "lookup": _lookup, "list": _list, "make": _make, "mkdir": _make, "open": _open,
    "link": _link, "unlink": _remove, "rmdir": _remove, "rename": _rename,
    "exchange": _exchange,
}  # fmt: skip


def apart(calls: list[Call]) -> Iterator[tuple[list[Any], list[Call]]]:
    """Calls on names, by groups of directories between which nothing was moved: histories of their
    own.
    """
    groups: list[tuple[set[Any], list[Call]]] = []
    for call in calls:
        mine = {place[0] if isinstance(place, tuple) else place for place in _places(call)}
        met = [group for group in groups if group[0] & mine]
        if not met:
            groups.append((mine, [call]))
            continue
        (directories, some), *others = met
        directories |= mine
        some.append(call)
        for group in others:
            directories |= group[0]
            some += group[1]
            groups.remove(group)
    for directories, some in groups:
        yield sorted(directories), some


def _places(call: Call) -> tuple[Any, ...]:
    return call.what[1:3] if call.what[0] in ("rename", "exchange") else call.what[1:2]


# -- the bytes of two files, in cells that are written as a whole


class Cells(NamedTuple):
    """Of each file: how many cells long it is, and what is in them."""

    sizes: tuple[int, int]
    values: tuple[tuple[int, ...], tuple[int, ...]]


def no_cells(count: int) -> Cells:
    return Cells((0, 0), ((0,) * count, (0,) * count))


def cells(state: Cells, call: Call) -> Iterable[Cells]:
    """Calls: read FILE START STOP -> what is in them; write FILE START VALUES; punch FILE START
    STOP; cut FILE SIZE; copy FILE START FILE START COUNT -> how many were copied.  What is behind
    the end, or was never written, is 0.
    """
    kind, file = call.what[0], call.what[1]
    answered = call.returned is not None
    if answered and isinstance(call.result, str):  # it was refused
        return (state,)
    size, values = state.sizes[file], list(state.values[file])
    match kind:
        case "read":
            _, _, start, stop = call.what
            seen = tuple(values[start:stop])
            return (state,) if not answered or call.result == seen else ()
        case "write":
            _, _, start, new = call.what
            values[start : start + len(new)] = new
            size = max(size, start + len(new))
        case "punch":
            _, _, start, stop = call.what
            values[start:stop] = [0] * (stop - start)
        case "cut":
            size = call.what[2]
            values[size:] = [0] * (len(values) - size)
        case _:
            assert kind == "copy", call
            _, _, start, source, at, count = call.what
            count = max(0, min(count, state.sizes[source] - at))
            if answered and call.result != count:
                return ()
            values[start : start + count] = state.values[source][at : at + count]
            size = max(size, start + count) if count else size
    sizes, both = list(state.sizes), list(state.values)
    sizes[file], both[file] = size, tuple(values)
    return (Cells((sizes[0], sizes[1]), (both[0], both[1])),)
