"""The simulation finds mistakes that cost bytes: each of these breaks one rule on purpose, of a
server, of a mount, of the leader or of the metadata, and is caught.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from mountfs.chunks import collector, deletion, steps
from mountfs.chunks.comparison import LAST
from mountfs.errors import FsError
from mountfs.meta import diagnosis
from mountfs.meta.healing_tasks import CopyVolume
from mountfs.meta.ops import slices, volumes, write
from mountfs.meta.ops.volumes import ForgetVolume
from mountfs.meta.tree import Tree
from mountfs.sim.checks import Broken
from mountfs.sim.chunks import Chunks
from mountfs.sim.chunkserver import ChunkServer, Volume
from mountfs.sim.scenario import run

Patch = pytest.MonkeyPatch

EVERYWHERE = "acknowledged by all"
ALLOWED = "slices are taken only where a leader says so"
KEPT = "nothing in use is deleted"


# -- mistakes of servers


def keeps_volumes_open_when_it_starts_again(patch: Patch) -> None:
    boot = ChunkServer.boot

    def boots(self: ChunkServer) -> None:
        for volume in self.volumes.values():
            volume.epoch = volume.last_epoch
        boot(self)

    patch.setattr(ChunkServer, "boot", boots)


def takes_slices_though_it_was_told_to_seal(patch: Patch) -> None:
    """Then a copy that was made since lacks them."""
    seal = ChunkServer._seal

    def sealed(self: ChunkServer, order: Any) -> bytes:
        volume = self.volumes.get(order.volume)
        epoch = volume.epoch if volume is not None else 0
        answer = seal(self, order)
        self.volumes[order.volume].epoch = epoch
        return answer

    report = Volume.report

    def reported(self: Volume) -> Any:
        found = report(self)
        return found if self.last_epoch else msgspec.structs.replace(found, epoch=0)

    patch.setattr(ChunkServer, "_seal", sealed)
    patch.setattr(Volume, "report", reported)


def answers_before_it_is_on_disk(patch: Patch) -> None:
    handle = ChunkServer._write

    def written(self: ChunkServer, body: bytes, answer: Any) -> None:
        handle(self, body, lambda result: None if result == b"" else answer(result))
        answer(b"")

    patch.setattr(ChunkServer, "_write", written)


def copies_what_is_damaged(patch: Patch) -> None:
    def unverified(self: ChunkServer, volume: Any, slice_id: Any, data: bytes) -> bytes:
        return b"9" + data[1:] if slice_id in volume.rotten else data

    patch.setattr(ChunkServer, "_verified", unverified)


# -- mistakes of mounts


def is_content_when_one_replica_has_it(patch: Patch) -> None:
    write_all = Chunks._write_all

    async def written(self: Chunks, replicas: Any, body: bytes) -> dict[int, FsError]:
        failed = await write_all(self, replicas, body)
        return failed if len(failed) == len(replicas) else {}

    patch.setattr(Chunks, "_write_all", written)


# -- mistakes of the leader


def collects_what_may_still_be_referred_to(patch: Patch) -> None:
    compare = collector.compare

    def compared(listed: Any, used: Any, limit: int, closed: Any) -> Any:
        return compare(listed, used, limit, LAST)

    patch.setattr(collector, "compare", compared)


def changes_replicas_of_what_is_still_written_to(patch: Patch) -> None:
    """The record says that it is sealed, and nobody has told the nodes."""

    async def sealed(self: steps.Steps, task: Any) -> None:
        await self._order(volumes.SealVolume(task.volume))

    init = diagnosis.Case.__init__

    def judged(self: diagnosis.Case, *args: Any) -> None:
        init(self, *args)
        if self.record.sealed:
            self.open = []
            self.agrees = True

    patch.setattr(steps.Steps, "_seal", sealed)
    patch.setattr(diagnosis.Case, "__init__", judged)


def drops_a_copy_before_the_others_are_complete(patch: Patch) -> None:
    """The record changes first, then bytes are copied; and nobody looks before the drop."""
    carry_out = steps.Steps.carry_out

    async def carried_out(self: steps.Steps, task: Any) -> None:
        if isinstance(task, CopyVolume) and task.replicas != task.before:
            await self._set_replicas(task)
            task = msgspec.structs.replace(task, before=task.replicas)
        await carry_out(self, task)

    async def dropped(self: steps.Steps, task: Any) -> None:
        for stray in task.strays:
            await self._orders.drop(stray, task.volume)

    patch.setattr(steps.Steps, "carry_out", carried_out)
    patch.setattr(steps.Steps, "_remove", dropped)
    patch.setattr(diagnosis.Case, "is_whole", property(lambda self: True))


def forgets_garbage_that_a_node_still_has(patch: Patch) -> None:
    step = deletion.Deletion.step

    async def stepped(self: deletion.Deletion) -> None:
        orders, each = self._orders, self._orders.each

        async def all_well(nodes: Any, ask: Any) -> dict[int, FsError]:
            await each(nodes, ask)
            return {}

        patch.setattr(orders, "each", all_well)
        try:
            await step(self)
        finally:
            patch.setattr(orders, "each", each)

    patch.setattr(deletion.Deletion, "step", stepped)


# -- mistakes of the metadata


def forgets_a_volume_that_is_in_use(patch: Patch) -> None:
    def applied(self: ForgetVolume, tree: Tree, stamp: Any) -> None:
        tree.put(volumes.keys.volume(self.number), None)

    async def forgets(self: Any, record: Any, last: Any) -> None:
        if record.sealed:
            await self._server.service.order(ForgetVolume(record.number))

    patch.setattr(ForgetVolume, "apply", applied)
    patch.setattr(collector.Collector, "_forget_if_unused", forgets)


def does_not_count_copies_of_a_range(patch: Patch) -> None:
    patch.setattr(Tree, "share_slice", lambda self, piece: None)


def takes_slices_that_were_collected(patch: Patch) -> None:
    for module in (write, slices):
        patch.setattr(module, "require_usable", lambda tree, slice_id, volume: None)


MUTATIONS: list[tuple[Callable[[Patch], None], set[str]]] = [
    (keeps_volumes_open_when_it_starts_again, {ALLOWED}),
    (takes_slices_though_it_was_told_to_seal, {ALLOWED}),
    (answers_before_it_is_on_disk, {EVERYWHERE}),
    (copies_what_is_damaged, {"linearizability", "copies converge"}),
    (is_content_when_one_replica_has_it, {EVERYWHERE}),
    (collects_what_may_still_be_referred_to, {EVERYWHERE}),
    (changes_replicas_of_what_is_still_written_to, {EVERYWHERE}),
    (drops_a_copy_before_the_others_are_complete, {KEPT, EVERYWHERE}),
    (forgets_garbage_that_a_node_still_has, {"garbage is known until it is deleted"}),
    (forgets_a_volume_that_is_in_use, {KEPT, "bytes can be read"}),
    (takes_slices_that_were_collected, {EVERYWHERE}),
    (does_not_count_copies_of_a_range, {"invariants", KEPT}),
]
"""What is broken, and which checks find it."""

SEEDS = range(60)


@pytest.mark.timeout(900)  # of a machine that has much else to do
@pytest.mark.parametrize(("mutation", "rules"), MUTATIONS)
def test_a_mistake_is_found(
    mutation: Callable[[Patch], None], rules: set[str], monkeypatch: Patch
) -> None:
    mutation(monkeypatch)
    found: set[str] = set()
    for seed in SEEDS:
        try:
            run(seed, seconds=10, kind="bytes").run()
        except Broken as broken:
            found.add(broken.rule)
            if broken.rule in rules:
                return
        except AssertionError:
            found.add("an assertion of the product")
    pytest.fail(f"{rules} were not broken in {len(SEEDS)} runs; broken: {found or 'nothing'}")
