"""Programs that work on mounts of a cluster while it suffers, and what they have found out.

Two kinds: `ledger.py`, which goes on whenever the metadata does, and `load.py`, which also writes
and reads what lives on a single node, and so waits for that one.
"""

import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import ledger
from load import Journal, adopt, check, read_journal
from mounted import Node
from nodes import Nodes, until, wait_for

PROGRESS_S_MAX: Final = 90
"""Generous: the machine may be busy with other things."""
END_S_MAX: Final = 120


class Work:
    def __init__(self, cluster: Nodes, books: Path, chance: random.Random) -> None:
        self.cluster = cluster
        self.books = books
        self.chance = chance
        self.ledgers: dict[Path, subprocess.Popen[bytes]] = {}
        self.loads: dict[Path, subprocess.Popen[bytes]] = {}
        self.calls = 0
        self.mark = f"{time.time_ns():x}"
        """Of our directories: there may be those of other work."""

    def begin_ledger(self, node: Node, name: str) -> None:
        book, self.ledgers[book] = self._begin("ledger.py", node, name)

    def begin_load(self, node: Node, name: str) -> None:
        book, self.loads[book] = self._begin("load.py", node, name)

    def _begin(self, program: str, node: Node, name: str) -> tuple[Path, subprocess.Popen[bytes]]:
        book = self.books / name
        place = self._place(node, book)
        place.mkdir(exist_ok=True)
        arguments = [str(place), str(book)]
        if program == "load.py":
            arguments.insert(0, str(self.chance.randrange(1 << 30)))
        script = str(Path(__file__).with_name(program))
        process = subprocess.Popen([sys.executable, script, *arguments])
        self.cluster.workers.append(process)
        return book, process

    def _place(self, node: Node, book: Path) -> Path:
        return node.point / f"{book.name}-{self.mark}"

    def goes_on(self, why: str, since: float | None = None) -> None:
        """Wait until every ledger has a call acknowledged that began after this moment."""
        now = time.monotonic() if since is None else since
        waiting = dict(self.ledgers)

        def all_have() -> bool:
            for book in list(waiting):
                lines = ledger.read(book)[-50:]
                if any(line.begun > now and line.ended is not None for line in lines):
                    del waiting[book]
            return not waiting

        until(
            all_have, PROGRESS_S_MAX,
            lambda: f"{why}: nothing more at {[book.name for book in waiting]}\n{self._said()}",
        )  # fmt: skip

    def end(self) -> None:
        """Let all of them end what they do, and close what they have open."""
        running = {**self.ledgers, **self.loads}
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        for book, process in running.items():
            status = wait_for(process, END_S_MAX, f"{book.name}\n{self._said()}")
            assert status == 0, f"{book.name}: exit {status}"
            self.cluster.workers.remove(process)
        self.calls += sum(read_journal(book).calls for book in self.loads)

    def wrong(self, node: Node) -> list[str]:
        """What is not as it has to be, seen through a mount, after `end`."""
        found = []
        for book in self.ledgers:
            lines = ledger.read(book)
            found += [
                f"{book.name}: {what}" for what in ledger.check(lines, self._place(node, book))
            ]
        for book in self.loads:
            journal = read_journal(book)
            top = self._place(node, book)
            found += [f"{book.name}: while it worked: {what}" for what in journal.troubles]
            found += [f"{book.name}: {what}" for what in check(journal.before, top)]
            if not found:
                adopt(journal.before, top)
                book.write_bytes(pickle.dumps(Journal(journal.before, journal.before, [])))
        return found

    def check(self, when: str) -> None:
        """End the work; all is there, seen through its own mounts and through a new one."""
        self.end()
        eye = self.cluster.mount(f"eye-{len(self.cluster.mounts)}")
        wrong = self.wrong(eye)
        eye.unmount()
        for node in self.cluster.mounts:
            wrong += [line for line in node.said().splitlines() if "CRITICAL" in line]
        assert not wrong, "\n".join([when, *wrong[:40], self._said()])

    @property
    def acknowledged(self) -> int:
        lines = [line for book in self.ledgers for line in ledger.read(book)]
        return self.calls + sum(line.ended is not None for line in lines)

    def _said(self) -> str:
        mounts = "\n".join(
            f"-- {node.point}:\n{node.said()[-1500:]}" for node in self.cluster.mounts
        )
        return f"{self.cluster.said()}\n{mounts}"
