"""How a stream of messages begins: who we are, whom we mean, which protocol we speak."""

from collections.abc import Mapping

import msgspec

PROTOCOL = 1
PROTOCOL_MIN = 1
"""The versions that this code speaks: from `PROTOCOL_MIN` to `PROTOCOL`."""

_PREFIX = "mountfs-"


class Hello(msgspec.Struct, frozen=True):
    """What a sender says, and what the receiver says when it agrees."""

    cluster: str
    source: int
    """The node that says this."""
    target: int
    protocol: int = PROTOCOL
    protocol_min: int = PROTOCOL_MIN

    def to_metadata(self) -> tuple[tuple[str, str], ...]:
        return tuple((_PREFIX + key.replace("_", "-"), str(value)) for key, value in _fields(self))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str | bytes]) -> "Hello | None":
        """None: there is none."""
        found = {
            field: metadata.get(_PREFIX + field.replace("_", "-"))
            for field in cls.__struct_fields__
        }
        try:
            return msgspec.convert(found, cls, strict=False)
        except msgspec.ValidationError:
            return None


def _fields(hello: Hello) -> list[tuple[str, object]]:
    return [(field, getattr(hello, field)) for field in hello.__struct_fields__]


def refusal(theirs: Hello | None, cluster: str, node: int) -> str:
    """Why node `node` of `cluster` does not talk to who says this; empty if it does."""
    if theirs is None:
        return f"what calls node {node} of cluster {cluster} does not say which node it is"
    if theirs.cluster != cluster:
        return (
            f"node {theirs.source} of cluster {theirs.cluster} talks to node {node} of another "
            f"cluster, {cluster}"
        )
    if theirs.target != node:
        return (
            f"node {theirs.source} looks for node {theirs.target} where node {node} is: "
            f"the address that it has for node {theirs.target} is wrong"
        )
    if theirs.source == node:
        return f"there are two nodes with the number {node}"
    if theirs.protocol < PROTOCOL_MIN:
        return (
            f"node {theirs.source} speaks protocol {theirs.protocol}, and node {node} needs at "
            f"least {PROTOCOL_MIN}: upgrade node {theirs.source}"
        )
    if theirs.protocol_min > PROTOCOL:
        return (
            f"node {theirs.source} needs protocol {theirs.protocol_min}, and node {node} speaks "
            f"at most {PROTOCOL}: upgrade node {node}"
        )
    return ""


class Trouble(msgspec.Struct, frozen=True):
    sentence: str
    lasting: bool
    """Nothing gets better by trying again soon: somebody has to change something."""


_LASTING = {
    "certificate has expired": "its certificate has expired",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not from our authority",
    "Hostname Verification": "its certificate is not made out for a node of our cluster",
    "not in peer certificate": "its certificate is not made out for a node of our cluster",
    "WRONG_VERSION_NUMBER": "it does not speak TLS, and we do",
}
"""What gRPC says when a connection fails, and what it means."""
_CLOSED = "Socket closed"


def trouble(code: str, details: str, *, refused: bool, node: int, address: str) -> Trouble:
    """What the end of a stream to `node` means.  `refused`: a node has refused us, by `details`."""
    if refused:
        return Trouble(details, lasting=True)
    where = f"node {node} at {address}"
    if code == "UNIMPLEMENTED":
        return Trouble(f"{where}: what answers there is no metaserver", lasting=True)
    for sign, sentence in _LASTING.items():
        if sign in details:
            return Trouble(f"{where}: {sentence}", lasting=True)
    if _CLOSED in details:
        # All that gRPC lets us know when the other side does not like our certificate.
        sentence = "it closes the connection; if it keeps doing so, it refuses our certificate"
        return Trouble(f"{where}: {sentence}, or wants one", lasting=False)
    return Trouble(f"{where} does not answer: {details or code}", lasting=False)
