"""Which volumes are to move so that all nodes are about equally full.  No I/O.

How full a node is: the bytes of the volumes that its records name, of those and what is free.  What
is taken out of the reckoning so is what does not belong to the cluster, and copies that are about
to be removed.

A volume goes from a fuller node to an emptier one if the rule of placement is kept, and if after
that the one is not emptier than the other: so every move brings the nodes nearer to each other, and
there is an end to it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from mountfs.meta.placement import broken_rule
from mountfs.types import MIB, VolumeId

TOLERANCE: Final = 0.05
"""Nodes that differ by less are equally full."""
MOVES_MAX: Final = 100
"""In one plan: then it is looked again."""
LOOKED_MAX: Final = 2_000
"""Volumes of a node that are looked at for one move."""
SPARE_BYTES: Final = 64 * MIB
"""What a move leaves free on a disk, at least."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """A node that keeps slices, to be balanced."""

    node: int
    location: str = ""
    used_bytes: int
    capacity_bytes: int
    """What is used by volumes, or free."""
    room_bytes: int
    """The most that one of its disks takes."""
    gives: bool = True
    """It is there, and is not emptied anyway."""
    takes: bool = True


class Movable(NamedTuple):
    """A sealed volume with which nothing is wrong."""

    volume: VolumeId
    replicas: tuple[int, ...]
    bytes: int


class Move(NamedTuple):
    volume: VolumeId
    source: int
    target: int
    before: tuple[int, ...]
    bytes: int

    @property
    def after(self) -> tuple[int, ...]:
        """Replicas of the volume."""
        return (*(one for one in self.before if one != self.source), self.target)


class Plan(NamedTuple):
    moves: tuple[Move, ...]
    spread: float
    """Share by which the fullest is fuller than the emptiest, now."""
    bytes_to_move: int
    """About as much until all are equally full, beyond these moves too."""
    why_not: str
    """Why nothing is to be moved, in words; "": something is."""


class _Node:
    def __init__(self, load: Load) -> None:
        self.load = load
        self.used = load.used_bytes
        self.room = load.room_bytes
        self.volumes: list[Movable] = []

    @property
    def share(self) -> float:
        return self.used / max(self.load.capacity_bytes, 1)


def plan(
    loads: Sequence[Load],
    volumes: Iterable[Movable],
    *,
    tolerance: float = TOLERANCE,
    moves_max: int = MOVES_MAX,
) -> Plan:
    """Moves, in the order in which they are to be begun.  No volume moves twice."""
    nodes = {load.node: _Node(load) for load in loads if load.capacity_bytes > 0}
    balanced = [one for one in nodes.values() if one.load.gives or one.load.takes]
    if len(balanced) < 2:
        return Plan((), 0.0, 0, "there are fewer than two nodes to balance")
    spread = max(one.share for one in balanced) - min(one.share for one in balanced)
    if spread < tolerance:
        return Plan((), spread, 0, f"the nodes differ by less than {tolerance:.0%}")
    for movable in volumes:
        for node in movable.replicas:
            if node in nodes:
                nodes[node].volumes.append(movable)
    for one in nodes.values():
        one.volumes.sort(key=lambda movable: (-movable.bytes, movable.volume))
    keeps_rule = _rule(loads)
    missing = _missing(balanced)
    moves: list[Move] = []
    while len(moves) < moves_max:
        move = next(_possible(balanced, tolerance, keeps_rule), None)
        if move is None:
            break
        moves.append(move)
        _carry_out(move, nodes)
    why_not = "" if moves else "no volume can be moved: those there are are open, ill or too large"
    return Plan(tuple(moves), spread, missing if moves else 0, why_not)


def _possible(
    nodes: Sequence[_Node], tolerance: float, keeps_rule: Callable[[tuple[int, ...]], bool]
) -> Iterator[Move]:
    """Moves between the nodes that differ most, first."""
    by_share = sorted(nodes, key=lambda one: (one.share, one.load.node))
    for giver in reversed(by_share):
        if not giver.load.gives:
            continue
        for taker in by_share:
            if giver.share - taker.share < tolerance:
                break
            if taker.load.takes:
                yield from _between(giver, taker, keeps_rule)


def _between(
    giver: _Node, taker: _Node, keeps_rule: Callable[[tuple[int, ...]], bool]
) -> Iterator[Move]:
    inverse = 1 / giver.load.capacity_bytes + 1 / taker.load.capacity_bytes
    most = min((giver.share - taker.share) / inverse, taker.room - SPARE_BYTES)
    for movable in giver.volumes[:LOOKED_MAX]:
        if not 0 < movable.bytes <= most or taker.load.node in movable.replicas:
            continue
        move = Move(
            movable.volume, giver.load.node, taker.load.node, movable.replicas, movable.bytes
        )
        if keeps_rule(move.after):
            yield move


def _carry_out(move: Move, nodes: dict[int, _Node]) -> None:
    for one in move.before:
        if one in nodes:
            kept = [movable for movable in nodes[one].volumes if movable.volume != move.volume]
            nodes[one].volumes = kept
    nodes[move.source].used -= move.bytes
    nodes[move.target].used += move.bytes
    nodes[move.target].room -= move.bytes


def _rule(loads: Sequence[Load]) -> Callable[[tuple[int, ...]], bool]:
    locations = {load.node: load.location for load in loads}
    usable = [load.node for load in loads if load.takes]
    known: dict[tuple[int, ...], bool] = {}

    def keeps_rule(replicas: tuple[int, ...]) -> bool:
        key = tuple(sorted(replicas))
        if key not in known:
            known[key] = not broken_rule(key, locations, usable)
        return known[key]

    return keeps_rule


def _missing(nodes: Sequence[_Node]) -> int:
    """What those have too little that are emptier than all of them together."""
    capacity = sum(one.load.capacity_bytes for one in nodes)
    mean = sum(one.used for one in nodes) / max(capacity, 1)
    return int(sum(max(0.0, mean * one.load.capacity_bytes - one.used) for one in nodes))
