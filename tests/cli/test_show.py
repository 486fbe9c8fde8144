"""Numbers and names as people read them."""

import doctest

import pytest

from mountfs.cli import examine, show


@pytest.mark.parametrize("module", [show, examine])
def test_the_examples_in_the_docstrings_hold(module: object) -> None:
    tried = doctest.testmod(module)  # type: ignore[arg-type]
    assert tried.attempted
    assert not tried.failed


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (1023, "1,023 B"), (1024, "1 KiB"), (1 << 62, "4 EiB"), (1 << 70, "1,024 EiB")],
)
def test_sizes(count: int, said: str) -> None:
    assert show.size(count) == said


def test_a_name_that_is_not_text_can_be_printed() -> None:
    name = show.name("tab\there \udcff é")
    assert name.isprintable()
    assert name.encode()
