"""Not a test of mountfs: what tests/session/test_session.py runs and interrupts.

It makes all kinds of things that a session may leave behind, says so, and waits.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent.parent / "cluster"))  # `mounted`

from mounted import Node, fresh_node

WAITS_S = 60


def make_everything(say: Path) -> None:
    """Without any clean-up of its own."""
    top = Path(tempfile.mkdtemp(prefix="left behind "))
    node = Node(top)
    node.mount()
    (node.point / "file").write_text("text")
    image, place = top / "image", top / "disk"
    with open(image, "wb") as file:
        file.truncate(8 << 20)
    place.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    other = top / "other image"
    other.write_bytes(bytes(1 << 20))
    subprocess.run(["losetup", "-f", other], check=True)
    sleep = f"setsid sleep {WAITS_S} >/dev/null 2>&1 & echo $!"
    sleeper = subprocess.run(sleep, shell=True, check=True, stdout=subprocess.PIPE, text=True)
    say.write_text(f"{top}\n{node.pid}\n{sleeper.stdout}")


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Path:
    return Path(request.config.rootpath / "said")


def test_that_forgets_everything(say: Path) -> None:
    make_everything(say)


def test_that_is_interrupted(say: Path) -> None:
    make_everything(say)
    time.sleep(WAITS_S)


async def test_that_is_interrupted_in_trio(say: Path) -> None:
    make_everything(say)
    await trio.sleep(WAITS_S)


def test_that_cleans_up(say: Path) -> None:
    with fresh_node() as node:
        node.mount()
        say.write_text(f"{node.top}\n{node.pid}\n{node.pid}\n")
        time.sleep(WAITS_S)
