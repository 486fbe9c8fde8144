"""The limits of the healer.  Times in milliseconds of the clock that it is told."""

import msgspec


class HealingConfig(msgspec.Struct, frozen=True, kw_only=True):
    copies_max: int = 16
    """Tasks that move bytes, at once."""
    copies_per_node_max: int = 2
    """Of those, how many a node is source or target of."""
    orders_max: int = 32
    """Other tasks, at once."""
    looked_max: int = 2_000
    """Volumes that are looked at in one go: all of them in turn."""
    tried_max: int = 100
    """Volumes with something wrong for which a task is sought in one go."""

    settle_ms: int = 10_000
    """A difference between record and report that is younger may be one of time."""
    differ_ms: int = 30_000
    """So long copies may say different things: deletions reach them one after the other."""
    open_short_ms: int = 60_000
    """So long an open volume may be short of copies, or in the wrong places, before it is sealed
    for that: whoever avoids a node for a while is not to get a new volume every second.
    """
    repair_ms: int = 600_000
    """A copy that is damaged for longer does not count any more: another node is to have one."""
    forgotten_ms: int = 600_000
    """A volume without a record is kept for so long."""

    rest_ms: int = 3_000
    """A volume is left alone after a task: reports are to tell what has become of it."""
    retry_ms: int = 10_000
    """Twice that after the second failure, and so on."""
    retry_max_ms: int = 600_000
    adopt_copies: int = 3
    names_max: int = 100
    """Volumes, tasks and reasons that are named in `Health`."""
