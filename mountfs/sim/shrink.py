"""A failing run, made as short as it can be: fewer faults, less time, and it still fails."""

from collections.abc import Callable, Sequence

import msgspec

from mountfs.sim.checks import Broken
from mountfs.sim.faults import Fault
from mountfs.sim.scenario import Result, run
from mountfs.sim.world import S

TRIES_MAX = 80


class Failure(msgspec.Struct, frozen=True):
    """One run that broke a rule, and all that is needed to see it again."""

    seed: int
    kind: str
    seconds: int
    without: tuple[int, ...]
    rule: str
    detail: str
    at: int
    """When, in microseconds of the run."""
    faults: tuple[Fault, ...]
    """Those that had happened by then."""

    @property
    def command(self) -> str:
        left_out = ",".join(map(str, self.without))
        without = f" --without {left_out}" if left_out else ""
        return (
            f"mountfs sim --seed {self.seed} --kind {self.kind} --seconds {self.seconds}{without}"
        )


def attempt(
    seed: int, kind: str, seconds: int, without: frozenset[int] = frozenset()
) -> Result | Failure:
    """Whatever goes wrong in it is a failure: an assertion of the product too."""
    one = run(seed, kind=kind, seconds=seconds, without=without)
    try:
        return one.run()
    except Exception as error:
        broken = isinstance(error, Broken)
        return Failure(
            seed,
            one.kind,
            seconds,
            tuple(sorted(without)),
            error.rule if isinstance(error, Broken) else "assertion",
            str(error) if broken else f"{type(error).__name__}: {error}",
            one.world.now,
            tuple(one.happened),
        )


def shrink(
    failure: Failure, tries_max: int = TRIES_MAX, tell: Callable[[Failure], None] = lambda one: None
) -> Failure:
    """The shortest that was found, for breaking the same rule; `tell` is told of each step."""
    tries = 0

    def try_(seconds: int, without: Sequence[int]) -> Failure | None:
        nonlocal tries
        if tries >= tries_max:
            return None
        tries += 1
        found = attempt(failure.seed, failure.kind, seconds, frozenset(without))
        if isinstance(found, Failure) and found.rule == failure.rule:
            tell(found)
            return found
        return None

    best = _shorter(failure, try_)
    best = _fewer(best, try_)
    return _shorter(best, try_)


Try = Callable[[int, Sequence[int]], Failure | None]


def _shorter(best: Failure, try_: Try) -> Failure:
    """Less time for faults: until just after the last one, or the half."""
    last = max((fault.at for fault in best.faults), default=0)
    for seconds in sorted({last // S + 1, best.at // S + 1, best.seconds // 2, 1}):
        if 0 < seconds < best.seconds:
            found = try_(seconds, best.without)
            if found is not None:
                return found
    return best


def _fewer(best: Failure, try_: Try) -> Failure:
    """Leave out faults, many at once as long as that goes well (delta debugging)."""
    parts = 1
    while best.faults:
        numbers = [fault.number for fault in best.faults]
        size = -(-len(numbers) // parts)
        for start in range(0, len(numbers), size):
            found = try_(best.seconds, [*best.without, *numbers[start : start + size]])
            if found is not None:
                best, parts = found, max(parts - 1, 1)
                break
        else:
            if size == 1:
                break
            parts = min(parts * 2, len(numbers))
    return best
