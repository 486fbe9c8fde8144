"""gRPC as Trio sees it: what servers say to each other, and what outsiders may call.

Bodies are bytes; nothing here knows Raft or files.  grpcio works in threads of its own, and a body
changes over to Trio by `run_sync_soon`, once for all that wait (docs/decisions has the figures).

`server` answers calls on the one port of a node, `client` makes them, and `peers` holds one stream
to each other node that only carries messages: a message may be lost, never doubled or overtaken
while a stream lives.  `bridge` is the seam between threads and Trio; `joined`, `faults`, `health`
and `identity` are the cores: what is in a message, a status, a certificate.

A process may fork before its first server or client is made, and not after: gRPC's threads are not
there in the child.
"""

import os

# What goes wrong is told by statuses and by `Peers.problems`.  Without this, gRPC's core writes
# lines of its own to stderr for each connection that fails.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
