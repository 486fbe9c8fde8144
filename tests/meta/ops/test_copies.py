"""How many copies files are to have, and who inherits that."""

from typing import Any

import pytest

from mountfs.errors import Fault, FsError
from mountfs.meta.ops.copies import GetCopies, SetCopies
from mountfs.types import ROOT, Ino


def test_what_is_made_in_a_directory_inherits_it(machine: Any) -> None:
    machine.make("before", "d/", "d/old")
    machine.do(SetCopies(machine.ino("d"), 2))
    machine.make("d/new", "d/sub/", "d/sub/deep")
    copies = {path: machine.ask(GetCopies(machine.ino(path))) for path in machine.paths()}
    assert copies == {
        "before": 0, "d/": 2, "d/old": 0, "d/new": 2, "d/sub/": 2, "d/sub/deep": 2,
    }  # fmt: skip


def test_it_can_be_changed_and_taken_back(machine: Any) -> None:
    for copies in (8, 1, 0):
        machine.do(SetCopies(ROOT, copies))
        assert machine.ask(GetCopies(ROOT)) == copies
    machine.make("a")
    assert machine.ask(GetCopies(machine.ino("a"))) == 0
    assert machine.state.tree.counters.own_copies


def test_nobody_has_to_look_before_somebody_has_said_something(machine: Any) -> None:
    machine.do(SetCopies(ROOT, 0))
    assert not machine.state.tree.counters.own_copies


def test_what_makes_no_sense_is_refused(machine: Any, fails: Any) -> None:
    for copies in (-1, 9):
        with pytest.raises(FsError) as caught:
            SetCopies(ROOT, copies).check()
        assert caught.value.fault is Fault.INVALID
    with fails(Fault.STALE):
        machine.do(SetCopies(Ino(99), 1))
