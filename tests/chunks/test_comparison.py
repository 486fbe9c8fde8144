"""What a node has, against what is in use."""

from hypothesis import given
from hypothesis import strategies as st

from mountfs.chunks.comparison import LAST, compare, is_ordered
from mountfs.types import SliceId

Sizes = dict[SliceId, int]
sizes = st.dictionaries(st.integers(1, 60).map(SliceId), st.integers(1, 2), max_size=40)


def in_pages(there: Sizes, used: Sizes, limit: int, closed: SliceId) -> tuple[list[SliceId], ...]:
    found: tuple[list[SliceId], ...] = ([], [], [])
    after = SliceId(0)
    while after != LAST:
        listed = [one for one in sorted(there.items()) if one[0] > after][:limit]
        wanted = [(name, size, 0) for name, size in sorted(used.items()) if name > after][:limit]
        compared = compare(listed, wanted, limit, closed)
        assert compared.upto > after
        for kind, more in zip(found, compared[1:], strict=True):
            kind += more  # type: ignore[operator]
        after = compared.upto
    return found


@given(sizes, sizes, st.integers(1, 9), st.integers(0, 70).map(SliceId))
def test_pages_say_what_the_whole_says(
    there: Sizes, used: Sizes, limit: int, closed: SliceId
) -> None:
    orphans, missing, wrong = in_pages(there, used, limit, closed)
    assert orphans == sorted(name for name in there if name not in used and name < closed)
    assert missing == sorted(name for name in used.keys() - there.keys() if name < closed)
    both = used.keys() & there.keys()
    assert wrong == sorted(name for name in both if used[name] != there[name] and name < closed)


def test_an_answer_is_ascending_and_comes_behind_what_was_asked_for() -> None:
    one, two = (SliceId(1), 5), (SliceId(2), 5)
    assert is_ordered([one, two], SliceId(0))
    assert is_ordered([], SliceId(9))
    assert not is_ordered([two, one], SliceId(0))
    assert not is_ordered([one, one], SliceId(0))
    assert not is_ordered([one], SliceId(1))
