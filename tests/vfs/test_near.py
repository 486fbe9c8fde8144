"""How far nodes are."""

import socket

import pytest

from mountfs.meta.ops.nodes import NodeRecord
from mountfs.vfs.near import FAR, HERE, NEAR, Near


def node(number: int, host: str, location: str = "") -> NodeRecord:
    return NodeRecord(number, f"n{number}", "", f"{host}:7000", 0, "", ("chunk",), False, location)


OTHER = "192.0.2.1"
"""Nobody has it: it is for documents."""


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", socket.gethostname()])
def test_a_node_at_an_address_of_this_machine_is_here(host: str) -> None:
    assert Near().of([node(1, host), node(2, OTHER)]) == {1: HERE, 2: FAR}


@pytest.mark.parametrize("host", [OTHER, "elsewhere.example", "[2001:db8::1]", ""])
def test_others_are_not(host: str) -> None:
    assert Near().of([node(1, host)]) == {1: FAR}


def test_a_door_that_is_none_is_far_away() -> None:
    broken = NodeRecord(1, "n1", "", "nowhere", 0, "", ("chunk",))
    assert Near().of([broken]) == {1: FAR}


def test_who_is_in_the_rack_of_this_machine_is_near() -> None:
    nodes = [
        node(1, "127.0.0.1", "/r1/a"),
        node(2, OTHER, "/r1/b"),
        node(3, OTHER, "r1/c"),  # the same, said in another way
        node(4, OTHER, "/r2/a"),
        node(5, OTHER, "/r1"),
        node(6, OTHER),
    ]
    found = Near().of(nodes)
    assert found == {1: HERE, 2: NEAR, 3: NEAR, 4: FAR, 5: FAR, 6: FAR}
    assert Near("r2").of(nodes) == {1: HERE, 2: FAR, 3: FAR, 4: NEAR, 5: FAR, 6: FAR}
    assert Near("/r2/").of(nodes[3:4]) == {4: NEAR}


def test_without_racks_nobody_is_near() -> None:
    assert Near().of([node(1, "127.0.0.1", "/a"), node(2, OTHER, "/b")]) == {1: HERE, 2: FAR}


def test_it_looks_again_when_there_are_other_nodes() -> None:
    near = Near()
    nodes = [node(1, "127.0.0.1")]
    assert near.of(nodes) is near.of(nodes)
    assert near.of([*nodes, node(2, OTHER)]) == {1: HERE, 2: FAR}
