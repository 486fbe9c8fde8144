"""A worker: it works in each round's directory until the round is over, one call at a time.

    python -m linear.worker ORDERS      (json of `Orders`)

It says when it is ready, and is told when the first round begins: monotonic, in ns.  Nothing of
mountfs is in it: what it works on may be any filesystem.
"""

import errno
import json
import sys
import time
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from .book import Book
from .scene import Op, Role, Scene
from .scenes import SCENES

READY = b"ready\n"


class Orders(NamedTuple):
    top: str
    """The directory with those of the rounds, as this worker's mount has it."""
    book: str
    """A file that is not there yet."""
    number: int
    seed: str
    round_ns: int
    kinds: list[str]
    """Of each round; several with + in between."""
    pause_s: float
    """Between two calls, on average."""
    role: Role


def directory_of(top: str, round: int, kind: str) -> str:
    return f"{top}/{round}/{kind}"


def main(orders: Orders) -> None:
    book = Book(Path(orders.book))
    random = Random(orders.seed)
    sys.stdout.buffer.write(READY)
    sys.stdout.flush()
    begins = int(sys.stdin.readline())
    while (round := (time.monotonic_ns() - begins) // orders.round_ns) < len(orders.kinds):
        ends = begins + (round + 1) * orders.round_ns
        scenes = {
            kind: SCENES[kind](
                directory_of(orders.top, round, kind), orders.number, random, orders.role
            )
            for kind in orders.kinds[round].split("+")
        }
        try:
            _work(orders, book, random, round, ends, scenes)
        finally:
            for scene in scenes.values():
                scene.close()
    book.close()


def _work(
    orders: Orders, book: Book, random: Random, round: int, ends: int, scenes: dict[str, Scene]
) -> None:
    choices = list(scenes.items())
    while time.monotonic_ns() < ends:
        kind, scene = random.choice(choices)
        perform(book, round, kind, scene, scene.next())
        time.sleep(random.expovariate(1 / orders.pause_s) if orders.pause_s else 0)
    for kind, scene in choices:
        for op in scene.last():
            perform(book, round, kind, scene, op)


def perform(book: Book, round: int, kind: str, scene: Scene | type[Scene], op: Op) -> None:
    book.asks(round, kind, op.about, op.what, time.monotonic_ns())
    returned: int | None
    result: Any
    try:
        result = op.act()
        returned = time.monotonic_ns()
    except OSError as error:
        returned = time.monotonic_ns()
        code = error.errno or 0
        name = errno.errorcode.get(code, str(code))
        if code in scene.unknown:
            returned, result = None, name
        else:
            result = scene.faults.get(code, {"error": name})
    book.answers(returned, result)


if __name__ == "__main__":
    _orders = json.loads(sys.argv[1])
    main(Orders(**{**_orders, "role": Role(_orders["role"])}))
