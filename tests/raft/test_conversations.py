"""Each file of `conversations/` happens as it is written.

MOUNTFS_REWRITE=1 pytest tests/raft/test_conversations.py     writes them; read the difference
"""

import os
from pathlib import Path

import pytest
from conversation import played

FILES = sorted(Path(__file__).parent.joinpath("conversations").glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_conversation_is_as_it_is_written(path: Path) -> None:
    text = path.read_text()
    result = played(text)
    if os.environ.get("MOUNTFS_REWRITE"):
        path.write_text(result)
    else:
        assert result.splitlines() == text.splitlines()


def test_the_player_finds_a_difference() -> None:
    text = "A group of one.\n\n> group 1\n> elect 1 quietly\n> propose 1 x\n    1 applies 2/1 'x'\n"
    assert played(text) == text
    assert played(text.replace("'x'\n", "'y'\n")) == text


def test_there_are_conversations() -> None:
    assert len(FILES) >= 15
