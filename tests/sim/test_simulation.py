"""Clusters under one seed: whatever befalls them, they keep what they promise.

`mountfs sim --seed N` runs one of them again.
"""

import os
import subprocess
import sys
from collections import Counter

import pytest

from mountfs.sim.bytes_run import BytesRun
from mountfs.sim.file_run import FileRun
from mountfs.sim.scenario import BYTE_KINDS, FILE_KINDS, KINDS, REGISTER_KINDS, kind_of, run

SEEDS = int(os.environ.get("MOUNTFS_SIM_SEEDS", "200"))
FAILED_ONCE = [
    ("snapshots", 3),  # a client forgot all servers: one that had just joined knew of nobody
    ("snapshots", 16),  # a client knew but one server, which was replaced while it was mounted
]
"""By what the simulation was when they failed: new choices of chance make other runs of them."""


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_cluster_keeps_its_promises(seed: int) -> None:
    result = run(seed).run()
    assert result.operations > 0
    if result.kind in REGISTER_KINDS:  # others have sessions, which end
        assert result.answered == result.operations


@pytest.mark.parametrize(("kind", "seed"), FAILED_ONCE)
def test_what_failed_once_goes_well(kind: str, seed: int) -> None:
    run(seed, kind=kind).run()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_is_the_same_run(kind: str) -> None:
    first, again = (run(7, kind=kind, seconds=5).run() for _ in range(2))
    other = run(8, kind=kind, seconds=5).run()
    assert first == again
    assert first.digest != other.digest


def _digest_in_another_process(seed: int, kind: str, hash_seed: int) -> str:
    program = (
        "import sys; from mountfs.sim.scenario import run;"
        f"print(run({seed}, kind={kind!r}, seconds=5).run().digest)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


@pytest.mark.parametrize("kind", ["any", "files", "bytes"])
def test_a_seed_is_the_same_run_in_every_process(kind: str) -> None:
    here = run(7, kind=kind, seconds=5).run().digest
    assert _digest_in_another_process(7, kind, hash_seed=1) == here
    assert _digest_in_another_process(7, kind, hash_seed=2) == here


def test_leaving_a_fault_out_leaves_the_choice_of_the_others_alone() -> None:
    whole = run(1, kind="votes", seconds=5)
    whole.run()
    timed = [fault.number for fault in whole.happened if fault.number < 1_000]
    without = run(1, kind="votes", seconds=5, without=frozenset(timed[:1]))
    without.run()
    left = {fault.number: fault.at for fault in without.happened if fault.number < 1_000}
    assert timed[0] not in left
    both = left.keys() & set(timed)
    assert both
    assert all(left[fault.number] == fault.at for fault in whole.happened if fault.number in both)


@pytest.mark.parametrize("kinds", [REGISTER_KINDS, FILE_KINDS, BYTE_KINDS])
def test_runs_are_dense_with_faults_and_work(kinds: tuple[str, ...]) -> None:
    results = [run(seed, kind=kinds[seed % len(kinds)]).run() for seed in range(8)]
    assert sum(result.faults for result in results) > 8 * 20
    assert sum(result.operations for result in results) > 8 * 280
    assert sum(result.elections for result in results) > 8 * 2


def test_seeds_are_runs_of_every_kind() -> None:
    assert {kind_of(seed) for seed in range(200)} == set(KINDS)


def test_what_the_simulation_is_for_happens() -> None:
    runs = [
        run(seed, kind=kind) for kind in ("disks", "snapshots", "sessions") for seed in range(4)
    ]
    for one in runs:
        one.run()
    clusters = [one.cluster for one in runs]
    servers = [server for cluster in clusters for server in cluster.servers.values()]
    assert sum(bool(server.lost) for server in servers) > 2  # disks were given up
    assert len(servers) > sum(len(one.voters) for one in runs) + 2  # and machines came
    assert sum(cluster.transfers.cuts for cluster in clusters) > 2
    files = [one for one in runs if isinstance(one, FileRun)]
    assert sum(len(one.promises.ended) for one in files) > 10
    assert sum(one.promises.reaped for one in files) > 10
    happened = [fault.what for one in runs for fault in one.happened]
    assert any("is full" in what for what in happened)


def test_what_befalls_bytes_happens() -> None:
    runs = [run(seed, kind="bytes") for seed in (*range(12), 29)]
    done: Counter[str] = Counter()
    for one in runs:
        one.run()
        assert isinstance(one, BytesRun)
        for meta in one.metas.values():
            assert meta.leading is not None
            done.update(meta.leading.carried_out)
    ledgers = [one.ledger for one in runs if isinstance(one, BytesRun)]
    assert sum(ledger.referenced for ledger in ledgers) > 1_000
    assert sum(ledger.deletions for ledger in ledgers) > 1_000
    assert sum(ledger.drops for ledger in ledgers) > 10
    for task in ("Seal", "CopyVolume", "Repair", "Reconcile", "Remove", "Shrink"):
        assert done[task] > 0, done
    happened = " ".join(fault.what for one in runs for fault in one.happened)
    for what in ("loses volumes", "as it was before", "bits flip", "is full", "rack", "to keep"):
        assert what in happened
