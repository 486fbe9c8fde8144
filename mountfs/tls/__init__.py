"""Who is who in a cluster: a private authority, and a certificate for each node and client.

Theory.  A cluster has an authority of its own (`authority.py`), and trusts no other.  A certificate
says three things in its subject: which cluster (O), what kind (OU: `node` or `client`) and which
name (CN).  A connection is good if both sides have shown a certificate of that authority, of the
same cluster; whoever calls a node also wants a certificate that is good for the name
`<cluster id>.mountfs`, which only nodes have.  Addresses are not part of it: a machine may change
its address and keep its certificate.

Contract.  `wire/` and `rpc/` take an `Identity` (`identity.py`), or, to follow renewed files
without a restart, an `Identities` (`reload.py`).  They call `peer_of` once a connection stands, and
turn a handshake that failed into a sentence with `refused` (`refusals.py`).  `store.py` is the
other end: the directory from which `mountfs pki` hands out certificates.

Private keys are in files that only their owner may read, and in no message, log or exception.
"""
