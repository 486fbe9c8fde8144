"""Who leads has not always applied what is committed: it must not say that a session has ended that
it does not know yet.
"""

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from mountfs.errors import Fault, FsError
from mountfs.kv.memory import MemoryStore
from mountfs.kv.overlay import Overlay
from mountfs.meta.asked import Asked
from mountfs.meta.ops.make_root import MakeRoot
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.meta.ops.session import OpenSession
from mountfs.meta.protocol import Method, Propose, encode
from mountfs.meta.safe_mode import HOLD_MS, SafeMode
from mountfs.meta.service import MetaService
from mountfs.meta.state_machine import StateMachine
from mountfs.types import ROOT, SUPERUSER

SESSION = 1
COMMAND = Mkdir(ROOT, b"made before", 0o755, 0, SUPERUSER)


class BehindLeader:
    """A group whose state lacks an entry that is committed, until somebody waits for it."""

    is_leader = True
    leader = 1

    def __init__(self, machine: StateMachine, catch_up: Callable[[], Any]) -> None:
        self._machine = machine
        self._catch_up = catch_up
        self.raft = SimpleNamespace(leader=1)
        self.proposed: list[Any] = []

    def require_leader(self) -> None:
        """It leads."""

    def read_now(self) -> bool:
        return False

    async def wait_read(self) -> None:
        self._catch_up()

    def read(self, done: Callable[[FsError | None], None]) -> None:
        self._catch_up()
        done(None)

    def propose(self, data: bytes, done: Callable[[object], None], subject: Any) -> None:
        self.proposed.append(subject)


def service(open_late: bool, safe_mode: SafeMode | None = None) -> tuple[MetaService, BehindLeader]:
    machine = StateMachine(Overlay(MemoryStore()))
    machine.apply(1, 0, 0, 0, 1, MakeRoot(0, 0))

    def catch_up() -> None:
        if open_late and SESSION not in machine.sessions:
            assert machine.apply(2, 0, 0, 0, 2, OpenSession()) == SESSION
            machine.apply(3, SESSION, 1, 1, 3, COMMAND)

    group = BehindLeader(machine, catch_up)
    asked: Any = SimpleNamespace(
        replica=SimpleNamespace(machine=machine),
        ask=lambda session, sequence, answered, command: Asked(
            session, sequence, answered, 0, command
        ),
        encoded=lambda subject: b"",
    )
    node: Any = SimpleNamespace(now=lambda: 0, require_room=lambda: None)
    given: Any = group
    return MetaService(node, given, asked, safe_mode or SafeMode()), group


def handled(found: MetaService, method: Method, body: bytes) -> Awaitable[Any]:
    peer: Any = None
    return found.handle(peer, method, body)


async def test_a_session_is_renewed_by_a_leader_that_has_not_applied_its_beginning() -> None:
    found, _ = service(open_late=True)
    assert await handled(found, Method.RENEW, encode(SESSION)) == b""


async def test_a_session_that_has_ended_is_not_renewed() -> None:
    found, _ = service(open_late=False)
    with pytest.raises(FsError) as refused:
        await handled(found, Method.RENEW, encode(SESSION))
    assert refused.value.fault is Fault.SESSION_ENDED


async def test_a_command_of_an_unknown_session_is_for_the_log_to_refuse() -> None:
    found, group = service(open_late=True)
    command = Mkdir(ROOT, b"a", 0o755, 0, SUPERUSER)
    await handled(found, Method.PROPOSE, encode(Propose(SESSION, 1, 1, command)))
    assert len(group.proposed) == 1


async def test_nobody_may_ask_outside_of_a_session() -> None:
    found, group = service(open_late=False)
    command = Mkdir(ROOT, b"a", 0o755, 0, SUPERUSER)
    with pytest.raises(FsError) as refused:
        await handled(found, Method.PROPOSE, encode(Propose(0, 1, 1, command)))
    assert refused.value.fault is Fault.SESSION_ENDED
    assert group.proposed == []


def in_safe_mode() -> SafeMode:
    now = 0

    def later() -> int:
        nonlocal now
        now += HOLD_MS
        return now

    found = SafeMode(lambda: (10, 0), now=later)
    found.began_to_lead()
    assert found.is_on
    return found


async def answered(found: MetaService, sequence: int) -> Any:
    told: list[Any] = []
    link: Any = SimpleNamespace(_settle=lambda number, outcome: told.append(outcome))
    later = await handled(found, Method.PROPOSE, encode(Propose(SESSION, sequence, 1, COMMAND)))
    later._belongs(link, 1)
    (answer,) = told
    return answer.fault if isinstance(answer, FsError) else answer


async def test_in_safe_mode_what_was_done_already_is_not_refused() -> None:
    """It is asked again as the answer was lost, and who leads now has not applied it yet."""
    found, group = service(open_late=True, safe_mode=in_safe_mode())
    assert isinstance(await answered(found, 1), bytes)
    assert await answered(found, 2) is Fault.READ_ONLY
    assert group.proposed == []
