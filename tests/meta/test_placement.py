"""Where copies go: the rule against a definition by brute force, and where the bytes end up."""

import itertools
import random
from collections.abc import Collection, Mapping, Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountfs.errors import Fault, FsError
from mountfs.meta.placement import OPEN_BYTES, Candidate, broken_rule, host_of, place, rack_of
from mountfs.types import MIB

GIB = 1024 * MIB
LOCATIONS = ["", "/r1/h1", "/r1/h2", "/r1/h3", "/r2/h1", "/r2/h2", "/r3/h1", "/h9", "/d/r1/h1"]


def node(number: int, location: str = "", free: int = 100 * GIB, **flags: bool) -> Candidate:
    return Candidate(
        node=number, location=location, total_bytes=200 * GIB, free_bytes=free, room_bytes=free,
        **flags,
    )  # fmt: skip


def nodes(*locations: str) -> list[Candidate]:
    return [node(number, location) for number, location in enumerate(locations, 1)]


CANDIDATES = st.lists(
    st.builds(
        node,
        st.just(0),
        st.sampled_from(LOCATIONS),
        st.sampled_from([1, GIB, 50 * GIB]),
        alive=st.sampled_from([True, True, True, False]),
        draining=st.sampled_from([False, False, False, True]),
        full=st.sampled_from([False, False, False, True]),
        slow=st.booleans(),
    ),
    max_size=7,
).map(
    lambda found: [msgspec.structs.replace(one, node=number) for number, one in enumerate(found, 1)]
)


def keeps_the_rule(
    chosen: Collection[int], locations: Mapping[int, str], usable: Collection[int]
) -> bool:
    """The rule as it is said in words."""
    for one, other in itertools.combinations(chosen, 2):
        if locations[one] and locations[one] == locations[other]:
            return False
    return are_spread(chosen, locations, usable)


def are_spread(
    chosen: Collection[int], locations: Mapping[int, str], usable: Collection[int]
) -> bool:
    """The part of it that is about racks."""
    racks = {locations[one].rpartition("/")[0] for one in chosen}
    there = racks | {locations[one].rpartition("/")[0] for one in usable}
    return len(chosen) < 2 or len(racks) >= 2 or len(there) < 2


def allowed(
    candidates: Sequence[Candidate], having: Collection[int], avoid: Collection[int], size: int
) -> list[tuple[int, ...]]:
    """Every choice of `size` more nodes that has no host twice, and none of `having`."""
    locations = {one.node: one.location for one in candidates}
    pool = [one.node for one in candidates if one.usable and one.node not in {*having, *avoid}]
    return [
        choice
        for choice in itertools.combinations(pool, size)
        if all(
            host_of(one, locations[one]) != host_of(other, locations[other])
            for one in choice
            for other in {*choice, *having} - {one}
        )
    ]


@given(CANDIDATES, st.integers(1, 4), st.data())
def test_a_choice_is_what_brute_force_allows(
    candidates: list[Candidate], copies: int, data: st.DataObject
) -> None:
    numbers = [one.node for one in candidates]
    some = st.lists(st.sampled_from(numbers), unique=True) if numbers else st.just([])
    having = data.draw(some)[: copies - 1]
    avoid = data.draw(some)[:2]
    locations = {one.node: one.location for one in candidates}
    most = max(
        size for size in range(copies + 1) if size == 0 or allowed(candidates, having, avoid, size)
    )
    best = min(most, copies - len(having))
    needed = max(1, min(2, copies) - len(having))
    lot = random.Random(data.draw(st.integers(0, 9)))
    try:
        chosen = place(candidates, copies, lot, having=having, avoid=avoid)
    except FsError as error:
        assert best < needed
        roomy = [msgspec.structs.replace(one, full=False) for one in candidates]
        would_do = bool(allowed(roomy, having, avoid, needed))
        assert error.fault is (Fault.NO_SPACE if would_do else Fault.UNAVAILABLE), error
        return
    assert len(chosen) == best >= needed
    choices = allowed(candidates, having, avoid, best)
    assert tuple(sorted(chosen)) in choices
    able = [one.node for one in candidates if one.usable and one.node not in avoid]
    legal = [one for one in choices if are_spread({*one, *having}, locations, able)]
    if legal:  # whatever hosts those share that have it already
        assert are_spread({*chosen, *having}, locations, able)
    slow = {one.node for one in candidates if one.slow}
    fewest = min(len(slow & set(choice)) for choice in legal or choices)
    assert len(slow & set(chosen)) == fewest


@given(CANDIDATES, st.data())
def test_the_rule_in_words_and_the_rule_as_it_is_checked(
    candidates: list[Candidate], data: st.DataObject
) -> None:
    numbers = [one.node for one in candidates]
    replicas = data.draw(st.sets(st.sampled_from(numbers)) if numbers else st.just(set()))
    usable = [one.node for one in candidates if one.usable]
    locations = {one.node: one.location for one in candidates}
    assert (broken_rule(replicas, locations, usable) == "") == keeps_the_rule(
        replicas, locations, usable
    )


def test_usage_evens_out() -> None:
    """Seven nodes of two sizes: half of them are nearly full when the others join."""
    lot = random.Random(1)
    total = {1: 100, 2: 100, 3: 100, 4: 100, 5: 100, 6: 200, 7: 200}
    used = {1: 80, 2: 80, 3: 60, 4: 60, 5: 0, 6: 0, 7: 0}

    def spread() -> float:
        shares = [used[one] / total[one] for one in total]
        return max(shares) - min(shares)

    spreads = [spread()]
    first = 0
    for round in range(240):
        candidates = [
            msgspec.structs.replace(
                node(one, f"/r{one % 4}/h{one}", (total[one] - used[one]) * GIB),
                total_bytes=total[one] * GIB,
            )
            for one in total
        ]
        chosen = place(candidates, 2, lot)
        first += round < 30 and 7 in chosen
        for one in chosen:
            used[one] += 1
        if round % 80 == 79:
            spreads.append(spread())
    assert spreads == sorted(spreads, reverse=True), "it evens out more and more"
    assert spreads[-1] < spreads[0] / 2
    assert max(used[one] / total[one] for one in total) < 1, "they fill up together"
    assert 10 <= first < 30, "the emptiest gets much, and not everything"


def test_nodes_of_one_size_get_the_same() -> None:
    lot = random.Random(2)
    got = dict.fromkeys(range(1, 9), 0)
    candidates = [node(number, f"/r{number % 2}/h{number}") for number in got]
    for _ in range(2_000):
        for one in place(candidates, 3, lot):
            got[one] += 1
    assert min(got.values()) > 600  # of 750 that are expected
    assert max(got.values()) < 900


def test_what_is_open_counts_as_used_in_part() -> None:
    lot = random.Random(3)
    busy = msgspec.structs.replace(node(1, free=8 * GIB), writing=24)
    candidates = [busy, node(2, free=8 * GIB)]
    got = [place(candidates, 1, lot)[0] for _ in range(1_000)]
    assert 24 * OPEN_BYTES == 3 * 8 * GIB
    assert 150 < got.count(1) < 250  # a quarter as likely as the other


def test_with_one_rack_three_copies_are_in_it() -> None:
    assert set(place(nodes("/r1/a", "/r1/b", "/r1/c"), 3, random.Random(0))) == {1, 2, 3}


def test_the_second_rack_has_a_copy_even_if_it_is_slow_and_nearly_full() -> None:
    candidates = [*nodes("/r1/a", "/r1/b", "/r1/c"), node(4, "/r2/a", free=1, slow=True)]
    for seed in range(20):
        assert 4 in place(candidates, 3, random.Random(seed))


def test_another_copy_goes_to_the_rack_that_has_none() -> None:
    candidates = nodes("/r1/a", "/r1/b", "/r1/c", "/r2/a")
    for seed in range(20):
        assert place(candidates, 3, random.Random(seed), having=(1, 2)) == (4,)


def test_two_nodes_of_one_host_have_one_copy() -> None:
    chosen = place(nodes("/r1/a", "/r1/a", "/r1/b"), 3, random.Random(0))
    assert len(chosen) == 2
    assert 3 in chosen


def test_hosts_of_one_name_in_two_racks_are_two() -> None:
    assert len(place(nodes("/r1/host-1", "/r2/host-1"), 2, random.Random(0))) == 2
    assert host_of(1, "/r1/host-1/") == "r1/host-1"
    assert rack_of("/dc/r1/host-1") == "dc/r1"


def test_a_disk_that_is_too_small_for_the_copy_is_passed_over() -> None:
    candidates = [node(1), node(2, free=GIB), node(3, free=5 * GIB)]
    for seed in range(10):
        copies = place(candidates, 2, random.Random(seed), having=(1,), room_bytes=2 * GIB)
        assert copies == (3,)


@pytest.mark.parametrize(
    ("candidates", "fault", "words"),
    [
        ([], Fault.UNAVAILABLE, "of 0 nodes"),
        ([node(1)], Fault.UNAVAILABLE, "at least 2 more"),
        ([node(1), node(2, alive=False)], Fault.UNAVAILABLE, "1 not heard of (2)"),
        ([node(1), node(2, draining=True)], Fault.UNAVAILABLE, "1 draining (2)"),
        ([node(1), node(2, full=True)], Fault.NO_SPACE, "1 full (2): free space"),
        ([node(1, full=True), node(2, full=True)], Fault.NO_SPACE, "2 full (1, 2)"),
        ([node(1, "/a"), node(2, "/a")], Fault.UNAVAILABLE, "too few hosts"),
    ],
)
def test_a_refusal_names_what_is_missing(
    candidates: list[Candidate], fault: Fault, words: str
) -> None:
    with pytest.raises(FsError) as refused:
        place(candidates, 3, random.Random(0))
    assert refused.value.fault is fault
    assert words in str(refused.value)


def test_one_copy_where_one_is_wanted_needs_one_node() -> None:
    assert place([node(7)], 1, random.Random(0)) == (7,)


@pytest.mark.parametrize(
    ("replicas", "words"),
    [
        ({1, 2}, "all copies are in rack r1, and there is rack r2"),
        ({2, 3}, "nodes 2 and 3 are one host (r1/b)"),
        ({1, 4}, ""),
        ({1}, ""),
        ({9, 1}, ""),  # a node that is not known has a rack of its own: none
    ],
)
def test_a_broken_rule_is_said_in_words(replicas: set[int], words: str) -> None:
    locations = {1: "/r1/a", 2: "/r1/b", 3: "/r1/b", 4: "/r2/a"}
    assert broken_rule(replicas, locations, locations) == words


def test_a_rack_that_cannot_be_used_breaks_no_rule() -> None:
    assert broken_rule({1, 2}, {1: "/r1/a", 2: "/r1/b", 4: "/r2/a"}, usable=[1, 2]) == ""
