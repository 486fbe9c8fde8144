"""Whose reports a leader takes in, and whom it has heard of lately."""

from typing import Any

import pytest

from mountfs.errors import Fault, FsError
from mountfs.meta.hearing import LATELY_MS, Hearing, Told, require_sender
from mountfs.meta.ops.nodes import NodeRecord
from mountfs.meta.reports import Report, ReportReply
from mountfs.rpc.identity import NODE, Identity

NODES = [NodeRecord(number, f"n{number}", "", "", 0, f"d{number}", ("chunk",)) for number in (1, 2)]


def report(node: int) -> Report:
    return Report(node, 1, (), ())


def shows(name: str) -> Identity:
    return Identity(NODE, "ab", name)


@pytest.mark.parametrize("identity", [None, shows("n1"), shows("a name that no node has")])
def test_a_node_is_believed(identity: Identity | None) -> None:
    require_sender(Told("d1", report(1)), NODES, identity)


@pytest.mark.parametrize(
    ("told", "identity", "fault", "says"),
    [
        (Told("d3", report(3)), None, Fault.NOT_FOUND, "there is no node 3"),
        (Told("d2", report(1)), None, Fault.DENIED, "another disk"),
        (Told("d1", report(1)), shows("n2"), Fault.DENIED, "the certificate of node n2"),
    ],
)
def test_who_is_somebody_else_is_not(told: Told, identity: Any, fault: Fault, says: str) -> None:
    with pytest.raises(FsError, match=says) as caught:
        require_sender(told, NODES, identity)
    assert caught.value.fault is fault


def test_a_node_is_heard_of_for_a_while() -> None:
    now = 10_000
    hearing = Hearing(lambda: now)
    assert not hearing.has_heard(1)
    hearing.on_report = lambda report: ReportReply(report.node == 1)
    assert hearing.take(report(1)) == ReportReply(True)
    assert hearing.has_heard(1)
    assert not hearing.has_heard(2)
    now += LATELY_MS
    assert not hearing.has_heard(1)
