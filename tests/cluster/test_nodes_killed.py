"""kill -9 of nodes at random under load: no wrong answer, nothing acknowledged is lost, no error,
and the mounts go on as soon as a majority is back.

MOUNTFS_NODE_ROUNDS=50 pytest tests/cluster/test_nodes_killed.py -s
MOUNTFS_NODE_SEED=12345 pytest tests/cluster/test_nodes_killed.py     again, with the same choices
"""

import os
import random
import time
from pathlib import Path
from typing import Final

import pytest
from nodes import Member, Nodes
from work import Work

ROUNDS: Final = int(os.environ.get("MOUNTFS_NODE_ROUNDS", "4"))
SEED: Final = int(os.environ.get("MOUNTFS_NODE_SEED", "0")) or time.time_ns() % 1_000_000_007


def _leader(cluster: Nodes, chance: random.Random) -> list[Member]:
    return [cluster.wait_for_leader()]


def _follower(cluster: Nodes, chance: random.Random) -> list[Member]:
    return [chance.choice(cluster.followers())]


def _two(cluster: Nodes, chance: random.Random) -> list[Member]:
    return chance.sample(cluster.running, 2)


def _all(cluster: Nodes, chance: random.Random) -> list[Member]:
    return cluster.running


KILLS: Final = (_leader, _follower, _two, _all)


@pytest.mark.timeout(240 + 120 * ROUNDS)
def test_nodes_that_are_killed_lose_nothing_and_say_nothing_wrong(
    cluster: Nodes, tmp_path: Path
) -> None:
    print(f"\nMOUNTFS_NODE_SEED={SEED}")
    chance = random.Random(SEED)
    one, two = cluster.mount("one"), cluster.mount("two")
    work = Work(cluster, tmp_path, chance)
    for number in range(ROUNDS):
        work.begin_ledger(one, "names-one")
        work.begin_ledger(two, "names-two")
        work.begin_load(one, "load-one")
        work.begin_load(two, "load-two")
        work.goes_on("before anything")
        kind = KILLS[number % len(KILLS)] if number < len(KILLS) else chance.choice(KILLS)
        dead = kind(cluster, chance)
        time.sleep(chance.random() * 0.5)  # any moment will do
        for member in dead:
            member.kill()
        if len(dead) == 1:
            work.goes_on(f"without {dead[0].name}")
            if chance.random() < 0.3:  # it comes back, and the next one goes
                cluster.restart(*dead)
                dead = _leader(cluster, chance)
                dead[0].kill()
                work.goes_on(f"without {dead[0].name} instead")
        time.sleep(chance.random() * 0.5)
        cluster.restart(*dead)
        work.goes_on("when all are back")
        work.check(f"seed {SEED}, round {number} ({kind.__name__})")
    print(f"{ROUNDS} rounds, {work.acknowledged} calls acknowledged")
