"""How many copies a cluster can give, and what it lacks to give as many as are wanted.  No I/O."""

from collections.abc import Collection
from typing import NamedTuple

from mountfs.meta.diagnosis import Member
from mountfs.meta.placement import host_of, rack_of


class Possible(NamedTuple):
    copies: int
    """On as many hosts, if all nodes that stay are there."""
    lacking: str
    """What is to be added for the copies that are wanted, in a sentence; "": nothing."""
    risk: str
    """What takes all copies at once if it fails, in a sentence; "": nothing that is known of."""


def possible(members: Collection[Member], wanted: int) -> Possible:
    staying = [one for one in members if not one.draining]
    hosts = {host_of(one.node, one.location) for one in staying}
    racks = {rack_of(one.location) for one in staying}
    copies = min(wanted, len(hosts))
    risk = ""
    if len(hosts) > 1 and len(racks) == 1:
        where = min(racks) or "they do not say where they are"
        risk = (
            f"all nodes are in one rack ({where}): if that fails, all copies are gone with it.  If "
            "they are not, start them with --location"
        )
    return Possible(copies, _lacking(len(staying), len(hosts), wanted), risk)


def _lacking(nodes: int, hosts: int, wanted: int) -> str:
    if hosts >= wanted:
        return ""
    there = f"{nodes} node{'' if nodes == 1 else 's'}"
    if nodes > hosts:
        there += f" on {hosts} host{'' if hosts == 1 else 's'}"
    missing = wanted - hosts
    cure = f"add {missing} on {'another host' if missing == 1 else 'other hosts'}"
    if nodes >= wanted:
        cure += ", or start those that are on hosts of their own with another --location"
    return f"{wanted} copies are wanted, and {there} can keep slices: {cure}"
