"""Reading TAP and judging it: the runner of outside suites finds every surprise, and no other."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from known import reason_to_skip
from outside import run
from suites import Case, Ended
from verdicts import Check, Result, Verdict, count, judge, read_exclusions, read_tap, stale_cases

LINES = st.sampled_from(
    ["1..3", "1..0 # SKIP x", "ok 1", "not ok 2 - why", "ok", "not ok", "ok 9 # TODO", "noise", ""]
)


def results(output: str) -> dict[int, str]:
    return {number: result.value for number, result, _ in read_tap(output)}


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("1..2\nok 1\nok 2\n", {1: "passed", 2: "passed"}),
        ("ok 1\nok 2\n1..2\n", {1: "passed", 2: "passed"}),
        ("1..2\nok\nnot ok\n", {1: "passed", 2: "failed"}),
        ("1..2\nok 2\nnot ok 1 - tried, got\n", {1: "failed", 2: "passed"}),
        ("1..1\nnot ok 1 # TODO later\n", {1: "todo"}),
        ("1..1\nok 1 # TODO later\n", {1: "passed"}),
        ("1..1\nok 1 - name # skip no root\n", {1: "skipped"}),
        ("1..1\nnot ok 1 - got #TODOS\n", {1: "todo"}),
        ("1..1\nnoise\n# ok 7\nok 1\n", {1: "passed"}),
        ("1..0 # SKIP other system\n", {0: "skipped"}),
        ("1..2\nok 1\n", {1: "passed", 2: "failed"}),
        ("1..1\nok 1\nok 2\n", {0: "failed", 1: "passed", 2: "passed"}),
        ("1..1\nok 1\nok 1\n", {0: "failed", 1: "passed"}),
        ("1..1\nok 1\nnot ok 1\n", {0: "failed", 1: "failed"}),
        ("1..1\nok 1\n1..1\n", {0: "failed", 1: "passed"}),
        ("ok 1\n", {0: "failed", 1: "passed"}),
        ("", {0: "failed"}),
        ("1..2\nok 1\nBail out! no disk\n", {0: "failed", 1: "passed", 2: "failed"}),
        ("1..999999999\n", {0: "failed"}),
    ],
)
def test_tap_is_read_and_every_break_of_it_is_a_failure(
    output: str, expected: dict[int, str]
) -> None:
    assert results(output) == expected


@given(st.lists(LINES))
def test_no_output_reads_as_all_well_unless_the_plan_was_kept(lines: list[str]) -> None:
    checks = read_tap("\n".join(lines))
    failed = [check for check in checks if check.result is Result.FAILED]
    plans = [line for line in lines if line.startswith("1..")]
    if len(plans) != 1 or any(line.startswith("not ok") for line in lines):
        assert failed
    assert [check.number for check in checks] == sorted({check.number for check in checks})


def test_exclusions_are_lines_with_a_reason() -> None:
    text = "# comment\n\nrename/00.t 7  the kernel's own answer\nopen/1.t *  not for us\n"
    assert read_exclusions(text) == {
        "rename/00.t": {7: "the kernel's own answer"},
        "open/1.t": {-1: "not for us"},
    }


@pytest.mark.parametrize("line", ["a.t 1", "a.t", "a.t one reason", "a.t 1 x\na.t 1 y"])
def test_an_exclusion_without_reason_or_number_or_said_twice_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="line"):
        read_exclusions(line)


@pytest.mark.parametrize(
    ("known", "got", "verdicts"),
    [
        ({}, {1: "PASSED"}, ["PASSED"]),
        ({}, {1: "FAILED"}, ["FAILED"]),
        ({1: "why"}, {1: "FAILED"}, ["EXCLUDED"]),
        ({1: "why"}, {1: "PASSED"}, ["UNEXPECTED_PASS"]),
        ({1: "why"}, {1: "SKIPPED"}, ["SKIPPED"]),
        ({1: "why"}, {1: "FAILED", 2: "FAILED"}, ["EXCLUDED", "FAILED"]),
        ({7: "why"}, {1: "PASSED"}, ["PASSED", "STALE"]),
        ({-1: "why"}, {1: "FAILED", 2: "PASSED"}, ["EXCLUDED", "PASSED"]),
        ({-1: "why"}, {1: "PASSED"}, ["PASSED", "UNEXPECTED_PASS"]),
        ({0: "plan"}, {0: "FAILED", 1: "PASSED"}, ["EXCLUDED", "PASSED"]),
        ({0: "plan"}, {1: "PASSED"}, ["PASSED", "UNEXPECTED_PASS"]),
    ],
)
def test_an_exclusion_holds_or_is_a_surprise(
    known: dict[int, str], got: dict[int, str], verdicts: list[str]
) -> None:
    checks = [Check(number, Result[result]) for number, result in got.items()]
    findings = judge("a.t", checks, {"a.t": known})
    assert [finding.verdict.name for finding in findings] == verdicts
    assert sum(count(findings).values()) == len(findings)


def test_an_exclusion_of_a_case_that_is_gone_is_stale() -> None:
    findings = stale_cases(["a.t"], {"a.t": {1: "x"}, "b.t": {1: "y"}})
    assert [(finding.case, finding.verdict) for finding in findings] == [("b.t", Verdict.STALE)]


def read_status(ended: Ended) -> list[Check]:
    return [Check(1, Result.PASSED if ended.status == 0 else Result.FAILED, ended.output)]


def test_a_case_runs_in_a_fresh_directory_that_is_removed(tmp_path: Path) -> None:
    script = 'test "$PWD" = "$HERE" && test -z "$(ls)" && touch left && mkdir -p a/b && echo done'
    case = Case("case", ("sh", "-c", script), read_status, 10, {"HERE": "{scratch}"})
    assert run(case, tmp_path) == [Check(1, Result.PASSED, "done\n")]
    assert list(tmp_path.iterdir()) == []


def test_a_case_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    script = f"(while :; do date +%N > {beat}; sleep 0.05; done) & wait"
    started = time.monotonic()
    checks = run(Case("case", ("sh", "-c", script), read_status, 0.3), tmp_path)
    assert [(check.number, check.result) for check in checks] == [(0, Result.FAILED)]
    assert time.monotonic() - started < 5
    last = beat.read_text()
    time.sleep(0.2)
    assert beat.read_text() == last


@pytest.mark.parametrize(
    ("binding", "test_id", "skipped"),
    [
        ("pyfuse3", "test_setuid.py::test_what_is_made_in_it[tmpfile]", True),
        ("pyfuse3", "test_setuid.py::test_what_is_made_in_it[file]", False),
        ("pyfuse3", "test_tmpfile.py::test_it_must_be_writable", True),
        ("native", "test_tmpfile.py::test_it_must_be_writable", False),
    ],
)
def test_only_what_is_known_of_a_binding_is_skipped(
    binding: str, test_id: str, skipped: bool
) -> None:
    assert bool(reason_to_skip(binding, test_id)) == skipped
