"""gRPC as Trio sees it: what is rare between servers, and what outsiders may call.

Bodies are bytes; nothing here knows Raft or files.  grpcio works in threads of its own, and a body
changes over to Trio by `run_sync_soon` (docs/decisions has the figures).

`server` answers calls on the one port of a node, `client` makes them; what is asked or what is
answered may be a stream of pieces.  `bridge` is the seam between threads and Trio; `faults`,
`health` and `identity` are the cores: what is in a status, a health check, a certificate.  Messages
of Raft, which are many and may be lost, take another way: `raft.links`.

A process may fork before its first server or client is made, and not after: gRPC's threads are not
there in the child.
"""

import os

# What goes wrong is told by statuses.  Without this, gRPC's core writes lines of its own to stderr
# for each connection that fails.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
