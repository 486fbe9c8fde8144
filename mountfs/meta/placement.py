"""Which nodes get a volume, or another copy of one.  No I/O.

The rule: no two copies on one host, and two copies or more are in at least two racks, if there are
two.  A node's location is "/rack/host", or as much of it as is known: the whole of it names the
host, and all before the last part the rack.  Nodes without a location are hosts of their own, in
one rack.

Among the places that the rule allows one is drawn by lot, weighted by free space: usage evens out,
and not everybody runs to the node that is the emptiest.
"""

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, Protocol

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.types import MIB

OPEN_BYTES: Final = 1024 * MIB
"""What a volume that is open may still take."""

COPIES_MIN: Final = 2
"""Fewer copies than are wanted are better than none, but not one where two are wanted."""


class Lot(Protocol):
    """As `random.Random`."""

    def random(self) -> float: ...


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A node as placement sees it."""

    node: int
    location: str = ""
    total_bytes: int
    free_bytes: int
    room_bytes: int
    """The most that one of its disks takes."""
    writing: int = 0
    """Volumes that are open there."""
    alive: bool = True
    draining: bool = False
    full: bool = False
    slow: bool = False
    """It is taken if there is nobody else."""

    @property
    def usable(self) -> bool:
        return self.alive and not self.draining and not self.full


@functools.lru_cache(maxsize=4_096)
def host_of(node: int, location: str) -> str:
    """What two copies must not share."""
    return "/".join(_parts(location)) or f"node {node}"


@functools.lru_cache(maxsize=4_096)
def rack_of(location: str) -> str:
    """What all copies must not share; "" for what has none."""
    return "/".join(_parts(location)[:-1])


def broken_rule(
    replicas: Collection[int], locations: Mapping[int, str], usable: Iterable[int]
) -> str:
    """How these replicas break the rule, in words; "": they do not.

    `usable` are the nodes that could have a copy: a rack counts if it has one of them.  A node that
    is not in `locations` has none.
    """
    hosts: dict[str, int] = {}
    for node in sorted(replicas):
        host = host_of(node, locations.get(node, ""))
        if host in hosts:
            return f"nodes {hosts[host]} and {node} are one host ({host})"
        hosts[host] = node
    racks = {rack_of(locations.get(node, "")) for node in replicas}
    if len(replicas) < 2 or len(racks) > 1:
        return ""
    others = {rack_of(locations.get(node, "")) for node in usable} - racks
    if not others:
        return ""
    return f"all copies are in {_named(*racks)}, and there is {_named(min(others))}"


def place(
    candidates: Sequence[Candidate],
    copies: int,
    lot: Lot,
    *,
    having: Collection[int] = (),
    avoid: Collection[int] = (),
    room_bytes: int = 0,
) -> tuple[int, ...]:
    """The nodes that are to get copies, so that there are `copies` with those that are on the
    nodes `having`.  Fewer, if the cluster cannot give more: but one at least, and with those of
    `having` at least min(2, copies).  They keep the rule, wherever those of `having` are.

    A node gets none if it is in `avoid`, or has no disk that takes `room_bytes`.  All that are
    known must be among the candidates, so that the place of those in `having` is known.

    Raises NO_SPACE when there would be enough nodes if they were not full; UNAVAILABLE when there
    are too few.
    """
    locations = {one.node: one.location for one in candidates}
    taken = {host_of(node, locations.get(node, "")) for node in having}
    racks = {rack_of(locations.get(node, "")) for node in having}
    wanted = copies - len(having)
    needed = max(1, min(COPIES_MIN, copies) - len(having))
    assert wanted > 0, (copies, having)

    def free_to_take(one: Candidate) -> bool:
        if one.node in avoid or one.node in having:
            return False
        return host_of(one.node, one.location) not in taken

    pool = [
        one
        for one in candidates
        if one.usable and one.room_bytes >= room_bytes and free_to_take(one)
    ]
    hosts = {host_of(one.node, one.location) for one in pool}
    if len(hosts) < needed:
        others = [one for one in candidates if free_to_take(one)]
        raise _too_few(others, copies, len(having), needed, room_bytes, len(avoid))
    chosen: list[int] = []
    for left in range(min(wanted, len(hosts)), 0, -1):
        choice = pool
        if left == 1 and len(racks) == 1:  # the last chance to get to a second rack
            choice = [one for one in pool if rack_of(one.location) not in racks] or pool
        one = _draw([one for one in choice if not one.slow] or choice, lot)
        chosen.append(one.node)
        host = host_of(one.node, one.location)
        racks.add(rack_of(one.location))
        pool = [other for other in pool if host_of(other.node, other.location) != host]
    return tuple(chosen)


def _draw(choice: Sequence[Candidate], lot: Lot) -> Candidate:
    weights = [_weight(one) for one in choice]
    at = lot.random() * sum(weights)
    for one, weight in zip(choice, weights, strict=True):
        at -= weight
        if at < 0:
            return one
    return choice[-1]


def _weight(one: Candidate) -> float:
    """Free space, less what is promised already: near to the difference while that is a small part
    of it, and never nothing.
    """
    free = max(1, one.free_bytes)
    return free / (1 + one.writing * OPEN_BYTES / free)


def _too_few(
    others: Sequence[Candidate],
    copies: int,
    having: int,
    needed: int,
    room_bytes: int,
    avoided: int,
) -> FsError:
    """`others`: all nodes on which a copy would be allowed, usable or not."""
    there = [one for one in others if one.alive and not one.draining]
    hosts = {host_of(one.node, one.location) for one in there}
    full = [one.node for one in there if one.full or one.room_bytes < room_bytes]
    why = [
        (full, "full" if not room_bytes else f"without room for {room_bytes >> 20} MiB"),
        ([one.node for one in others if not one.alive], "not heard of"),
        ([one.node for one in others if one.alive and one.draining], "draining"),
    ]
    missing = [f"{len(nodes)} {what} ({_listed(nodes)})" for nodes, what in why if nodes]
    if avoided:
        missing.append(f"{avoided} to be avoided")
    wanted = f"{copies} copies are wanted" + (f" and {having} there" if having else "")
    sentence = (
        f"{wanted}, and at least {needed} more on as many hosts are needed; of {len(others)} nodes "
        f"that may have one there are {', '.join(missing) or 'too few hosts'}"
    )
    if full and len(hosts) >= needed:
        return FsError(Fault.NO_SPACE, f"{sentence}: free space, or add a node")
    return FsError(Fault.UNAVAILABLE, f"{sentence}: bring nodes back, or add some")


def _listed(nodes: Sequence[int], most: int = 8) -> str:
    names = ", ".join(str(node) for node in sorted(nodes)[:most])
    return names if len(nodes) <= most else f"{names}, ..."


def _named(rack: str) -> str:
    return f"rack {rack}" if rack else "the rack of those without one"


def _parts(location: str) -> list[str]:
    return [part for part in location.split("/") if part]
