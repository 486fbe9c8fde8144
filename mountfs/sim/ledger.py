"""What is promised of bytes, checked against the metadata that was agreed on and what lies on all
disks: nobody in the cluster sees as much.

Disks may lose what they have, as long as fewer replicas of a slice are lost than there are to be:
so many faults the cluster has to bear, and no more befall it.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mountfs.errors import FsError
from mountfs.meta import keys
from mountfs.meta.ops.slices import Garbage, Reclaimed, Rewrite
from mountfs.meta.ops.volumes import ListVolumes, UsedSlices, VolumeRecord, volume_of
from mountfs.meta.ops.write import Write
from mountfs.meta.placement import broken_rule
from mountfs.meta.state_machine import Entry as Asked
from mountfs.meta.tree import Tree
from mountfs.sim.checks import Broken
from mountfs.sim.metadata import Metadata
from mountfs.types import LogIndex, SliceId, VolumeId

if TYPE_CHECKING:
    from mountfs.sim.chunkserver import ChunkServer

ALL = 1_000_000


class Ledger:
    def __init__(self) -> None:
        self.servers: Mapping[int, ChunkServer] = {}
        self._machine: Metadata | None = None
        self._applied = LogIndex(0)
        self._lost: dict[tuple[int, VolumeId], int] = {}
        """Copies that a fault has taken away, or set back: and the next name of a slice then."""
        self.stored: dict[tuple[VolumeId, SliceId], bytes] = {}
        """What mounts were told that all replicas have."""
        self._place: dict[SliceId, VolumeId] = {}
        self._opened: dict[tuple[int, VolumeId], tuple[int, int]] = {}
        """Which copies take slices: in which life of the server, in which epoch."""
        self.referenced = 0
        self.deletions = 0
        self.drops = 0

    @property
    def tree(self) -> Tree:
        """The metadata, as far as anybody has applied it."""
        assert self._machine is not None
        return self._machine.replica.machine.tree

    # -- what happens

    def knows(self, machine: Metadata) -> None:
        """A server has read what it has stored."""
        if self._machine is None:
            self._machine, self._applied = machine, machine.applied

    def applied(self, machine: Metadata, asked: Asked, reply: object) -> None:
        """A server has taken in a command."""
        if machine.applied <= self._applied:
            return
        self._machine, self._applied = machine, machine.applied
        if isinstance(reply, FsError):
            return
        command = asked.command
        if isinstance(command, Write):
            for run in command.runs:
                if run.volume:
                    self._is_referred_to(run.volume, run.slice_id)
        elif isinstance(command, Reclaimed):
            for slice_id in command.slices:
                self.reclaimed(slice_id)
        elif isinstance(command, Rewrite):
            for piece in command.added:
                if piece.volume:
                    self._is_referred_to(piece.volume, piece.slice_id)

    def _is_referred_to(self, volume: VolumeId, slice_id: SliceId) -> None:
        self.referenced += 1
        record = volume_of(self.tree, volume)
        if record is None:
            what = f"slice {slice_id:#x} is in use, but there is no volume {volume}"
            raise Broken("acknowledged by all", what)
        for node in record.replicas:
            if not self._has(node, volume, slice_id):
                raise Broken(
                    "acknowledged by all",
                    f"slice {slice_id:#x} is in use, but node {node} does not have it: {record}",
                )

    def _has(self, node: int, volume: VolumeId, slice_id: SliceId) -> bool:
        """Or has lost it, by no fault of its own."""
        server = self.servers.get(node)
        copy = server.volumes.get(volume) if server is not None else None
        if copy is not None and slice_id in copy.kept:
            return True
        return slice_id < self._lost.get((node, volume), 0)

    def opened(self, server: "ChunkServer", volume: VolumeId, epoch: int) -> None:
        """By order.  Epoch 0: it is sealed."""
        self._opened[server.node, volume] = (server.life, epoch)

    def takes(self, server: "ChunkServer", volume: VolumeId, epoch: int) -> None:
        """A server takes a slice that somebody writes in this epoch."""
        if self._opened.get((server.node, volume)) != (server.life, epoch):
            raise Broken(
                "slices are taken only where a leader says so",
                f"{server.name} takes one for volume {volume} in epoch {epoch}",
            )

    def reclaimed(self, slice_id: SliceId) -> None:
        """It is said to be deleted everywhere.  (But where it was copied to meanwhile.)"""
        volume = self._place.get(slice_id)
        record = volume_of(self.tree, volume) if volume is not None else None
        for node in record.replicas if record is not None else ():
            assert volume is not None
            copy = self.servers[node].volumes.get(volume)
            if copy is not None and slice_id in copy.kept and slice_id not in copy.copied:
                raise Broken(
                    "garbage is known until it is deleted",
                    f"node {node} still has slice {slice_id:#x} of volume {volume}",
                )

    def has_stored(self, volume: VolumeId, slice_id: SliceId, data: bytes) -> None:
        """A mount is told that all replicas have it."""
        self.stored[volume, slice_id] = data
        self._place[slice_id] = volume

    def deleted(self, name: str, volume: VolumeId, slice_id: SliceId) -> None:
        """A server has deleted a slice by order."""
        self.deletions += 1
        if self.tree.get(keys.used(volume, slice_id)) is not None:
            raise Broken(
                "nothing in use is deleted", f"{name} deletes slice {slice_id:#x} of {volume}"
            )

    def dropped(self, name: str, volume: VolumeId) -> None:
        """A server has dropped its copy of a volume by order."""
        self.drops += 1
        record = volume_of(self.tree, volume)
        replicas = record.replicas if record is not None else ()
        for slice_id in self._used(volume):
            left = self._whole(replicas, volume, slice_id)
            lack = [node for node in replicas if not self._has(node, volume, slice_id)]
            if not left or lack:
                raise Broken(
                    "nothing in use is deleted",
                    f"{name} drops volume {volume}; slice {slice_id:#x} is on {left} then, and not "
                    f"on {lack}: {record}",
                )

    def _used(self, volume: VolumeId) -> Iterable[SliceId]:
        return [one for one, _, _ in UsedSlices(volume, ALL).read(self.tree)]

    def _whole(self, nodes: Iterable[int], volume: VolumeId, slice_id: SliceId) -> list[int]:
        """Which of these have it on disk as it was written."""
        found = []
        for node in nodes:
            server = self.servers.get(node)
            copy = server.volumes.get(volume) if server is not None else None
            if copy is not None and copy.has_whole(slice_id):
                found.append(node)
        return found

    # -- what may befall disks

    def may_lose(self, node: int, volume: VolumeId, slices: Iterable[SliceId]) -> bool:
        """Whether enough replicas of these slices are left if a node loses its copies."""
        record = volume_of(self.tree, volume)
        if record is None:
            return False  # it is just being made, or removed
        others = [one for one in record.replicas if one != node]
        needed = max(1, len(record.replicas) - record.copies + 1)
        return all(
            len(self._whole(others, volume, one)) >= needed
            for one in slices
            if (volume, one) in self.stored or self.tree.get(keys.used(volume, one)) is not None
        )

    def loses(self, node: int, volume: VolumeId) -> None:
        """A fault takes its copy of a volume away, or a part of it."""
        self._lost[node, volume] = self.tree.counters.next_slice

    def is_in_use(self, volume: VolumeId, slice_id: SliceId) -> bool:
        return self.tree.get(keys.used(volume, slice_id)) is not None

    # -- the end

    def why_not_well(self, locations: Mapping[int, str], copies: int) -> str:
        """What is not as it should be when nothing happens any more; "": all is well."""
        tree = self.tree
        if garbage := Garbage(ALL).read(tree):
            return f"{len(garbage)} slices wait for their deletion: {garbage[:3]}"
        records = {record.number: record for record in ListVolumes(ALL).read(tree)}
        for record in records.values():
            why = self._why_not(record, locations, copies)
            if why:
                return f"{record}: {why}"
        for node, server in self.servers.items():
            for number in server.volumes:
                if number not in records or node not in records[number].replicas:
                    return f"node {node} has volume {number}: {records.get(number)}"
        return ""

    def _why_not(self, record: VolumeRecord, locations: Mapping[int, str], copies: int) -> str:
        if len(record.replicas) != min(record.copies, copies):
            return f"it should have {min(record.copies, copies)} replicas"
        if why := broken_rule(record.replicas, locations, locations):
            return why
        used = {
            one: (size, crc) for one, size, crc in UsedSlices(record.number, ALL).read(self.tree)
        }
        closed = self.tree.counters.closed_slices
        for node in record.replicas:
            copy = self.servers[node].volumes.get(record.number)
            if copy is None:
                return f"node {node} does not have it"
            for slice_id in used:
                if slice_id not in copy.kept:
                    return f"node {node} lacks slice {slice_id:#x}"
                if not copy.has_whole(slice_id):
                    return f"node {node} has slice {slice_id:#x} damaged"
                stored = self.stored.get((record.number, slice_id))
                if stored is not None and stored != copy.kept[slice_id]:
                    return f"node {node} has other bytes in slice {slice_id:#x}"
            for slice_id in [*copy.kept, *copy.fresh]:
                if slice_id not in used and slice_id < closed:
                    return f"node {node} has slice {slice_id:#x}, which nobody refers to"
        return ""

    def require_readable(self) -> None:
        """Every slice in use is on some replica, whole."""
        for record in ListVolumes(ALL).read(self.tree):
            for slice_id in self._used(record.number):
                if not self._whole(record.replicas, record.number, slice_id):
                    raise Broken(
                        "acknowledged bytes are kept",
                        f"no replica has slice {slice_id:#x} of {record}",
                    )
