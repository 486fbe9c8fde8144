"""Several messages in one: each is preceded by its length, 4 bytes, the most significant first.

What a gRPC message costs hardly depends on its size, so those that wait travel together.
"""

from collections.abc import Sequence

from mountfs.errors import Fault, FsError

LENGTH_BYTES = 4


def join(bodies: Sequence[bytes]) -> bytes:
    """
    >>> join([b"ab", b""])
    b'\\x00\\x00\\x00\\x02ab\\x00\\x00\\x00\\x00'
    """
    return b"".join(
        part for body in bodies for part in (len(body).to_bytes(LENGTH_BYTES, "big"), body)
    )


def split(joined: bytes) -> list[bytes]:
    """
    >>> split(join([b"ab", b"", b"c"]))
    [b'ab', b'', b'c']
    """
    bodies = []
    position = 0
    while position < len(joined):
        start = position + LENGTH_BYTES
        position = start + int.from_bytes(joined[start - LENGTH_BYTES : start], "big")
        if position > len(joined) or start > len(joined):
            raise FsError(Fault.CORRUPT, "a message from another node ends too early")
        bodies.append(joined[start:position])
    return bodies
