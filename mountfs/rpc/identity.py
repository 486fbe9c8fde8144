"""Who is at the other end, by the certificate: OU says what it is, O of which cluster, CN its name.

Nothing here checks a signature: TLS has done it before anybody asks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

NODE = "node"
CLIENT = "client"


class Pems(NamedTuple):
    """A certificate, its key and the authority that others' certificates must come from, as PEM."""

    authority: bytes
    certificate: bytes
    key: bytes


Credentials = Callable[[], Pems]
"""Asked for each new connection, from any thread; must neither wait nor raise.  A certificate is
renewed by returning another one: connections that are there stay.
"""


class Identity(NamedTuple):
    kind: str
    cluster: str
    name: str


def target_name(cluster: str) -> str:
    """The name for which every node's certificate is made out, whatever its address is."""
    return f"{cluster}.mountfs"


def identify(auth_context: Mapping[str, Sequence[bytes]]) -> Identity | None:
    """None: the connection is not encrypted."""
    subject = auth_context.get("x509_subject")
    if not subject:
        return None
    fields: dict[str, str] = {}
    for kind, value in _attributes(subject[0]):
        # Who is two things is none of them.
        fields[kind] = "" if kind in fields else value
    return Identity(fields.get("OU", ""), fields.get("O", ""), fields.get("CN", ""))


_HEX = b"0123456789ABCDEFabcdef"


def _attributes(subject: bytes) -> Iterator[tuple[str, str]]:
    """The parts of a name as RFC 2253 writes it: `CN=a\\,b,OU=node`.

    What is escaped is part of a value: a name must not be able to claim an attribute.
    """
    part = bytearray()
    position = 0
    while position < len(subject):
        char = subject[position : position + 1]
        pair = subject[position + 1 : position + 3]
        if char == b"\\" and len(pair) == 2 and all(digit in _HEX for digit in pair):
            part += bytes.fromhex(pair.decode())
            position += 3
        elif char == b"\\":
            part += pair[:1]
            position += 2
        elif char in b",+":
            yield _attribute(part)
            part.clear()
            position += 1
        else:
            part += char
            position += 1
    yield _attribute(part)


def _attribute(part: bytearray) -> tuple[str, str]:
    kind, _, value = part.decode("utf-8", "replace").partition("=")
    return kind, value
