"""Workers on several mounts of one filesystem, for some rounds."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from .book import Book
from .scene import Role
from .scenes import SCENES
from .worker import READY, Orders, directory_of, perform

SEEN_S_MAX: Final = 15
"""Within that time a mount sees what another has made, and is done with what is gone."""
END_S_MAX: Final = 60
"""So long a call may take when all is well again: who takes longer hangs."""
LOOK_S: Final = 0.05


class Plan(NamedTuple):
    mounts: list[Path]
    """Directories, which all are the same one: on several mounts, or not."""
    kinds: list[str]
    """The kinds of rounds, one after the other and again; a round may have several, with + in
    between.
    """
    seconds: float
    seed: int = 0
    round_s: float = 0.5
    workers: int = 2
    """That change things, on each mount."""
    watchers: int = 2
    """That only look, on each mount: at anything, at what the kernel has cached, and so on."""
    pause_s: float = 0.001
    """Between two calls of one worker, on average."""

    def rounds(self) -> list[str]:
        """The kinds of each."""
        count = max(1, round(self.seconds / self.round_s))
        return [self.kinds[number % len(self.kinds)] for number in range(count)]

    def roles(self) -> list[Role]:
        """Of who is on one mount."""
        looks = [Role.GLANCES if number % 2 else Role.WATCHES for number in range(self.watchers)]
        return [Role.WORKS] * self.workers + looks

    def mount_of(self, number: int) -> str:
        """A letter for each."""
        return chr(ord("A") + number)


class Hung(Exception):
    """A worker has not ended."""


class Run:
    """`books`: an empty directory, not on what is tested."""

    def __init__(self, plan: Plan, books: Path) -> None:
        self.plan = plan
        self.books = books
        self.begins = 0
        """Monotonic, in ns."""
        self._name = f"linear-{os.getpid()}-{time.time_ns():x}"
        self._workers: dict[str, subprocess.Popen[bytes]] = {}

    def tops(self) -> list[str]:
        return [str(mount / self._name) for mount in self.plan.mounts]

    def start(self) -> None:
        """Returns when workers begin."""
        self._prepare()
        for at, top in enumerate(self.tops()):
            for number, role in enumerate(self.plan.roles()):
                who = f"{self.plan.mount_of(at)}{number}{'' if role is Role.WORKS else role[0]}"
                self._start_worker(who, at * 100 + number + 1, top, role)
        for who, process in self._workers.items():
            assert process.stdout is not None
            if process.stdout.readline() != READY:
                raise RuntimeError(f"worker {who} does not start, see above")
        self.begins = time.monotonic_ns()
        for process in self._workers.values():
            assert process.stdin is not None
            with process.stdin:
                process.stdin.write(b"%d\n" % self.begins)

    def _prepare(self) -> None:
        top, *others = self.tops()
        os.mkdir(top)
        for number, kinds in enumerate(self.plan.rounds()):
            os.mkdir(f"{top}/{number}")
            for kind in kinds.split("+"):
                directory = directory_of(top, number, kind)
                os.mkdir(directory)
                SCENES[kind].prepare(directory)
        for other in others:
            end = time.monotonic() + SEEN_S_MAX
            while not os.path.exists(other):
                if time.monotonic() > end:
                    raise FileNotFoundError(f"{top} is there, {other} is not: not the same mounts")
                time.sleep(LOOK_S)

    def _start_worker(self, who: str, number: int, top: str, role: Role) -> None:
        orders = Orders(
            top=top,
            book=str(self.books / f"{who}.book"),
            number=number,
            seed=f"{self.plan.seed} {who}",
            round_ns=int(self.plan.round_s * 1e9),
            kinds=self.plan.rounds(),
            pause_s=self.plan.pause_s,
            role=role,
        )
        here = Path(__file__).parent
        words = [sys.executable, "-m", f"{here.name}.worker", json.dumps(orders._asdict())]
        environment = {**os.environ, "PYTHONPATH": str(here.parent)}
        self._workers[who] = subprocess.Popen(
            words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def wait(self) -> None:
        """Until all have ended, and what is to be looked at then has been.

        Raises Hung when one does not end, RuntimeError when one failed.
        """
        end = self.begins / 1e9 + len(self.plan.rounds()) * self.plan.round_s + END_S_MAX
        hung, failed = [], []
        for who, process in self._workers.items():
            try:
                if process.wait(max(0.0, end - time.monotonic())) != 0:
                    failed.append(who)
            except subprocess.TimeoutExpired:
                hung.append(who)
        if hung:
            raise Hung(f"{', '.join(hung)}: a call has not returned for {END_S_MAX} s")
        if failed:
            raise RuntimeError(f"these workers failed, see above: {', '.join(failed)}")
        self._look()

    def _look(self) -> None:
        for at, top in enumerate(self.tops()):
            book = Book(self.books / f"{self.plan.mount_of(at)}-end.book")
            try:
                for number, kinds in enumerate(self.plan.rounds()):
                    for kind in kinds.split("+"):
                        scene = SCENES[kind]
                        for op in scene.looks(directory_of(top, number, kind)):
                            perform(book, number, kind, scene, op)
            finally:
                book.close()

    def kill(self) -> None:
        """Whoever still works."""
        for process in self._workers.values():
            process.kill()
        for process in self._workers.values():
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def stop(self) -> None:
        """Nobody works any more, and nothing is left in the mounts."""
        self.kill()
        top = self.tops()[0]
        end = time.monotonic() + SEEN_S_MAX
        while os.path.lexists(top):
            with contextlib.suppress(OSError):  # a listing that was cached may be wrong
                shutil.rmtree(top)
                continue
            if time.monotonic() > end:
                shutil.rmtree(top)
            time.sleep(LOOK_S)


@contextlib.contextmanager
def running(plan: Plan, books: Path) -> Iterator[Run]:
    """Workers that have begun; `wait` for them.  Whatever happens, they end and nothing is left."""
    run = Run(plan, books)
    try:
        run.start()
        yield run
    finally:
        run.stop()
