"""Two mounts, one truth: what programs on several mounts see at the same time, one filesystem could
have answered, one call after the other.  While all is well, while who leads is killed, and while a
mount stands still.

MOUNTFS_LINEAR_SECONDS=60 pytest tests/cluster/test_linear.py      longer
MOUNTFS_LINEAR_SEED=12345 pytest tests/cluster/test_linear.py      with these choices
python -m tests.cluster.linear --help                              on any mounts
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from linear.book import read
from linear.judge import Verdict, judge
from linear.run import Plan, Run, running
from linear.scenes import SCENES
from mounted import Node
from nodes import Nodes

SECONDS: Final = float(os.environ.get("MOUNTFS_LINEAR_SECONDS", "1"))
"""Of work in a test where nothing happens; the others take some more."""
SEED: Final = int(os.environ.get("MOUNTFS_LINEAR_SEED", "0")) or time.time_ns() % 1_000_000_007
STOPPED_S: Final = 2.0
CALL_S_MAX: Final = 8.0
"""While all is well.  Generous, for workers wait for locks; but no lease runs out so soon."""
ROOT: Final = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def mounts(shared_cluster: Nodes) -> list[Node]:
    return [shared_cluster.mount(name) for name in ("one", "two", "three")]


@pytest.fixture
def two(mounts: list[Node]) -> list[Node]:
    return mounts[:2]


def plan(nodes: list[Node], kinds: list[str], seconds: float, **more: Any) -> Plan:
    print(f"MOUNTFS_LINEAR_SEED={SEED}")
    return Plan([node.point for node in nodes], kinds, seconds, seed=SEED, **more)


def verdict(books: Path) -> Verdict:
    return judge(sorted(books.glob("*.book")))


def agree(books: Path, call_s_max: float = float("inf")) -> None:
    found = verdict(books)
    assert found.calls > 0
    assert max(kind.slowest_s for kind in found.kinds.values()) < call_s_max, found.text()
    assert not found.wrong and not found.undecided, found.text()


# -- while all is well


@pytest.mark.parametrize("kind", SCENES)
def test_two_mounts_are_one_filesystem(two: list[Node], tmp_path: Path, kind: str) -> None:
    with running(plan(two, [kind], SECONDS), tmp_path) as run:
        run.wait()
    agree(tmp_path, CALL_S_MAX)


@pytest.mark.parametrize("kinds", ["names+attrs", "locks"])
def test_three_mounts_are_one_filesystem(mounts: list[Node], tmp_path: Path, kinds: str) -> None:
    with running(plan(mounts, [kinds], SECONDS), tmp_path) as run:
        run.wait()
    agree(tmp_path, CALL_S_MAX)


# -- while things go wrong


@pytest.fixture
def whole(shared_cluster: Nodes) -> Iterator[Nodes]:
    """A cluster all of whose nodes run, now and afterwards."""
    yield shared_cluster
    shared_cluster.restart(
        *(member for member in shared_cluster.members.values() if not member.runs)
    )
    shared_cluster.wait_for_voters(3)


@pytest.mark.parametrize("kinds", ["names+attrs", "locks"])
def test_two_mounts_are_one_filesystem_while_a_leader_is_killed(
    whole: Nodes, two: list[Node], tmp_path: Path, kinds: str
) -> None:
    with running(plan(two, [kinds], 3 * SECONDS, round_s=1.5), tmp_path) as run:
        time.sleep(SECONDS)  # any moment will do
        whole.wait_for_leader().kill()
        run.wait()
    agree(tmp_path)


@pytest.mark.parametrize("kinds", ["names+attrs+held", "locks"])
def test_a_mount_that_stood_still_says_nothing_that_was_true_before(
    two: list[Node], tmp_path: Path, kinds: str
) -> None:
    seconds = SECONDS + STOPPED_S
    with running(plan(two, [kinds], seconds, round_s=seconds), tmp_path) as run:
        try:
            time.sleep(SECONDS / 2)
            two[1].signal(signal.SIGSTOP)
            time.sleep(STOPPED_S)
        finally:
            two[1].signal(signal.SIGCONT)
        run.wait()
    agree(tmp_path)


# -- the harness itself, on a directory of a local disk


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The books of a run, a round of each kind."""
    here, books = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("books")
    wanted = Plan([here, here], list(SCENES), 0.5 * len(SCENES), seed=SEED, round_s=0.5)
    with running(wanted, books) as run:
        run.wait()
    assert os.listdir(here) == [], "it cleans up"
    return books


def test_a_local_directory_is_one_filesystem(local: Path) -> None:
    """Else the harness asks for more than a filesystem can do."""
    agree(local)
    assert verdict(local).kinds.keys() == SCENES.keys()


WRONG: Final[dict[str, dict[str, Any]]] = {
    "names": {"lookup": 1},
    "attrs": {"stat": 1_000_000_000},
    "closed": {"read": 7},
    "contents": {"read": 7},
    "held": {"read": 7},
    "appends": {"read": [16, 7]},
    "counters": {"add": 1_000_000},
    "locks": {"test": "free", "lock": "free"},
}
"""Of each kind: answers that cannot be."""


@pytest.mark.parametrize("kind", SCENES)
def test_one_answer_that_is_changed_is_found(local: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(local, tmp_path, dirs_exist_ok=True)
    assert any(lie(book, kind) for book in sorted(tmp_path.glob("*.book")))
    found = verdict(tmp_path)
    assert {name: of.wrong for name, of in found.kinds.items() if of.wrong} == {kind: 1}
    assert ">>>" in found.kinds[kind].shown[0]


def lie(book: Path, kind: str) -> bool:
    """Change one answer of a book, if there is one that can be; says whether."""
    lines = book.read_text().splitlines()
    for at in range(0, len(lines) - 1, 2):
        _, of_kind, _, what, _ = json.loads(lines[at])
        returned, was = json.loads(lines[at + 1])
        if of_kind == kind and what[0] in WRONG[kind]:
            answer = WRONG[kind][what[0]]
            if kind == "attrs":  # of which each is judged by itself
                mode, _, changed = was
                answer = [mode, answer, changed]
            lines[at + 1] = json.dumps([returned, answer])
            book.write_text("\n".join([*lines, ""]))
            return True
    return False


def test_of_a_worker_that_was_killed_it_is_known_what_it_was_doing(tmp_path: Path) -> None:
    here, books = tmp_path / "here", tmp_path / "books"
    here.mkdir()
    books.mkdir()
    wanted = Plan([here], ["counters"], 60, seed=SEED, workers=2, watchers=0, pause_s=0)
    with running(wanted, books) as run:
        kill_all_after(run, books, 50)
    found = verdict(books)
    assert found.calls >= 50
    assert not found.wrong, found.text()
    assert os.listdir(here) == []


def kill_all_after(run: Run, books: Path, calls: int) -> None:
    end = time.monotonic() + 30
    while sum(1 for book in books.glob("*.book") for _ in read(book)) < calls:
        assert time.monotonic() < end
        time.sleep(0.01)
    run.kill()


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--kinds", "names,contents"], 0),
        (["--kinds", "nothing"], 2),
        (["--check", "/nowhere"], 2),
    ],
)
def test_the_command_says_what_it_found(tmp_path: Path, words: list[str], status: int) -> None:
    here = tmp_path / "here"
    here.mkdir()
    program = [sys.executable, "-m", "tests.cluster.linear", "--seconds", "0.4", "--round", "0.2"]
    done = subprocess.run(
        [*program, "--mounts", here, here, "--seed", "7", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    if not status:
        assert "seed 7" in done.stderr
        assert "names" in done.stdout
        assert os.listdir(here) == []
