"""Homes of format 1, which had a log of commands without groups: brought to format 2 at the first
mount.

At every moment of it a crash leaves a home of format 1 that is brought further by the next mount,
or one of format 2: the store says whether it has taken in all of the old log.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from mountfs.errors import Fault, FsError
from mountfs.kv.base import Store
from mountfs.kv.journal import Journal
from mountfs.meta.local import create_alone
from mountfs.meta.replica import Replica
from mountfs.meta.state_machine import Entry, decode_entry
from mountfs.raft.storage import Storage
from mountfs.types import LogIndex

DONE = 2
"""`Counters.format` of a state that has taken in all of the old log."""


def bring_to_format_2(
    store: Store, journal: Journal, *, bytes_present: Callable[[Entry], bool], cut_path: Path
) -> None:
    """Afterwards format.json may say 2."""
    replica = Replica(store)
    counters = replica.machine.tree.counters
    if counters.format < DONE:
        if journal.last_index == 0 and counters.applied == 0 and not replica.is_formatted:
            return  # nothing was ever stored in it
        if not replica.is_formatted:
            raise FsError(
                Fault.BAD_HOME,
                "the metadata has a log but no root directory: its tables are missing; restore "
                "the home from a backup",
            )
        _replay(replica, journal, bytes_present, cut_path)
        if counters.applied == 0:
            replica.machine.skip(1)  # as if a command had made the root directory
        counters.format = DONE
        rows = replica.machine.freeze()
        journal.sync()
        store.write(rows, sync=True)
    journal.restart(journal.last_index)
    create_alone(Storage(journal), LogIndex(counters.applied))


def _replay(
    replica: Replica, journal: Journal, bytes_present: Callable[[Entry], bool], cut_path: Path
) -> None:
    """As format 1 did (docs/formats.md)."""
    machine = replica.machine
    records = list(journal.replay(machine.applied))
    for number, (index, record) in enumerate(records):
        entry = decode_entry(record)
        if index > journal.durable_before and not bytes_present(entry):
            left = [record for _, record in records[number:]]
            cut_path.write_bytes(msgspec.msgpack.encode((index, left)))
            return
        with suppress(FsError):
            machine.apply(
                index, entry.session, entry.sequence, entry.answered, entry.time, entry.command
            )
