"""Volumes move until the nodes are about equally full: what must hold for any cluster."""

from collections import Counter

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from mountfs.meta.balancing import SPARE_BYTES, TOLERANCE, Load, Movable, Plan, plan
from mountfs.meta.placement import broken_rule
from mountfs.types import MIB, VolumeId

GIB = 1024 * MIB
LOCATIONS = ["", "/r1/a", "/r1/b", "/r2/c", "/r2/d", "/r3/e"]


def load(node: int, used: int, capacity: int = 100, **changes: object) -> Load:
    """In GiB."""
    found = Load(
        node=node, used_bytes=used * GIB, capacity_bytes=capacity * GIB,
        room_bytes=max(capacity - used, 0) * GIB,
    )  # fmt: skip
    return msgspec.structs.replace(found, **changes)


def volumes(count: int, *replicas: int, first: int = 1) -> list[Movable]:
    return [Movable(VolumeId(first + one), replicas, GIB) for one in range(count)]


class State:
    """Nodes and volumes, on which plans are carried out."""

    def __init__(self, loads: list[Load], movable: list[Movable]) -> None:
        self.loads = {one.node: one for one in loads}
        self.volumes = {one.volume: one for one in movable}

    def plan(self, moves_max: int = 7) -> Plan:
        return plan([*self.loads.values()], self.volumes.values(), moves_max=moves_max)

    def carry_out(self, found: Plan) -> None:
        locations = {one.node: one.location for one in self.loads.values()}
        usable = [one.node for one in self.loads.values() if one.takes]
        seen = Counter(move.volume for move in found.moves)
        assert all(count == 1 for count in seen.values()), "no volume moves twice in a plan"
        for move in found.moves:
            before = self.volumes[move.volume]
            assert before.replicas == move.before
            assert len(set(move.after)) == len(move.before), "never fewer copies"
            assert set(move.after) == {*move.before, move.target} - {move.source}
            assert self.loads[move.target].takes
            assert self.loads[move.source].gives
            assert not broken_rule(move.after, locations, usable)
            self.volumes[move.volume] = before._replace(replicas=move.after)
            self._add(move.source, -move.bytes)
            self._add(move.target, move.bytes)
            assert self.loads[move.target].room_bytes >= SPARE_BYTES
            assert self.share(move.source) >= self.share(move.target), "nobody is overtaken"

    def _add(self, node: int, count: int) -> None:
        one = self.loads[node]
        self.loads[node] = msgspec.structs.replace(
            one, used_bytes=one.used_bytes + count, room_bytes=one.room_bytes - count
        )

    def share(self, node: int) -> float:
        return self.loads[node].used_bytes / self.loads[node].capacity_bytes

    def unevenness(self) -> float:
        """What every move makes less."""
        return sum(one.used_bytes**2 / one.capacity_bytes for one in self.loads.values())


@st.composite
def states(draw: st.DrawFn) -> State:
    count = draw(st.integers(1, 7))
    capacity = st.integers(20, 200)
    nodes = []
    for node in range(1, count + 1):
        location = draw(st.sampled_from(LOCATIONS))
        gives, takes = draw(st.integers(0, 5)) > 0, draw(st.integers(0, 5)) > 0
        nodes.append(load(node, 0, draw(capacity), location=location, gives=gives, takes=takes))
    found = []
    for number in range(draw(st.integers(0, 60))):
        size = draw(st.integers(1, 1024)) * MIB
        replicas = draw(
            st.lists(st.integers(1, count + 1), min_size=1, max_size=3, unique=True)
        )  # one of them may have been removed
        found.append(Movable(VolumeId(number + 1), tuple(replicas), size))
    state = State(nodes, found)
    for one in found:
        for node in one.replicas:
            if node in state.loads:
                state._add(node, one.bytes)
    return state


@given(states())
@settings(max_examples=200, deadline=None)
def test_it_comes_to_an_end_and_every_step_is_right(state: State) -> None:
    for _ in range(200):
        found = state.plan()
        if not found.moves:
            assert found.why_not
            assert found.bytes_to_move == 0
            return
        before = state.unevenness()
        state.carry_out(found)
        assert state.unevenness() < before
    raise AssertionError("it goes on for ever")


def test_an_empty_node_gets_its_part() -> None:
    full = [load(1, 60), load(2, 60), load(3, 60), load(4, 0)]
    state = State(full, volumes(60, 1, 2, 3))
    found = state.plan(moves_max=1_000)
    assert found.spread == 0.6
    assert abs(found.bytes_to_move - 45 * GIB) < 2 * GIB
    state.carry_out(found)
    shares = [state.share(node) for node in (1, 2, 3, 4)]
    assert max(shares) - min(shares) < TOLERANCE
    assert 40 <= len(found.moves) <= 46, "no more than is needed"


def test_nodes_of_different_sizes_become_equally_full() -> None:
    copies = [*volumes(50, 1), *volumes(50, 2, first=51)]
    state = State([load(1, 50), load(2, 50), load(3, 0, 400)], copies)
    while (found := state.plan()).moves:
        state.carry_out(found)
    assert abs(state.share(1) - state.share(3)) < TOLERANCE
    assert state.loads[3].used_bytes > state.loads[1].used_bytes


def test_copies_stay_in_two_racks() -> None:
    loads = [
        load(1, 60, location="/r1/a"), load(2, 60, location="/r2/b"),
        load(3, 0, location="/r1/c"),
    ]  # fmt: skip
    found = plan(loads, volumes(60, 1, 2))
    assert found.moves
    assert {(move.source, move.target) for move in found.moves} == {(1, 3)}


def test_what_is_even_stays_and_says_so() -> None:
    found = plan([load(1, 50), load(2, 53)], volumes(50, 1))
    assert found.moves == ()
    assert "less than 5%" in found.why_not
    assert plan([load(1, 50)], volumes(50, 1)).why_not.startswith("there are fewer")


def test_a_node_that_takes_nothing_gets_nothing() -> None:
    loads = [load(1, 60), load(2, 0, takes=False), load(3, 0, room_bytes=SPARE_BYTES)]
    found = plan(loads, volumes(60, 1))
    assert found.moves == ()
    assert "no volume can be moved" in found.why_not
