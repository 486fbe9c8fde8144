"""Machines come, move and go."""

from typing import Any

import pytest

from mountfs.errors import Fault, FsError
from mountfs.meta.client import address_of
from mountfs.meta.ops.nodes import (
    CHUNK,
    META,
    AddNode,
    DrainNode,
    LeaveNode,
    MoveNode,
    NodeRecord,
    Nodes,
    RemoveNode,
)


def add(machine: Any, name: str, disk: str | None = None) -> NodeRecord:
    found: NodeRecord = machine.do(
        AddNode(name, f"{name}:1", f"{name}:2", disk or f"disk of {name}", ("meta",)), session=0
    )
    return found


def by_name(machine: Any) -> dict[str, NodeRecord]:
    return {node.name: node for node in machine.ask(Nodes())}


def test_the_same_disk_is_the_same_node_and_a_number_is_given_once(machine: Any) -> None:
    first = add(machine, "a")
    assert add(machine, "other name", "disk of a") == first
    assert add(machine, "b").number == first.number + 1
    machine.do(RemoveNode(first.number), session=0)
    assert add(machine, "a").number == first.number + 2


def test_names_and_places_belong_to_one_node(machine: Any, fails: Any) -> None:
    add(machine, "a")
    for command in (
        AddNode("a", "x:1", "x:2", "another disk", ()),
        AddNode("b", "a:1", "x:2", "another disk", ()),
        AddNode("b", "x:1", "a:1", "another disk", ()),
    ):
        with fails(Fault.EXISTS):
            machine.do(command, session=0)


def test_a_node_that_moves_while_it_leaves_goes_on_leaving(machine: Any) -> None:
    node = add(machine, "a")
    machine.do(LeaveNode(node.number), session=0)
    machine.do(MoveNode(node.number, "a", "y:1", "y:2", node.disk, node.roles), session=0)
    assert by_name(machine)["a"].leaving
    assert by_name(machine)["a"].rpc == "y:1"


def test_a_node_is_drained_and_stays(machine: Any, fails: Any) -> None:
    node = add(machine, "a")
    machine.do(DrainNode(node.number, True), session=0)
    machine.do(MoveNode(node.number, "a", "y:1", "y:2", node.disk, node.roles), session=0)
    drained = by_name(machine)["a"]
    assert (drained.draining, drained.is_emptied, drained.leaving) == (True, True, False)
    machine.do(DrainNode(node.number, False), session=0)
    assert not by_name(machine)["a"].is_emptied
    with fails(Fault.NOT_FOUND):
        machine.do(DrainNode(99, True), session=0)


def test_one_that_is_lost_stays_so(machine: Any) -> None:
    node = add(machine, "a")
    machine.do(LeaveNode(node.number, lost=True), session=0)
    machine.do(LeaveNode(node.number), session=0)
    assert by_name(machine)["a"].lost


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb"])
def test_names_can_be_shown(name: str) -> None:
    for command in (AddNode(name, "", "", "", ()), MoveNode(2, name, "", "", "", ())):
        with pytest.raises(FsError) as caught:
            command.check()
        assert caught.value.fault is Fault.INVALID


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("h:1", ("h", 1)),
        ("[::1]:65535", ("::1", 65_535)),
        ("h", None),
        ("h:", None),
        ("h:-1", None),
        ("h:65536", None),
        ("h:²", None),
        ("", None),
    ],
)
def test_a_place_that_nobody_can_connect_to_is_none(text: str, found: Any) -> None:
    assert address_of(text) == found


def test_a_node_says_where_it_is_and_what_it_does(machine: Any) -> None:
    machine.do(AddNode("a", "a:1", "a:2", "disk", (CHUNK,), "/r1/a"), session=0)
    found = by_name(machine)["a"]
    assert (found.location, found.has_metadata) == ("/r1/a", False)
    machine.do(MoveNode(found.number, "a", "a:1", "a:2", "disk", (META, CHUNK), "/r2/a"), session=0)
    found = by_name(machine)["a"]
    assert (found.location, found.has_metadata) == ("/r2/a", True)


@pytest.mark.parametrize(
    "location",
    ["rack/host", "/", "/a/", "/a//b", "/a\n", "/a/b/c/d/e/f/g/h/i", "/" + "x" * 200],
)
def test_what_is_no_location(location: str) -> None:
    for command in (
        AddNode("a", "", "", "", (), location),
        MoveNode(2, "a", "", "", "", (), location),
    ):
        with pytest.raises(FsError) as caught:
            command.check()
        assert caught.value.fault is Fault.INVALID


@pytest.mark.parametrize(
    "location", ["/a", "/rack-1/host-1", "/" + "/".join("abcdefgh"), "/" + "x" * 199]
)
def test_what_is_a_location(location: str) -> None:
    AddNode("a", "", "", "", (), location).check()
