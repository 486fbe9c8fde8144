"""`mountfs sim`: what it says of a seed, and that a failure can be seen again."""

import json
import re
import shlex
from collections.abc import Callable

import pytest

from mountfs.meta.retry import Session
from mountfs.sim.scenario import KINDS
from mountfs.sim.shrink import Failure, attempt, shrink

Run = Callable[..., tuple[int, str, str]]
SHORT = ("--seconds", "3")


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients say too early that they have the replies to earlier commands."""
    begin = Session.begin

    def began(self: Session) -> tuple[int, int]:
        sequence, _ = begin(self)
        return sequence, sequence

    monkeypatch.setattr(Session, "begin", began)


FAILS = ("--kind", "files", "--seed", "0")


def test_one_seed_is_one_line(run: Run) -> None:
    status, out, _ = run("sim", "--seed", "3", *SHORT)
    assert status == 0
    assert out.startswith("seed 3 (")
    assert "all promises were kept" in out
    assert len(out.splitlines()) == 1


def test_the_same_seed_says_the_same(run: Run) -> None:
    assert run("sim", "--seed", "3", *SHORT) == run("sim", "--seed", "3", *SHORT)


def test_several_seeds_are_summed_up(run: Run) -> None:
    status, out, _ = run("sim", "--seeds", "0-3", "--kind", "votes", *SHORT)
    assert status == 0
    assert out.startswith("4 seeds: ")
    assert "all promises were kept" in out


def test_several_at_a_time_are_the_same_runs(run: Run) -> None:
    alone = run("sim", "--seeds", "0-3", "--json", *SHORT)
    assert run("sim", "--seeds", "0-3", "--json", "--jobs", "2", *SHORT) == alone


def test_json_is_a_line_for_each_seed(run: Run) -> None:
    status, out, _ = run("sim", "--seeds", "4-6", "--json", *SHORT)
    found = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [one["seed"] for one in found] == [4, 5, 6]
    assert not any(one["failed"] for one in found)
    assert {one["kind"] for one in found} <= set(KINDS)


@pytest.mark.usefixtures("broken")
def test_a_seed_that_fails_says_which_rule_was_broken_and_how_to_see_it_again(run: Run) -> None:
    status, out, _ = run("sim", *FAILS)
    assert status == 1
    assert "broken: nothing acknowledged is lost" in out
    command = next(line for line in out.splitlines() if "again: " in line).partition("again: ")[2]
    status, again, _ = run(*shlex.split(command)[1:], "--no-shrink")
    assert status == 1
    assert again == out


@pytest.mark.usefixtures("broken")
def test_a_failing_run_is_made_shorter(run: Run) -> None:
    whole = attempt(5, "disks", 20)
    assert isinstance(whole, Failure)
    shortest = shrink(whole, tries_max=30)
    assert shortest.rule == whole.rule
    assert shortest.seconds < whole.seconds
    assert len(shortest.faults) <= len(whole.faults)


@pytest.mark.usefixtures("broken")
def test_a_failure_in_json_has_its_command(run: Run) -> None:
    status, out, _ = run("sim", *FAILS, "--json", "--no-shrink")
    found = json.loads(out)
    assert status == 1
    assert found["failed"]
    assert found["rule"] == "nothing acknowledged is lost"
    assert found["command"].startswith("mountfs sim --seed 0 --kind files")


def test_a_trace_has_what_happened_and_how_it_ended(run: Run) -> None:
    status, out, _ = run("sim", "--seed", "3", "--kind", "leaders", "--trace", *SHORT)
    assert status == 0
    assert "Vote(" in out
    assert re.search(r"^ +[0-9.]+ fault \d+: ", out, re.MULTILINE)
    assert "all promises were kept" in out.splitlines()[-1]


def test_a_fault_that_is_left_out_does_not_happen(run: Run) -> None:
    one = ("sim", "--seed", "3", "--kind", "leaders", "--trace", *SHORT)
    first = re.search(r"fault (\d+): ", run(*one)[1])
    assert first is not None
    assert f"fault {first[1]}: " not in run(*one, "--without", first[1])[1]


@pytest.mark.parametrize(
    "wrong",
    [
        ["--seeds", "9-3"],
        ["--seeds", "all"],
        ["--seed", "1", "--seeds", "1-2"],
        ["--kind", "storms"],
        ["--without", "crash"],
        ["--seconds", "0"],
        ["--seeds", "1-2", "--trace"],
    ],
)
def test_a_wrong_call_is_refused(wrong: list[str], run: Run) -> None:
    assert run("sim", *wrong)[0] == 2
