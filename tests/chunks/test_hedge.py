"""To whom a read goes, to whom it goes as well, and what is learned from it."""

import dataclasses
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mountfs.chunks.config import HedgeConfig
from mountfs.chunks.health import OVERWHELMED, RECOVERED
from mountfs.chunks.hedge import SMALL_BYTES, Hedges, Read
from mountfs.types import KIB, MIB

CONFIG = HedgeConfig(floor_ms=2, ceiling_ms=500, extra_share=0.05, burst=20, fade_ms=1e9)
SMALL = 4 * KIB
LARGE = MIB
NODES = (1, 2, 3)
USUAL_MS = 4.0
LONG_MS = 1_000.0


def hedges(**how: Any) -> Hedges:
    return Hedges(dataclasses.replace(CONFIG, **how))


def begin(
    found: Hedges,
    now: float,
    *,
    nodes: tuple[int, ...] = NODES,
    size: int = SMALL,
    near: dict[int, int] | None = None,
) -> Read:
    return found.read(nodes, size, near or {}, now)


def teach(found: Hedges, node: int, ms: float, size: int = SMALL, reads: int = 100) -> None:
    """Only this node has the bytes, and it takes so long."""
    for now in range(reads):
        begin(found, now, nodes=(node,), size=size).answered(node, now + ms)


def taught(**how: Any) -> Hedges:
    found = hedges(**how)
    for node in NODES:
        teach(found, node, USUAL_MS)
    return found


def due(read: Read) -> float:
    assert read.due is not None
    return read.due


def hedge(read: Read) -> int | None:
    """At the time when it is due."""
    return read.hedge(due(read))


def lose(found: Hedges, times: int, now: float = 0) -> float:
    """Reads that go to 1, which does not answer them, while 2 does.  Returns when they are over."""
    for _ in range(times):
        found.tokens = CONFIG.burst
        read = begin(found, now, nodes=(1, 2))
        assert (read.first, hedge(read)) == (1, 2)
        now += 100
        assert read.answered(2, now - 90) == [1]
    return now


def test_a_read_goes_to_the_first_and_is_over_when_that_answers() -> None:
    found = taught()
    read = begin(found, 0)
    assert read.first == 1
    assert read.under_way == [1]
    assert read.answered(1, 1) == []
    assert read.over
    assert read.due is None
    assert read.under_way == []
    assert found.hedges == 0


def test_the_nearest_is_the_first_and_those_equally_near_keep_their_order() -> None:
    found = taught()
    assert begin(found, 0, nodes=(3, 1, 2)).first == 3
    assert begin(found, 0, near={2: 1, 3: 1}).first == 2
    assert begin(found, 0, near={2: 1, 3: 0}).first == 3
    assert found.order(NODES, SMALL, {2: 1, 3: 0}, 0) == [3, 2, 1]


def test_after_the_95th_percentile_another_one_is_asked_and_the_first_answer_wins() -> None:
    found = taught()
    read = begin(found, 1_000)
    assert USUAL_MS <= due(read) - 1_000 <= 1.2 * USUAL_MS
    assert read.hedge(due(read) - 0.1) is None
    assert hedge(read) == 2
    assert read.under_way == [1, 2]
    assert read.answered(2, 1_008) == [1]
    assert (found.hedges, found.won, found.cancelled) == (1, 1, 1)


def test_a_hedge_that_was_in_vain_is_cancelled_as_well() -> None:
    found = taught()
    read = begin(found, 0)
    assert hedge(read) == 2
    assert read.answered(1, 6) == [2]
    assert (found.hedges, found.won, found.cancelled) == (1, 0, 1)


def test_when_two_do_not_answer_a_third_is_asked_and_then_nobody() -> None:
    found = taught()
    read = begin(found, 0)
    assert hedge(read) == 2
    assert hedge(read) == 3
    assert read.due is None
    assert read.hedge(1e6) is None
    assert sorted(read.answered(3, 20)) == [1, 2]


def test_each_waits_as_long_as_it_usually_takes_within_the_limits() -> None:
    found = hedges()
    for node, ms in ((1, 0.1), (2, 20), (3, 5_000)):
        teach(found, node, ms)
    waits = [due(begin(found, 0, nodes=(node, 9))) for node in NODES]
    assert waits[0] == CONFIG.floor_ms
    assert 20 <= waits[1] <= 24
    assert waits[2] == CONFIG.ceiling_ms


def test_of_who_was_never_asked_a_middling_time_is_expected() -> None:
    assert 10 < due(begin(hedges(), 0)) < 100


def test_a_slice_with_one_copy_is_never_hedged_and_nor_is_any_if_that_is_off() -> None:
    assert begin(taught(), 0, nodes=(1,)).due is None
    read = begin(taught(enabled=False), 0)
    assert read.due is None
    assert read.failed(1, 1) == 2


def test_who_mostly_hangs_is_not_waited_for_as_long_as_it_hangs() -> None:
    """A tenth of its reads take 300 ms: so says its 95th percentile."""
    found = hedges()
    for _ in range(15):
        teach(found, 1, 1, reads=9)
        teach(found, 1, 300, reads=1)
    read = begin(found, 0, nodes=(1, 2))
    assert due(read) < 10
    assert hedge(read) == 2


def test_the_less_is_left_the_longer_is_waited_before_it_is_spent() -> None:
    found = taught()
    waits = []
    for tokens in (20, 10, 5, 0):
        found.tokens = tokens - CONFIG.extra_share  # which the read brings
        read = begin(found, 0)
        waits.append(due(read) / USUAL_MS)
        read.answered(1, 1)
    assert waits[0] == waits[1]
    assert waits[2] == pytest.approx(1.5 * waits[0])
    assert waits[3] == pytest.approx(2 * waits[0])


def test_when_one_fails_the_next_is_asked_at_once_and_it_is_no_extra_read() -> None:
    found = taught()
    found.tokens = 0
    read = begin(found, 0)
    assert read.failed(1, 0.5) == 2
    assert read.failed(2, 0.6) == 3
    assert read.under_way == [3]
    assert read.failed(3, 0.7) is None
    assert read.over
    assert read.under_way == []
    assert (found.failovers, found.hedges) == (2, 0)


def test_when_one_fails_that_was_hedged_the_other_is_waited_for() -> None:
    found = taught()
    read = begin(found, 0)
    assert hedge(read) == 2
    assert read.failed(1, 5) is None
    assert not read.over
    assert read.under_way == [2]
    assert hedge(read) == 3, "it may be hedged again"
    assert read.answered(3, 12) == [2]
    assert found.won == 1


def test_what_is_answered_after_a_fail_over_is_no_hedge_that_won() -> None:
    found = taught()
    read = begin(found, 0)
    read.failed(1, 1)
    assert read.answered(2, 2) == []
    assert (found.won, found.cancelled) == (0, 0)


def test_what_comes_when_a_read_is_over_changes_nothing() -> None:
    found = taught()
    read = begin(found, 0)
    hedge(read)
    read.answered(2, 8)
    before = found.told()
    assert read.answered(1, 8) == []
    assert read.failed(1, 9) is None
    assert read.given_up(9) == []
    assert read.hedge(1e6) is None
    assert found.told() == before


def test_a_read_that_is_given_up_teaches_only_that_it_took_so_long() -> None:
    found = taught()
    before = found.told()["nodes"][1]["small"]["p50_ms"]
    for _ in range(64):
        read = begin(found, 0)
        assert read.given_up(0.1) == [1]
        assert read.over
    after = found.told()["nodes"][1]
    assert after["small"]["p50_ms"] == before, "it does not look quicker"
    assert after["small"]["under_way"] == 0
    assert not after["on_probation"]


def test_nobody_is_hedged_when_the_bucket_is_empty_and_soon_when_it_is_not() -> None:
    found = taught(burst=2)
    for _ in range(2):
        read = begin(found, 0)
        assert hedge(read) == 2
        read.answered(1, 8)
    read = begin(found, 0)
    assert [hedge(read), hedge(read)] == [None, None]
    assert found.denied == 1, "the same read counts once"
    for _ in range(20):  # each of them gives a part
        begin(found, 50, nodes=(9,)).answered(9, 50)
    assert hedge(read) == 2


def test_a_denied_read_asks_again_less_and_less_often() -> None:
    found = taught(extra_share=0)
    found.tokens = 0
    read = begin(found, 0)
    at = [due(read)]
    for _ in range(20):
        assert hedge(read) is None
        at.append(due(read))
    waits = [later - earlier for earlier, later in pairwise(at)]
    for shorter, longer in pairwise(waits):
        assert longer == pytest.approx(min(2 * shorter, CONFIG.ceiling_ms))
    assert waits[-1] == pytest.approx(CONFIG.ceiling_ms)


def test_it_is_not_the_servers_fault_if_we_have_slept() -> None:
    """The answer may be here already: it is looked for before another server is asked."""
    found = taught()
    read = begin(found, 0)
    assert read.hedge(LONG_MS) is None
    assert LONG_MS < due(read) <= LONG_MS + CONFIG.floor_ms
    assert read.hedge(2 * LONG_MS) == 2, "but only once"


def test_a_slow_server_is_asked_after_the_others_however_near_it_is() -> None:
    found = taught()
    teach(found, 1, 50, reads=300)
    found.tokens = 0  # nobody is tried
    assert begin(found, 0, near={1: 0}).first == 2
    assert found.order(NODES, SMALL, {1: 0}, 0) == [2, 3, 1]


def test_of_slow_servers_the_quicker_is_asked_first() -> None:
    found = hedges()
    for node, ms in ((1, 80), (2, 40), (3, 4)):
        teach(found, node, ms)
    assert found.order(NODES, SMALL, {1: 0}, 0) == [3, 2, 1]


def test_a_small_difference_does_not_matter() -> None:
    found = taught()
    teach(found, 1, 2 * USUAL_MS, reads=300)
    assert begin(found, 0).first == 1
    found = hedges()
    for node, ms in ((1, 1.2), (2, 0.1), (3, 0.1)):
        teach(found, node, ms)
    assert begin(found, 0).first == 1


def test_who_is_slow_with_large_reads_is_still_asked_for_small_ones() -> None:
    found = taught()
    for node, ms in ((1, 400), (2, 20), (3, 20)):
        teach(found, node, ms, LARGE)
    found.tokens = 0
    assert begin(found, 0).first == 1
    assert begin(found, 0, size=SMALL_BYTES).first == 1
    assert begin(found, 0, size=SMALL_BYTES + 1).first == 2


def test_a_slow_server_is_tried_now_and_then_and_comes_back_when_it_is_quick() -> None:
    found = taught()
    teach(found, 1, 50, reads=300)
    now = 0.0
    tried: list[float] = []
    while len(tried) < RECOVERED:
        read = begin(found, now)
        if read.first == 1:
            tried.append(now)
        read.answered(read.first, now + USUAL_MS)
        now += 100
    assert tried == [0, 1_000, 2_000]
    assert begin(found, now).first == 1


def test_a_server_that_is_tried_and_still_slow_does_not_come_back() -> None:
    found = taught()
    teach(found, 1, 50, reads=300)
    for now in range(0, 20_000, 100):
        read = begin(found, now)
        assert (read.first == 1) == (now % 1_000 == 0)
        read.answered(read.first, now + (50 if read.first == 1 else USUAL_MS))


def test_nobody_is_tried_when_there_is_little_left_to_help_with() -> None:
    found = taught()
    teach(found, 1, 50, reads=300)
    found.tokens = CONFIG.burst / 4
    assert begin(found, 0).first == 2


def test_a_server_that_says_nothing_is_not_asked_more() -> None:
    """Without any extra read."""
    found = taught(enabled=False)
    waiting = [begin(found, 0) for _ in range(3)]
    assert [read.first for read in waiting] == [1, 1, 1]
    assert begin(found, 100).first == 2
    waiting[0].answered(1, 101)
    assert begin(found, 102).first == 1, "it has said something"


def test_a_server_that_nothing_was_asked_of_is_not_silent() -> None:
    found = taught()
    begin(found, 0).answered(1, 1)
    assert begin(found, LONG_MS).first == 1


def test_of_a_server_that_has_never_answered_one_read_is_asked_at_first() -> None:
    found = hedges()
    for node in (2, 3):
        teach(found, node, USUAL_MS)
    first = begin(found, 0)
    assert first.first == 1
    assert [begin(found, 0).first for _ in range(3)] == [2, 2, 2]
    first.answered(1, 4)
    assert [begin(found, 5).first for _ in range(3)] == [1, 1, 1]


def test_a_busy_server_is_relieved_by_others() -> None:
    found = taught()
    firsts = [begin(found, 0).first for _ in range(60)]
    assert firsts[:16] == [1] * 16
    assert set(firsts) == {1, 2, 3}


def test_a_server_that_keeps_losing_is_put_on_probation() -> None:
    found = taught()
    now = lose(found, 6)
    assert found.told()["probations"] == 1
    assert found.told()["nodes"][1]["on_probation"]
    assert begin(found, now).first == 2
    assert found.order(NODES, SMALL, {1: 0}, now) == [2, 3, 1]


def test_a_server_that_loses_now_and_then_is_not() -> None:
    found = taught()
    now = 0.0
    for _ in range(200):
        now = lose(found, 1, now)
        for _ in range(9):
            begin(found, now).answered(1, now + USUAL_MS)
    assert found.told()["probations"] == 0


def test_a_server_that_keeps_failing_is_put_on_probation_though_nobody_knows_how_slow_it_is() -> (
    None
):
    found = hedges()
    for now in range(6):
        read = begin(found, now, nodes=(1, 2))
        assert read.failed(1, now) == 2
        read.answered(2, now + 1)
    assert begin(found, 10).first == 2
    assert begin(found, 1_010).first == 1, "it is tried as well"


def test_who_wins_because_it_was_asked_first_has_beaten_nobody() -> None:
    found = taught()
    for now in range(0, 10_000, 100):
        found.tokens = CONFIG.burst
        read = begin(found, now)
        assert hedge(read) == 2
        read.answered(1, now + 10)
    assert found.told()["probations"] == 0


def test_a_server_on_probation_is_tried_once_a_second_and_comes_back_when_it_is_well() -> None:
    found = taught()
    now = start = lose(found, 6)
    tried = []
    while found.told()["nodes"][1]["on_probation"]:
        read = begin(found, now)
        if read.first == 1:
            tried.append(now)
        read.answered(read.first, now + USUAL_MS)
        now += 100
        assert now < start + 10_000
    assert len(tried) == RECOVERED
    assert all(later - earlier >= 1_000 for earlier, later in pairwise(tried))
    assert begin(found, now).first == 1


def test_a_server_on_probation_that_is_still_bad_is_not_back_and_its_readers_are_hedged() -> None:
    found = taught()
    start = int(lose(found, 6))
    tried = 0
    for now in range(start, start + 20_000, 100):
        read = begin(found, now)
        if read.first == 1:
            tried += 1
            assert hedge(read) == 2
            read.answered(2, now + 10)
        else:
            read.answered(2, now + USUAL_MS)
    assert found.told()["nodes"][1]["on_probation"]
    assert 15 <= tried <= 20
    assert found.told()["nodes"][2]["small"]["samples"] > 50, "of who helped nothing is forgotten"


@pytest.mark.parametrize("bad", ["slow", "lost"])
def test_only_good_answers_in_a_row_end_a_probation(bad: str) -> None:
    found = taught()
    now = lose(found, 6)

    def answer(ms: float) -> None:
        nonlocal now
        now += 2_000
        read = begin(found, now, nodes=(1, 2))
        assert read.first == 1
        read.answered(1, now + ms)

    for _ in range(4):
        for _ in range(RECOVERED - 1):
            answer(USUAL_MS)
        if bad == "slow":
            answer(60)
        else:
            now = lose(found, 1, now + 2_000)
    assert found.told()["nodes"][1]["on_probation"]
    for _ in range(RECOVERED):
        answer(USUAL_MS)
    assert not found.told()["nodes"][1]["on_probation"]


def test_nobody_is_measured_by_a_server_on_probation() -> None:
    found = hedges()
    for node, ms in ((1, 0.1), (2, 4), (3, 5)):
        teach(found, node, ms)
    for now in range(6):
        read = begin(found, now, nodes=(1, 2))
        read.failed(1, now)
        read.answered(2, now + 4)
    read = begin(found, 10, near={3: 0})
    assert read.first == 3, "5 ms are not slow"
    assert due(read) - 10 >= 5, "and it has its time"
    assert found.order(NODES, SMALL, {3: 0}, 10) == [3, 2, 1]


def test_no_hedge_goes_to_a_server_on_probation_but_to_try_it() -> None:
    found = taught()
    now = lose(found, 6)
    read = begin(found, now, nodes=(2, 1))
    assert read.first == 2
    assert hedge(read) is None
    assert read.failed(2, now + 20) == 1, "when nobody else is left it is asked"
    read.given_up(now + 30)

    found.tokens = CONFIG.burst / 4  # not enough to try it first
    read = begin(found, now + 2_000, nodes=(2, 1))
    assert read.first == 2
    assert hedge(read) == 1


def test_when_all_are_on_probation_they_are_asked_all_the_same() -> None:
    found = taught()
    for now in range(20):
        read = begin(found, now)
        for _ in NODES:
            read.failed(read.under_way[0], now)
        assert read.over
    assert found.told()["probations"] == 3
    assert begin(found, 30).first == 1


def test_an_overwhelmed_server_is_no_better_than_one_on_probation() -> None:
    """Else all that is read would wait for it, and nobody would find out that the other is well."""
    found = taught()
    now = lose(found, 6)
    found.tokens = 0
    firsts = [begin(found, now, nodes=(1, 2)).first for _ in range(OVERWHELMED + 20)]
    assert firsts.count(1) == 1
    assert firsts[: OVERWHELMED + 1] == [2] * (OVERWHELMED + 1)


def test_what_is_told_names_each_server_with_its_latencies() -> None:
    found = hedges()
    for node, ms in ((1, 1), (2, 10)):
        teach(found, node, ms)
    told = found.told()
    assert told["reads"] == 200
    assert list(told["nodes"]) == [1, 2]
    assert 10 <= told["nodes"][2]["small"]["p95_ms"] < 12
    assert told["nodes"][2]["small"]["samples"] == 100
    assert told["nodes"][2]["large"] is None
    assert told["nodes"][2]["on_probation"] is False


Step = tuple[str, int, float]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "hedge", "hedge", "answered", "failed", "given up"]),
        st.integers(0, 1_000),
        st.sampled_from([0.0, 0.1, 1.0, 3.0, 10.0, 40.0, 700.0, 20_000.0]),
    ),
    max_size=150,
)


@settings(max_examples=150)
@given(STEPS, st.sampled_from([0.0, 0.05, 0.5]), st.sampled_from([2.0, 5.0, 20.0]))
def test_whatever_happens(steps: list[Step], extra_share: float, burst: float) -> None:
    """Extra reads keep to their bounds, nobody is asked twice, and every read ends."""
    found = hedges(extra_share=extra_share, burst=burst, fade_ms=5_000)
    open_reads: dict[int, tuple[Read, list[int]]] = {}
    names = count()
    now = 0.0

    def end(name: int) -> None:
        read, _ = open_reads.pop(name)
        assert read.over
        assert read.due is None
        assert read.under_way == []

    for what, choice, later in steps:
        now += later
        if what == "begin":
            nodes = [(1,), (1, 2), (1, 2, 3), (3, 1, 2), (4, 2, 3, 1)][choice % 5]
            size = SMALL if choice % 3 else LARGE
            read = begin(found, now, nodes=nodes, size=size, near={choice % 4: choice % 2})
            assert read.first in nodes
            assert read.due is None or read.due > now
            open_reads[next(names)] = (read, [read.first])
        elif open_reads:
            name = list(open_reads)[choice % len(open_reads)]
            read, asked = open_reads[name]
            under_way = read.under_way
            assert under_way, "a read that is not over waits for somebody"
            assert set(under_way) <= set(asked)
            node = under_way[choice % len(under_way)]
            another = None
            if what == "hedge" and read.due is not None:
                now = max(now, read.due)
                another = read.hedge(now)
                assert read.due is None or read.due > now
            elif what == "answered":
                assert read.answered(node, now) == [each for each in under_way if each != node]
                end(name)
            elif what == "failed":
                another = read.failed(node, now)
                if another is not None:
                    assert len(under_way) == 1
                elif len(under_way) == 1:
                    end(name)
            elif what == "given up":
                assert read.given_up(now) == under_way
                end(name)
            if another is not None:
                assert another not in asked
                asked.append(another)
        assert 0 <= found.tokens <= burst
        assert found.hedges <= extra_share * found.reads + burst + 1e-6
        assert found.won <= found.hedges
    for name in list(open_reads):
        open_reads[name][0].given_up(now)
        end(name)
    for told in found.told()["nodes"].values():
        for kind in ("small", "large"):
            assert told[kind] is None or told[kind]["under_way"] == 0


def test_a_configuration_that_makes_no_sense_is_refused() -> None:
    for wrong in ({"floor_ms": 0}, {"ceiling_ms": 1}, {"extra_share": 2}, {"burst": 0}):
        with pytest.raises(AssertionError):
            hedges(**wrong)
