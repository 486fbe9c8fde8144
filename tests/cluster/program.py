"""A program of a test: a process that does what it is told, a line at a time, and says what came of
it.
"""

import select
import subprocess
import sys
from typing import Final

ANSWER_S_MAX: Final = 60

_SOURCE: Final = """
import errno, fcntl, os, struct, sys

def ofd(fd, kind, wait=True):
    lock = struct.pack("hhqqi4x", kind, 0, 0, 0, 0)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, lock)

for line in sys.stdin:
    try:
        try:
            print(repr(eval(line)), flush=True)
        except SyntaxError:
            exec(line)
            print("None", flush=True)
    except OSError as error:
        known = {errno.EDEADLK: "EDEADLK"}  # it has two names
        print(known.get(error.errno) or errno.errorcode[error.errno], flush=True)
"""


class Program:
    """Names that it is told to remember are remembered: `fd = os.open(...)`."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", _SOURCE], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, bufsize=1,
        )  # fmt: skip

    def begin(self, what: str) -> None:
        """Tell it, and do not wait."""
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")

    def answer(self, seconds: float = ANSWER_S_MAX) -> str:
        """What came of it: how Python shows the result, or the name of an errno."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        assert ready, f"no answer within {seconds} s"
        return self.process.stdout.readline().strip()

    def ask(self, what: str) -> str:
        self.begin(what)
        return self.answer()

    def end(self) -> None:
        """Of itself or not: it has closed what it had open."""
        self.process.kill()
        self.process.communicate()
