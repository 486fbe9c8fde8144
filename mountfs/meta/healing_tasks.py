"""What is to be done so that volumes have the copies that they should have.  No I/O.

Each task is one small step of one volume, and right by itself: whoever carries them out may stop at
any time, lose them all, and ask for a new plan.  `before` is how the record stood when the task was
made: `SetReplicas` refuses a task that comes too late.  `why` is for people.
"""

import msgspec

from mountfs.types import VolumeId


class _Task(msgspec.Struct, frozen=True, kw_only=True):
    volume: VolumeId
    why: str

    @property
    def nodes(self) -> tuple[int, ...]:
        """Who has work with it."""
        raise NotImplementedError

    @property
    def moves_bytes(self) -> bool:
        """It may take long.  Others are a few messages."""
        return False


class Seal(_Task, frozen=True, kw_only=True):
    """SealVolume, then SEAL to all of `to`.  Done when all of them have answered."""

    to: tuple[int, ...]

    @property
    def nodes(self) -> tuple[int, ...]:
        return self.to


class CopyVolume(_Task, frozen=True, kw_only=True):
    """COPY to `target` until it has all; then SetReplicas, if they differ."""

    source: int
    target: int
    replacing: int
    """The replica whose place it takes; 0: none.  If it has bytes they stay, until `Remove`."""
    before: tuple[int, ...]
    replicas: tuple[int, ...]
    copies: int
    bytes: int
    """About as much is to be copied."""

    @property
    def nodes(self) -> tuple[int, ...]:
        return (self.source, self.target)

    @property
    def moves_bytes(self) -> bool:
        return True


class Reconcile(_Task, frozen=True, kw_only=True):
    """COPY to each of `among` from each other: all of them have what one of them has."""

    among: tuple[int, ...]

    @property
    def nodes(self) -> tuple[int, ...]:
        return self.among

    @property
    def moves_bytes(self) -> bool:
        return True


class Repair(_Task, frozen=True, kw_only=True):
    """COPY the damaged slices to `node` from the first of `sources` that has them whole.  What
    `node` has is not given up for it.
    """

    node: int
    sources: tuple[int, ...]

    @property
    def nodes(self) -> tuple[int, ...]:
        return (self.node, self.sources[0])

    @property
    def moves_bytes(self) -> bool:
        return True


class Shrink(_Task, frozen=True, kw_only=True):
    """SetReplicas without `node`.  If it has bytes they stay, until `Remove`."""

    node: int
    before: tuple[int, ...]
    replicas: tuple[int, ...]
    copies: int

    @property
    def nodes(self) -> tuple[int, ...]:
        return ()


class Remove(_Task, frozen=True, kw_only=True):
    """DROP to `strays`, whose copies no record names: after each of `replicas` was seen to have
    every slice that is in use (UsedSlices, LIST), and had got what it lacked from them (COPY).

    Without a record there are no replicas: nothing may be in use, or the task has failed.
    """

    strays: tuple[int, ...]
    replicas: tuple[int, ...] = ()

    @property
    def nodes(self) -> tuple[int, ...]:
        return self.strays


class Rescue(_Task, frozen=True, kw_only=True):
    """No replica is left, but `node` has a copy, which may lack something.  When it has got from
    the `others`, which have copies too, what it lacks or has damaged (COPY), and then has every
    slice that is in use (UsedSlices, LIST): SetReplicas; else the task has failed.
    """

    node: int
    others: tuple[int, ...]
    before: tuple[int, ...]
    replicas: tuple[int, ...]
    copies: int

    @property
    def nodes(self) -> tuple[int, ...]:
        return (self.node,)


class Adopt(_Task, frozen=True, kw_only=True):
    """AdoptVolume: `node` made it when it was alone."""

    node: int
    copies: int

    @property
    def nodes(self) -> tuple[int, ...]:
        return (self.node,)


Task = Seal | CopyVolume | Reconcile | Repair | Shrink | Remove | Rescue | Adopt
