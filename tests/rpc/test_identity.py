"""Who a certificate says somebody is."""

import pytest

from mountfs.rpc.identity import Identity, identify


def subject(text: bytes) -> dict[str, list[bytes]]:
    return {"x509_subject": [text]}


@pytest.mark.parametrize(
    ("text", "identity"),
    [
        (b"CN=n1,OU=node,O=blue", ("node", "blue", "n1")),
        (b"OU=node,O=blue,CN=\\ n 1\\ ", ("node", "blue", " n 1 ")),
        (b"CN=a\\,OU\\=node\\+OU=node,OU=client,O=blue", ("client", "blue", "a,OU=node+OU=node")),
        (b"CN=\\C3\\A9\\\\\\22,OU=client", ("client", "", 'é\\"')),
        (b"CN=n1+OU=node,O=blue", ("node", "blue", "n1")),
        (b"", ("", "", "")),
        (b"CN=n1\\", ("", "", "n1")),
    ],
)
def test_a_subject_is_taken_apart(text, identity):
    assert identify(subject(text)) == Identity(*identity)


def test_who_is_two_things_is_none_of_them():
    assert identify(subject(b"OU=node,OU=client,O=blue,CN=x")) == Identity("", "blue", "x")


def test_without_tls_nobody_is_known():
    assert identify({"security_level": [b"TSI_SECURITY_NONE"]}) is None
