"""The healer against a toy cluster in which everything goes wrong, and then nothing more."""

import random

import pytest
from toy_cluster import FLEET, HEALING, Toy

LAYOUTS = [
    ["/r1/a", "/r1/b", "/r2/c", "/r2/d"],
    ["", "", ""],
    ["/r1/a", "/r1/a", "/r1/b", "/r2/c", "/r3/d", "/r3/e"],
    ["/r1/a", "/r1/b", "/r1/c", "/r1/d", "/r2/e"],
]


def disturb(toy: Toy, dice: random.Random) -> None:
    """One thing that happens.  A slice is never lost in all of its places."""
    node = toy.nodes[dice.choice(list(toy.nodes))]
    number = dice.choice(list(toy.records)) if toy.records else None
    what = dice.randrange(14)
    if what <= 1:
        node.up = False
    elif what <= 4:
        if not node.up:
            node.start()
    elif what == 5:
        node.draining = not node.draining and sum(n.draining for n in toy.nodes.values()) < 1
    elif what == 6:
        toy.lead_anew()
    elif what == 7:
        toy.safe_mode = "" if toy.safe_mode else "safe mode"
    elif what == 8 and number is not None:
        toy.seal(number, reach=dice.random() < 0.5)
    elif what == 9 and number is not None and not toy.records[number].sealed:
        toy.write(number)
    elif what == 10 and number is not None and toy.records[number].sealed and dice.random() < 0.3:
        toy.forget(number)
    elif number is not None and number in node.copies:
        copy = node.copies[number]
        spare = {name for name in copy.whole if toy.instances(number, name) > 1}
        if what == 11 and copy.whole == spare:
            del node.copies[number]
        elif what == 12:
            copy.slices -= set(dice.sample(sorted(spare), min(1, len(spare))))
        elif what == 13:
            copy.damaged |= set(dice.sample(sorted(spare), min(2, len(spare))))


@pytest.mark.parametrize("seed", range(24))
def test_it_converges_when_faults_stop_and_nothing_is_lost(seed: int) -> None:
    dice = random.Random(seed)
    toy = Toy(seed, LAYOUTS[seed % len(LAYOUTS)])
    toy.tick()
    for _ in range(20):
        toy.allot(dice.choice([1, 2, 3, 3]))
    toy.failing = 0.2
    for _ in range(300):
        for _ in range(dice.choice([0, 0, 1, 2])):
            disturb(toy, dice)
        toy.tick()
    check_nothing_is_lost(toy)
    toy.failing = 0.0
    toy.safe_mode = ""
    for node in toy.nodes.values():
        node.draining = False
        if not node.up:
            node.start()
    for number in toy.records:
        toy.seal(number)
    toy.run(int(FLEET.grace_ms + HEALING.forgotten_ms) // 1_000)
    for _ in range(40):
        if not toy.unfinished() and not toy.running:
            break
        toy.run(10)
    assert toy.unfinished() == []
    check_nothing_is_lost(toy)
    health = toy.healer.health()
    assert health.is_well, health
    assert toy.run(20) == [], "then it rests"


def check_nothing_is_lost(toy: Toy) -> None:
    for number, names in toy.used.items():
        for name in names:
            assert toy.instances(number, name), (number, name)
