"""The real cores in one process, under one seed: a network that loses and delays, disks that
forget, clocks that drift, servers that crash, and checkers that look after every step.

Everything that happens is an event of one `World`, ordered by simulated time; every choice comes
from sources of randomness that its seed makes.  So the same seed gives the same run, to the last
byte of its trace, and a run that fails can be looked at as often as needed.

`scenario.py` puts a run together: servers (`server.py`, with `disk.py`, `store.py`) on a network,
which agree on registers (`register.py`, `workload.py`) or on the metadata (`metadata.py`,
`metaserver.py`) for mounts (`mount.py`, `work.py`); `faults.py` and `operator.py` are what happens
to them; `checks.py`, `promises.py` and `history.py` with `models.py` judge
(`counterexample.py` shows why).

Mounts that keep what they read (`leased_mount.py`) have leases from who leads (`leasing.py`).

Bytes are with chunkservers (`chunkserver.py`), written and read by mounts over connections
(`bytes_mount.py`, `bytes_work.py`, `chunks.py`, `wires.py`), and seen to by who leads
(`leading.py`); `bytes_faults.py` is what happens to them, and `ledger.py` judges.  A run of a form
is in `form.py`, `register_run.py`, `file_run.py` or `bytes_run.py`.
"""
