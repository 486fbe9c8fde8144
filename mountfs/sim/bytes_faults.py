"""What befalls chunkservers and their disks.

Only so much of it that the promise holds: of each slice fewer replicas are lost than there are to
be (`Ledger.may_lose`).
"""

from collections.abc import Iterable
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from mountfs.meta.ops.nodes import DrainNode, all_nodes
from mountfs.sim.chunkserver import ChunkServer, Volume
from mountfs.sim.world import MS, S
from mountfs.types import SliceId, VolumeId

if TYPE_CHECKING:
    from mountfs.sim.bytes_run import BytesRun

WELL_US = MS
TELL_US = 300 * MS
COPIES = 3
"""Of every volume, in clusters of so many nodes."""


class BytesFaults:
    def __init__(self, run: "BytesRun") -> None:
        self._run = run
        self._images: dict[int, dict[VolumeId, Volume]] = {}
        """Of disks, as they once were."""
        self._draining: set[int] = set()

    def _any(self, random: Random) -> ChunkServer:
        return random.choice([server for _, server in sorted(self._run.servers.items())])

    def _up(self) -> list[ChunkServer]:
        return [server for _, server in sorted(self._run.servers.items()) if server.up]

    # -- crashes and pauses

    def _down(self, server: ChunkServer, ms: int) -> str:
        if server.up:
            server.crash()
            self._boot_later(server, ms)
        return f"{server.name} crashes for {ms / 1000:g} s"

    def _boot_later(self, server: ChunkServer, ms: int) -> None:
        self._run.world.after(ms * MS, lambda: None if server.up else server.boot())

    def crash(self, random: Random) -> str:
        return self._down(self._any(random), random.choice((1, 100, 500, 1_500)))

    def crash_for_long(self, random: Random) -> str:
        """It is dead, and comes back."""
        return self._down(self._any(random), random.choice((3_000, 5_000)))

    def crash_all(self, random: Random) -> str:
        return "; ".join(
            self._down(server, random.choice((1, 300, 1_000))) for server in self._up()
        )

    def pause(self, random: Random) -> str:
        server = self._any(random)
        ms = random.choice((100, 400, 1_000, 3_000))
        server.pause(self._run.world.now + ms * MS)
        return f"{server.name} stands still for {ms / 1000:g} s"

    # -- the network

    def _everybody(self) -> set[str]:
        run = self._run
        names = {server.name for server in run.servers.values()}
        names |= {f"n{node}" for node in run.metas}
        return names | {f"m{mount.number}" for mount in run.mounts}

    def _separate(self, some: set[str], others: set[str], seconds: float) -> None:
        wires = self._run.wires
        wires.separate(some, others)
        self._run.world.after(int(seconds * S), self._heal)

    def cut_off(self, random: Random) -> str:
        """From all, or from some."""
        name = self._any(random).name
        everybody = sorted(self._everybody() - {name})
        some = set(random.sample(everybody, random.randint(1, len(everybody))))
        seconds = random.choice((0.4, 1, 3))
        self._separate({name}, some, seconds)
        return f"{name} does not reach {sorted(some)} for {seconds:g} s"

    def cut_off_rack(self, random: Random) -> str:
        """Those in it reach each other, and nobody else."""
        rack = self._any(random).location.split("/")[1]
        some = {one.name for one in self._run.servers.values() if f"/{rack}/" in one.location}
        seconds = random.choice((0.4, 1, 3))
        self._separate(some, self._everybody() - some, seconds)
        return f"rack {rack} ({sorted(some)}) is cut off for {seconds:g} s"

    def _heal(self) -> None:
        self._run.wires.cut.clear()

    def heal(self, random: Random) -> str:
        if not self._run.wires.cut:
            return ""
        self._heal()
        return "all chunkservers are reached"

    def slow_down(self, random: Random) -> str:
        server = self._any(random)
        ms = random.choice((1, 30, 150, 400))
        server.sync_us = server.read_us = ms * MS
        return f"the disk of {server.name} takes {ms} ms"

    # -- disks

    def fill(self, random: Random) -> str:
        server = self._any(random)
        seconds = random.choice((0.5, 2, 4))
        server.full = True

        def room() -> None:
            server.full = False

        self._run.world.after(int(seconds * S), room)
        return f"the disk of {server.name} is full for {seconds:g} s"

    def rot(self, random: Random) -> str:
        server = self._any(random)
        rotten = 0
        for _ in range(random.choice((1, 3, 10))):
            found = server.random_slice(random)
            if found is None:
                break
            number, slice_id = found
            if self._run.ledger.may_lose(server.node, number, [slice_id]):
                server.rot(number, slice_id)
                rotten += 1
        return f"bits flip in {rotten} slices of {server.name}" if rotten else ""

    def lose_volumes(self, random: Random) -> str:
        """It comes back without some of them, or without any."""
        server = self._any(random)
        ledger = self._run.ledger
        share = random.choice((0.5, 1.0))
        lost = [
            number
            for number, volume in sorted(server.volumes.items())
            if random.random() < share and ledger.may_lose(server.node, number, volume.kept)
        ]
        if not lost:
            return ""
        what = self._down(server, random.choice((1, 300, 1_000)))
        for number in lost:
            del server.volumes[number]
            ledger.loses(server.node, number)
        return f"{what}, and loses volumes {lost}"

    def roll_back(self, random: Random) -> str:
        """It comes back as it once was, if that was seen before."""
        server = self._any(random)
        image = self._images.pop(server.node, None)
        if image is None:
            self._images[server.node] = server.image()
            return f"the disk of {server.name} is copied"
        ledger = self._run.ledger
        for number, volume in server.volumes.items():
            before = image.get(number)
            gone = _gone(volume, before)
            if gone and not ledger.may_lose(server.node, number, gone):
                return ""
        what = self._down(server, random.choice((1, 300, 1_000)))
        for number in {*server.volumes, *image}:
            ledger.loses(server.node, number)
        server.volumes = image
        return f"{what}, and is as it was before"

    # -- people

    def drain(self, random: Random) -> str:
        """A node is to keep nothing, if there are enough others; or may have some again."""
        run = self._run
        node = random.choice(sorted(run.servers))
        if node not in self._draining:
            staying = {run.keepers[one] for one in run.servers if one not in self._draining}
            if len(staying) <= COPIES:
                return ""
            self._draining.add(node)
        else:
            self._draining.discard(node)
        self._tell()
        return (
            f"c{node} {'is to keep nothing' if node in self._draining else 'may have slices again'}"
        )

    def _tell(self) -> None:
        """Whoever leads, until it is so."""
        run = self._run
        tree = run.ledger.tree
        known = {one.number for one in all_nodes(tree) if one.draining}
        leader = run.cluster.leader()
        if leader is not None and leader.runs:
            meta = run.metas[leader.node]
            for node in sorted(known ^ self._draining):
                order = DrainNode(node, node in self._draining)
                leader.when_running("operator", partial(meta.order, order, _ignore))
        if known != self._draining:
            run.world.after(TELL_US, self._tell)

    # -- the end

    def make_well(self) -> None:
        run = self._run
        wires = run.wires
        self._heal()
        self._draining.clear()
        self._tell()
        wires.breaking = wires.straggling = 0.0
        for server in run.servers.values():
            server.full = False
            server.sync_us = server.read_us = WELL_US
            if not server.up:
                server.boot()


def _ignore(reply: object) -> None:
    """They look whether it is so."""


def _gone(now: Volume, before: Volume | None) -> Iterable[SliceId]:
    """What is lost if a copy becomes what it was."""
    if before is None:
        return list(now.kept)
    return [one for one in now.kept if not before.has_whole(one)]
