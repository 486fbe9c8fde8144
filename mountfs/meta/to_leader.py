"""How a node reaches whoever leads with what it has to report: by the group that it is a server of,
or, where it has no metadata, by asking as a client does.
"""

from typing import Final

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.meta.admin import SERVICE
from mountfs.meta.client import Router
from mountfs.meta.hearing import Told
from mountfs.meta.ops.nodes import NodeRecord
from mountfs.meta.reports import Report, ReportReply
from mountfs.meta.server import MetaServer
from mountfs.rpc.client import Client
from mountfs.wire.stream import Client as Link

SEND_S: Final = 1.0
SILENT: Final = (Fault.NOT_LEADER, Fault.UNAVAILABLE, Fault.TIMED_OUT)


class ByGroup:
    """A server of the group of the metadata knows who leads; if it does itself, there is no way."""

    def __init__(self, meta: MetaServer, client: Client) -> None:
        self._meta = meta
        self._client = client

    async def find(self) -> str:
        group = self._meta.group
        if not group.leader:
            raise FsError(Fault.NOT_LEADER, "no node is known to lead")
        return f"node {group.leader} in term {group.raft.term}"

    async def report(self, report: Report) -> ReportReply:
        meta = self._meta
        if meta.group.is_leader:
            meta.group.require_leader()
            return meta.hearing.take(report)
        record = meta.service.node_of(meta.group.leader)
        if record is None:
            raise FsError(Fault.NOT_LEADER, "nobody says where the node is that leads")
        return await _send(self._client, record, Told(meta.place.disk, report))


class ByAsking:
    """`disk` names the home of this node."""

    def __init__(self, router: Router, client: Client, disk: str) -> None:
        self._router = router
        self._client = client
        self._disk = disk
        self._link: Link | None = None

    async def find(self) -> str:
        self._link = await self._router.leader()
        return f"node {self._router.leader_number}"

    async def report(self, report: Report) -> ReportReply:
        record = self._router.leader_record
        if record is None or self._link is None:
            raise FsError(Fault.NOT_LEADER, "nobody says where the node is that leads")
        try:
            return await _send(self._client, record, Told(self._disk, report))
        except FsError as error:
            if error.fault in SILENT:
                self._router.forget(self._link)
            raise


async def _send(client: Client, leader: NodeRecord, told: Told) -> ReportReply:
    body = msgspec.msgpack.encode(told)
    answer = await client.call(leader.rpc, SERVICE, "Report", body, deadline_s=SEND_S)
    try:
        return msgspec.msgpack.decode(answer, type=ReportReply)
    except msgspec.MsgspecError as error:
        raise FsError(
            Fault.DEVICE, f"what node {leader.name} answers to a report makes no sense: {error}"
        ) from None
