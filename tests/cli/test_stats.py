"""Rates are differences of counters."""

import pytest

from mountfs.cli.stats import Hedging, Sample, lines, rates


def sample(
    at: float,
    cpu_s: float = 0.0,
    caches: tuple[int, int, int, int] = (0, 0, 0, 0),
    **operations: tuple[int, int, int],
) -> Sample:
    """Operations as (calls, errors, nanoseconds in all)."""
    counts = {
        name: {"calls": calls, "errors": errors, "total_ns": total, "slowest_ns": 9_000}
        for name, (calls, errors, total) in operations.items()
    }
    names = ("rows", "rows_stored", "reads", "reads_waited")
    return Sample(
        at,
        {
            "operations": counts,
            "dirty_bytes": 4096,
            "unwritten_files": 1,
            "cpu_s": cpu_s,
            "caches": dict(zip(names, caches, strict=True)),
        },
    )


def test_rates_are_per_second_of_the_interval() -> None:
    one = rates(
        sample(10.0, 1.0, read=(100, 1, 1_000_000)),
        sample(12.0, 1.5, read=(300, 5, 3_000_000), write=(10, 0, 50_000)),
    )
    read, write = one.operations
    assert (read.operation, read.per_s, read.mean_ns, read.errors_per_s) == ("read", 100, 10_000, 2)
    assert (write.operation, write.per_s, write.mean_ns) == ("write", 5, 5_000)
    assert one.per_s == 105
    assert one.cpu_percent == pytest.approx(25)
    assert one.dirty_bytes == 4096


def test_what_did_not_happen_is_not_listed() -> None:
    assert rates(sample(1.0, read=(5, 0, 5)), sample(2.0, read=(5, 0, 5))).operations == []


def test_a_daemon_that_was_started_anew_counts_from_zero() -> None:
    one = rates(sample(1.0, 50.0, read=(1000, 0, 9)), sample(2.0, 0.5, read=(10, 0, 100)))
    assert one.operations[0].per_s == 10
    assert one.cpu_percent == 0


def test_an_interval_as_lines() -> None:
    head, read = lines(rates(sample(0.0), sample(1.0, 0.1, read=(3, 0, 30_000))))
    assert head.startswith("3 operations/s, CPU 10 %")
    assert read.split()[:4] == ["read", "3/s", "mean", "10"]


def test_hits_are_those_of_the_interval() -> None:
    one = rates(sample(1.0, caches=(100, 100, 7, 7)), sample(2.0, caches=(200, 110, 7, 7)))
    assert one.rows_from_memory_percent == pytest.approx(90)
    assert one.reads_at_once_percent is None
    assert next(lines(one)).endswith("from memory: 90 % of rows, - of reads")


def test_hits_of_a_daemon_that_was_started_anew() -> None:
    one = rates(sample(1.0, caches=(100, 0, 50, 0)), sample(2.0, caches=(10, 5, 4, 4)))
    assert one.rows_from_memory_percent == pytest.approx(50)
    assert one.reads_at_once_percent == 0


def of_cluster(at: float, count: int) -> Sample:
    found = sample(at)
    names = ("reads", "hedges", "hedges_won", "cancelled", "denied", "failovers")
    hedging = {name: count * number for number, name in enumerate(names, 1)}
    found.stats["caches"] |= {"rewrites": count * 7, "hedging": {**hedging, "nodes": {}}}
    return found


def test_what_the_mount_of_a_cluster_asks_of_nodes() -> None:
    one = rates(of_cluster(1.0, 10), of_cluster(2.0, 12))
    assert one.hedging == Hedging(2, 4, 6, 8, 10, 12, 14)
    said = "\n".join(lines(one))
    assert "hedges 4 sent, 6 won, 8 cancelled, 10 denied; 12 failed over; 14 rewritten" in said
    anew = rates(of_cluster(1.0, 10), of_cluster(2.0, 1))
    assert anew.hedging == Hedging(1, 2, 3, 4, 5, 6, 7)
    assert rates(sample(1.0), sample(2.0)).hedging is None
    assert "hedges" not in "".join(lines(rates(sample(1.0), sample(2.0))))
