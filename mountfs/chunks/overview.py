"""How the bytes of a cluster are, as its leader sees it: for `mountfs health`, and for figures."""

import msgspec

from mountfs.chunks.balancer import Balancing
from mountfs.chunks.leading import Leading
from mountfs.meta.chunkservers import COPIES
from mountfs.meta.diagnosis import Member
from mountfs.meta.fleet import NodeView
from mountfs.meta.health import Health
from mountfs.meta.ops.nodes import NodeRecord
from mountfs.meta.possible import possible
from mountfs.meta.server import MetaServer


class Place(msgspec.Struct, frozen=True):
    """A node that keeps slices."""

    number: int
    name: str
    location: str
    leaving: bool
    draining: bool
    lost: bool
    volumes_left: int | None
    """To be taken elsewhere, if it is emptied; None: nobody knows yet, or it is not."""
    view: NodeView


class Overview(msgspec.Struct, frozen=True):
    volumes: Health
    nodes: tuple[Place, ...]
    copies_wanted: int
    copies_possible: int
    lacking: str
    """What is to be added for as many copies as are wanted; "": nothing."""
    risk: str
    """What takes all copies at once if it fails; "": nothing that is known of."""
    grace_ms: int
    """A node that is silent for longer counts as lost."""
    repairs_done: int
    repairs_failed: int
    """Since this node leads."""
    balancing: Balancing


def look(server: MetaServer, leading: Leading) -> Overview:
    """To be called where the node leads."""
    chunkservers = server.chunkservers
    nodes = chunkservers.nodes()
    now = server.node.now()
    can = possible([Member(one.number, one.location, one.is_emptied) for one in nodes], COPIES)
    repairs = leading.repairs
    return Overview(
        volumes=repairs.healer.health(),
        nodes=tuple(
            _place(
                one,
                chunkservers.kept_by(one.number) if one.is_emptied else None,
                chunkservers.fleet.view(one.number, now),
            )
            for one in nodes
        ),
        copies_wanted=COPIES,
        copies_possible=can.copies,
        lacking=can.lacking,
        risk=can.risk,
        grace_ms=chunkservers.fleet.config.grace_ms,
        repairs_done=repairs.done,
        repairs_failed=repairs.failed,
        balancing=msgspec.structs.replace(leading.balancer.state),
    )


def _place(record: NodeRecord, left: int | None, view: NodeView) -> Place:
    return Place(
        number=record.number,
        name=record.name,
        location=record.location,
        leaving=record.leaving,
        draining=record.draining,
        lost=record.lost,
        volumes_left=left,
        view=view,
    )
