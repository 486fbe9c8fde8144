"""Messages that travel together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountfs.errors import Fault, FsError
from mountfs.rpc.joined import join, split


@given(st.lists(st.binary(max_size=40)))
def test_what_was_joined_is_split_again(bodies):
    assert split(join(bodies)) == bodies


@given(st.lists(st.binary(max_size=10), min_size=1), st.data())
def test_a_message_that_was_cut_is_refused_or_is_whole_bodies(bodies, data):
    joined = join(bodies)
    cut = joined[: data.draw(st.integers(0, len(joined) - 1))]
    try:
        found = split(cut)
    except FsError as error:
        assert error.fault is Fault.CORRUPT
    else:
        assert found == bodies[: len(found)]
        assert join(found) == cut


@pytest.mark.parametrize("joined", [b"\0", b"\0\0\0\1", b"\xff\xff\xff\xffabc"])
def test_a_length_that_does_not_fit_is_refused(joined):
    with pytest.raises(FsError) as caught:
        split(joined)
    assert caught.value.fault is Fault.CORRUPT
