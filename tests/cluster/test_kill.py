"""kill -9 of the daemon at random points under load: nothing that was promised is lost.

MOUNTFS_KILL_ROUNDS=200 pytest tests/cluster/test_kill.py -s
MOUNTFS_KILL_SEED=12345 pytest tests/cluster/test_kill.py     again, with the same choices
"""

import os
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import offline
import pytest
from load import Journal, adopt, check, read_journal
from mounted import MOUNT_DFS, SMALL_NODE, Node

ROUNDS: Final = int(os.environ.get("MOUNTFS_KILL_ROUNDS", "5"))
SEED: Final = int(os.environ.get("MOUNTFS_KILL_SEED", "0")) or time.time_ns() % 1_000_000_007
WORKERS: Final = 3
LIFE_S_MAX: Final = 1.5
END_S_MAX: Final = 60
LOAD: Final = str(Path(__file__).with_name("load.py"))


@pytest.mark.timeout(120 + 30 * ROUNDS)
@pytest.mark.parametrize(
    "command", [pytest.param(MOUNT_DFS, id="default"), pytest.param(SMALL_NODE, id="small")]
)
def test_a_killed_daemon_loses_nothing_that_it_promised(
    node: Node, tmp_path: Path, command: list[str]
) -> None:
    print(f"\nMOUNTFS_KILL_SEED={SEED}")
    chance = random.Random(SEED)
    calls = 0
    for number in range(ROUNDS):
        seed = chance.randrange(1 << 30)
        node.mount(command=command)
        calls += _work_until_killed(node, tmp_path, random.Random(seed))
        if chance.random() < 0.5:
            node.detach()  # and else: a dead mount is cured by mounting again
        node.mount(command=command)
        _check_all(node, tmp_path, f"seed {SEED}, round {number}, {calls} calls so far")
        if chance.random() < 0.5:
            node.unmount()
        else:
            node.kill()
    if node.is_mounted:
        node.detach()
    node.mount(command=command)
    _check_all(node, tmp_path, f"seed {SEED}, at the end")
    node.unmount()
    assert list(offline.troubles(node.home)) == [], f"seed {SEED}"
    print(f"{ROUNDS} rounds, {calls} calls")


def _work_until_killed(node: Node, journals: Path, chance: random.Random) -> int:
    """Let several programs work, kill the daemon, and return how many calls they made."""
    workers = []
    for number in range(WORKERS):
        directory = node.point / f"worker-{number}"
        directory.mkdir(exist_ok=True)
        seed, journal = str(chance.randrange(1 << 30)), str(journals / directory.name)
        workers.append(subprocess.Popen([sys.executable, LOAD, seed, directory, journal]))
    try:
        time.sleep(0.1 + chance.random() * LIFE_S_MAX)
        node.kill()
        for worker in workers:
            assert worker.wait(END_S_MAX) == 0
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return sum(journal.calls for _, journal in _journals(journals))


def _check_all(node: Node, journals: Path, when: str) -> None:
    wrong: list[str] = []
    lost = [line for line in node.said().splitlines() if "were lost" in line or "CRITICAL" in line]
    wrong += lost
    for path, journal in _journals(journals):
        top = node.point / path.name
        wrong += [f"{path.name}: while it worked: {trouble}" for trouble in journal.troubles]
        troubles = check(journal.before, top)
        if troubles and not check(journal.after, top):
            journal.before, troubles = journal.after, []
        wrong += [f"{path.name}: {trouble} (last call: {journal.last})" for trouble in troubles]
        if not wrong:
            adopt(journal.before, top)
            journal = Journal(journal.before, journal.before, [])
            path.write_bytes(pickle.dumps(journal))
    assert not wrong, "\n".join([when, *wrong[:40], node.said()[-3000:]])


def _journals(directory: Path) -> list[tuple[Path, Journal]]:
    return [(path, read_journal(path)) for path in sorted(directory.glob("worker-*"))]
