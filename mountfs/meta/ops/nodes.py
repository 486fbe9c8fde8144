"""The machines of the cluster: who they are and where they are found.

Who votes is not said here but in the log itself (raft/membership.py).
"""

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.meta import keys
from mountfs.meta.command import Command, Query, Stamp
from mountfs.meta.tree import Tree

NAME_BYTES_MAX = 64
LOCATION_BYTES_MAX = 200
LOCATION_PARTS_MAX = 8
NODES_MAX = 1_000
FIRST = 1
"""The home that a cluster has grown from."""
META = "meta"
"""The role of those that have the metadata, and may vote on it."""
CHUNK = "chunk"
"""The role of those that keep slices."""


class NodeRecord(msgspec.Struct, frozen=True, array_like=True):
    number: int
    """Never given to another node, not even to the same machine with an empty disk."""
    name: str
    rpc: str
    """host:port where other nodes find it."""
    door: str
    """host:port where clients find it."""
    joined: int
    """When, in nanoseconds since 1970."""
    disk: str
    """Which home it has: a node that has lost its disk is not the same any more."""
    roles: tuple[str, ...]
    """What it does: "meta", "chunk"."""
    leaving: bool = False
    """It is to be no member of any group, and then forgotten."""
    location: str = ""
    """/rack/host, or more parts, from the largest to the smallest: what fails together has the same
    beginning.  Empty: it has not said.
    """
    draining: bool = False
    """It is to keep no slices, but stays."""
    lost: bool = False
    """It leaves, and is gone for good: what it has is not waited for."""

    @property
    def has_metadata(self) -> bool:
        return META in self.roles

    @property
    def is_emptied(self) -> bool:
        """Copies are taken elsewhere, and no new ones come."""
        return self.leaving or self.draining


class AddNode(Command[NodeRecord], frozen=True, tag="add_node"):
    """Reply: the record with its number; the same one again for the same disk.  Raises EXISTS when
    another node has this name, or listens there.
    """

    name: str
    rpc: str
    door: str
    disk: str
    roles: tuple[str, ...]
    location: str = ""

    def check(self) -> None:
        check_node_name(self.name)
        if self.location:
            check_location(self.location)

    def apply(self, tree: Tree, stamp: Stamp) -> NodeRecord:
        nodes = all_nodes(tree)
        for node in nodes:
            if node.disk == self.disk and not node.leaving:
                return node
            if node.name == self.name:
                raise FsError(
                    Fault.EXISTS,
                    f"there is a node of the name {self.name} (number {node.number}, at "
                    f"{node.rpc}); if it has lost its disk, remove it first: "
                    f"mountfs node remove {self.name} --force",
                )
            if self.rpc in (node.rpc, node.door) or self.door in (node.rpc, node.door):
                raise FsError(
                    Fault.EXISTS, f"node {node.name} listens at {node.rpc} and {node.door} already"
                )
        if len(nodes) >= NODES_MAX:
            raise FsError(Fault.BUSY, f"a cluster has at most {NODES_MAX} nodes")
        number = tree.counters.next_node
        tree.counters.next_node += 1
        record = NodeRecord(
            number, self.name, self.rpc, self.door, stamp.time, self.disk, self.roles,
            location=self.location,
        )  # fmt: skip
        put_node(tree, record)
        return record


class MoveNode(Command[None], frozen=True, tag="move_node"):
    """A node is found elsewhere now, has another name, or does something else.  Raises EXISTS;
    NOT_FOUND.
    """

    number: int
    name: str
    rpc: str
    door: str
    disk: str
    roles: tuple[str, ...]
    location: str = ""

    def check(self) -> None:
        check_node_name(self.name)
        if self.location:
            check_location(self.location)

    def apply(self, tree: Tree, stamp: Stamp) -> None:
        before = None
        for node in all_nodes(tree):
            if node.number == self.number:
                before = node
            elif node.name == self.name:
                raise FsError(Fault.EXISTS, f"node {node.number} has the name {self.name}")
        if before is None and self.number != FIRST:
            raise FsError(Fault.NOT_FOUND, f"there is no node {self.number}")
        joined = stamp.time if before is None else before.joined
        record = NodeRecord(
            self.number, self.name, self.rpc, self.door, joined, self.disk, self.roles,
            location=self.location,
        )  # fmt: skip
        if before is not None:
            record = msgspec.structs.replace(
                record, leaving=before.leaving, draining=before.draining, lost=before.lost
            )
        put_node(tree, record)


class LeaveNode(Command[None], frozen=True, tag="leave_node"):
    """A node is to leave: the leader sees to it, and then to `RemoveNode`.  What it keeps is taken
    elsewhere first, unless it is `lost`.  Raises NOT_FOUND.
    """

    number: int
    lost: bool = False

    def apply(self, tree: Tree, stamp: Stamp) -> None:
        node = _require_node(tree, self.number)
        lost = node.lost or self.lost
        put_node(tree, msgspec.structs.replace(node, leaving=True, lost=lost))


class DrainNode(Command[None], frozen=True, tag="drain_node"):
    """A node is to keep no slices, or may have some again.  It stays.  Raises NOT_FOUND."""

    number: int
    draining: bool

    def apply(self, tree: Tree, stamp: Stamp) -> None:
        node = _require_node(tree, self.number)
        put_node(tree, msgspec.structs.replace(node, draining=self.draining))


class RemoveNode(Command[None], frozen=True, tag="remove_node"):
    """Forget a node, which is no member of any group any more."""

    number: int

    def apply(self, tree: Tree, stamp: Stamp) -> None:
        if tree.get(keys.node(self.number)) is None:
            raise FsError(Fault.NOT_FOUND, f"there is no node {self.number}")
        tree.put(keys.node(self.number), None)


class Nodes(Query[tuple[NodeRecord, ...]], frozen=True, tag="nodes"):
    """All of them, by number."""

    def read(self, tree: Tree) -> tuple[NodeRecord, ...]:
        return tuple(all_nodes(tree))


def check_node_name(name: str) -> None:
    """Raises INVALID."""
    if not 0 < len(name.encode()) <= NAME_BYTES_MAX or not name.isprintable():
        raise FsError(Fault.INVALID, f"a node's name has 1 to {NAME_BYTES_MAX} printable bytes")


def check_location(location: str) -> None:
    """Raises INVALID."""
    parts = location.split("/")
    if (
        len(location.encode()) > LOCATION_BYTES_MAX
        or not 2 <= len(parts) <= LOCATION_PARTS_MAX + 1
        or parts[0]
        or not all(part and part.isprintable() for part in parts[1:])
    ):
        raise FsError(
            Fault.INVALID,
            f"{location!r} is not where a node is: 1 to {LOCATION_PARTS_MAX} printable parts, each "
            f"after a slash, of {LOCATION_BYTES_MAX} bytes together, as in /rack-1/host-1",
        )


def all_nodes(tree: Tree) -> list[NodeRecord]:
    return [_decode(value) for _, value in tree.scan(keys.nodes())]


def _require_node(tree: Tree, number: int) -> NodeRecord:
    row = tree.get(keys.node(number))
    if row is None:
        raise FsError(Fault.NOT_FOUND, f"there is no node {number}")
    return _decode(row)


def put_node(tree: Tree, record: NodeRecord) -> None:
    tree.put(keys.node(record.number), msgspec.msgpack.encode(record))


_decode = msgspec.msgpack.Decoder(NodeRecord).decode
