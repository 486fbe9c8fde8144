"""A node in a process of its own: prints its address, and answers `ADMIN` until it is killed.

echo_node.py [ADDRESS]
"""

import sys
from collections.abc import AsyncIterator

import trio
from rpc_rig import ADMIN, ANYWHERE, CLUSTER

from mountfs.rpc.server import Call, open_server


async def echo(body: bytes, call: Call) -> bytes:
    return body


async def begin(body: bytes, call: Call) -> AsyncIterator[bytes]:
    """One piece, and never another one."""
    yield b"begun"
    await trio.sleep_forever()


async def main(address: str = ANYWHERE) -> None:
    async with open_server(address, CLUSTER) as server:
        server.register(ADMIN, "Echo", echo)
        server.register_source(ADMIN, "Begin", begin)
        print(server.address, flush=True)
        await trio.sleep_forever()


trio.run(main, *sys.argv[1:])
