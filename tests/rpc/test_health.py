"""The messages of the standard health service, byte by byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountfs.errors import Fault, FsError
from mountfs.rpc.health import Serving, decode_request, encode_response


@pytest.mark.parametrize(
    ("body", "service"),
    [
        (b"", ""),
        (b"\x0a\x00", ""),
        (b"\x0a\x0dmountfs.Admin", "mountfs.Admin"),
        (b"\x0a\xac\x02" + b"s" * 300, "s" * 300),  # the length takes two bytes
        (b"\x0a\x01a\x0a\x01b", "b"),  # of a field that comes twice the last counts
        (b"\x10\x96\x01\x0a\x01b", "b"),  # fields that we do not know: a varint,
        (b"\x11" + bytes(8) + b"\x0a\x01b", "b"),  # eight bytes,
        (b"\x15" + bytes(4) + b"\x0a\x01b", "b"),  # four bytes,
        (b"\x1a\x03abc\x0a\x01b", "b"),  # a string
    ],
)
def test_a_request_is_understood(body, service):
    assert decode_request(body) == service


@pytest.mark.parametrize(
    "body",
    [b"\x0a", b"\x0a\x05ab", b"\x0a\x01\xff", b"\x0b", b"\xff" * 11, b"\x11abc", b"\x0a\xff"],
)
def test_a_malformed_request_is_refused(body):
    with pytest.raises(FsError) as caught:
        decode_request(body)
    assert caught.value.fault is Fault.INVALID


@given(st.binary(max_size=30))
def test_any_bytes_are_a_request_or_are_refused(body):
    try:
        assert isinstance(decode_request(body), str)
    except FsError as error:
        assert error.fault is Fault.INVALID


def test_the_response_has_the_status():
    assert encode_response(Serving.UNKNOWN) == b""
    assert encode_response(Serving.SERVING) == b"\x08\x01"
    assert encode_response(Serving.NOT_SERVING) == b"\x08\x02"
