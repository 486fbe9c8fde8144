"""Frames on Trio streams: what clients and servers say to each other where speed counts.

A connection carries many calls at once, each of which can be cancelled; the server can ask back
(a *push*).  Bodies are bytes, and this package knows nothing of files.

- `frames`: the bytes on the wire.
- `connection`: the state of one connection, without I/O.
- `transport`: sockets and TLS, without waiting.
- `stream`: one connection in Trio, and `connect`, which gives a `Client`.
- `service`: the side that listens.

What is promised: a call that returns has been answered, an `FsError` is the answer of the peer or
says why nothing was sent, and `Disconnected` means that nobody knows (unless it says that nothing
was sent).
"""
