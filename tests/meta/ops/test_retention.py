"""Retention of one file: who may say what, and what holds then."""

from typing import Any

import pytest

from mountfs.errors import Fault, FsError
from mountfs.meta.ops.legal_hold import SetLegalHold
from mountfs.meta.ops.list_retained import ListRetained
from mountfs.meta.ops.retention import Kept, RequireFree, SetRetention
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.records import NS
from mountfs.meta.retention import LONGEST_NS, Mode, Retention, Right
from mountfs.types import ROOT, SUPERUSER, Cred

NOW = 1_800_000_000 * NS
DAY = 86_400 * NS
OWNER, OTHER = Cred(5, 5), Cred(6, 6)
MAKER = Cred(5, 5, (), True)


@pytest.fixture
def machine(machine: Any) -> Any:
    machine.proven = NOW
    return machine


def keep(machine: Any, path: str, mode: Mode, days: int, cred: Cred = SUPERUSER, **how: Any) -> Any:
    ino = machine.ino(path)
    return machine.do(SetRetention(ino=ino, mode=mode, until=NOW + days * DAY, cred=cred, **how))


def test_what_was_said_holds(machine: Any) -> None:
    ino = machine.make("f")
    said = keep(machine, "f", Mode.GOVERNANCE, 3)
    assert said == Retention(Mode.GOVERNANCE, NOW + 3 * DAY)
    assert machine.ask(Kept(ino)) == (said, NOW)
    machine.checkpoint()
    machine.restart()
    assert machine.ask(Kept(ino)) == (said, NOW)


def test_a_duration_begins_now(machine: Any) -> None:
    ino = machine.make("f")
    command = SetRetention(ino=ino, mode=Mode.COMPLIANCE, duration=DAY, cred=SUPERUSER)
    assert machine.do(command).until == NOW + DAY


def test_a_duration_is_not_too_short_where_nothing_is_known_for_certain(machine: Any) -> None:
    ino = machine.make("f")
    machine.proven = None
    command = SetRetention(ino=ino, mode=Mode.COMPLIANCE, duration=DAY, cred=SUPERUSER)
    machine.do(command)
    machine.proven = machine.state.tree.counters.last_time
    assert machine.ask(Kept(ino))[0].until >= machine.proven + DAY


@pytest.mark.parametrize("cred", [SUPERUSER, OWNER])
@pytest.mark.parametrize("mode", [Mode.GOVERNANCE, Mode.COMPLIANCE])
def test_it_is_made_longer_and_stricter_by_its_owner_and_nobody_makes_it_less(
    machine: Any, fails: Any, mode: Mode, cred: Cred
) -> None:
    machine.make("f", cred=MAKER)
    keep(machine, "f", mode, 3, cred)
    keep(machine, "f", mode, 5, cred)
    for less, days in ((mode, 4), (Mode.NONE, 0)):
        with fails(Fault.NOT_PERMITTED):
            machine.do(
                SetRetention(
                    ino=machine.ino("f"),
                    mode=less,
                    until=NOW + days * DAY if days else 0,
                    cred=cred,
                )
            )
    assert keep(machine, "f", Mode.COMPLIANCE, 5, cred).mode == Mode.COMPLIANCE
    with fails(Fault.NOT_PERMITTED):
        keep(machine, "f", Mode.GOVERNANCE, 9, cred)


def test_the_mode_alone_can_be_made_stricter(machine: Any, fails: Any) -> None:
    ino = machine.make("f")
    with fails(Fault.INVALID):
        machine.do(SetRetention(ino=ino, mode=Mode.COMPLIANCE, cred=SUPERUSER))
    keep(machine, "f", Mode.GOVERNANCE, 3)
    found = machine.do(SetRetention(ino=ino, mode=Mode.COMPLIANCE, cred=SUPERUSER))
    assert found == Retention(Mode.COMPLIANCE, NOW + 3 * DAY)


def test_governance_is_ended_by_who_has_the_right_and_asks_for_it(machine: Any, fails: Any) -> None:
    ino = machine.make("f", cred=MAKER)

    def end(cred: Cred, *rights: str) -> Any:
        return machine.do(
            SetRetention(ino=ino, mode=Mode.NONE, cred=cred, bypass=True, rights=rights)
        )

    keep(machine, "f", Mode.GOVERNANCE, 3)
    for cred, rights in ((OWNER, ()), (OTHER, (Right.BYPASS_GOVERNANCE,))):
        with fails(Fault.NOT_PERMITTED):
            end(cred, *rights)
    assert end(OWNER, Right.BYPASS_GOVERNANCE) == Retention()
    keep(machine, "f", Mode.GOVERNANCE, 3)
    assert end(SUPERUSER) == Retention()
    keep(machine, "f", Mode.COMPLIANCE, 3)
    with fails(Fault.NOT_PERMITTED):
        end(SUPERUSER)


def test_another_user_says_nothing_of_a_file(machine: Any, fails: Any) -> None:
    machine.make("f", cred=MAKER)
    for cred in (OTHER, Cred(6, 6, (), True)):  # whatever the kernel has checked
        with fails(Fault.NOT_PERMITTED):
            keep(machine, "f", Mode.GOVERNANCE, 3, cred)
    keep(machine, "f", Mode.GOVERNANCE, 3, OTHER, rights=(Right.RETENTION,))


def test_a_hold_keeps_a_file_whatever_its_retention(machine: Any, fails: Any) -> None:
    ino = machine.make("f", cred=MAKER)
    with fails(Fault.NOT_PERMITTED):
        machine.do(SetLegalHold(ino, True, OWNER))
    machine.do(SetLegalHold(ino, True, SUPERUSER))
    with fails(Fault.NOT_PERMITTED):
        machine.do(RequireFree(ino))
    keep(machine, "f", Mode.GOVERNANCE, 3)
    machine.do(SetRetention(ino=ino, mode=Mode.NONE, cred=SUPERUSER, bypass=True))
    with fails(Fault.NOT_PERMITTED):
        machine.do(Unlink(ROOT, b"f", SUPERUSER))
    with fails(Fault.NOT_PERMITTED):
        machine.do(SetLegalHold(ino, False, OWNER))
    assert machine.do(SetLegalHold(ino, False, OWNER, (Right.LEGAL_HOLD,))) == Retention()
    machine.do(RequireFree(ino))
    machine.do(Unlink(ROOT, b"f", SUPERUSER))


def test_what_makes_no_sense_is_refused(machine: Any, fails: Any) -> None:
    ino = machine.make("d/", "d/f")
    with fails(Fault.INVALID):
        keep(machine, "d", Mode.GOVERNANCE, 3)
    with fails(Fault.INVALID):
        keep(machine, "d/f", Mode.GOVERNANCE, -1)
    with fails(Fault.INVALID):
        keep(machine, "d/f", Mode.GOVERNANCE, 101 * 366)
    for wrong in (
        {"until": NOW, "duration": 1},
        {"duration": LONGEST_NS + 1},
        {"until": -1},
        {"until": 1 << 63},
    ):
        with pytest.raises(FsError) as caught:
            SetRetention(ino=ino, mode=Mode.GOVERNANCE, cred=SUPERUSER, **wrong).check()
        assert caught.value.fault is Fault.INVALID
    machine.do(Unlink(machine.ino("d"), b"f", SUPERUSER))
    with fails(Fault.INVALID):  # it is still open, but has no name
        machine.do(SetRetention(ino=ino, mode=Mode.GOVERNANCE, duration=1, cred=SUPERUSER))


def test_time_goes_on_with_refused_commands_too_and_never_back(machine: Any, fails: Any) -> None:
    ino = machine.make("f")
    keep(machine, "f", Mode.COMPLIANCE, 3)
    machine.proven = NOW + 3 * DAY - 1
    with fails(Fault.NOT_PERMITTED):
        machine.do(RequireFree(ino))
    machine.proven = NOW - 100 * DAY
    with fails(Fault.NOT_PERMITTED):
        machine.do(RequireFree(ino))
    assert machine.ask(Kept(ino))[1] == NOW + 3 * DAY - 1
    machine.proven = NOW + 3 * DAY
    machine.do(RequireFree(ino))


def test_retained_files_are_found_by_their_directories(machine: Any) -> None:
    machine.make("a/", "a/b/", "a/b/f", "a/g", "a/free", "c/", "c/free", "top")
    for path in ("a/b/f", "a/g", "top"):
        keep(machine, path, Mode.GOVERNANCE, 3)

    def listed(path: str, limit: int = 100) -> list[tuple[bytes, bool]]:
        found, after = [], b""
        while True:
            page = machine.ask(ListRetained(machine.ino(path), limit, after))
            found += [(one.name, one.retention is not None) for one in page.found]
            after = page.after
            if not after:
                return found

    for limit in (1, 2, 100):
        assert listed("", limit) == [(b"a", False), (b"top", True)]
        assert listed("a", limit) == [(b"b", False), (b"g", True)]
        assert listed("c", limit) == []
