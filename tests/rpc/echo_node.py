"""A node in a process of its own: prints its address, and sends back what it gets.

echo_node.py NUMBER PEER_NUMBER PEER_ADDRESS [ADDRESS]
"""

import sys

import trio
from rpc_rig import ANYWHERE, CLUSTER

from mountfs.rpc.peers import Peers, open_peers
from mountfs.rpc.server import open_server


async def main(number: int, peer: int, peer_address: str, address: str = ANYWHERE) -> None:
    peers: Peers

    def received(node: int, bodies: list[bytes]) -> None:
        for body in bodies:
            peers.send(node, body)

    async with (
        open_server(address, CLUSTER) as server,
        open_peers(number, server, received, lambda _: None) as peers,
    ):
        if peer:
            peers.set_peers({peer: peer_address})
        print(server.address, flush=True)
        await trio.sleep_forever()


trio.run(main, int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
