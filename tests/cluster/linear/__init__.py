"""Whether several mounts are one filesystem: programs work on the same few things through all of
them, and what they saw must be what one filesystem could have answered, one call after the other.

    python -m tests.cluster.linear --mounts /mnt/a /mnt/b --seconds 20

`scenes.py` and `names.py`, `files.py`, `locks.py` say what is done; `worker.py` does it, a process
for each worker, and keeps a book (`book.py`); `run.py` prepares a directory, starts workers and
cleans up; `judge.py` reads the books and asks `mountfs.sim.history` about each object.

Time is cut into rounds, each in a directory of its own that is prepared before: so histories are
many and short, and a mistake in one does not hide those in others.
"""
