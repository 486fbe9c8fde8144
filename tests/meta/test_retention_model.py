"""Whatever is done in whatever order: what is retained is found at its path with its bytes, and the
rows that say so are right.
"""

from contextlib import suppress
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mountfs.errors import Fault, FsError
from mountfs.meta.command import Command
from mountfs.meta.ops.default_retention import CommitRetention, SetDefault
from mountfs.meta.ops.legal_hold import SetLegalHold
from mountfs.meta.ops.link import Link
from mountfs.meta.ops.make import Make
from mountfs.meta.ops.mkdir import Mkdir
from mountfs.meta.ops.reap import Orphans, Reap
from mountfs.meta.ops.rename import EXCHANGE, NOREPLACE, Rename
from mountfs.meta.ops.retention import Kept, SetRetention
from mountfs.meta.ops.rmdir import Rmdir
from mountfs.meta.ops.unlink import Unlink
from mountfs.meta.ops.write import Run, Write
from mountfs.meta.records import NS
from mountfs.meta.retention import Default, Mode
from mountfs.types import ROOT, SUPERUSER, Ino

NOW = 1_800_000_000 * NS
names = st.sampled_from([b"a", b"b", b"c"])
places = st.lists(names, max_size=2)
seconds = st.integers(1, 20)
modes = st.sampled_from([Mode.GOVERNANCE, Mode.COMPLIANCE])
EXPECTED = {
    Fault.NOT_PERMITTED, Fault.NOT_FOUND, Fault.EXISTS, Fault.NOT_EMPTY, Fault.NOT_DIRECTORY,
    Fault.IS_DIRECTORY, Fault.INVALID, Fault.STALE,
}  # fmt: skip


class Retained(RuleBasedStateMachine):
    make_machine: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.machine = type(self).make_machine()
        self.machine.proven = NOW
        self.kept: dict[str, tuple[Ino, bytes]] = {}
        """What was at a path when it was last found to be retained."""
        self.over: dict[Ino, int] = {}
        """When that was to end."""
        self.machine.make("a/", "a/b/", "b/", "a/c", "c")

    def do(self, command: Command[Any]) -> None:
        try:
            self.machine.do(command)
        except FsError as error:
            assert error.fault in EXPECTED, (command, error)

    def at(self, place: list[bytes]) -> Ino:
        with suppress(FsError):
            return self.machine.ino("/".join(name.decode() for name in place))  # type: ignore[no-any-return]
        return ROOT

    def now(self) -> int:
        return self.machine.state.tree.counters.protected_time  # type: ignore[no-any-return]

    @rule(place=places, name=names, directory=st.booleans())
    def make(self, place: list[bytes], name: bytes, directory: bool) -> None:
        parent = self.at(place)
        if directory:
            self.do(Mkdir(parent, name, 0o755, 0, SUPERUSER))
        else:
            self.do(Make(parent, name, 0o100644, 0, 0, True, SUPERUSER))

    @rule(place=places, data=st.binary(min_size=1, max_size=5))
    def write(self, place: list[bytes], data: bytes) -> None:
        self.do(Write(self.at(place), (Run(0, len(data), 0, data=data),), 0, False))

    @rule(place=places, name=names, other=places, new=names,
          flags=st.sampled_from([0, NOREPLACE, EXCHANGE]))  # fmt: skip
    def rename(
        self, place: list[bytes], name: bytes, other: list[bytes], new: bytes, flags: int
    ) -> None:
        self.do(Rename(self.at(place), name, self.at(other), new, flags, SUPERUSER))

    @rule(place=places, name=names, directory=st.booleans())
    def remove(self, place: list[bytes], name: bytes, directory: bool) -> None:
        kind = Rmdir if directory else Unlink
        self.do(kind(self.at(place), name, SUPERUSER))
        inos = tuple(ino for _, ino in self.machine.ask(Orphans(self.machine.session, 9)))
        self.do(Reap(self.machine.session, inos))

    @rule(source=places, place=places, name=names)
    def link(self, source: list[bytes], place: list[bytes], name: bytes) -> None:
        self.do(Link(self.at(source), self.at(place), name, SUPERUSER))

    @rule(place=places, mode=modes, length=seconds, bypass=st.booleans())
    def keep(self, place: list[bytes], mode: Mode, length: int, bypass: bool) -> None:
        ino = self.at(place)
        self.do(
            SetRetention(ino=ino, mode=mode, duration=length * NS, cred=SUPERUSER, bypass=bypass)
        )
        self.forget()

    @rule(place=places)
    def release(self, place: list[bytes]) -> None:
        self.do(SetRetention(ino=self.at(place), mode=Mode.NONE, cred=SUPERUSER, bypass=True))
        self.forget()

    @rule(place=places, on=st.booleans())
    def hold(self, place: list[bytes], on: bool) -> None:
        self.do(SetLegalHold(self.at(place), on, SUPERUSER))
        self.forget()

    @rule(place=places, mode=modes, length=seconds, end=st.booleans())
    def default(self, place: list[bytes], mode: Mode, length: int, end: bool) -> None:
        default = Default() if end else Default(mode, length * NS, NS)
        self.do(SetDefault(self.at(place), default, SUPERUSER))

    @rule(place=places)
    def close(self, place: list[bytes]) -> None:
        self.do(CommitRetention(self.at(place)))

    @rule(length=seconds)
    def wait(self, length: int) -> None:
        self.machine.proven += length * NS
        self.do(Mkdir(ROOT, b"a", 0o755, 0, SUPERUSER))  # some command

    @rule()
    def restart(self) -> None:
        self.machine.checkpoint()
        self.machine.restart()

    def forget(self) -> None:
        """Governance may have been ended, or a hold taken away, by who may do that."""
        for path, (ino, _) in list(self.kept.items()):
            if not self.machine.ask(Kept(ino))[0].protects(self.now()):
                del self.kept[path]

    @invariant()
    def what_is_retained_is_there(self) -> None:
        machine = self.machine
        for path, (ino, data) in list(self.kept.items()):
            retention, now = machine.ask(Kept(ino)) if path in machine.paths() else (None, 0)
            if retention is None:
                assert self.over.get(ino, 0) <= self.now(), f"{path} is gone"
                del self.kept[path]
            elif retention.protects(now):
                assert machine.ino(path) == ino
                assert machine.read(ino) == data
            else:
                del self.kept[path]
        self.over = {}
        for path in machine.paths():
            if path.endswith("/"):
                continue
            ino = machine.ino(path)
            retention, now = machine.ask(Kept(ino))
            if retention.protects(now):
                self.kept[path] = ino, machine.read(ino)
                self.over[ino] = 1 << 63 if retention.hold else retention.until
        assert machine.violations() == []


def test_what_is_retained_stays_whatever_is_done(new_machine: Any) -> None:
    class Here(Retained):
        make_machine = new_machine

    case = Here.TestCase
    case.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
    case().runTest()
