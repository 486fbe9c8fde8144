"""Who may talk to whom, and what is said to the others."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountfs.rpc.handshake import PROTOCOL, PROTOCOL_MIN, Hello, refusal, trouble

HELLO = Hello("blue", 1, 2)


@given(st.builds(Hello, st.text("abc-0", min_size=1), *[st.integers(0, 1 << 40) for _ in range(4)]))
def test_a_hello_survives_the_metadata(hello):
    assert Hello.from_metadata(dict(hello.to_metadata())) == hello


@pytest.mark.parametrize("field", ["cluster", "source", "target", "protocol", "protocol-min"])
def test_a_hello_that_lacks_something_is_none(field):
    metadata = dict(HELLO.to_metadata())
    del metadata[f"mountfs-{field}"]
    assert Hello.from_metadata(metadata) is None


def test_a_hello_with_something_else_for_a_number_is_none():
    assert Hello.from_metadata({**dict(HELLO.to_metadata()), "mountfs-source": "x"}) is None


def test_who_fits_is_not_refused():
    assert refusal(HELLO, "blue", 2) == ""
    newer = msgspec.structs.replace(HELLO, protocol=PROTOCOL + 1)
    assert refusal(newer, "blue", 2) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cluster": "red"}, "node 1 of cluster red talks to node 2 of another cluster, blue"),
        ({"target": 3}, "node 1 looks for node 3 where node 2 is"),
        ({"source": 2}, "two nodes with the number 2"),
        ({"protocol": PROTOCOL_MIN - 1}, "upgrade node 1"),
        ({"protocol_min": PROTOCOL + 1, "protocol": PROTOCOL + 1}, "upgrade node 2"),
    ],
)
def test_who_does_not_fit_hears_why(change, words):
    assert words in refusal(msgspec.structs.replace(HELLO, **change), "blue", 2)


def test_who_says_nothing_is_refused():
    assert "does not say" in refusal(None, "blue", 2)


@pytest.mark.parametrize(
    ("code", "details", "refused", "lasting"),
    [
        ("PERMISSION_DENIED", "wrong cluster", True, True),
        ("UNIMPLEMENTED", "Method not found!", False, True),
        ("UNAVAILABLE", "Ssl: CERTIFICATE_VERIFY_FAILED: ...", False, True),
        ("UNAVAILABLE", "Connection refused", False, False),
        ("UNAVAILABLE", "", False, False),
    ],
)
def test_only_what_somebody_must_change_is_lasting(code, details, refused, lasting):
    found = trouble(code, details, refused=refused, node=2, address="h:1")
    assert found.lasting is lasting
    assert found.sentence == details if refused else "node 2 at h:1" in found.sentence
