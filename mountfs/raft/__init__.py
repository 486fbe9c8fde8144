"""Raft: a log that a majority agrees on, as a core without I/O.

A `Raft` (`core.py`) is told what happened (the clock, a message, a proposal, what is on disk by
now) and says what to do about it (`Ready`: what to save, send and apply).  It never waits, knows no
clock but the one it is told, and rolls no dice but those it is given: the same inputs give the same
outputs, which is what `sim/` relies on.

The rules are those of the paper ("In Search of an Understandable Consensus Algorithm", extended
version; sections are quoted as "paper 5.4.2") and of Ongaro's dissertation ("thesis 6.4"), cut by
concern: `election` (who leads), `replication` (the log gets the same everywhere), `membership` (who
counts), `reads` (what may be answered without the log), `rest` (when nothing needs to be said).
They work on one `State`, whose log is `log`; `quorum` counts and `progress` remembers what is known
of a peer.
"""
