"""What a client may send is anything that decodes: it is refused, and stops nobody.

A command that raises anything else than FsError when it is applied would do so on every server of
the group, and again after every restart.
"""

import enum
import random
import types
import typing
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from mountfs.errors import Fault, FsError
from mountfs.meta.command import UNFIT
from mountfs.meta.ops.allocate import RESERVED_BYTES_MAX, Allocate
from mountfs.meta.ops.quota import DeleteQuota, ListQuotas
from mountfs.meta.ops.slices import Reclaimed, ReserveSlices
from mountfs.meta.ops.write import Run, Write
from mountfs.meta.protocol import OPERATORS, QUERIES, decode_propose, decode_read, encode
from mountfs.meta.state_machine import COMMANDS
from mountfs.types import ROOT, Ino, SliceId

ASKED: list[type[Any]] = [one for one in COMMANDS if one.__name__ not in OPERATORS]
NUMBERS = [
    0, 1, 2, 3, 4, 5, 100, 4096, -1, 2**31, 2**32 - 1, 2**32, 64 << 20, 2**40, 2**53, 2**63 - 1,
    2**63, 2**64 - 1, -(2**63),
]  # fmt: skip
BYTES = [b"", b"a", b"file", b"\0", b"user.a", b"\xff", b"x" * 300, bytes(65 << 10)]


def anything(form: Any, chance: random.Random) -> Any:
    """A value that decodes as `form`."""
    origin, inner = typing.get_origin(form), typing.get_args(form)
    if isinstance(form, typing.NewType):
        return anything(form.__supertype__, chance)
    if origin in (typing.Union, types.UnionType):
        return anything(chance.choice(inner), chance)
    if origin is tuple and len(inner) == 2 and inner[1] is Ellipsis:
        return [anything(inner[0], chance) for _ in range(chance.choice([0, 1, 1, 2, 3]))]
    if origin is tuple:
        return [anything(one, chance) for one in inner]
    if form is type(None):
        return None
    if form is bool:
        return chance.choice([True, False])
    if form is int:
        return chance.choice(NUMBERS)
    if form is bytes:
        return chance.choice(BYTES)
    if form is str:
        return chance.choice(["", "legal_hold", "x" * 300])
    if issubclass(form, enum.Enum):
        return chance.choice(list(form)).value
    names = form.__struct_fields__ if issubclass(form, msgspec.Struct) else form._fields
    hints = typing.get_type_hints(form)
    return [anything(hints[name], chance) for name in names]


def asked(form: type[Any], chance: random.Random) -> list[Any]:
    return [form.__struct_config__.tag, *anything(form, chance)]


@pytest.mark.parametrize("seed", range(4))
def test_no_command_of_a_client_stops_the_machine(
    new_machine: Callable[[], Any], seed: int
) -> None:
    chance = random.Random(seed)
    for _ in range(8):
        machine = new_machine()
        machine.make("a/", "a/b", "file")
        machine.write(machine.ino("file"), (0, b"hello" * 3_000), slices=True)
        for _ in range(600):
            form = chance.choice(ASKED)
            body = encode([machine.session, 1, 1, asked(form, chance)])
            with suppress(FsError):
                machine.do(decode_propose(body).command)
        for quota in machine.ask(ListQuotas(0, 0, 1_000)):
            machine.do(DeleteQuota(quota.kind, quota.number))
        machine.make("a/after")  # and it still works
        machine.restart()
        assert machine.ino("a/after")


@pytest.mark.parametrize("seed", range(2))
def test_no_query_of_a_client_breaks_the_machine(machine: Any, seed: int) -> None:
    chance = random.Random(seed)
    machine.make("a/", "a/b", "file")
    for _ in range(1_000):
        form = chance.choice(QUERIES)
        with suppress(FsError, *UNFIT):
            machine.ask(decode_read(encode([machine.session, asked(form, chance)])).query)


def test_a_command_that_fits_into_no_key_is_refused_everywhere(machine: Any, fails: Any) -> None:
    before = machine.rows()
    command = Reclaimed((SliceId(2**64 - 1 - 2**64),))
    with fails(Fault.INVALID):
        machine.do(command)
    assert machine.files() == {k: v for k, v in before.items() if k in machine.files()}
    machine.restart()  # the log has it, and everybody gets past it
    machine.make("file")


@pytest.mark.parametrize(
    "command",
    [
        ReserveSlices(0),
        ReserveSlices(2**63),
        Write(Ino(2), (), 0, False),
        Write(Ino(2), (Run(0, 0, 0),), 0, False),
        Write(Ino(2), (Run(0, 1, 0, data=b"too long"),), 0, False),
        Write(Ino(2), (Run(0, 1, 0, data=b"x"),) * 100_000, 0, False),
        Allocate(ROOT, 0, 0, RESERVED_BYTES_MAX + 1, False),
    ],
)
def test_what_would_take_for_ever_or_all_there_is_is_refused(command: Any, fails: Any) -> None:
    with fails(Fault.INVALID):
        command.check()
