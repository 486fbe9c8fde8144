"""How far the nodes of a cluster are from this machine."""

import ipaddress
import socket
from collections.abc import Mapping, Sequence
from typing import Final

from mountfs.meta.client import address_of
from mountfs.meta.ops.nodes import NodeRecord
from mountfs.meta.placement import rack_of

HERE, NEAR, FAR = 0, 1, 2


class Near:
    """`rack`: where this machine is, as a node's location says it without its last part.  Empty:
    where a node on this machine is, if there is one.
    """

    def __init__(self, rack: str = "") -> None:
        self._rack = rack_of(f"{rack}/any")
        self._nodes: Sequence[NodeRecord] = ()
        self._found: Mapping[int, int] = {}

    def of(self, nodes: Sequence[NodeRecord]) -> Mapping[int, int]:
        """Node -> HERE (on this machine), NEAR (in its rack), or FAR."""
        if nodes is not self._nodes:
            self._nodes, self._found = nodes, self._look(nodes)
        return self._found

    def _look(self, nodes: Sequence[NodeRecord]) -> dict[int, int]:
        here = {node.number for node in nodes if _is_here(node.door)}
        rack = self._rack or next((_rack(node) for node in nodes if node.number in here), "")
        return {
            node.number: HERE
            if node.number in here
            else NEAR
            if rack and _rack(node) == rack
            else FAR
            for node in nodes
        }


def _rack(node: NodeRecord) -> str:
    return rack_of(node.location)


def _is_here(door: str) -> bool:
    """Whether one of this machine's addresses is meant: one can listen there."""
    address = address_of(door)
    if address is None:
        return False
    host = address[0]
    if host in _KNOWN:
        return _KNOWN[host]
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:  # a name; asking for its address could take long
        return host in ("localhost", socket.gethostname())
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            found = False
        else:
            found = True
    if len(_KNOWN) > _KNOWN_MAX:
        _KNOWN.clear()
    _KNOWN[host] = found
    return found


_KNOWN: Final[dict[str, bool]] = {}
_KNOWN_MAX: Final = 10_000
